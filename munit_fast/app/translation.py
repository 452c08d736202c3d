"""What the page computes, without Gradio: pictures in, translations out, style codes and their files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, autocast
from munit_fast.data import ImageError, decode_image, make_grid, resize_short_side, to_model_range
from munit_fast.data.configured import pixel_format
from munit_fast.data.picture import at_most
from munit_fast.models import pretrained
from munit_fast.models.munit import MUNIT, UNIT, Direction
from munit_fast.translate import random_styles, style_path
from munit_fast.utils.text import read_bounded

DIRECTIONS: tuple[Direction, ...] = ("a2b", "b2a")
# What the domains of bundled models show; of another model nothing is known.
_DOMAINS = {"openmoji-lines2color": ("lines", "colour")}
SLIDER_RANGE = 3.0  # a standard normal number lies outside in one of 370 cases
SLIDER_STEP = 0.01
SEEDS = 2**32  # seeds are 0 to SEEDS - 1
STYLE_FORMAT = "munit-fast style"
MAX_STYLE_FILE_BYTES = 2**20
_MAX_CODE = 1e4  # of a style file: what no encoder gives


class UserError(ValueError):
    """The user of the page asked for something that is not possible. The message is one sentence for the page."""


@dataclass(frozen=True)
class Limits:
    """What one user of the page may ask for.

    Attributes:
        upload_bytes: Size of an uploaded file.
        pixels: Pixels of an uploaded picture.
        translated_pixels: Pixels of a picture that is translated, after resizing.
        styles: Random styles at once.
        frames: Frames of an animation.
        queue: Requests that wait; one is computed at a time.
        folder_bytes: All files of the page together; beyond it, nothing is taken or computed until old
            files are deleted.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 2**26
    translated_pixels: int = 2**20
    styles: int = 12
    frames: int = 49
    queue: int = 16
    folder_bytes: int = 2**30


@dataclass(frozen=True, eq=False)
class Style:
    """A style of the page.

    Attributes:
        code: [style_dim], float32 on the CPU.
        seed: The seed that it was drawn with; None: it is no random style.
    """

    code: Tensor
    seed: int | None = None

    @property
    def title(self) -> str:
        """What the page calls it."""
        return "your style" if self.seed is None else f"seed {self.seed}"


