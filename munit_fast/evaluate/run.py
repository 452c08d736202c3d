"""How good a checkpoint, or a folder of translations, is on real test pictures: what `munit-fast evaluate` runs."""

from __future__ import annotations

import json
import re
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
from munit_fast.data import ImageError, ImageSet, centre_crop, list_images
from munit_fast.data.sources import has_images, image_folder, image_paths
from munit_fast.evaluate.metrics import (
    Batch,
    Direction,
    Evaluation,
    EvaluationRow,
    FeatureExtractor,
    Pictures,
    is_drawing,
    measure,
    outside,
)
from munit_fast.evaluate.metrics.evaluation import INPUTS_PER_STEP, Extractor
from munit_fast.evaluate.metrics.table import COPY
from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.translate import random_styles
from munit_fast.utils.version import __version__

Progress = Callable[[int, int], None]
_DRAWINGS_PROBED = 32


@dataclass
class EvaluateOptions:
    """How to evaluate; see `munit-fast evaluate --help`."""

    directions: tuple[str, ...] = ("a2b", "b2a")
    num_style: int = 10
    seed: int = 10
    amp: str = "off"  # see munit_fast.amp
    also: Sequence[str] | None = None  # of munit_fast.evaluate.metrics.outside.OUTSIDE; None: those that are here
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extractor: Extractor | None = None  # None: EfficientNet-Lite0
    allow_outside: bool = False  # list files may name images outside their folder
    named: dict[str, Direction] = field(default_factory=dict)  # what to call a direction and measure of it


