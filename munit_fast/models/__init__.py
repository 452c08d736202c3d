"""Models that translate images (MUNIT, UNIT), their networks, and the pretrained models that come with the package."""

from munit_fast.models.munit import MUNIT, UNIT, from_pretrained

__all__ = ["MUNIT", "UNIT", "from_pretrained"]
