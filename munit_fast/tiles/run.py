"""Translation of images that are larger than memory, tile by tile: `translate_slide`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, autocast, resolve
from munit_fast.data.configured import pixel_format
from munit_fast.data.writers import result_dtype
from munit_fast.io.atomic import FileWriteError
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.reference.networks import split_adain_params
from munit_fast.tiles import networks
from munit_fast.tiles.options import TileOptions, TileResult, check_options, identity_of
from munit_fast.tiles.padded import PaddedImage
from munit_fast.tiles.passes import Schedule, schedules, statistics
from munit_fast.tiles.plan import Planes, tiles_of, windows_of
from munit_fast.tiles.slides import Slide, open_slide
from munit_fast.tiles.statistics import Moments
from munit_fast.tiles.storage import Job, Journal, PixelFile, open_job
from munit_fast.tiles.writing import to_values, write_tiff

Progress = Callable[[int, int, str], None]
_OF_FREE_SPACE = 0.8  # that features may take, where nobody says how much


def translate_slide(
    model: MUNIT | UNIT,
    source: Path,
    output: Path,
    options: TileOptions | None = None,
    *,
    style: Tensor | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TileResult:
    """Translate one image of any size to a tiled TIFF file, with memory that is bounded by the tile.

    The statistics of the norms are those of the image, not of each tile, and tiles are computed with as much around
    them as they depend on: there are no seams. Work in progress lies in the folder .NAME.tiles beside the output NAME.
    After an interruption the same call continues to the same bytes; it begins anew where the model, the image or an
    option is another.

    Args:
        model: The model, in evaluation mode; its device is used.
        source: A TIFF file, tiled or in strips, or any image that fits into memory.
        output: NAME.tif, in an existing folder.
        options: How to translate.
        style: The style code [style_dim] or [1, style_dim] of MUNIT; None for UNIT.
        progress: Called after each tile with the tiles done, the tiles in all and the name of the pass.
        say: Called with a sentence for each thing the user should know before the work begins.

    Returns:
        What was done.

    Raises:
        ValueError: An option does not fit the model or the image.
        ImageError: The image cannot be read.
        FileWriteError: The file cannot be written, another process is making it, or the disk is too small.
    """
    options = options or TileOptions()
    check_options(model, source, output, options, style)
    say = say or (lambda text: None)
    progress = progress or (lambda done, total, name: None)
    with torch.no_grad(), open_slide(source, options.level, pixel_format(model.config, options.direction[0])) as slide:
        what = identity_of(model, source, options, style)
        with open_job(output, what) as job:
            return _translate(model, slide, output, options, style, job, progress, say)


def _translate(
    model: MUNIT | UNIT,
    slide: Slide,
    output: Path,
    options: TileOptions,
    style: Tensor | None,
    job: Job,
    progress: Progress,
    say: Callable[[str], None],
) -> TileResult:
    image = PaddedImage(slide, model.config, next(model.parameters()))
    result = TileResult(output, (slide.height, slide.width), options.statistics, resumed=job.resumed)

    def note(text: str) -> None:
        result.notes.append(text)
        say(text)

    if job.resumed:
        note(f"{output}: continuing an interrupted translation")
    elif job.begun_anew:
        note(f"{output}: an interrupted translation had other settings ({job.begun_anew}); beginning anew")
    if options.statistics == "sampled" and options.samples * options.tile**2 >= image.height * image.width:
        result.statistics = "exact"
        note(f"{output}: the image has no more than {options.samples} tiles: exact statistics are as cheap")
    exact = result.statistics == "exact"
    precision = None
    if not exact:
        # "auto" may be measured, with another result in a later process: its tiles would not fit those on the disk.
        chosen = resolve(options.amp, model.device, Workload.of(model.config, 1, training=False))
        precision = amp_dtype(job.decide("precision", chosen), model.device)
    whole = Planes.whole(image.height, image.width)
    planes = (
        whole
        if exact
        else windows_of(image.height, image.width, options.tile, options.samples, model.config.size_multiple)
    )
    values = pixel_format(model.config, options.direction[-1])
    target = result_dtype("tif", values, slide.dtype)
    moments: dict[str, Moments] = {}
    wide = next(model.parameters()).dtype == torch.float64
    to_disk = np.dtype(np.float64 if wide else np.float32)
    with autocast(precision, model.device):
        last = _graph(model, options.direction, style, image, planes, moments)
        channels = last.channels
        pixels = slide.height * slide.width * channels * target.itemsize
        schedule = _choose(last, planes, to_disk.itemsize, exact, options, job, output, 2 * pixels, note)
        result.disk = schedule.peak
        boxes = tiles_of(1, slide.height, slide.width, options.tile)
        before = schedule.tiles(planes, options.tile)
        total = before + len(boxes)
        reader = statistics(
            schedule,
            planes,
            options.tile,
            moments,
            job,
            to_disk,
            model.device,
            lambda done, name: progress(done, total, name),
        )
        if not exact:
            last = _graph(model, options.direction, style, image, whole, moments)
            reader = networks.Reader()
        file = PixelFile(job.folder / "pixels", (1, slide.height, slide.width, channels), target)
        journal = Journal(job.folder / "image", len(boxes))
        for number, box in enumerate(boxes):
            if not journal.done[number]:
                file.write(box, to_values(reader.tile(last, box), values, target, output))
                journal.add(number, None, file)
            progress(before + number + 1, total, "image")
        journal.flush(file)
        journal.close()
    write_tiff(output, file, slide.tags)
    file.close()
    return result


def _graph(
    model: Any, direction: str, style: Tensor | None, image: PaddedImage, planes: Planes, moments: dict[str, Moments]
) -> networks.Node:
    """The translated image."""
    source, target = (model.gen_a, model.gen_b) if direction == "a2b" else (model.gen_b, model.gen_a)
    pixels = networks.Image(image.channels, planes, image.read)
    code = networks.encoder_nodes(source.enc_content if style is not None else source.enc, pixels, moments)
    adain = None
    if style is not None:
        code_of_style = style.reshape(1, -1).to(next(model.parameters()))
        with torch.autocast(model.device.type, enabled=False):
            adain = split_adain_params(target.mlp(code_of_style), target.dec)
    return networks.decoder_nodes(target.dec, code, moments, adain)


def _choose(
    last: networks.Node,
    planes: Planes,
    itemsize: int,
    exact: bool,
    options: TileOptions,
    job: Job,
    output: Path,
    pixels: int,
    note: Callable[[str], None],
) -> Schedule:
    """The fastest schedule whose features fit on the disk."""
    found = schedules(last, len(planes.offsets), itemsize, with_image=exact)
    free = shutil.disk_usage(job.folder).free
    if not job.resumed and free < pixels:
        raise FileWriteError(
            f"cannot write {output}: {_size(pixels)} are needed for the image alone, and {_size(free)} are free there"
        )
    budget = int(_OF_FREE_SPACE * (free - pixels)) if options.disk is None else min(options.disk, free - pixels)
    place = next(i for i, schedule in enumerate(found) if schedule.peak <= max(budget, 0) or schedule is found[-1])
    place = job.decide("schedule", place)  # features of another one would be there
    schedule = found[place]
    note(
        f"{output}: features take up to {_size(schedule.peak)} on disk, the image {_size(pixels)}; "
        f"{len(planes.offsets)} {'image' if exact else 'windows'}, {schedule.arithmetic:.1f} times the arithmetic of "
        "one pass"
    )
    if not exact:
        note(f"{output}: each tile is computed with the {networks.reach(last)} pixels around it that it depends on")
    elif schedule.arithmetic > 1.05 * (best := min(found, key=lambda one: one.arithmetic)).arithmetic:
        note(
            f"{output}: with {_size(best.peak)} for features it would be {best.arithmetic:.1f} times; "
            f"{_size(max(budget, 0))} may be taken"
        )
    return schedule


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
