"""An exported .onnx file as a model that translates, without torch's networks: what `translate --model` runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from munit_fast.export.formats import onnx_session
from munit_fast.export.metadata import Description, parse
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models.munit import Direction
from munit_fast.utils.optional import require
from munit_fast.utils.text import first_line

Array = npt.NDArray[np.float32]

SUFFIX = ".onnx"
_MAX_BYTES = 2**31  # protobuf's own limit
_MAX_ENTRIES, _MAX_ENTRY_CHARACTERS = 64, 200_000  # of the metadata
_DOMAINS = ("", "ai.onnx")  # of operators: onnx's own


class OnnxModel:
    """The translation of one direction and, beside it, the style encoder of its target, run by onnxruntime.

    It has the calls of `munit_fast.MUNIT` that translate files. An .onnx file is data: one that names other files or
    operators of others is refused before onnxruntime sees it. What its graph computes is the file's own affair, as is
    how much memory that takes: open files of people whom you trust with your machine's time.

    Args:
        path: NAME-a2b.onnx or NAME-b2a.onnx, as `munit-fast export` wrote it. NAME-style-b.onnx or NAME-style-a.onnx is
            opened beside it when a style is asked for.
        device: "cpu"; or "cuda" with onnxruntime-gpu.
        threads: How many onnxruntime may use; 0: as many as there are cores.

    Attributes:
        config: The configuration inside the file.
        trainer: "MUNIT" or "UNIT".
        direction: "a2b" or "b2a".
        about: The notes of the file: licence, attribution, how the model was trained.
        device: The device of what goes in and comes out, which is the CPU.
        digest: Of the bytes of the file.

    Raises:
        CheckpointError: The file is missing, damaged, of another program, or a style encoder.
        ImportError: onnx or onnxruntime is missing.
        ValueError: `device` cannot be used.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | Path, device: str = "cpu", threads: int = 0) -> None:
        self._path, self._threads = Path(path), threads
        self._providers = _providers(device)
        if not isinstance(threads, int) or threads < 0:
            raise ValueError(f"threads must be a whole number, 0 or more; got {threads!r}")
        self.digest = ""
        self._session, description = self._open(self._path, "translation")
        self._weights = description.weights
        self.config, self.trainer, self.about = description.config, description.trainer, dict(description.about)
        self.direction: Direction = "a2b" if description.place == "a2b" else "b2a"
        self._style_session: Any = None

    def translate(self, x: Tensor, direction: str | None = None, *, style: Tensor | None = None) -> Tensor:
        """Translate images, as `munit_fast.MUNIT.translate` does.

        Args:
            x: Images [N, C, H, W], floating point, in [-1, 1].
            direction: The file's, if given.
            style: Codes [N, S, style_dim], floating point; None for UNIT.

        Returns:
            Images [N, S, C', H, W] in [-1, 1], float32, on the CPU.

        Raises:
            ValueError: `direction` is not the file's, or `x` or `style` has another shape or type.
            CheckpointError: onnxruntime cannot run the file, or its output has another shape.
        """
        if direction not in (None, self.direction):
            raise ValueError(f"{self._path} translates {self.direction}; for {direction} open the file of that name")
        inputs = {"image": self._images(x, self.direction[0])}
        n, _, height, width = x.shape
        styles = 1
        if self.trainer == "UNIT":
            if style is not None:
                raise ValueError("style must be None: UNIT has no style codes")
        else:
            dim = self.config.gen.style_dim
            if not isinstance(style, Tensor) or style.dim() != 3 or (style.shape[0], style.shape[2]) != (n, dim):
                found = list(style.shape) if isinstance(style, Tensor) else type(style).__name__
                raise ValueError(f"style must be codes [{n}, S, {dim}]; got {found}")
            inputs["style"], styles = _array(style), style.shape[1]
        channels = getattr(self.config, f"input_dim_{self.direction[-1]}")
        return _run(self._path, self._session, inputs, (n, styles, channels, height, width))

    def encode_style(self, x: Tensor, domain: str) -> Tensor:
        """The style codes of images, as `munit_fast.MUNIT.encode_style` gives them.

        Args:
            x: Images [N, C, H, W] of the target domain, floating point, in [-1, 1].
            domain: The target domain, "a" or "b".

        Returns:
            Codes [N, style_dim], float32, on the CPU.

        Raises:
            ValueError: `domain` is not the target, or `x` has another shape or type.
            CheckpointError: NAME-style-b.onnx is not beside the file, or of another model, or cannot be run.
        """
        if domain != self.direction[-1]:
            raise ValueError(f"{self._path} takes styles of domain {self.direction[-1]}; got {domain!r}")
        path = self._path.with_name(f"{self._path.stem.removesuffix(f'-{self.direction}')}-style-{domain}{SUFFIX}")
        if self._style_session is None:
            session, description = self._open(path, "style")
            if (description.place, description.weights) != (domain, self._weights):
                raise CheckpointError(f"{path}: is not the style encoder of {self._path.name}; export both again")
            self._style_session = session
        inputs = {"image": self._images(x, domain)}
        return _run(path, self._style_session, inputs, (x.shape[0], self.config.gen.style_dim))

    def _images(self, x: Tensor, domain: str) -> Array:
        channels = getattr(self.config, f"input_dim_{domain}")
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != channels or 0 in x.shape:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be images [N, {channels}, H, W] with N, H, W ≥ 1; got {found}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point in [-1, 1]; got {x.dtype}")
        return _array(x)

    def _open(self, path: Path, role: str) -> tuple[Any, Description]:
        data, metadata = read_onnx(path)
        description = parse(str(path), metadata)
        if description.role != role:
            raise CheckpointError(f"{path}: is a {description.role} graph; give the file of a {role}")
        ort = require("onnxruntime", "onnx")
        try:
            session = onnx_session(data, ort, self._threads, self._providers)
        except Exception as error:  # onnxruntime's have no common class
            raise CheckpointError(f"{path}: onnxruntime cannot open it ({first_line(error)})") from None
        _check_signature(path, session, description)
        self.digest = self.digest or hashlib.sha256(data).hexdigest()  # of the first: a style encoder belongs to it
        return session, description


