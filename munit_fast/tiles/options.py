"""What `translate_slide` takes and gives, and all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from munit_fast.utils.version import __version__

if TYPE_CHECKING:
    from munit_fast.models.munit import MUNIT, UNIT, Direction

SUFFIXES = (".tif", ".tiff")
LEAST_TILE = 16


@dataclass
class TileOptions:
    """How to translate in tiles.

    Attributes:
        direction: "a2b" or "b2a".
        tile: Side of a tile in pixels, at least 16. Memory grows with its square.
        statistics: Of the norms. "sampled": of `samples` windows of the image, by one pass over it; "exact": of the
            whole image, as if it were not cut into tiles, by a pass for each norm.
        samples: Windows of side `tile` for "sampled". An image that has no more tiles than that is done exactly.
        level: Of a pyramid; 0 is the largest.
        disk: Bytes that features may take on the disk of the output; None: 80 % of what is free there. What does not
            fit is computed again, which takes longer.
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it; "exact" takes "off" and "auto", which is off.
    """

    direction: Direction = "a2b"
    tile: int = 512
    statistics: Literal["sampled", "exact"] = "sampled"
    samples: int = 64
    level: int = 0
    disk: int | None = None
    amp: str = "off"


@dataclass
class TileResult:
    """What `translate_slide` did.

    Attributes:
        path: The file.
        size: Its height and width.
        statistics: "sampled" or "exact": an image with few tiles is done exactly.
        disk: The most bytes of features that were planned to be on the disk at once.
        resumed: Whether an interrupted job was continued.
        notes: Sentences for the user.
    """

    path: Path
    size: tuple[int, int]
    statistics: str
    disk: int = 0
    resumed: bool = False
    notes: list[str] = field(default_factory=list)


def check_options(model: MUNIT | UNIT, source: Path, output: Path, options: TileOptions, style: Tensor | None) -> None:
    """Raise ValueError where an option does not fit the model or the files."""
    if options.direction not in ("a2b", "b2a"):
        raise ValueError(f"direction must be 'a2b' or 'b2a'; got {options.direction!r}")
    if options.tile < LEAST_TILE:
        raise ValueError(f"--tile must be at least {LEAST_TILE} pixels; got {options.tile}")
    if options.statistics not in ("sampled", "exact"):
        raise ValueError(f"--tile_statistics must be sampled or exact; got {options.statistics!r}")
    if options.samples < 1:
        raise ValueError(f"--tile_samples must be at least 1; got {options.samples}")
    if options.level < 0:
        raise ValueError(f"--level must be at least 0; got {options.level}")
    if options.disk is not None and options.disk < 0:
        raise ValueError(f"--tile_disk must be at least 0; got {options.disk}")
    if options.statistics == "exact" and options.amp not in ("off", "auto"):
        raise ValueError(f"--tile_statistics exact needs full precision; leave out --amp {options.amp}")
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{output}: large images are written as {' or '.join(SUFFIXES)}")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{output} is the input and would be overwritten; choose another name")
    dim = model.config.gen.style_dim
    if model.trainer == "UNIT":
        if style is not None:
            raise ValueError("style must be left out: UNIT has no style codes")
    elif style is None or style.numel() != dim or style.dim() > 2:
        given = None if style is None else list(style.shape)
        raise ValueError(f"style must be a code [{dim}] or [1, {dim}]; got {given}")
    elif not bool(torch.isfinite(style).all()):
        raise ValueError("style must be finite; it holds NaN or infinite values")


def identity_of(model: MUNIT | UNIT, source: Path, options: TileOptions, style: Tensor | None) -> dict[str, Any]:
    """All that the result depends on, by the names that a message gives."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    configuration = json.dumps(model.config.hyperparameters(), sort_keys=True, default=str)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    status = source.stat()
    return {
        "version": [__version__, torch.__version__],
        "model": [kind, model.trainer, digest.hexdigest(), str(next(model.parameters()).dtype), model.device.type],
        "input": [str(source.resolve()), status.st_size, status.st_mtime_ns],
        "style": None if style is None else style.detach().double().cpu().flatten().tolist(),
        "configuration": hashlib.sha256(configuration.encode()).hexdigest(),
        "direction": options.direction,
        "--tile": options.tile,
        "--tile_statistics": options.statistics,
        "--tile_samples": options.samples if options.statistics == "sampled" else None,
        "--level": options.level,
        "--tile_disk": options.disk,
        "--amp": options.amp,
    }
