"""Helpers that any module may import: environment, optional packages, text, version. Imports nothing of munit_fast."""
