"""Translation of image files, from their listing to the last of the files written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, autocast, resolve
from munit_fast.data.configured import pixel_format
from munit_fast.data.images import SAVED_FORMATS
from munit_fast.data.picture import ImageError
from munit_fast.data.sources import ImageSource
from munit_fast.data.writers import check_format, encode_image
from munit_fast.translate.grid import Grid
from munit_fast.translate.identity import describe_changes, identity
from munit_fast.translate.inputs import Image, Reader, files_of, open_inputs
from munit_fast.translate.journal import Journal, Outputs
from munit_fast.translate.names import file_name, file_names, output_names, protect_inputs
from munit_fast.translate.options import MAX_WORKERS, TranslateOptions, TranslateResult, Translator
from munit_fast.translate.pipeline import Writing, read_ahead, threads
from munit_fast.translate.shards import Chunk, Shard
from munit_fast.translate.styles import Styles
from munit_fast.translate.volumes import VOLUME_FORMATS, Stack, check_volumes, gaps, label_of, lost_slices, style_places
from munit_fast.utils.repeatable import repeatable


def translate_files(
    model: Translator,
    source: Path | ImageSource,
    output_folder: Path,
    options: TranslateOptions,
    progress: Callable[[int, int], None] | None = None,
    *,
    shard: Shard = Shard(),  # noqa: B008 - a constant
    say: Callable[[str], None] = lambda line: None,
) -> TranslateResult:
    """Translate an image or every image below a folder.

    One image gives output000.png, output001.png, … (one per style) and input.png. A folder gives, for a/b.jpg,
    a/b_000.png, a/b_001.png, … and a/b_input.png; for the third image of a/b.tif a/b_page2_000.png and so on. Files are
    as deep as their input and hold the values of their domain, as `munit_fast.data.writers` says; the formats nii,
    nii.gz and dcm give a volume with the header of its input for each style. A grid shows the first MAX_GRID_ROWS of
    the images. An unreadable image of a folder is reported and left out, with the volume that it is of, and so is a
    grid of more than MAX_GRID_PIXELS.

    Each image's random styles are a function of the seed and of the image's place in the sorted folder. Images are
    translated in chunks of `batch_size`, which the listing alone decides: the bytes of the files depend neither on the
    number of processes and threads nor on interruptions. Files are written atomically, but not flushed to the disk:
    they can be made again. What is finished is noted in OUTPUT_FOLDER/.translation, and not made again by a second run
    with the same model and options while neither input nor outputs have changed; of a single image nothing is noted.
    Where model or options have changed, the files of the earlier run that are not written again are removed, unless
    they were changed since.

    Args:
        model: The model, in evaluation mode; its device is used.
        source: An image, a folder of images, or a source of images.
        output_folder: Where the translations go; made where it is missing.
        options: How to translate.
        progress: Called after each chunk with the images done and the images in all, those of this process.
        shard: Which of several processes this is; each translates its share of the chunks.
        say: Called with a line on what an earlier run has left.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: An option does not fit the model or the files.
        ImageError: The input, the example style or every image of a folder cannot be read.
        FileWriteError: A file cannot be written.
    """
    options = replace(options, extension=options.extension.lower())
    _check_options(model, options, shard)
    first, last = options.direction[0], options.direction[-1]
    listing = open_inputs(source, output_folder, model.config, first)
    examples = None if options.style is None else open_inputs(options.style, None, model.config, last)
    if shard.rank == 0:
        for note in listing.notes():
            say(note)
    styles = Styles(model, options, examples)
    volumes = options.extension in VOLUME_FORMATS
    if volumes:
        check_volumes(listing, options.extension, getattr(model.config, f"input_dim_{last}"))
    wanted = [listing.entries[i].file if volumes else listing.name(i) for i in range(len(listing))]
    alone = isinstance(source, Path) and not source.is_dir() and len(set(wanted)) == 1
    named = dict(zip(dict.fromkeys(wanted), output_names(list(dict.fromkeys(wanted)), alone)))
    names = [named[name] for name in wanted]
    inputs = files_of(listing) | (set() if examples is None else files_of(examples))
    protect_inputs(inputs, list(named.values()), output_folder, options, styles.count)
    about = None if alone else identity(model, listing, options, examples)
    shows = [getattr(model.config, f"show_channels_{domain}") for domain in (first, last)]
    grid, result = Grid(options.grid, (shows[0], shows[1])), TranslateResult()
    with Outputs(output_folder) if about is None else Journal(output_folder, about, shard.rank) as outputs:
        if outputs.changed:
            say(f"{output_folder}: everything is made anew ({describe_changes(outputs.changed)})")
        precision = outputs.agreed("precision", partial(_precision, model, options))
        label = label_of(about or identity(model, listing, options, examples), options.direction) if volumes else ""
        job = _Job(model, listing, names, styles, outputs, options, result, grid, label)
        chunks = list(shard.chunks(listing, options.batch_size, whole_files=volumes))
        left = [chunk for chunk in chunks if not outputs.finished(chunk.key) or chunk.places.start < grid.rows_left]
        result.total = sum(len(chunk.places) for chunk in chunks)
        result.done_before = result.total - sum(len(chunk.places) for chunk in left)
        if result.done_before:
            say(f"{result.done_before} of {result.total} images were done already")
        with autocast(amp_dtype(precision, model.device), model.device), repeatable(model.device):
            styles.encode_examples()
            kept = list(range(styles.count)) + ([] if options.output_only else [None])
            removed = outputs.remove_earlier(
                set(named.values()), file_names(named.values(), kept, options.extension), inputs
            )
            if removed:
                say(f"{removed} files of the earlier translation, which this one does not have, were removed")
            job.run(left, progress)
    if result.failures and not result.written and not result.done_before and shard.size == 1:
        raise ImageError("; ".join(result.failures))
    if failure := grid.save():
        result.failures.append(failure)
    elif grid.path is not None:
        result.written.append(grid.path)
    return result


class _Job:
    """The chunks of one process."""

    def __init__(
        self,
        model: Translator,
        source: ImageSource,
        names: Sequence[str],
        styles: Styles,
        outputs: Outputs,
        options: TranslateOptions,
        result: TranslateResult,
        grid: Grid,
        label: str,
    ) -> None:
        self.label, self.volumes = label, options.extension in VOLUME_FORMATS
        self.style_places: Sequence[int] = range(len(source))
        if self.volumes:
            self.style_places = style_places(source, options.extension)
        self.names, self.styles, self.outputs, self.options = names, styles, outputs, options
        self.result, self.grid = result, grid
        self.reader = Reader(source, model.config, options.direction[0], options.native_size)
        self.target = pixel_format(model.config, options.direction[-1])

    def run(self, chunks: Sequence[Chunk], progress: Callable[[int, int], None] | None) -> None:
        """Translate some chunks."""
        workers, result = self.options.workers, self.result
        places = [place for chunk in chunks for place in chunk.places]
        done, lost = result.done_before, list[int]()
        with threads(workers) as readers, threads(workers) as writers:
            images = read_ahead(readers, self._read, places, self.options.batch_size + workers, _bytes)
            writing: Writing[list[Path]] = Writing(writers)

            def finish(chunk: Chunk, files: list[Path], whole: bool, _: list[list[Path]]) -> None:
                nonlocal done
                result.written += files
                if whole:
                    self.outputs.finish(chunk.key, files)
                done += len(chunk.places)
                if progress is not None:
                    progress(done, result.total)

            for chunk in chunks:
                found = [next(images) for _ in chunk.places]
                readable = [image for image in found if isinstance(image, Image)]
                if not self.volumes:
                    result.failures += [str(image) for image in found if isinstance(image, ImageError)]
                files: list[Path] = []

                def keep(written: list[list[Path]], files: list[Path] = files) -> None:
                    files += [path for paths in written for path in paths]

                stack = self._stack(found, chunk)
                if self.volumes and stack is None:
                    readable, lost = [], [*lost, *chunk.places]
                for batch in self._batches(readable):
                    pixels = torch.stack([image.pixels for image in batch])
                    translated = self.styles.translate(pixels, [self.style_places[image.place] for image in batch])
                    for image, translations in zip(batch, translated):
                        self.grid.add(image.pixels, translations)
                        if stack is not None:
                            stack.add(image, translations)
                    if stack is not None:
                        continue
                    jobs: list[Callable[[], list[Path]]] = [
                        partial(self._write, image, of_it) for image, of_it in zip(batch, translated)
                    ]
                    writing.add(jobs, pixels.nbytes + translated.nbytes, keep)
                if stack is not None:
                    name = self.names[chunk.places.start]
                    volumes = stack.jobs(
                        partial(self._write_volume, name), self.reader.source.where(chunk.places.start)
                    )
                    writing.add(volumes, stack.nbytes, keep)
                writing.add([], 0, partial(finish, chunk, files, len(readable) == len(found)))
            writing.finish()
        if self.options.extension == "dcm":
            result.failures += gaps(lost, self.reader.source)

    def _batches(self, images: Sequence[Image]) -> Iterator[list[Image]]:
        """Consecutive images of one size; a chunk that is a volume has more than make a batch."""
        for _, run in groupby(images, key=lambda image: image.pixels.shape):
            same = list(run)
            for start in range(0, len(same), self.options.batch_size):
                yield same[start : start + self.options.batch_size]

    def _stack(self, found: Sequence[Image | ImageError], chunk: Chunk) -> Stack | None:
        """For the slices of a volume, where all of them could be read."""
        if not self.volumes:
            return None
        failure = lost_slices(found, chunk.places, self.reader.source)
        if failure is not None:
            self.result.failures.append(failure)
            return None
        copied = None if self.options.output_only else self.reader.format
        return Stack(self.options.extension, self.target, copied, self.label)

    def _write_volume(self, name: str, style: int | None, data: bytes) -> list[Path]:
        return [self.outputs.write(file_name(name, style, self.options.extension), data)]

    def _read(self, place: int) -> Image | ImageError:
        try:
            return self.reader(place)
        except ImageError as error:
            return ImageError(str(error))  # without the traceback, which would hold the pixels

    def _write(self, image: Image, translations: Tensor) -> list[Path]:
        name, extension = self.names[image.place], self.options.extension
        results = [(file_name(name, j, extension), y, self.target) for j, y in enumerate(translations)]
        if not self.options.output_only:
            results.append((file_name(name, None, extension), image.pixels, self.reader.format))
        return [
            self.outputs.write(
                file, encode_image(pixels, extension, form, image.dtype, file=str(self.outputs.folder / file))
            )
            for file, pixels, form in results
        ]


def _bytes(image: Image | ImageError) -> int:
    return image.pixels.nbytes if isinstance(image, Image) else 0


def _precision(model: Translator, options: TranslateOptions) -> str:
    return resolve(options.amp, model.device, Workload.of(model.config, 1, training=False))


def _check_options(model: Translator, options: TranslateOptions, shard: Shard) -> None:
    for domain in options.direction[-1] if options.output_only else options.direction[::2]:
        if options.extension in VOLUME_FORMATS:
            continue
        check_format(options.extension, pixel_format(model.config, domain))
    for name, most in (("batch_size", None), ("num_style", None), ("workers", MAX_WORKERS)):
        value = getattr(options, name)
        if value < 1 or (most is not None and value > most):
            raise ValueError(f"--{name} must be at least 1{f' and at most {most}' if most else ''}; got {value}")
    if options.grid is None:
        return
    if options.grid.suffix.lower() not in SAVED_FORMATS:
        raise ValueError(f"--grid {options.grid}: the name must end in one of {', '.join(SAVED_FORMATS)}")
    if shard.size > 1:
        raise ValueError(
            "--grid is made by one process: leave it out here and run the same command with it afterwards, without "
            "torchrun; only the images of the grid are then translated again"
        )
