"""The torch library that the operators are registered in."""

from torch.library import Library

# Kept for the life of the process: dropping it would unregister the operators.
LIBRARY = Library("munit_fast", "DEF")
