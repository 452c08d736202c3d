"""How good a checkpoint, or a folder of translations, is on real test pictures: what `munit-fast evaluate` runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, autocast
from munit_fast.config import Config
from munit_fast.data import ImageError, ImageSource, PixelFormat
from munit_fast.data.configured import pixel_format
from munit_fast.data.sources import open_source
from munit_fast.data.writers import FORMATS
from munit_fast.evaluate.folders import group_translations, partners_of, size_of, translations_per_input
from munit_fast.evaluate.metrics import (
    Batch,
    Direction,
    Evaluation,
    EvaluationRow,
    FeatureExtractor,
    Pictures,
    is_drawing,
    measure,
)
from munit_fast.evaluate.metrics.base import INPUTS_PER_STEP
from munit_fast.evaluate.metrics.evaluation import Extractor
from munit_fast.evaluate.metrics.external import external_metrics
from munit_fast.evaluate.metrics.table import COPY
from munit_fast.evaluate.pictures import (
    Files,
    SameSizeFiles,
    SeenPictures,
    TestSet,
    UnstatedFormat,
    channels_note,
    measured_channels,
)
from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.models.styles import random_styles
from munit_fast.utils.version import __version__

Progress = Callable[[int, int], None]
_DRAWINGS_PROBED = 32


@dataclass
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        directions: "a2b", "b2a" or both; of models only.
        num_style: Random styles for each input; 1 for UNIT.
        seed: Of the styles; those of `munit-fast translate` with the same seed.
        amp: Precision of the model: "off", "bf16", "fp16" or "auto", see `munit_fast.amp`.
        also: Metrics of other libraries, of `munit_fast.evaluate.metrics.external.EXTERNAL`; None: those available.
        device: Where the networks run.
        extractor: Features for KID and the distances; None: EfficientNet-Lite0.
        allow_outside: Whether list files may name images outside their folder.
        named: How to call a direction and what to measure of it, in place of "A → B" and all that applies.
    """

    directions: tuple[str, ...] = ("a2b", "b2a")
    num_style: int = 10
    seed: int = 10
    amp: str = "off"
    also: Sequence[str] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extractor: Extractor | None = None
    allow_outside: bool = False
    named: dict[str, Direction] = field(default_factory=dict)


