"""Packaging lives in pyproject.toml; this file is where native kernels are built."""

from setuptools import setup

setup()