class Translator:
    """A model with what the page asks of it.

    Args:
        model: In evaluation mode, on its device.
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it.
        limits: What a request may ask for.
        name: What to call the model; by default the name of its file.

    Raises:
        ValueError: A domain of the model has neither 1 nor 3 channels, so that a page cannot show its images.

    Attributes:
        name: What the model is called, in style files too.
        domains: What domains A and B show.
        style_dim: Numbers of a style code; 0 for UNIT, which has no styles.
    """

    def __init__(
        self, model: MUNIT | UNIT, *, amp: str = "off", limits: Limits | None = None, name: str | None = None
    ) -> None:
        for domain in ("a", "b"):
            channels = getattr(model.config, f"input_dim_{domain}")
            if channels not in (1, 3):
                raise ValueError(
                    f"a page shows pictures of 1 or 3 channels, and this model has input_dim_{domain}: {channels}; "
                    "use munit-fast translate --format npy, or tif"
                )
        self.model, self.limits = model, limits or Limits()
        self._device = next(model.parameters()).device
        self._dtype = amp_dtype(amp, self._device, Workload.of(model.config, 1, training=False))
        bundled = _bundled_name(model)
        self.name = name or bundled or (model.loaded.stem if model.loaded else model.trainer)
        self.domains = _DOMAINS.get(bundled or "", ("A", "B"))
        self.style_dim = model.config.gen.style_dim if isinstance(model, MUNIT) else 0

    def read(self, path: str | Path, domain: Literal["a", "b"], *, native: bool = False) -> Tensor:
        """Read a picture as `translate` reads files; of several in a file, the first.

        Args:
            path: The file.
            domain: The domain that it is taken for.
            native: Keep its size instead of the configuration's.

        Returns:
            [C, H, W] in [-1, 1], on the CPU.

        Raises:
            UserError: It cannot be read, or has too many pixels.
        """
        path, config = Path(path), self.model.config
        try:
            with at_most(self.limits.pixels):
                array = decode_image(path, pixel_format(config, domain))
        except ImageError as error:
            # The page shows no path of the server.
            raise UserError(str(error).replace(str(path), path.name)) from None
        short = min(array.shape[:2])
        side = None if native else config.short_side(domain)
        scale = 1.0 if side is None else side / short
        pixels = array.shape[0] * array.shape[1] * scale**2
        if pixels > self.limits.translated_pixels:
            advice = "choose the model's size" if native else "cut it to a less narrow one"
            raise UserError(
                f"{path.name}: {pixels:.0f} pixels are to be translated, and at most {self.limits.translated_pixels} "
                f"can be; {advice}"
            )
        if side is not None:
            array = resize_short_side(array, side)
        return to_model_range(array)

    def read_drawing(self, path: str | Path, domain: Literal["a", "b"], *, native: bool = False) -> Tensor:
        """Read a drawing: `read`, on white paper.

        Raises:
            UserError: Nothing is drawn, or as in `read`.
        """
        image = self.read(path, domain, native=native)
        if bool((image == image[:, :1, :1]).all()):
            raise UserError("the drawing is empty: draw some lines first")
        return image

    def random_style(self, seed: int) -> Style:
        """The style that `munit-fast translate --seed SEED --num_style 1` draws for a single picture."""
        return Style(random_styles(seed, 1, self.style_dim, 0)[0], seed)

    def random_styles(self, seed: int, count: int) -> list[Style]:
        """The styles of the seeds seed, seed + 1, …, seed + count - 1.

        Raises:
            UserError: The seed or the count is out of range.
        """
        if not 1 <= count <= self.limits.styles:
            raise UserError(f"{count} styles: choose 1 to {self.limits.styles}")
        if not 0 <= seed <= SEEDS - count:
            raise UserError(f"seed {seed}: choose a whole number of 0 to {SEEDS - count}")
        return [self.random_style(seed + i) for i in range(count)]

    def style_of(self, path: str | Path, direction: Direction) -> Style:
        """The style of an example picture of the target domain.

        Raises:
            UserError: The picture cannot be read.
        """
        domain: Literal["a", "b"] = "b" if direction == "a2b" else "a"
        image = self.read(path, domain)[None].to(self._device)
        assert isinstance(self.model, MUNIT)
        with autocast(self._dtype, self._device):
            return Style(self.model.encode_style(image, domain)[0].float().cpu())

    def load_style(self, path: str | Path) -> StyleFile:
        """Read a file of `style_json`. A seed that does not give the numbers of the file is left out.

        Raises:
            UserError: It is another file, damaged, or of a model with other styles.
        """
        file = read_style(path, self.style_dim)
        seed = file.style.seed
        if seed is not None and not torch.allclose(self.random_style(seed).code, file.style.code):
            return replace(file, style=Style(file.style.code))
        return file

    def translate(self, image: Tensor, direction: Direction, styles: Sequence[Style] = ()) -> Tensor:
        """Translate one picture into several styles.

        Args:
            image: [C, H, W] of `read`.
            direction: "a2b" or "b2a".
            styles: For each style a translation; a UNIT model takes none and gives one translation.

        Returns:
            [S, C', H, W] in [-1, 1], float32 on the CPU.

        Raises:
            UserError: The model gives NaN or infinite values.
        """
        x = image[None].to(self._device)
        with autocast(self._dtype, self._device):
            if isinstance(self.model, UNIT):
                found = self.model.translate(x, direction)[0].cpu()
            else:
                # As many at once as have no more pixels than one picture may have.
                step = max(1, self.limits.translated_pixels // (image.shape[1] * image.shape[2]))
                codes = torch.stack([style.code for style in styles]).split(step)
                found = torch.cat([self.model.translate(x, direction, style=part)[0].cpu() for part in codes])
        if not bool(torch.isfinite(found).all()):
            raise UserError("the model gives numbers that are not finite for this picture")
        return found.float()

    def animate(
        self, image: Tensor, direction: Direction, styles: Sequence[Style], frames: int = 24
    ) -> list[Image.Image]:
        """Interpolate linearly between two styles.

        Args:
            image: [C, H, W] of `read`.
            direction: "a2b" or "b2a".
            styles: The first and the last.
            frames: How many pictures, both ends among them, at least 2.

        Returns:
            The pictures; the first and the last are the translations in the styles themselves.

        Raises:
            UserError: There are too many or too few frames.
        """
        if not 2 <= frames <= self.limits.frames:
            raise UserError(f"{frames} frames: choose 2 to {self.limits.frames}")
        codes = style_path(torch.stack([style.code for style in styles]), frames - 1)
        pictures = self.translate(image, direction, [Style(code) for code in codes])
        return [to_picture(picture) for picture in pictures]


def _bundled_name(model: MUNIT | UNIT) -> str | None:
    path = model.loaded
    if path is None or path.stem not in pretrained.names() or path != pretrained.locate(path.stem):
        return None
    return path.stem


def new_seed() -> int:
    """A seed that is easy to write down."""
    return random.randrange(10**6)


def to_picture(image: Tensor) -> Image.Image:
    """[C, H, W] in [-1, 1] as the 8-bit picture that `munit_fast.data.save_image` writes."""
    values = image.add(1).div(2).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))


