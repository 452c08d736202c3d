"""`export_model`: the graphs of a model as files, each run in its own runtime and compared before it is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from munit_fast.export.formats import FORMATS, Format
from munit_fast.export.graphs import DIRECTIONS, Graph, Precision, make_graphs
from munit_fast.io.atomic import refuse_special, write_error
from munit_fast.models.munit import MODELS, MUNIT, UNIT, Direction
from munit_fast.utils.text import first_line

# [N, S, H, W] of what is compared: a size of the networks, and one that must be padded and cropped.
_TRIALS = ((1, 1, 64, 64), (2, 3, 45, 70))
# The largest difference of an output, and the largest mean difference. Images are in [-1, 1], where a grey level is
# 0.008; differences of style codes are divided by the largest number among them.
_TOLERANCES: dict[tuple[str, Precision], tuple[float, float]] = {
    ("translation", "fp32"): (1e-3, 1e-4),
    ("translation", "fp16"): (0.1, 4e-3),
    ("style", "fp32"): (1e-3, 1e-4),
    ("style", "fp16"): (1e-2, 2e-3),
}
_DTYPES = ("fp32", "fp16")


class ExportError(RuntimeError):
    """A runtime refused a file, or computed something else with it than the model."""


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Attributes:
        path: The file.
        companions: Further files that belong to it.
        graph: "a2b", "b2a", "style-a" or "style-b".
        difference: The largest difference from the model's output over the sizes that were tried; None: not tried.
        mean_difference: The largest mean difference; None: not tried.
    """

    path: Path
    companions: tuple[Path, ...]
    graph: str
    difference: float | None
    mean_difference: float | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files."""
        return (*self.companions, self.path)


def export_model(
    model: MUNIT | UNIT,
    output: str | os.PathLike[str],
    *,
    format: str,
    directions: Sequence[Direction] = DIRECTIONS,
    dtype: Precision = "fp32",
    notes: Mapping[str, str] | None = None,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[ExportedFile]:
    """Write a model as graphs for another runtime: a file for each translation and each style encoder.

    NAME.onnx gives NAME-a2b.onnx (inputs "image" [N, C, H, W] and "style" [N, S, style_dim], output "translation"
    [N, S, C', H, W]) and NAME-style-b.onnx (input "image", output "style" [N, style_dim]) for the direction a2b, and
    NAME-b2a.onnx and NAME-style-a.onnx for the other. N, S, H, W ≥ 1 are free: images are padded and cropped inside.
    Inputs and outputs are float32, images in [-1, 1]. UNIT has no styles: "image" only, and S = 1.

    Each file is run by its own runtime at two sizes and compared with the model before it gets its name; when one
    differs, or cannot be written, none is kept and those of an earlier export stay.

    Args:
        model: The model; it stays as it is.
        output: NAME with the suffix of the format, in an existing folder.
        format: "onnx", "openvino" (.xml, each with a .bin) or "pt2" (torch.export).
        directions: Which translations.
        dtype: "fp32", or "fp16": weights in half the size, norms and what is small in float32.
        notes: Text by name for the metadata, beside the model's own notes, such as "licence".
        verify: Compare. Without it the runtime need not be installed.
        progress: Called with the name of each file before it is made.

    Returns:
        What was written.

    Raises:
        ValueError: An argument is none of the above.
        ImportError: A package is missing; the message has the command that installs it.
        ExportError: A runtime cannot run a file, or its output differs from the model's.
        FileWriteError: A file cannot be written.
    """
    kind, output = _check(format, output, directions, dtype, verify)
    stems = {name: f"{output.stem}-{name}" for name in ("a2b", "b2a", "style-a", "style-b")}
    for stem in stems.values():
        for ending in (*kind.companions, kind.suffix):
            refuse_special(output.parent / (stem + ending))
    try:
        folder = Path(tempfile.mkdtemp(prefix=".exporting-", dir=output.parent))
    except OSError as error:
        raise write_error(output, error) from error
    try:
        done = []
        exact = MODELS[model.trainer](model.config)
        exact.load_state_dict(model.state_dict())
        exact.float().eval()
        for graph in make_graphs(model, directions, dtype=dtype, notes=dict(notes or {})):
            path = output.parent / (stems[graph.name] + kind.suffix)
            if progress is not None:
                progress(path.name)
            staged = folder / path.name
            kind.write(graph, staged)
            worst = _compare(kind, staged, exact, graph, dtype) if verify else (None, None)
            companions = tuple(path.with_suffix(ending) for ending in kind.companions)
            done.append(ExportedFile(path, companions, graph.name, *worst))
        _put_in_place([path for file in done for path in file.paths], folder)
        return done
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(paths: Sequence[Path], folder: Path) -> None:
    """Give all files their names, or none: what stood there before comes back where one cannot be put in its place.

    Args:
        paths: Their names.
        folder: Where they lie, under the same names.

    Raises:
        FileWriteError: One could not be put in its place.
    """
    earlier = folder / "earlier"
    earlier.mkdir()
    placed: list[Path] = []
    try:
        for path in paths:
            if path.is_file():
                os.replace(path, earlier / path.name)
        for path in paths:
            try:
                os.replace(folder / path.name, path)
            except OSError as error:
                raise write_error(path, error) from error
            placed.append(path)
    except BaseException:  # Ctrl-C, too
        for path in placed:
            path.unlink(missing_ok=True)
        for path in earlier.iterdir():
            os.replace(path, paths[0].with_name(path.name))
        raise


def _check(
    format: str, output: str | os.PathLike[str], directions: Sequence[Direction], dtype: str, verify: bool
) -> tuple[Format, Path]:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    kind, output = FORMATS[format], Path(output)
    if output.suffix != kind.suffix:
        raise ValueError(f"{output}: the name must end in {kind.suffix}")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    if not directions or set(directions) - set(DIRECTIONS) or len(set(directions)) < len(directions):
        raise ValueError(f"directions must be some of {', '.join(DIRECTIONS)}; got {tuple(directions)}")
    kind.check_packages(verify)
    return kind, output


def _compare(kind: Format, path: Path, exact: MUNIT | UNIT, graph: Graph, dtype: Precision) -> tuple[float, float]:
    """The largest and the largest mean difference of a file from the model. Raises ExportError where they are large."""
    worst, role = (0.0, 0.0), graph.metadata["role"]
    at_most, mean_at_most = _TOLERANCES[role, dtype]
    try:
        run = kind.load(path)
    except Exception as error:  # of any runtime
        raise ExportError(f"{path.name}: {kind.name} cannot open it ({first_line(error)}); it was not kept") from error
    for i, (n, styles, height, width) in enumerate(_TRIALS):
        generator = torch.Generator().manual_seed(i)
        inputs = {"image": _picture(n, graph.inputs["image"].shape[1], height, width, generator)}
        if "style" in graph.inputs:
            inputs["style"] = torch.randn(n, styles, graph.inputs["style"].shape[2], generator=generator)
        try:
            found = run(inputs)
        except Exception as error:
            raise ExportError(f"{path.name}: {kind.name} cannot run it ({first_line(error)}); not kept") from error
        wanted = _expected(exact, graph, inputs)
        if found.shape != wanted.shape:
            raise ExportError(f"{path.name}: gives {list(found.shape)} instead of {list(wanted.shape)}; not kept")
        scale = 1.0 if role == "translation" else max(wanted.abs().max().item(), 1e-6)
        difference = (found.double() - wanted.double()).abs() / scale
        largest, mean = difference.max().item(), difference.mean().item()
        # Written so that NaN, too, is a difference.
        if not (largest <= at_most and mean <= mean_at_most):
            raise ExportError(
                f"{path.name}: differs from the model by up to {largest:.2g}, {mean:.2g} in the mean, at "
                f"{width}×{height}; no file was kept" + ("; use --dtype fp32" if dtype == "fp16" else "")
            )
        worst = max(worst[0], largest), max(worst[1], mean)
    return worst


def _expected(model: MUNIT | UNIT, graph: Graph, inputs: Mapping[str, Tensor]) -> Tensor:
    if graph.metadata["role"] == "style":
        assert isinstance(model, MUNIT)
        return model.encode_style(inputs["image"], "a" if graph.metadata["domain"] == "a" else "b")
    direction: Direction = "a2b" if graph.metadata["direction"] == "a2b" else "b2a"
    if isinstance(model, UNIT):
        return model.translate(inputs["image"], direction)
    return model.translate(inputs["image"], direction, style=inputs["style"])


def _picture(n: int, channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Smooth noise, of other colours in each: networks are not made for pixels that are not like their neighbours."""
    noise = torch.rand(n, channels, max(2, height // 8), max(2, width // 8), generator=generator) * 2 - 1
    small = 0.5 * noise + torch.rand(n, channels, 1, 1, generator=generator) - 0.5
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear", align_corners=True)
