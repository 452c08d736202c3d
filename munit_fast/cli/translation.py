"""munit-fast translate, export, evaluate."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from munit_fast.cli.base import app
from munit_fast.cli.models import (
    CheckpointOption,
    ConfigOption,
    EmaOption,
    PretrainedOption,
    load_model,
    load_run,
    print_notes,
    with_measured_ranges,
)
from munit_fast.cli.options import (
    AllowOutsideOption,
    Amp,
    AmpOption,
    DeviceOption,
    Impl,
    ImplOption,
    OverrideOption,
    TrainerName,
    TrainerOption,
    find_device,
    new_console,
    print_error,
)

if TYPE_CHECKING:
    from munit_fast.models.munit import MUNIT, UNIT, Direction


class TileStatistics(str, Enum):
    """Whose statistics the norms of a tiled image have."""

    sampled = "sampled"
    exact = "exact"


class Precision(str, Enum):
    """How weights are stored."""

    fp16 = "fp16"
    fp32 = "fp32"


@app.command()
def translate(
    pretrained: PretrainedOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Instead: a NAME-a2b.onnx file of `munit-fast export`, run by ONNX Runtime."),
    ] = None,
    input: Annotated[Path | None, typer.Option("--input", help="An image, or a folder or archive of them.")] = None,
    input_folder: Annotated[Path | None, typer.Option("--input_folder", help="The same as --input.")] = None,
    output_folder: Annotated[Path, typer.Option("--output_folder", help="Where the translations go.")] = Path(
        "translated"
    ),
    style: Annotated[
        Path | None,
        typer.Option(help="Take the style of this image, or of each image of this folder; mean: see --style_folder."),
    ] = None,
    style_folder: Annotated[
        Path | None,
        typer.Option("--style_folder", help="With --style mean: one style, the average of those of these images."),
    ] = None,
    a2b: Annotated[
        int | None,
        typer.Option("--a2b", min=0, max=1, help="1: domain A to B, as if left out; 0: B to A. --model knows its own."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random styles.")] = 10,
    num_style: Annotated[
        int | None, typer.Option("--num_style", min=1, help="Random styles per image: 10, with --tile 1.")
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Interpolate: this many steps from each style to the next.")
    ] = None,
    synchronized: Annotated[
        bool, typer.Option("--synchronized", help="The same random styles for every image.")
    ] = False,
    grid: Annotated[
        Path | None,
        typer.Option(help="Also write one picture: a row for each of the first 100 images, with its translations."),
    ] = None,
    output_only: Annotated[
        bool, typer.Option("--output_only", help="Do not write the inputs beside the outputs.")
    ] = False,
    native_size: Annotated[
        bool,
        typer.Option("--native_size", help="Keep each image's own size instead of the configuration's new_size."),
    ] = False,
    ema: EmaOption = True,
    batch_size: Annotated[
        int, typer.Option("--batch_size", min=1, help="Images that are translated at once, if they have one size.")
    ] = 8,
    workers: Annotated[
        int,
        typer.Option("--workers", min=1, max=64, help="Threads that read images, and as many that write them."),
    ] = 2,
    tile: Annotated[
        int | None,
        typer.Option(min=16, help="For images larger than memory: translate tiles of this side, 512 for example."),
    ] = None,
    tile_statistics: Annotated[
        TileStatistics | None,
        typer.Option("--tile_statistics", help="Norms of some windows of the image, in one pass, or of all of it."),
    ] = None,
    tile_samples: Annotated[
        int | None, typer.Option("--tile_samples", min=1, help="Windows of --tile_statistics sampled: 64.")
    ] = None,
    tile_disk: Annotated[
        float | None, typer.Option("--tile_disk", min=0, help="GB that --tile_statistics exact may take on the disk.")
    ] = None,
    level: Annotated[int | None, typer.Option(min=0, help="With --tile: level of a pyramid; 0 is the largest.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="png, tif or npy: the values of the domain, as deep as the input (png: whole numbers up to 65535); "
            "jpg, bmp, webp or ppm: 8 bits; nii, nii.gz or dcm: volumes with the header of their input. png if left "
            "out, with --tile tif."
        ),
    ] = None,
    trainer: TrainerOption = TrainerName.auto,
    device: DeviceOption = "auto",
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    output_path: Annotated[Path, typer.Option("--output_path", hidden=True)] = Path(
        "."
    ),  # a published flag; without effect
    compute_is: Annotated[bool, typer.Option("--compute_IS", hidden=True)] = False,
    compute_cis: Annotated[bool, typer.Option("--compute_CIS", hidden=True)] = False,
    inception_a: Annotated[Path | None, typer.Option("--inception_a", hidden=True)] = None,
    inception_b: Annotated[Path | None, typer.Option("--inception_b", hidden=True)] = None,
) -> None:
    """Translate an image or a folder of images with a trained model.

    What is finished is kept: the same command continues after an interruption. Started by torchrun, the processes share
    the images.
    """
    from rich.progress import Progress

    from munit_fast.export import OnnxModel
    from munit_fast.tiles import TileOptions
    from munit_fast.translate import Shard, TranslateOptions, Translator, add_up, translate_files, translate_slides

    if compute_is or compute_cis:
        raise ValueError(
            "--compute_IS and --compute_CIS are not computed here; translate without them, then: munit-fast evaluate "
            "--translated OUTPUT_FOLDER --train FOLDER --also is,cis"
        )
    source = input or input_folder
    if source is None or (input and input_folder):
        raise ValueError("give one of --input and --input_folder")
    console = new_console()
    shard = Shard.of_environment()
    notes = console if shard.rank == 0 else Console(quiet=True)
    translator: Translator
    direction: Direction
    if model is not None:
        if pretrained or config or checkpoint or trainer is not TrainerName.auto or not ema:
            raise ValueError("--model is a whole model: leave out the options that name another, or a part of it")
        if amp not in (Amp.auto, Amp.off) or impl is not Impl.auto:
            raise ValueError("--model is run by ONNX Runtime: leave out --amp and --impl")
        translator = exported = OnnxModel(model, "cpu" if device == "auto" else device)
        direction = exported.direction if a2b is None else "a2b" if a2b else "b2a"
        print_notes(exported.about, notes)
    else:
        translator = load_model(pretrained, config, checkpoint, trainer=trainer, impl=impl, ema=ema, console=notes).to(
            shard.device(find_device(device))
        )
        direction = "b2a" if a2b == 0 else "a2b"
    if style_folder is not None and str(style) != "mean":
        raise ValueError("--style_folder goes with --style mean")
    options = TranslateOptions(
        direction,
        num_style or (10 if tile is None else 1),
        style_folder if str(style) == "mean" else style,
        mean_style=str(style) == "mean",
        interpolate=interpolate,
        synchronized=synchronized,
        grid=grid,
        output_only=output_only,
        native_size=native_size,
        seed=seed,
        batch_size=batch_size,
        extension=format or ("png" if tile is None else "tif"),
        amp="off" if model is not None else amp.value,
        workers=workers,
    )
    of_tiles = {
        "tile": tile,
        "statistics": tile_statistics and tile_statistics.value,
        "samples": tile_samples,
        "disk": None if tile_disk is None else round(tile_disk * 1e9),
        "level": level,
    }
    given: dict[str, Any] = {name: value for name, value in of_tiles.items() if value is not None}
    if tile is None and given:
        raise ValueError("--tile_statistics, --tile_samples, --tile_disk and --level go with --tile")
    if tile is not None and isinstance(translator, OnnxModel):
        raise ValueError("--tile needs the networks: give --pretrained, or --config and --checkpoint, not --model")

    def say(line: str) -> None:
        console.print(f"{shard}{line}", markup=False, soft_wrap=True)

    with Progress(console=console, transient=True, disable=shard.rank > 0) as bar:
        task = bar.add_task("translating")
        if tile is None:
            result = translate_files(
                translator,
                source,
                output_folder,
                options,
                lambda done, total: bar.update(task, completed=done, total=total),
                shard=shard,
                say=say,
            )
        else:
            result = translate_slides(
                cast("MUNIT | UNIT", translator),
                source,
                output_folder,
                options,
                TileOptions(direction, amp=amp.value, **given),
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                shard=shard,
                say=say,
            )
    for failure in result.failures:
        print_error(f"{shard}{failure}")
    written, failures = add_up(shard, [len(result.written), len(result.failures)])
    if shard.rank == 0:
        console.print(f"{written} files in {output_folder}", markup=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


class Directions(str, Enum):
    """Which directions to evaluate or to export."""

    both = "both"
    a2b = "a2b"
    b2a = "b2a"


class Format(str, Enum):
    """Kinds of exported files."""

    safetensors = "safetensors"
    onnx = "onnx"
    openvino = "openvino"
    pt2 = "pt2"


class YesNo(str, Enum):
    """An answer."""

    yes = "yes"
    no = "no"


@app.command()
def export(
    output: Annotated[
        Path,
        typer.Option(help="NAME.safetensors; NAME.onnx, NAME.xml or NAME.pt2 give NAME-a2b.onnx and so on."),
    ],
    pretrained: PretrainedOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    format: Annotated[
        Format | None, typer.Option(help="What to write; as the name of --output ends if left out.")
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(help="How weights are stored: fp16 if left out for safetensors, fp32 for the others."),
    ] = None,
    direction: Annotated[
        Directions, typer.Option(help="A to B, B to A, or both. Not for safetensors.")
    ] = Directions.both,
    verify: Annotated[
        YesNo, typer.Option(help="Run each file in its own runtime and compare it with the model. Not for safetensors.")
    ] = YesNo.yes,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.")] = None,
    attribution: Annotated[str | None, typer.Option(help="Whom to credit.")] = None,
    ema: EmaOption = True,
    trainer: TrainerOption = TrainerName.auto,
) -> None:
    """Export trained generators: one .safetensors file for munit-fast, or graphs for ONNX Runtime, OpenVINO, torch."""
    from munit_fast.export import FORMATS, export_model
    from munit_fast.io.safetensors_file import SUFFIX, check_name
    from munit_fast.models.portable import write_portable
    from munit_fast.train.summary import describe_run

    suffixes = {"safetensors": SUFFIX} | {name: kind.suffix for name, kind in FORMATS.items()}
    named = next((name for name, suffix in suffixes.items() if suffix == output.suffix), None)
    kind = format.value if format else named
    if kind is None or kind != named:
        wanted = suffixes[kind] if kind else f"one of {', '.join(suffixes.values())}"
        raise ValueError(f"--output {output}: the name must end in {wanted}")
    if kind == "safetensors":
        if direction is not Directions.both or verify is not YesNo.yes:
            raise ValueError("--direction and --verify go with --format onnx, openvino and pt2")
        check_name(output)
    console = new_console()
    model = load_model(pretrained, config, checkpoint, trainer=trainer, impl=Impl.auto, ema=ema, console=console)
    training = describe_run(checkpoint[0]) if checkpoint else None
    notes = {"licence": licence, "attribution": attribution, "training": training}
    about = model.about | {name: note for name, note in notes.items() if note}
    if kind == "safetensors":
        write_portable(output, model, dtype=dtype.value if dtype else "fp16", about=about)
        console.print(f"{output}: {output.stat().st_size / 1e6:.2f} MB", markup=False, soft_wrap=True)
        return
    with console.status("exporting") as status:
        files = export_model(
            model,
            output,
            format=kind,
            directions=("a2b", "b2a") if direction is Directions.both else (direction.value,),
            dtype=dtype.value if dtype else "fp32",
            notes=about,
            verify=verify is YesNo.yes,
            progress=lambda name: status.update(f"exporting {name}"),
        )
    for file in files:
        size = sum(path.stat().st_size for path in file.paths) / 1e6
        compared = (
            "not compared with the model"
            if file.difference is None
            else f"differs from the model by up to {file.difference:.1e}, {file.mean_difference:.1e} in the mean"
        )
        console.print(f"{file.path}: {size:.2f} MB, {compared}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration of the run; names the test pictures, of --translated channels and ranges only."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    translated: Annotated[
        Path | None, typer.Option(help="Instead of a checkpoint: a folder of translations, NAME_000.png or NAME.png.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="With --translated: the true pictures, by the same NAMEs.")] = None,
    input: Annotated[Path | None, typer.Option("--input", help="With --translated: the inputs, by the NAMEs.")] = None,
    train_folder: Annotated[
        Path | None, typer.Option("--train", help="With --translated: real pictures of the target domain, for KID.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=11, help="With --translated: resize all to size×size.")] = None,
    direction: Annotated[
        Directions, typer.Option(help="A to B, B to A, or both; of --translated one, a2b by itself.")
    ] = Directions.both,
    num_style: Annotated[int, typer.Option("--num_style", min=1, help="Random styles per picture.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random styles, as in translate.")] = 10,
    also: Annotated[
        str,
        typer.Option(
            help="Further metrics: fid, kid, is, cis, lpips (separated by commas), none, or all installed (auto)."
        ),
    ] = "auto",
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this JSON file; - prints only them.")
    ] = None,
    trainer: TrainerOption = TrainerName.auto,
    device: DeviceOption = "auto",
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    allow_outside: AllowOutsideOption = False,
    override: OverrideOption = None,
) -> None:
    """Evaluate a checkpoint on the test pictures of its configuration, or a folder of translations."""
    from rich.progress import Progress

    from munit_fast.config import load_config
    from munit_fast.evaluate import (
        EvaluateOptions,
        as_json,
        evaluate_folders,
        evaluate_model,
        open_test_set,
        show,
        write_json,
    )
    from munit_fast.models.algorithm import override as overridden

    if override and config is None:
        raise ValueError("--override changes keys of --config: give both")
    names = {"auto": None, "none": ()}.get(also, [name.strip() for name in also.split(",")])
    directions = ("a2b", "b2a") if direction is Directions.both else (direction.value,)
    options = EvaluateOptions(
        directions, num_style, seed, amp.value, names, find_device(device), allow_outside=allow_outside
    )
    if translated is not None:
        if checkpoint:
            raise ValueError("give --translated, or --checkpoint, not both")
        cfg = None if config is None else overridden(load_config(config), override or ())[0]
        evaluation = evaluate_folders(
            translated, options, truth=truth, source=input, train=train_folder, size=size, config=cfg
        )
    else:
        if config is None or not checkpoint:
            raise ValueError("give --config and --checkpoint, or --translated")
        if truth or input or train_folder or size:
            raise ValueError("--truth, --input, --train and --size go with --translated; the configuration has its own")
        cfg, _ = overridden(with_measured_ranges(load_config(config), checkpoint[0]), override or ())
        tests = open_test_set(cfg, allow_outside)
        console = new_console()
        model = load_run(cfg, checkpoint, trainer=trainer, impl=impl, ema=True, console=console)
        model.to(options.device).eval()
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("evaluating")
            evaluation = evaluate_model(
                model, tests, options, lambda done, total: bar.update(task, completed=done, total=total)
            )
        evaluation.about.update(config=str(config), checkpoint=" and ".join(map(str, checkpoint)))
        if override:
            evaluation.about.update(override=", ".join(override))
    if json is not None and str(json) != "-":
        write_json(evaluation, json)
    if str(json) == "-":
        typer.echo(as_json(evaluation))
    else:
        show(evaluation, Console())
