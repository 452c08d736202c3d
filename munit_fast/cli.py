"""The commands of `munit-fast`. No logic lives here: options in, one call, one clear line when it fails."""

from __future__ import annotations

import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from munit_fast.env import traceback_wanted
from munit_fast.files import printable
from munit_fast.process import prepare as prepare_process
from munit_fast.version import __version__

prepare_process()  # nothing above imports torch: the commands do, when they run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MUNIT (multimodal unsupervised image-to-image translation) on today's PyTorch.",
)
prepare = typer.Typer(no_args_is_help=True, help="Make a training set in the trainA, trainB, testA, testB layout.")
app.add_typer(prepare, name="prepare")


class TrainerName(str, Enum):
    """The two published algorithms."""

    MUNIT = "MUNIT"
    UNIT = "UNIT"


DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]


class Amp(str, Enum):
    """Mixed precision."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    off = "off"


class Impl(str, Enum):
    """Who computes; see munit_fast.functional."""

    auto = "auto"
    triton = "triton"
    cuda = "cuda"
    cpu = "cpu"
    reference = "reference"


AmpOption = Annotated[
    Amp, typer.Option("--amp", help="Mixed precision. auto: bf16 where the hardware has it, else off.")
]
ImplOption = Annotated[
    Impl, typer.Option("--impl", help="Who computes: the fastest here (auto), one backend, or the plain networks.")
]
AllowOutsideOption = Annotated[
    bool, typer.Option("--allow_outside", help="Let list files name images outside their folder.")
]
TrainerOption = Annotated[TrainerName, typer.Option("--trainer", help="The algorithm.", case_sensitive=False)]


def _console() -> Console:
    return Console(stderr=True)


def _device(name: str):  # type: ignore[no-untyped-def]
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}; use cpu, or auto") from None
    return device


def _version(show: bool) -> None:
    if show:
        typer.echo(f"munit-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--output_path", help="Where data, run and page go.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.05, help="How long to train.")] = 10.0,
    size: Annotated[int, typer.Option(min=32, max=256, help="Side of the pictures in pixels; a multiple of 4.")] = 64,
    dim: Annotated[int, typer.Option(min=1, help="Channels of the first layer: capacity against speed.")] = 16,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    iterations: Annotated[int | None, typer.Option(min=10, help="Train this many instead of for --minutes.")] = None,
) -> None:
    """Train a small MUNIT on drawings here and now, and show what it learned in one page."""
    from munit_fast.demo import DemoOptions, run_demo

    console = _console()
    options = DemoOptions(folder, minutes, size, dim, _device(device), seed, amp.value, impl.value, iterations)
    page = run_demo(options, console)
    console.print(f"\nOpen {page} in a browser.", style="bold green", markup=False, soft_wrap=True)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="A YAML file with the published keys.")],
    output_path: Annotated[Path, typer.Option("--output_path", help="Where logs/ and outputs/ go.")] = Path("."),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    trainer: TrainerOption = TrainerName.MUNIT,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data order, crops and styles.")] = 0,
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    auto_resume: Annotated[
        bool, typer.Option("--auto_resume", help="Continue if there is a run, else begin one: for jobs that restart.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again instead of keeping them: less memory.")
    ] = False,
    save_minutes: Annotated[
        float, typer.Option("--save_minutes", min=0, help="Save the state this often, besides snapshot_save_iter.")
    ] = 15.0,
    keep: Annotated[int, typer.Option(min=1, help="States to keep (resume_########.pt).")] = 3,
    patience: Annotated[
        int, typer.Option(min=1, max=256, help="Stop after this many iterations in a row without a finite gradient.")
    ] = 50,
    peer_timeout: Annotated[
        float, typer.Option("--peer_timeout", min=1, help="Under torchrun: seconds until a silent rank counts as lost.")
    ] = 300.0,
    allow_outside: AllowOutsideOption = False,
    wandb: Annotated[str | None, typer.Option(help="Log to this Weights & Biases project as well.")] = None,
) -> None:
    """Train. Ctrl-C or SIGTERM saves and stops; --resume continues. torchrun -m munit_fast train: on many devices."""
    from munit_fast.config import parse_config, read_config
    from munit_fast.training import PeerError, TrainOptions
    from munit_fast.training import train as run

    console = _console()
    text = read_config(config)
    cfg = parse_config(text, source=str(config))
    options = TrainOptions(
        config.stem,
        output_path,
        trainer.value,
        resume,
        _device(device),
        seed,
        amp=amp.value,
        impl=impl.value,
        auto_resume=auto_resume,
        checkpointing=checkpointing,
        save_minutes=save_minutes,
        keep=keep,
        patience=patience,
        peer_timeout=peer_timeout,
        allow_outside=allow_outside,
        wandb=wandb,
    )
    try:
        result = run(cfg, options, config_text=text, console=console)
    except PeerError:  # the main rank has said it
        raise typer.Exit(1) from None
    if not result.main:
        return
    how = "finished" if result.finished else "stopped"
    console.print(
        f"{how} after iteration {result.iterations}; checkpoints in {result.folder.checkpoints}",
        markup=False,
        soft_wrap=True,
    )
    if result.skipped_steps:
        console.print(f"{result.skipped_steps} steps were skipped because their gradient was not finite")


@app.command()
def translate(
    config: Annotated[Path, typer.Option(help="The configuration of the run.")],
    checkpoint: Annotated[Path, typer.Option(help="A gen_########.pt file.")],
    input: Annotated[Path | None, typer.Option("--input", help="An image, or a folder of images.")] = None,
    input_folder: Annotated[Path | None, typer.Option("--input_folder", help="The same as --input.")] = None,
    output_folder: Annotated[Path, typer.Option("--output_folder", help="Where the translations go.")] = Path(
        "translated"
    ),
    style: Annotated[
        Path | None,
        typer.Option(help="Take the style from this image, or from each image of this folder."),
    ] = None,
    a2b: Annotated[int, typer.Option("--a2b", min=0, max=1, help="1: domain A to B; 0: B to A.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the random styles.")] = 10,
    num_style: Annotated[int, typer.Option("--num_style", min=1, help="Random styles per image.")] = 10,
    synchronized: Annotated[
        bool, typer.Option("--synchronized", help="The same random styles for every image.")
    ] = False,
    output_only: Annotated[
        bool, typer.Option("--output_only", help="Do not write the inputs beside the outputs.")
    ] = False,
    native_size: Annotated[
        bool,
        typer.Option("--native_size", help="Keep each image's own size instead of the configuration's new_size."),
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Use the moving average of the weights where the run kept one.")
    ] = True,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 8,
    format: Annotated[str, typer.Option(help="png, jpg, bmp, tif or webp.")] = "png",
    trainer: TrainerOption = TrainerName.MUNIT,
    device: DeviceOption = "auto",
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    output_path: Annotated[Path, typer.Option("--output_path", hidden=True)] = Path("."),  # published; nothing to do
    compute_is: Annotated[bool, typer.Option("--compute_IS", hidden=True)] = False,
    compute_cis: Annotated[bool, typer.Option("--compute_CIS", hidden=True)] = False,
    inception_a: Annotated[Path | None, typer.Option("--inception_a", hidden=True)] = None,
    inception_b: Annotated[Path | None, typer.Option("--inception_b", hidden=True)] = None,
) -> None:
    """Translate an image or a folder of images with a trained model."""
    from rich.progress import Progress

    from munit_fast.config import load_config
    from munit_fast.model import TRANSLATORS
    from munit_fast.translate import TranslateOptions, translate_files

    if compute_is or compute_cis:
        raise ValueError(
            "--compute_IS and --compute_CIS are not computed here; translate without them, then: munit-fast evaluate "
            "--translated OUTPUT_FOLDER --train FOLDER --also is,cis"
        )
    source = input or input_folder
    if source is None or (input and input_folder):
        raise ValueError("give one of --input and --input_folder")
    console = _console()
    model = TRANSLATORS[trainer.value](load_config(config), impl=impl.value)
    model.load(checkpoint, average=ema).to(_device(device)).eval()
    if model.loaded != checkpoint:
        console.print(f"weights: {model.loaded} (--no-ema: {checkpoint})", markup=False, soft_wrap=True)
    options = TranslateOptions(
        "a2b" if a2b else "b2a",
        num_style,
        style,
        synchronized,
        output_only,
        native_size,
        seed,
        batch_size,
        format,
        amp.value,
    )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("translating")
        result = translate_files(
            model,
            source,
            output_folder,
            options,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{len(result.written)} files in {output_folder}", markup=False, soft_wrap=True)
    for failure in result.failures:
        _complain(failure)
    if result.failures:
        raise typer.Exit(1)


class Way(str, Enum):
    """Which directions to evaluate."""

    both = "both"
    a2b = "a2b"
    b2a = "b2a"


@app.command()
def evaluate(
    config: Annotated[Path | None, typer.Option(help="The configuration of the run; names the test pictures.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A gen_########.pt file.")] = None,
    translated: Annotated[
        Path | None, typer.Option(help="Instead of a checkpoint: a folder of translations, NAME_000.png or NAME.png.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="With --translated: the true pictures, by the same NAMEs.")] = None,
    input: Annotated[Path | None, typer.Option("--input", help="With --translated: the inputs, by the NAMEs.")] = None,
    train_folder: Annotated[
        Path | None, typer.Option("--train", help="With --translated: real pictures of the target domain, for KID.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=11, help="With --translated: bring all to size×size.")] = None,
    direction: Annotated[Way, typer.Option(help="A to B, B to A, or both.")] = Way.both,
    num_style: Annotated[int, typer.Option("--num_style", min=1, help="Random styles per picture.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the random styles; those of translate.")] = 10,
    also: Annotated[
        str, typer.Option(help="fid, kid, is, cis, lpips (a list with commas), none, or what is here (auto).")
    ] = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too; - prints only them.")] = None,
    trainer: TrainerOption = TrainerName.MUNIT,
    device: DeviceOption = "auto",
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    allow_outside: AllowOutsideOption = False,
) -> None:
    """Measure a checkpoint on the test pictures of its configuration, or a folder of translations."""
    from rich.progress import Progress

    from munit_fast import evaluate as office
    from munit_fast.config import load_config
    from munit_fast.model import TRANSLATORS

    names = {"auto": None, "none": ()}.get(also, [name.strip() for name in also.split(",")])
    ways = ("a2b", "b2a") if direction is Way.both else (direction.value,)
    options = office.EvaluateOptions(
        ways, num_style, seed, amp.value, names, _device(device), allow_outside=allow_outside
    )
    if translated is not None:
        if config or checkpoint:
            raise ValueError("give --translated, or --config and --checkpoint, not both")
        found = office.evaluate_folders(translated, options, truth=truth, source=input, train=train_folder, size=size)
    else:
        if config is None or checkpoint is None:
            raise ValueError("give --config and --checkpoint, or --translated")
        if truth or input or train_folder or size:
            raise ValueError("--truth, --input, --train and --size go with --translated; the configuration has its own")
        cfg = load_config(config)
        tests = office.open_test_set(cfg, allow_outside)
        model = TRANSLATORS[trainer.value](cfg, impl=impl.value)
        model.load(checkpoint).to(options.device).eval()
        with Progress(console=_console(), transient=True) as bar:
            task = bar.add_task("evaluating")
            found = office.evaluate_model(
                model, tests, options, lambda done, total: bar.update(task, completed=done, total=total)
            )
        found.about.update(config=str(config), checkpoint=str(checkpoint))
    if json is not None and str(json) != "-":
        office.write_json(found, json)
    if str(json) == "-":
        typer.echo(office.as_json(found))
    else:
        office.show(found, Console())


@prepare.command("openmoji")
def prepare_openmoji(
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
) -> None:
    """OpenMoji emoji: line drawings (A) and their colourings (B)."""
    from munit_fast.data import prepare_openmoji as run

    _report_prepared(out, _with_bar(lambda progress: run(out, size=size, progress=progress)))


@prepare.command("edges")
def prepare_edges(
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    source: Annotated[Path, typer.Option(help="A folder of pictures.")],
    size: Annotated[int, typer.Option(help="Length of the short side in pixels.")] = 256,
    test_fraction: Annotated[float, typer.Option("--test_fraction", help="The part that becomes test pairs.")] = 0.1,
    sigma: Annotated[float, typer.Option(help="Blur before the edges are found; larger keeps fewer.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
) -> None:
    """Canny edges (A) and pictures (B) from any folder of pictures."""
    from munit_fast.data import prepare_edges as run

    _report_prepared(
        out,
        _with_bar(
            lambda progress: run(
                source, out, size=size, test_fraction=test_fraction, sigma=sigma, seed=seed, progress=progress
            )
        ),
    )


@app.command()
def doctor(
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Compare every operator here with the reference; takes seconds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, and which backend serves which operator or why it does not."""
    from munit_fast import doctor as office

    found = office.examine()
    console = Console()
    if not json:
        office.show(found, console)
    trials = office.selftest() if selftest else None
    if json:
        typer.echo(office.as_json(found, trials))
    elif trials is not None:
        office.show_trials(trials, console)
    if complaint := office.complaint(trials or []):
        raise RuntimeError(complaint)


