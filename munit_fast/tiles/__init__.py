"""Translation of images larger than memory, tile by tile, with the statistics of the whole image."""

from munit_fast.tiles.options import TileOptions, TileResult
from munit_fast.tiles.run import translate_slide
from munit_fast.tiles.styles import mean_style, slide_style

__all__ = ["TileOptions", "TileResult", "mean_style", "slide_style", "translate_slide"]
