"""Translation of image files: what `munit-fast translate` runs.

`files` does it: it reads (`inputs`), translates (`styles`) and writes (`names`, `munit_fast.data.writers`) at the same
time (`pipeline`), shares a set with other processes (`shards`) and remembers what is finished (`journal`). `slides`
does it for images that are larger than memory.
"""

from munit_fast.models.styles import random_styles
from munit_fast.translate.files import translate_files
from munit_fast.translate.options import TranslateOptions, TranslateResult, Translator
from munit_fast.translate.shards import Shard, add_up
from munit_fast.translate.slides import translate_slides
from munit_fast.translate.styles import style_path

__all__ = [
    "Shard",
    "TranslateOptions",
    "TranslateResult",
    "Translator",
    "add_up",
    "random_styles",
    "style_path",
    "translate_files",
    "translate_slides",
]