def grid_picture(image: Tensor, translations: Tensor, columns: int = 4) -> Image.Image:
    """The picture and its translations as one, in rows of `columns`.

    Args:
        image: [C, H, W] in [-1, 1].
        translations: [S, C', H, W] in [-1, 1].
        columns: How many in a row.
    """
    cells = [x.expand(3, -1, -1) for x in (image, *translations)]
    return to_picture(make_grid([torch.stack(cells[i : i + columns]) for i in range(0, len(cells), columns)]))


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def animation_bytes(frames: Sequence[Image.Image], seconds: float = 2.0) -> bytes:
    """There and back again, without end, as a WebP file.

    Args:
        frames: At least two pictures of one size.
        seconds: How long one way takes.
    """
    there_and_back = [*frames, *frames[-2:0:-1]]
    buffer = BytesIO()
    there_and_back[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=there_and_back[1:],
        duration=round(1000 * seconds / len(frames)),
        loop=0,
        quality=90,
    )
    return buffer.getvalue()


# -- style codes as sliders and as files


def to_sliders(code: Tensor) -> list[float]:
    """What the sliders show of a code [style_dim]: two decimals, within their range."""
    return [min(max(round(value, 2), -SLIDER_RANGE), SLIDER_RANGE) for value in code.tolist()]


def from_sliders(values: Sequence[float], style: Style) -> Style:
    """The style after a slider was moved: a number whose slider still shows it keeps its decimals.

    Args:
        values: What the sliders show now.
        style: The style before.

    Returns:
        The style itself where no slider was moved, else a new one, without a seed.

    Raises:
        UserError: A value is not finite or outside the sliders.
    """
    if len(values) != len(style.code):
        raise UserError(f"{len(values)} numbers for a style of {len(style.code)}")
    if not all(isinstance(v, (int, float)) and abs(v) <= SLIDER_RANGE for v in values):
        raise UserError(f"the numbers of a style go from {-SLIDER_RANGE:g} to {SLIDER_RANGE:g} here")
    shown = to_sliders(style.code)
    moved = [abs(new - old) > SLIDER_STEP / 2 for new, old in zip(values, shown)]
    if not any(moved):
        return style
    code = [new if changed else old for new, changed, old in zip(values, moved, style.code.tolist())]
    return Style(torch.tensor(code, dtype=torch.float32))


def style_json(style: Style, direction: Direction, name: str) -> str:
    """A style as a file that `read_style` reads: its numbers, seed, direction and model."""
    values = {
        "format": STYLE_FORMAT,
        "model": name,
        "direction": direction,
        "seed": style.seed,
        "code": style.code.tolist(),
    }
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


@dataclass(frozen=True)
class StyleFile:
    """What a style file holds: the style, the direction and the name of the model that it is of."""

    style: Style
    direction: Direction
    model: str


def read_style(path: str | Path, style_dim: int) -> StyleFile:
    """Read a file of `style_json`.

    Args:
        path: The file; it may be anything.
        style_dim: Numbers of a code of this model.

    Raises:
        UserError: It is another file, damaged, or of a model with other styles.
    """
    path = Path(path)
    try:
        values = json.loads(read_bounded(path, MAX_STYLE_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path.name}: not a style file; take one that this page saved") from None
    if not isinstance(values, dict) or values.get("format") != STYLE_FORMAT:
        raise UserError(f"{path.name}: not a style file; take one that this page saved")
    code, seed, direction, model = (values.get(key) for key in ("code", "seed", "direction", "model"))
    if not isinstance(code, list) or len(code) != style_dim:
        raise UserError(f"{path.name}: the styles of this model have {style_dim} numbers; the file is of another model")
    if not all(type(v) in (int, float) and abs(v) <= _MAX_CODE for v in code):  # nor NaN
        raise UserError(f"{path.name}: the numbers of the style must be finite, of at most {_MAX_CODE:g}")
    if direction not in DIRECTIONS:
        raise UserError(f"{path.name}: the direction must be a2b or b2a")
    if seed is not None and (type(seed) is not int or not 0 <= seed < SEEDS):
        raise UserError(f"{path.name}: the seed must be a whole number of 0 to {SEEDS - 1}")
    name = model[:100] if isinstance(model, str) else "another model"
    return StyleFile(Style(torch.tensor(code, dtype=torch.float32), seed), direction, name)