def evaluate_model(
    model: MUNIT | UNIT, tests: TestSet, options: EvaluateOptions, progress: Progress | None = None
) -> Evaluation:
    """Translate the test pictures with `model` and measure the translations; nothing is written.

    Args:
        model: In evaluation mode, on `options.device`.
        tests: See `open_test_set`.
        options: How to evaluate.
        progress: Called as progress(inputs done, inputs in all) after each batch.

    Returns:
        The rows of every direction.

    Raises:
        ImageError: A picture cannot be read, or a domain has fewer than two.
        ImportError: A package of the extra "metrics" is missing.
        MissingMetric: A metric of `options.also` is not available.
    """
    factories, missing = external_metrics(options.also, options.device)
    extractor = options.extractor or FeatureExtractor().to(options.device)
    if (few := min(map(len, tests.pictures.values()))) < 2:
        raise ImageError(f"{few} test picture in a domain: at least 2 are needed, KID compares sets")
    total = sum(len(tests.pictures[way[0]]) for way in options.directions)
    entries: list[EvaluationRow] = []
    done = 0

    def counted(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal done
        for batch in batches:
            yield batch
            done += len(batch.fake)
            if progress is not None:
                progress(done, total)

    for way in options.directions:
        real = SeenPictures(tests.pictures[way[-1]], tests.channels.get(way[-1]))
        entries += measure(
            options.named.get(way) or direction_of(way, tests),
            counted(_translated(model, tests, way, options)),
            train=SeenPictures(tests.train[way[-1]], tests.channels.get(way[-1])) if way[-1] in tests.train else None,
            real=real,
            extractor=extractor,
            others=[create() for create in factories],
        )
    k = 1 if isinstance(model, UNIT) else options.num_style
    about = {"seed": options.seed, "notes": tests.notes} | _versions()
    last = options.directions[-1]
    trained = tests.train.get(last[-1], ())
    return Evaluation(tuple(entries), len(tests.pictures[last[0]]), k, len(trained), missing, about)


def evaluate_folders(
    translated: Path,
    options: EvaluateOptions,
    *,
    truth: Path | None = None,
    source: Path | None = None,
    train: Path | None = None,
    size: int | None = None,
    config: Config | None = None,
) -> Evaluation:
    """Measure pictures that any program translated, against real ones.

    Args:
        translated: Folder or archive of NAME_000.png, NAME_001.png, … (as `munit-fast translate` writes them) or one
            NAME.png for each input; files of a NAME whose numbers are not exactly 000, 001, … are inputs of their own.
        options: How to evaluate.
        truth: Folder or archive of the true translations, by the same NAMEs.
        source: Folder or archive of the inputs, by the same NAMEs; None: those beside the translations as
            NAME_input.png, if any.
        train: Folder, archive or data set of real pictures of the target domain, for KID.
        size: Every picture's short side is resized to it and the middle size×size cropped out; without it all must
            have one size.
        config: Says the channels and values of the domains of the first direction in `options`; None: colour images in
            the ranges of their files' types.

    Returns:
        The rows of the one direction, "translated".

    Raises:
        ImageError: Pictures are missing, cannot be read or differ in size.
        ImportError: A package of the extra "metrics" is missing.
        MissingMetric: A metric of `options.also` is not available.
        ValueError: Neither `truth` nor `train` is given.
    """
    made = open_source(translated, pages="first")
    groups, inputs = group_translations(made)
    k = translations_per_input(groups, made.label)
    crop = (size, size) if size is not None else size_of(made, next(iter(groups.values()))[0])

    way = options.directions[0]
    forms = {d: UnstatedFormat() if config is None else pixel_format(config, d) for d in "ab"}
    channels = {d: None if config is None else measured_channels(config, d) for d in "ab"}

    def files(source: ImageSource, domain: str, form: PixelFormat | None = None) -> SeenPictures:
        form = form or forms[domain]
        same = SameSizeFiles(source, form, None, crop) if size is None else Files(source, form, size, crop)
        return SeenPictures(same, channels[domain])

    names = list(groups)
    fake = files(made.chosen(i for name in names for i in groups[name]), way[-1], _of_results(made, forms[way[-1]]))
    true = None if truth is None else files(partners_of(truth, names, "--truth"), way[-1])
    if source is None and set(names) <= set(inputs):
        copies = made.chosen(inputs[name] for name in names)
        sources: SeenPictures | None = files(copies, way[0], _of_results(made, forms[way[0]]))
    else:
        sources = None if source is None else files(partners_of(source, names, "--input"), way[0])
    trained = None if train is None else files(open_source(train, pages="first"), way[-1])
    real = true if true is not None else trained
    if real is None:
        raise ValueError("give the real pictures to compare with: --truth FOLDER, --train FOLDER or both")
    factories, missing = external_metrics(options.also, options.device)
    direction = _direction("", real, sources)
    if true is None:
        direction = replace(direction, real="training")
    extractor = options.extractor or FeatureExtractor().to(options.device)
    entries = measure(
        direction,
        _read_batches(fake, k, sources, true, options.device),
        train=trained if true is not None else None,  # without true ones, there is no floor to measure
        real=real,
        extractor=extractor,
        others=[create() for create in factories],
    )
    notes = [] if true is not None else ["compared with training pictures: no --truth was given"]
    notes += [channels_note(config, d, picked) for d, picked in channels.items() if config is not None and picked]
    about = {"translated": str(translated), "notes": notes} | _versions()
    return Evaluation(tuple(entries), len(names), k, 0 if trained is None else len(trained), missing, about)


def _of_results(made: ImageSource, form: PixelFormat) -> PixelFormat:
    """The format of translations: files for looking at, as JPEG, hold a domain's range as 0..255."""
    kind = FORMATS.get(made.entries[0].file.rpartition(".")[2].lower())
    return replace(form, limits=None) if kind is not None and not kind.exact else form


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the results beside what they should be compared with."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("", "value", "real data", "untranslated"):
        table.add_column(name, no_wrap=True)
    table.add_column("baselines")
    direction = None
    for row in evaluation.entries:
        if row.direction != direction:
            direction = row.direction
            table.add_section()
            table.add_row(f"[bold]{direction}[/]")
        value = f"{row.value:.4g}" + (f" ± {row.stderr:.2g}" if row.stderr is not None else "")
        bounds = (f"{x:.4g}" if x is not None else "–" for x in (row.floor, row.ceiling))
        # The copied input stands in the column of the untranslated one already.
        baselines = "\n".join(f"{name} {value:.4g}" for name, value in row.baselines.items() if name != COPY)
        table.add_row(f"{row.name} {'↓' if row.better == 'lower' else '↑'}", value, *bounds, baselines)
    styles = "" if evaluation.samples_per_input == 1 else f" in {evaluation.samples_per_input} styles each"
    console.print(f"{evaluation.test_images} test pictures{styles}; ↓ lower is better, ↑ higher is better")
    console.print(table)
    for note in evaluation.about.get("notes", ()):
        console.print(note, markup=False, soft_wrap=True)
    for reason in dict.fromkeys(evaluation.missing.values()):
        console.print(f"not measured: {reason}", markup=False, soft_wrap=True)


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write all rows with their provenance; the file is replaced as a whole. Raises FileWriteError."""
    atomic_write_bytes(path, (as_json(evaluation) + "\n").encode())


def as_json(evaluation: Evaluation) -> str:
    """All rows with their provenance, as JSON text."""
    return json.dumps(evaluation.to_json(), indent=1)


def _translated(model: MUNIT | UNIT, tests: TestSet, way: str, options: EvaluateOptions) -> Iterator[Batch]:
    """Batches of the test pictures and their translations by `model`."""
    source, truth = tests.pictures[way[0]], tests.pictures[way[-1]]
    device = options.device
    precision = amp_dtype(options.amp, device, Workload.of(model.config, INPUTS_PER_STEP, training=False))
    for start in range(0, len(source), INPUTS_PER_STEP):
        rows = range(start, min(len(source), start + INPUTS_PER_STEP))
        images = _stack(source, rows, device)
        with autocast(precision, device):
            if isinstance(model, UNIT):
                fake = model.translate(images, way)  # type: ignore[call-overload]
            else:
                dim = model.config.gen.style_dim
                codes = torch.stack([random_styles(options.seed, options.num_style, dim, i) for i in rows])
                fake = model.translate(images, way, style=codes)  # type: ignore[call-overload]
        several = [tests.colourings[i] for i in rows] if tests.paired and way == "a2b" else []
        yield Batch(
            tests.seen(fake.clamp(-1, 1), way[-1]),
            tests.seen(images, way[0]),
            tests.seen(_stack(truth, rows, device), way[-1]) if tests.paired else None,
            [
                None if known is None else tests.seen(_stack(known, range(len(known)), device), way[-1])
                for known in several
            ],
        )


def _read_batches(
    fake: Pictures, k: int, source: Pictures | None, truth: Pictures | None, device: torch.device
) -> Iterator[Batch]:
    """Batches of translations that lie in files: k of each input, one input after the other."""
    count = len(fake) // k
    for start in range(0, count, INPUTS_PER_STEP):
        rows = range(start, min(count, start + INPUTS_PER_STEP))
        translations = _stack(fake, range(k * rows.start, k * rows.stop), device).unflatten(0, (len(rows), k))
        inputs, true = (None if p is None else _stack(p, rows, device) for p in (source, truth))
        yield Batch(translations, inputs, true)


def _stack(pictures: Pictures, rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.stack([pictures[i] for i in rows]).to(device)


def direction_of(way: str, tests: TestSet) -> Direction:
    """What `evaluate_model` measures of "a2b" or "b2a"."""
    source, target = (SeenPictures(tests.pictures[d], tests.channels.get(d)) for d in (way[0], way[-1]))
    return _direction(way, target, source)


def _direction(way: str, target: Pictures, source: Pictures | None) -> Direction:
    """What to measure of a direction: line F1 of line drawings, and colours only of what was a line drawing."""
    drawn = _are_drawings(target)
    pixels = ("l1", "ssim", *(["line_f1"] if drawn else []))
    colouring = not drawn and source is not None and _are_drawings(source)
    key, name = (f"{way[0]}_to_{way[-1]}", f"{way[0].upper()} → {way[-1].upper()}") if way else ("translated",) * 2
    return Direction(key, name, pixels=pixels, colouring=colouring)


def _are_drawings(pictures: Pictures) -> bool:
    probes = torch.linspace(0, len(pictures) - 1, min(len(pictures), _DRAWINGS_PROBED)).long().tolist()
    return is_drawing(torch.stack([pictures[i] for i in probes]))


def _versions() -> dict[str, Any]:
    return {"versions": {"munit-fast": __version__, "torch": torch.__version__}}
