"""`python -m munit_fast` is `munit-fast`."""

from munit_fast.cli import main

main()
