"""Translation of image files that are larger than memory: `munit_fast.tiles` for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from munit_fast.amp import Workload, resolve
from munit_fast.data.picture import ImageError
from munit_fast.data.sources import FileSource
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.tiles import TileOptions, translate_slide
from munit_fast.tiles.storage import JobInUseError
from munit_fast.translate.identity import describe_changes, identity
from munit_fast.translate.inputs import files_of, open_inputs
from munit_fast.translate.journal import Journal, make_folder
from munit_fast.translate.names import file_name, file_names, output_names, protect_inputs
from munit_fast.translate.options import TranslateOptions, TranslateResult
from munit_fast.translate.shards import Shard
from munit_fast.translate.styles import Styles

EXTENSION = "tif"

Progress = Callable[[int, int, str], None]


def translate_slides(
    model: MUNIT | UNIT,
    source: Path,
    output_folder: Path,
    options: TranslateOptions,
    tiles: TileOptions,
    progress: Progress | None = None,
    *,
    shard: Shard = Shard(),  # noqa: B008 - a constant
    say: Callable[[str], None] = lambda line: None,
) -> TranslateResult:
    """Translate an image of any size, or every image below a folder, tile by tile to tiled TIFF files.

    The files are called as `translate_files` calls them. A slide that was interrupted is continued; one that is
    finished is not made again by a second run with the same model and options while nothing has changed. Slides keep
    their size; only example styles are resized. No copies of the inputs are written.

    Args:
        model: The model, in evaluation mode; its device is used.
        source: An image file or a folder of them. Files with several images are failures.
        output_folder: Where the translations go; made where it is missing.
        options: Which styles; `extension` must be "tif", and there is no grid.
        tiles: How the tiles are made. Its direction is that of `options`.
        progress: Called after each tile with the tiles done, the tiles in all and what is being done.
        shard: Which of several processes this is; each translates its share of the slides.
        say: Called with a line on each thing that the user should know.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: An option does not fit the model or the files.
        ImageError: The input, the example style or every slide of a folder cannot be read.
        FileWriteError: A file cannot be written. A slide of a folder that another process is making is a failure.
    """
    if options.extension != EXTENSION or options.grid is not None:
        raise ValueError("--tile writes tiled TIFF files: leave out --grid, and --format but for tif")
    bands = f"bands_{options.direction[0]}"
    if getattr(model.config, bands) is not None and source.is_dir():
        raise ValueError(
            f"--tile reads one file an image, and {bands} joins several; write each scene with all its bands to a file "
            "of its own and give that file as --input, or leave out --tile"
        )
    config = model.config.model_copy(update={"pages": "first"})
    listing = open_inputs(source, output_folder, config)
    if not isinstance(listing, FileSource):
        raise ValueError(f"--tile reads image files piece by piece, and {source} is none; unpack it")
    if shard.rank == 0:
        for note in [*listing.notes(), *_without_effect(options)]:
            say(note)
    examples = None if options.style is None else open_inputs(options.style, None, model.config, options.direction[-1])
    styles = Styles(model, options, examples)
    wanted = [listing.name(i) for i in range(len(listing))]
    names = output_names(wanted, alone=not source.is_dir())
    inputs = files_of(listing) | (set() if examples is None else files_of(examples))
    protect_inputs(inputs, names, output_folder, options, styles.count)
    about = identity(model, listing, options, examples)
    assert about is not None  # which only exported models can lack
    result = TranslateResult()
    with Journal(output_folder, {**about, "tiles": asdict(tiles)}, shard.rank) as outputs:
        if outputs.changed:
            say(f"{output_folder}: everything is made anew ({describe_changes(outputs.changed)})")
        tiles = replace(tiles, amp=outputs.agreed("precision", partial(_precision, model, tiles)))
        styles.encode_examples()
        outputs.remove_earlier(set(names), file_names(names, range(styles.count), EXTENSION), inputs)
        for chunk in shard.chunks(listing, 1):
            [place] = chunk.places
            result.total += 1
            if outputs.finished(chunk.key):
                result.done_before += 1
                continue
            codes = styles.codes([place])
            files = [output_folder / file_name(names[place], j, EXTENSION) for j in range(styles.count)]
            try:
                for j, file in enumerate(files):
                    make_folder(file.parent)
                    translate_slide(
                        model,
                        listing.path(place),
                        file,
                        tiles,
                        style=None if codes is None else codes[0, j],
                        progress=_named(progress, file.name),
                        say=say,
                    )
            except (ImageError, JobInUseError) as error:
                if len(listing) == 1:
                    raise
                result.failures.append(str(error))
                continue
            outputs.finish(chunk.key, files)
            result.written += files
    if result.done_before:
        say(f"{result.done_before} of {result.total} images were done already")
    if result.failures and not result.written and not result.done_before and shard.size == 1:
        raise ImageError("; ".join(result.failures))
    return result


def _without_effect(options: TranslateOptions) -> list[str]:
    """A line on options that say something else than the default, which tiles do not heed."""
    names = [name for name in ("batch_size", "workers") if getattr(options, name) != getattr(TranslateOptions, name)]
    if options.native_size and options.style is None:
        names.append("native_size")
    return [f"with --tile, {', '.join(f'--{name}' for name in names)} has no effect"] if names else []


def _precision(model: MUNIT | UNIT, tiles: TileOptions) -> str:
    """What `--amp auto` stands for; exact statistics take full precision."""
    if tiles.amp == "auto" and tiles.statistics == "exact":
        return "off"
    return resolve(tiles.amp, model.device, Workload.of(model.config, 1, training=False))


def _named(progress: Progress | None, name: str) -> Progress | None:
    """`progress` that says which file is being made."""
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"{name}: {what}")
