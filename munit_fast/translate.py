"""Translation of image files: what `munit-fast translate` runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, autocast
from munit_fast.config import Config
from munit_fast.data import (
    ImageError,
    decode_image,
    list_images,
    make_grid,
    resize_short_side,
    save_image,
    to_model_range,
)
from munit_fast.data.configured import pixel_format
from munit_fast.data.images import SAVED_FORMATS
from munit_fast.io.atomic import write_error
from munit_fast.utils.cudnn import tuned_convolutions
from munit_fast.utils.text import safe_name

if TYPE_CHECKING:  # not for running: an exported model needs no networks
    from munit_fast.models.munit import Direction

MAX_TUNED_SIZES = 4  # of batches; a folder that has more may have a new one in every batch
MAX_GRID_ROWS = 100  # of --grid: it is made in memory
MAX_GRID_PIXELS = 100_000_000  # more than that many programs refuse to open


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
        extension: Format of the files that are written, such as "png".
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it.
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


@dataclass
class TranslateResult:
    """What `translate_files` did.

    Attributes:
        written: The files that were written.
        failures: A message for each image that could not be read, and for a grid that was not written.
    """

    written: list[Path]
    failures: list[str]


def translate_files(
    model: Translator,
    source: Path,
    output_folder: Path,
    options: TranslateOptions,
    progress: Callable[[int, int], None] | None = None,
) -> TranslateResult:
    """Translate an image or every image below a folder.

    One image gives output000.png, output001.png, … (one per style) and input.png. A folder gives, for a/b.jpg,
    a/b_000.png, a/b_001.png, … and a/b_input.png. A grid shows the first MAX_GRID_ROWS of them. Each image's random
    styles are a function of the seed and of the image's place in the sorted folder, not of batches. An unreadable image
    of a folder is reported and left out, and so is a grid of more than MAX_GRID_PIXELS. Files are written atomically,
    but not flushed to the disk: they can be made again.

    Args:
        model: The model, in evaluation mode; its device is used.
        source: An image or a folder of images.
        output_folder: Where the translations go; made where it is missing.
        options: How to translate.
        progress: Called after each batch with the images done and the images in all.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: An option does not fit the model or the files.
        ImageError: The input, the example style or every image of a folder cannot be read.
        FileWriteError: A file cannot be written.
    """
    options = replace(options, extension=options.extension.lower())
    if f".{options.extension}" not in SAVED_FORMATS:
        known = ", ".join(name[1:] for name in SAVED_FORMATS)
        raise ValueError(f"--format must be one of {known}; got {options.extension!r}")
    if options.grid is not None and options.grid.suffix.lower() not in SAVED_FORMATS:
        raise ValueError(f"--grid {options.grid}: the name must end in one of {', '.join(SAVED_FORMATS)}")
    paths = (
        [p for p in list_images(source) if not _is_inside(p, output_folder, source)] if source.is_dir() else [source]
    )
    if not paths:
        raise ImageError(f"{source}: every image there is inside --output_folder; choose another")
    names = _output_names(paths, source)
    device = model.device
    precision = amp_dtype(options.amp, device, Workload.of(model.config, 1, training=False))
    with autocast(precision, device):
        styles = _Styles(model, options, len(paths))
    _protect_inputs(paths, names, output_folder, options, styles.count)
    result = TranslateResult([], [])
    rows: list[Tensor] = []
    sizes: set[torch.Size] = set()
    done = 0
    for batch in _batches(paths, model, options, result.failures):
        indices, images = [i for i, _ in batch], torch.stack([x for _, x in batch])
        sizes.add(images.shape)
        with tuned_convolutions(device, len(sizes) <= MAX_TUNED_SIZES), autocast(precision, device):
            outputs = styles.translate(images, indices)
        for i, image, translations in zip(indices, images, outputs):
            result.written += _write(output_folder, names[i], image, translations, options)
            if options.grid is not None and len(rows) < MAX_GRID_ROWS:
                rows.append(torch.stack([_as_rgb(image), *map(_as_rgb, translations)]))
        done += len(batch)
        if progress is not None:
            progress(done + len(result.failures), len(paths))
    if result.failures and not result.written:
        raise ImageError("; ".join(result.failures))
    if options.grid is not None and (pixels := _grid_pixels(rows)) > MAX_GRID_PIXELS:
        result.failures.append(
            f"--grid {options.grid}: not written, it would have {pixels / 1e6:.0f} million pixels: all its cells are "
            "as wide as the widest picture; give pictures of more even shapes, or fewer"
        )
    elif options.grid is not None:
        _make_parent(options.grid)
        save_image(make_grid(rows), options.grid, durable=False)
        result.written.append(options.grid)
    return result


def _grid_pixels(rows: list[Tensor]) -> int:
    return max(x.shape[3] for x in rows) * max(x.shape[0] for x in rows) * sum(x.shape[2] for x in rows)


def style_path(codes: Tensor, steps: int) -> Tensor:
    """Interpolate linearly from each style code to the next.

    Args:
        codes: Style codes [..., S, style_dim] with S ≥ 2.
        steps: Steps from each code to the next, at least 1.

    Returns:
        Codes [..., (S - 1)·steps + 1, style_dim], the given ones among them.
    """
    count = codes.shape[-2]
    places = torch.arange((count - 1) * steps + 1)
    before = (places // steps).clamp(max=count - 2)
    share = (places - before * steps).to(codes) / steps
    return torch.lerp(codes[..., before, :], codes[..., before + 1, :], share[:, None])


def random_styles(seed: int, num_style: int, style_dim: int, place: int) -> Tensor:
    """Draw the random styles of one image; they do not depend on the other images.

    Args:
        seed: Seed of the whole folder.
        num_style: How many styles.
        style_dim: Length of a code.
        place: The image's index in the sorted folder.

    Returns:
        Codes [num_style, style_dim] from N(0, I), float32 on the CPU.
    """
    word = np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word >> 1))
    return torch.randn(num_style, style_dim, generator=generator)


class _Styles:
    """Chooses each image's styles and translates with them."""

    def __init__(self, model: Translator, options: TranslateOptions, count: int) -> None:
        self.model, self.options = model, options
        self.codes: Tensor | None = None
        if model.trainer == "UNIT":
            for flag in ("style", "interpolate"):
                if getattr(options, flag) is not None:
                    raise ValueError(f"--{flag} needs MUNIT: UNIT has no style codes")
            return
        if options.style is not None:
            examples = self._example_codes(model, options.style)
            self.codes = examples.expand(count, -1, -1)
        else:
            places = [0] * count if options.synchronized else range(count)
            dim = model.config.gen.style_dim
            self.codes = torch.stack([random_styles(options.seed, options.num_style, dim, place) for place in places])
        if options.interpolate is not None:
            if options.interpolate < 1:
                raise ValueError(f"--interpolate must be at least 1 step; got {options.interpolate}")
            if self.count < 2:
                raise ValueError(
                    "--interpolate goes from style to style: give --num_style 2 or more, or a folder of two or more "
                    "examples as --style"
                )
            self.codes = style_path(self.codes, options.interpolate)

    @property
    def count(self) -> int:
        """Translations of each image."""
        return 1 if self.codes is None else self.codes.shape[1]

    def _example_codes(self, model: Any, path: Path) -> Tensor:
        domain = self.options.direction[-1]
        paths = list_images(path) if path.is_dir() else [path]
        images = [_read(p, model, domain, self.options) for p in paths]
        codes = [model.encode_style(x[None].to(model.device), domain).cpu() for x in images]
        return torch.cat(codes)

    def translate(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        images = images.to(self.model.device)
        if self.codes is None:
            return self.model.translate(images, self.options.direction).cpu()
        return self.model.translate(images, self.options.direction, style=self.codes[list(indices)]).cpu()


def _read(path: Path, model: Translator, domain: str, options: TranslateOptions) -> Tensor:
    array = decode_image(path, pixel_format(model.config, domain))
    short_side = model.config.short_side(domain)
    if not options.native_size and short_side is not None:
        try:
            array = resize_short_side(array, short_side)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
    return to_model_range(array)


def _batches(
    paths: Sequence[Path], model: Translator, options: TranslateOptions, failures: list[str]
) -> Iterator[list[tuple[int, Tensor]]]:
    """Runs of consecutive images of one size, at most batch_size long, as (index, [C, H, W])."""
    batch: list[tuple[int, Tensor]] = []
    for i, path in enumerate(paths):
        try:
            image = _read(path, model, options.direction[0], options)
        except ImageError as error:
            failures.append(str(error))
            continue
        if batch and (len(batch) == options.batch_size or batch[-1][1].shape != image.shape):
            yield batch
            batch = []
        batch.append((i, image))
    if batch:
        yield batch


def _output_names(paths: Sequence[Path], source: Path) -> list[str]:
    """A name without extension for each image, unique: "" for a single file, else its path below the folder.

    What no file name should have is replaced: pictures from elsewhere may be called anything.
    """
    if not source.is_dir():
        return [""]
    relative = [path.relative_to(source) for path in paths]
    plain = [str(Path(*map(safe_name, path.with_suffix("").parts))) for path in relative]
    stems = Counter(plain)
    taken = {stem for stem, count in stems.items() if count == 1}
    names = []
    for path, name in zip(relative, plain):
        if stems[name] > 1:  # a.png beside a.jpg
            name += f"_{path.suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


def _is_inside(path: Path, folder: Path, source: Path) -> bool:
    """Whether an image of `source` lies in an output folder inside it: made by an earlier run, then."""
    folder = folder.resolve()
    return folder != source.resolve() and folder in path.resolve().parents


def _protect_inputs(
    paths: Sequence[Path], names: Sequence[str], folder: Path, options: TranslateOptions, count: int
) -> None:
    """Raise ValueError if a file to write is one of the files to read."""
    inputs = {path.resolve() for path in paths}
    if options.style is not None:
        inputs.update(p.resolve() for p in (list_images(options.style) if options.style.is_dir() else [options.style]))
    folder = folder.resolve()
    if options.grid is not None:
        grid = options.grid.resolve()
        outputs = {folder / _file_name(name, j, options) for name in names for j in [*range(count), None]}
        if grid in inputs or grid in outputs:
            raise ValueError(f"--grid {options.grid} is one of the inputs or outputs; choose another name")
    if not any(folder in path.parents for path in inputs):
        return
    for name in names:
        for j in [*range(count), None]:
            if (folder / _file_name(name, j, options)).resolve() in inputs:
                raise ValueError(
                    f"--output_folder {folder}: {_file_name(name, j, options)} there is one of the inputs and would be "
                    "overwritten; choose another folder"
                )


def _file_name(name: str, style: int | None, options: TranslateOptions) -> str:
    """The file of an image's translation number `style`, or of the copy of its input (None)."""
    if style is None:
        return f"{name}_input.{options.extension}" if name else f"input.{options.extension}"
    return f"{name}_{style:03d}.{options.extension}" if name else f"output{style:03d}.{options.extension}"


def _write(folder: Path, name: str, image: Tensor, translations: Tensor, options: TranslateOptions) -> list[Path]:
    written = []  # without fsync: a translation can be made again
    for j, translation in enumerate(translations):
        written.append(folder / _file_name(name, j, options))
        _make_parent(written[-1])
        save_image(translation, written[-1], durable=False)
    if not options.output_only:
        written.append(folder / _file_name(name, None, options))
        save_image(image, written[-1], durable=False)
    return written


def _as_rgb(image: Tensor) -> Tensor:
    return image.float().expand(3, -1, -1)


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from None
