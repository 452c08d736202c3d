"""The version of the package, and that of torch which it needs."""

__version__ = "0.1.0"

OLDEST_TORCH = (2, 11)


def check_torch(installed: str) -> None:
    """Raise ImportError, with both versions, if torch is older than what munit-fast needs."""
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdecimal())
    if len(numbers) == 2 and numbers < OLDEST_TORCH:
        raise ImportError(
            f"munit-fast {__version__} needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, and torch {installed} "
            "is installed: pip install --upgrade torch"
        )