class Files:
    """Picture files of one size as `Pictures`: resized, the middle cropped out, read when asked for."""

    def __init__(self, paths: Sequence[Path], channels: int, short_side: int | None, crop: tuple[int, int]) -> None:
        self.paths, self.crop = list(paths), crop
        self._set = ImageSet(paths, channels, short_side, cache=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Tensor:
        return centre_crop(self._set, index, self.crop)


@dataclass
class TestSet:
    """The test pictures of both domains; where `paired`, number i of one belongs to number i of the other."""

    __test__ = False  # not a test of pytest

    pictures: dict[str, Files]  # "a" and "b"
    train: dict[str, Files]  # those of the domains that have any
    paired: bool
    colourings: list[Files | None] = field(default_factory=list)  # several true B for a picture of A
    notes: list[str] = field(default_factory=list)


def open_test_set(cfg: Config, allow_outside: bool = False) -> TestSet:
    """The test pictures that a configuration names. Pictures of equal names (without extension) are pairs.

    `data_root`/colourings/NAME/ may hold several true pictures of B for the picture NAME of A.
    Raises ConfigError or ImageError.
    """
    crop = (cfg.crop_image_height, cfg.crop_image_width)

    def files(paths: Sequence[Path], domain: str) -> Files:
        return Files(paths, getattr(cfg, f"input_dim_{domain}"), cfg.short_side(domain), crop)

    found = {d: image_paths(cfg, "test", d, allow_outside) for d in "ab"}
    by_name = {d: {_stem(path, image_folder(cfg, "test", d)): path for path in found[d]} for d in "ab"}
    common = [name for name in by_name["a"] if name in by_name["b"]]
    notes = []
    if common:
        left = sum(map(len, found.values())) - 2 * len(common)
        notes += [f"{left} test pictures without a partner of the same name are left out"] if left else []
        found = {d: [by_name[d][name] for name in common] for d in "ab"}
    else:
        notes.append("no test picture of A has the name of one of B: there are no pairs to compare")
    train = {d: files(image_paths(cfg, "train", d, allow_outside), d) for d in "ab" if has_images(cfg, "train", d)}
    places = [Path(cfg.data_root, "colourings", name) if cfg.data_root else None for name in common]
    colourings = [files(list_images(place), "b") if place and place.is_dir() else None for place in places]
    return TestSet(
        {d: files(found[d], d) for d in "ab"},
        train,
        bool(common),
        [several if several and len(several) > 1 else None for several in colourings],
        notes,
    )


def evaluate_model(
    model: MUNIT | UNIT, tests: TestSet, options: EvaluateOptions, progress: Progress | None = None
) -> Evaluation:
    """Translate the test pictures with `model` and measure the translations; nothing is written.

    The styles are those of `munit-fast translate` with the same seed. Raises ImageError for a picture that cannot be
    read, ImportError for a missing wheel, MissingMetric for a metric of `also` that is not to be had.
    """
    makers, missing = outside.judges(options.also, options.device)
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
        entries += measure(
            options.named.get(way) or _direction(way, tests.pictures[way[-1]]),
            counted(_translated(model, tests, way, options)),
            train=tests.train.get(way[-1]),
            real=tests.pictures[way[-1]],
            extractor=extractor,
            judges=[make() for make in makers],
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
) -> Evaluation:
    """Measure pictures that any program translated, against real ones.

    translated: NAME_000.png, NAME_001.png, … (as `munit-fast translate` writes them) or one NAME.png for each input;
    files of a NAME whose numbers are not exactly 000, 001, … without a gap are inputs of their own.
    truth and source: the true translations and the inputs, by the same NAMEs; inputs that lie beside the translations
    as NAME_input.png are found. train: real pictures of the target domain, for KID. size: every picture's short side is
    resized to it and the middle size×size cropped out; without it all must have one size.
    Raises ImageError or ValueError when pictures are missing or their sizes differ.
    """
    groups, inputs = _group(translated)
    k = _check_counts(groups, translated)
    crop = (size, size) if size is not None else _size_of(next(iter(groups.values()))[0])

    def files(paths: Sequence[Path]) -> Files:
        return Files(paths, 3, size, crop) if size is not None else _SameSize(paths, 3, None, crop)

    names = list(groups)
    fake = files([path for name in names for path in groups[name]])
    true = None if truth is None else files(_partners(truth, names, "--truth"))
    if source is None and set(names) <= set(inputs):
        sources: Files | None = files([inputs[name] for name in names])
    else:
        sources = None if source is None else files(_partners(source, names, "--input"))
    trained = None if train is None else files(list_images(train))
    real = true if true is not None else trained
    if real is None:
        raise ValueError("give the real pictures to compare with: --truth FOLDER, --train FOLDER or both")
    makers, missing = outside.judges(options.also, options.device)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(names), INPUTS_PER_STEP):
            rows = range(start, min(len(names), start + INPUTS_PER_STEP))
            pictures = torch.stack([fake[i * k + j] for i in rows for j in range(k)])
            shown, right = (None if s is None else _stack(s, rows, options.device) for s in (sources, true))
            yield Batch(pictures.unflatten(0, (len(rows), k)).to(options.device), shown, right)

    direction = _direction("", real)
    if true is None:
        direction = replace(direction, real="training")
    extractor = options.extractor or FeatureExtractor().to(options.device)
    entries = measure(
        direction,
        batches(),
        train=trained if true is not None else None,  # without true ones, there is no floor to measure
        real=real,
        extractor=extractor,
        judges=[make() for make in makers],
    )
    notes = [] if true is not None else ["compared with training pictures: no --truth was given"]
    about = {"translated": str(translated), "notes": notes} | _versions()
    return Evaluation(tuple(entries), len(names), k, 0 if trained is None else len(trained), missing, about)


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
    """All rows with their provenance."""
    return json.dumps(evaluation.to_json(), indent=1)


# ---- a checkpoint


