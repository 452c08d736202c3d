"""What a translation of files is asked for, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from munit_fast.config import Config

if TYPE_CHECKING:  # not for running: an exported model needs no networks
    from munit_fast.models.munit import Direction

MAX_WORKERS = 64


class Translator(Protocol):
    """What `translate_files` asks of a model, which is `mf.MUNIT`, `mf.UNIT` or `munit_fast.export.OnnxModel`."""

    @property
    def trainer(self) -> str:
        """ "MUNIT" or "UNIT"."""

    @property
    def config(self) -> Config:
        """The configuration of the networks."""

    @property
    def device(self) -> torch.device:
        """The device of what goes in."""

    @property
    def translate(self) -> Callable[..., Tensor]:
        """Images [N, C, H, W], a direction, and for MUNIT style=[N, S, style_dim], to images [N, S, C', H, W]."""


@dataclass
class TranslateOptions:
    """How to translate files.

    Attributes:
        direction: "a2b" or "b2a".
        num_style: Random styles for each image.
        style: An example image whose style is taken, or a folder of them, instead of random styles.
        interpolate: Steps from each style to the next; the interpolated styles take the place of the styles.
        synchronized: Take the same random styles for every image.
        grid: A file for one picture of all: a row for each input and its translations.
        output_only: Do not write the inputs beside the translations.
        native_size: Keep each image's own size instead of the configuration's new_size.
        seed: Seed of the random styles.
        batch_size: Images that are translated at once, if they have one size.
        extension: Format of the files that are written, a key of `munit_fast.data.writers.FORMATS`.
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it.
        workers: Threads that read images, and as many that write them, while the networks work. The files do not
            depend on it.
        mean_style: Take the average of the examples' styles, one style for all images.
    """

    direction: Direction = "a2b"
    num_style: int = 10
    style: Path | None = None
    interpolate: int | None = None
    synchronized: bool = False
    grid: Path | None = None
    output_only: bool = False
    native_size: bool = False
    seed: int = 10
    batch_size: int = 8
    extension: str = "png"
    amp: str = "off"
    workers: int = 2
    mean_style: bool = False


@dataclass
class TranslateResult:
    """What `translate_files` did.

    Attributes:
        written: The files that were written.
        failures: A message for each image that could not be read, and for a grid that was not written.
        done_before: Images that an earlier run with the same options had finished.
        total: Images that fell to this process.
    """

    written: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done_before: int = 0
    total: int = 0