class Level(str, Enum):
    """What a benchmark times."""

    op = "op"
    block = "block"
    network = "network"
    training = "training"
    translation = "translation"


class CaseSet(str, Enum):
    """Sets of benchmark cases."""

    smoke = "smoke"
    gate = "gate"
    cpu = "cpu"
    full = "full"


@app.command()
def bench(
    cases: Annotated[CaseSet | None, typer.Option("--set", help="Which cases; default cpu, or gate on a GPU.")] = None,
    level: Annotated[list[Level] | None, typer.Option(help="Only these levels.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only cases with this in their name.")] = None,
    side: Annotated[list[int] | None, typer.Option(help="Only planes or images of this side.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Only these batch sizes.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only fp32, bf16 or fp16.")] = None,
    device: DeviceOption = "auto",
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each contender; more narrow the spread.")] = 9,
    turn: Annotated[float, typer.Option(min=0, help="Least seconds of a turn.")] = 0.02,
    compile: Annotated[bool, typer.Option(help="torch.compile as baselines; takes most of the time.")] = True,
    max_autotune: Annotated[bool, typer.Option(help="Its mode max-autotune too.")] = True,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Stop before the case that would take longer.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only cases that --output has no rows of.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append the rows to this file.")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Only print the cases.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write README tables and plots from --results.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="Only compare --results with a file of rows, or with what a revision had.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder or file of rows.")] = Path("benchmarks/results"),
    readme: Annotated[Path, typer.Option(help="Where --report writes its tables.")] = Path("README.md"),
    pictures: Annotated[Path, typer.Option(help="Where --report writes its plots.")] = Path("docs/benchmarks"),
) -> None:
    """Time munit-fast against every baseline, in turns; a correctness check runs before every timing."""
    from munit_fast import bench as suite
    from munit_fast.bench import office

    console = Console()
    if report and compare is not None:
        raise ValueError("give one of --report and --compare")
    if report:
        return office.write(results, readme, pictures, console)
    if compare is not None:
        return office.compare(compare, results, console)
    where = _device(device)
    chosen = suite.select(
        suite.SETS[cases.value if cases else ("gate" if where.type == "cuda" else "cpu")],
        [value.value for value in level or []],
        name or [],
        side or [],
        batch or [],
        dtype or [],
    )
    if list_cases:
        return typer.echo("\n".join(map(str, chosen)))
    seconds = None if minutes is None else minutes * 60
    options = suite.BenchOptions(where, rounds, turn, compile, max_autotune, output, seconds, missing)
    office.measure(chosen, options, console)


def _with_bar(work):  # type: ignore[no-untyped-def]
    from rich.progress import Progress

    with Progress(console=_console(), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))


def _report_prepared(out: Path, manifest) -> None:  # type: ignore[no-untyped-def]
    console = _console()
    state = "was prepared already" if manifest.get("reused") else "is ready"
    counts = ", ".join(f"{count} {split}" for split, count in manifest["counts"].items())
    console.print(f"{out} {state}: {counts}", markup=False, soft_wrap=True)
    skipped = {reason: count for reason, count in manifest["skipped"].items() if count}
    if skipped:
        console.print("left out: " + ", ".join(f"{count} {reason}" for reason, count in skipped.items()))


def _complain(message: str) -> None:
    for line in printable(message).splitlines():
        print(f"munit-fast: {line}", file=sys.stderr)


def main() -> None:
    """Run the command line: every foreseeable failure becomes one clear line and exit code 1."""
    # Pillow warns from its own limit on; ours is checked before anything is decoded, and says what to do.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", module="PIL")
    try:
        app()
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if traceback_wanted():
            raise
        # The last resort too: a person should not have to read a traceback to learn which file is at fault.
        _complain(str(error) or type(error).__name__)
        sys.exit(1)