def _translated(model: MUNIT | UNIT, tests: TestSet, way: str, options: EvaluateOptions) -> Iterator[Batch]:
    source, truth = tests.pictures[way[0]], tests.pictures[way[-1]]
    device = options.device
    precision = amp_dtype(options.amp, device, Workload.of(model.config, INPUTS_PER_STEP, training=False))
    for start in range(0, len(source), INPUTS_PER_STEP):
        rows = range(start, min(len(source), start + INPUTS_PER_STEP))
        images = _stack(source, rows, device)
        with autocast(precision, device):
            if isinstance(model, UNIT):
                fake = model.translate(images, way)  # type: ignore[arg-type]
            else:
                dim = model.config.gen.style_dim
                codes = torch.stack([random_styles(options.seed, options.num_style, dim, i) for i in rows])
                fake = model.translate(images, way, style=codes)  # type: ignore[arg-type]
        several = [tests.colourings[i] for i in rows] if tests.paired and way == "a2b" else []
        yield Batch(
            fake.clamp(-1, 1),
            images,
            _stack(truth, rows, device) if tests.paired else None,
            [None if known is None else _stack(known, range(len(known)), device) for known in several],
        )


def _stack(pictures: Pictures, rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.stack([pictures[i] for i in rows]).to(device)


def _direction(way: str, target: Pictures) -> Direction:
    """A direction's rows: line F1 only where the target's pictures are line drawings."""
    probes = torch.linspace(0, len(target) - 1, min(len(target), _DRAWINGS_PROBED)).long().tolist()
    pixels = ("l1", "ssim", *(["line_f1"] if is_drawing(torch.stack([target[i] for i in probes])) else []))
    if not way:
        return Direction("translated", "translated", pixels=pixels)
    return Direction(f"{way[0]}_to_{way[-1]}", f"{way[0].upper()} → {way[-1].upper()}", pixels=pixels)


def _versions() -> dict[str, Any]:
    return {"versions": {"munit-fast": __version__, "torch": torch.__version__}}


# ---- folders of translations


class _SameSize(Files):
    """Pictures that must have one size already."""

    def __getitem__(self, index: int, /) -> Tensor:
        height, width = self._set.image(index).shape[:2]
        if (height, width) != self.crop:
            raise ImageError(
                f"{self.paths[index]}: {width}x{height} where others are {self.crop[1]}x{self.crop[0]}; "
                "give --size to bring all to one size"
            )
        return super().__getitem__(index)


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _group(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    """The translations of each NAME in the order of their numbers, and the copies of the inputs beside them."""
    found: dict[str, Path] = {}
    inputs: dict[str, Path] = {}
    numbers: dict[str, list[str]] = {}
    for path in list_images(folder):
        stem = _stem(path, folder)
        if stem.endswith("_input"):
            inputs[stem.removesuffix("_input")] = path
            continue
        found[stem] = path
        if (match := re.fullmatch(r"(.+)_(\d+)", stem)) is not None:
            numbers.setdefault(match[1], []).append(match[2])
    if not found:
        raise ImageError(f"{folder}: holds copies of inputs but no translations")
    # A number may also belong to the name of an input, as in cat_0001.png.
    styles = {
        name
        for name, all_of_it in numbers.items()
        if name not in found and sorted(all_of_it) == [f"{i:03d}" for i in range(min(len(all_of_it), 1000))]
    }
    groups: dict[str, list[Path]] = {}
    for stem, path in found.items():
        name = stem.rpartition("_")[0]
        groups.setdefault(name if name in styles else stem, []).append(path)
    return {name: sorted(paths) for name, paths in groups.items()}, inputs


def _check_counts(groups: dict[str, list[Path]], folder: Path) -> int:
    (first, paths), *rest = groups.items()
    for name, others in rest:
        if len(others) != len(paths):
            raise ImageError(
                f"{folder}: {name} has {len(others)} translations and {first} has {len(paths)}; give the same number "
                "for every input"
            )
    if len(groups) < 2:
        raise ImageError(f"{folder}: translations of one input only; at least 2 are needed")
    return len(paths)


def _partners(folder: Path, names: Sequence[str], option: str) -> list[Path]:
    found = {_stem(path, folder): path for path in list_images(folder)}
    missing = [name for name in names if name not in found]
    if missing:
        raise ImageError(
            f"{option} {folder}: no picture named {missing[0]} ({len(missing)} of {len(names)} are missing)"
        )
    return [found[name] for name in names]


def _size_of(path: Path) -> tuple[int, int]:
    height, width = ImageSet([path], cache=False).image(0).shape[:2]
    return height, width