def _array(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float32).contiguous().numpy()


def _run(path: Path, session: Any, inputs: dict[str, Array], shape: tuple[int, ...]) -> Tensor:
    """What a session gives, which must have a shape. Raises CheckpointError where it cannot be run, or has not."""
    height, width = inputs["image"].shape[2:]
    try:
        [found] = session.run(None, inputs)
    except Exception as error:  # onnxruntime's have no common class
        raise CheckpointError(
            f"{path}: onnxruntime cannot run it on {len(inputs['image'])} images of {width}×{height} "
            f"({first_line(error)}); if memory is short, translate fewer or smaller ones at once"
        ) from None
    if found.shape != shape or not np.isfinite(found).all():
        raise CheckpointError(
            f"{path}: gives {list(found.shape)} instead of finite numbers {list(shape)}: it is damaged, or another's"
        )
    return torch.from_numpy(found)


def read_onnx(path: Path) -> tuple[bytes, dict[str, str]]:
    """Read an .onnx file that refers to nothing outside of it.

    Args:
        path: The file.

    Returns:
        Its bytes and its metadata.

    Raises:
        CheckpointError: It is missing, damaged, too large, or refers to other files or operators.
        ImportError: onnx is missing.
    """
    onnx = require("onnx", "onnx")
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: has more than 2 GiB, which no .onnx file may")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # of protobuf, which may not be imported by name
        raise CheckpointError(f"{path}: not a whole ONNX file") from None
    if model.functions or model.training_info:
        raise CheckpointError(f"{path}: holds functions or training graphs, which munit-fast does not write")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise CheckpointError(f"{path}: the weights {_text(tensor.name)!r} are to be read from another file")
    if foreign := {_text(node.domain) for node in _nodes(model.graph)} - set(_DOMAINS):
        raise CheckpointError(f"{path}: has operators of {min(foreign)!r}, which are not ONNX's own")
    if len(model.metadata_props) > _MAX_ENTRIES or any(
        len(entry.key) + len(entry.value) > _MAX_ENTRY_CHARACTERS for entry in model.metadata_props
    ):
        raise CheckpointError(f"{path}: has more metadata than munit-fast writes")
    return data, {_text(entry.key): _text(entry.value) for entry in model.metadata_props}


def _text(value: str | bytes) -> str:
    """A string of protobuf's, which gives bytes where it is no UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _nodes(graph: Any) -> Iterator[Any]:
    """The operators of a graph and of those inside their attributes."""
    todo = [graph]
    while todo:
        for node in todo.pop().node:
            yield node
            for attribute in node.attribute:
                todo += [attribute.g] if attribute.HasField("g") else []
                todo += attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that is stored in a graph."""
    todo = [graph]
    while todo:
        inner = todo.pop()
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in inner.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                todo += [attribute.g] if attribute.HasField("g") else []
                todo += attribute.graphs


def _check_signature(path: Path, session: Any, description: Description) -> None:
    """Raise CheckpointError where inputs and outputs are others than the metadata lets expect."""
    config, place = description.config, description.place
    source, target = place[0], place[-1]
    wanted: dict[str, list[int | None]] = {"image": [None, getattr(config, f"input_dim_{source}"), None, None]}
    if description.role == "style":
        output = {"style": [None, config.gen.style_dim]}
    else:
        if description.trainer == "MUNIT":
            wanted["style"] = [None, None, config.gen.style_dim]
        output = {"translation": [None, None, getattr(config, f"input_dim_{target}"), None, None]}
    for found, expected in ((session.get_inputs(), wanted), (session.get_outputs(), output)):
        shapes = {value.name: [d if isinstance(d, int) else None for d in value.shape] for value in found}
        if description.trainer == "UNIT" and "translation" in shapes:
            shapes["translation"][1] = None
        if shapes != expected or any(value.type != "tensor(float)" for value in found):
            raise CheckpointError(f"{path}: its inputs and outputs are not those that its metadata describe")


def _providers(device: str) -> tuple[str, ...]:
    if device == "cpu":
        return ()
    if device.partition(":")[0] != "cuda":
        raise ValueError(f"device must be cpu or cuda; got {device!r}")
    if "CUDAExecutionProvider" not in require("onnxruntime", "onnx").get_available_providers():
        raise ValueError("device cuda: this onnxruntime has no CUDA; pip install onnxruntime-gpu, or use cpu")
    return ("CUDAExecutionProvider",)
