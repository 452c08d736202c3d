"""Models that translate images (MUNIT, UNIT), their networks, and the pretrained models that come with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from munit_fast.models.munit import MUNIT, UNIT, from_pretrained

__all__ = ["MUNIT", "UNIT", "from_pretrained"]


def __getattr__(name: str) -> Any:
    # When it is used: the networks are imported from here too, and need nothing that reads configurations.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from munit_fast.models import munit

    return getattr(munit, name)
