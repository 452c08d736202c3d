"""munit-fast prepare openmoji, prepare edges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from munit_fast.cli.base import prepare
from munit_fast.cli.options import new_console


@prepare.command("openmoji")
def prepare_openmoji(
    out: Annotated[Path, typer.Argument(help="The folder to create.")],
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
    validation: Annotated[
        float, typer.Option(help="Share of the training emojis held out as pairs valA, valB, to choose a model by.")
    ] = 0.0,
) -> None:
    """OpenMoji emoji: line drawings (A) and colour pictures (B)."""
    from munit_fast.data import prepare_openmoji as run

    _report_prepared(out, _with_bar(lambda progress: run(out, size=size, validation=validation, progress=progress)))


@prepare.command("edges")
def prepare_edges(
    out: Annotated[Path, typer.Argument(help="The folder to create.")],
    source: Annotated[Path, typer.Option(help="A folder of pictures.")],
    size: Annotated[int, typer.Option(help="Length of the short side in pixels.")] = 256,
    test_fraction: Annotated[
        float, typer.Option("--test_fraction", help="Fraction of the pictures that become test pairs.")
    ] = 0.1,
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of the blur before edge detection; larger keeps fewer edges.")
    ] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
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


def _with_bar(work):  # type: ignore[no-untyped-def]
    from rich.progress import Progress

    with Progress(console=new_console(), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))


def _report_prepared(out: Path, manifest) -> None:  # type: ignore[no-untyped-def]
    console = new_console()
    state = "was prepared already" if manifest.get("reused") else "is ready"
    counts = ", ".join(f"{count} {split}" for split, count in manifest["counts"].items())
    console.print(f"{out} {state}: {counts}", markup=False, soft_wrap=True)
    skipped = {reason: count for reason, count in manifest["skipped"].items() if count}
    if skipped:
        console.print("left out: " + ", ".join(f"{count} {reason}" for reason, count in skipped.items()))
