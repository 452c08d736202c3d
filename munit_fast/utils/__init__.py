"""What every layer may use: environment variables, the version, text. Imports nothing else of munit_fast."""
