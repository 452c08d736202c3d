"""How a graph is written as a file of each format, and how that file is run by the format's own runtime."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from munit_fast.export.graphs import Graph
from munit_fast.utils.optional import require

Run = Callable[[Mapping[str, Tensor]], Tensor]  # a graph's output for its inputs by name, all on the CPU

_PT2_METADATA = "munit_fast.json"  # beside the program in a .pt2 archive
_OPENVINO_METADATA = "munit_fast"  # the section of an .xml file's rt_info


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: As in --format.
        suffix: The end of a file's name.
        companions: The ends of the names of further files that belong to it.
        writers: The modules that are imported to write it.
        runtime: The module that is imported to run it.
        extra: The extra of munit-fast that installs them.
        write: Writes a graph to a path.
        load: Reads a file into what runs it.
    """

    name: str
    suffix: str
    companions: tuple[str, ...]
    writers: tuple[str, ...]
    runtime: str
    extra: str
    write: Callable[[Graph, Path], None]
    load: Callable[[Path], Run]

    def check_packages(self, running: bool) -> None:
        """Raise ImportError, with the command that installs it, where a package is missing.

        Args:
            running: Whether the file is to be run, too.
        """
        for package in (*self.writers, *((self.runtime,) if running else ())):
            require(package, self.extra)


def onnx_proto(graph: Graph) -> Any:
    """A graph as an onnx.ModelProto, with its metadata, without the traces of this machine's files.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx")
    with quiet_exporter():
        exported = torch.onnx.export(graph.program(), dynamo=True, verbose=False)
    assert exported is not None
    model = exported.model_proto
    # Of what the exporter found out, sizes by made-up names and places in source files, nothing is needed.
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        del part.metadata_props[:]
    [output] = model.graph.output
    for value, name, axes in (
        *((value, name, graph.dynamic[name]) for value, name in zip(model.graph.input, graph.inputs)),
        (output, graph.output, graph.output_dynamic),
    ):
        _rename(model.graph, value.name, name)
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if axis in axes:
                dimension.dim_param = axes[axis]
    model.graph.name = graph.name
    model.producer_name, model.producer_version = "munit-fast", graph.metadata["version"]
    model.doc_string = f"{graph.metadata['trainer']} {graph.metadata['role']} {graph.name}"
    for name, text in graph.metadata.items():
        model.metadata_props.add(key=name, value=text)
    return model


def _rename(graph: Any, old: str, new: str) -> None:
    if old == new:
        return
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """In the block torch.onnx.export keeps its notes to itself: no torchvision, parts that will go."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _write_onnx(graph: Graph, path: Path) -> None:
    path.write_bytes(onnx_proto(graph).SerializeToString())


def onnx_session(source: bytes | Path, ort: ModuleType, threads: int = 0, providers: tuple[str, ...] = ()) -> Any:
    """An onnxruntime session.

    Args:
        source: The file, or what is in it.
        ort: The module onnxruntime.
        threads: How many it may use; 0: as many as there are cores.
        providers: Of onnxruntime, the best first; none: the CPU.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    # Within a call its threads wait for each other by spinning; after it they must not take time from others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(
        str(source) if isinstance(source, Path) else source, options, providers=[*providers, "CPUExecutionProvider"]
    )


def _load_onnx(path: Path) -> Run:
    session = onnx_session(path, require("onnxruntime", "onnx"))

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        [y] = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        return torch.from_numpy(y)

    return run


def _write_openvino(graph: Graph, path: Path) -> None:
    openvino = require("openvino", "openvino")
    # Its own reader of ONNX: openvino.convert_model has telemetry. What is float16 in the file it computes as it likes.
    model = openvino.Core().read_model(io.BytesIO(onnx_proto(graph).SerializeToString()))
    for name, text in graph.metadata.items():
        model.set_rt_info(text, [_OPENVINO_METADATA, name])
    openvino.save_model(model, str(path), compress_to_fp16=graph.metadata["dtype"] == "fp16")


def openvino_model(source: bytes | Path, openvino: ModuleType, threads: int, precision: str = "fp32") -> Any:
    """A model that OpenVINO compiled for the CPU, for one call at a time.

    Args:
        source: An .xml or .onnx file, or what is in the latter.
        openvino: The module.
        threads: How many it may use; 0: as many as it likes.
        precision: "fp32", "bf16" or "fp16", in which it computes what it can.
    """
    core = openvino.Core()
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": openvino_type(precision, openvino),
    }
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(str(source) if isinstance(source, Path) else io.BytesIO(source))
    with _own_signal_stack():
        return core.compile_model(model, "CPU", config)


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """After the block, signals are handled on the stack on which they were before it.

    OpenVINO (2026.4) gives the thread a stack of its own for signals, and takes it away with the model. Of two models
    that go in the order in which they came, the second brings back the first one's, which is gone: the next signal
    that Python handles, such as Ctrl-C, is a segmentation fault.
    """
    sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None) if os.name == "posix" else None
    if sigaltstack is None:
        yield
        return
    before = ctypes.create_string_buffer(64)  # a stack_t has 24 bytes
    sigaltstack(None, before)
    try:
        yield
    finally:
        sigaltstack(before, None)


def openvino_type(precision: str, openvino: ModuleType) -> Any:
    """The element type of OpenVINO for "fp32", "bf16" or "fp16".

    Args:
        precision: One of these.
        openvino: The module.
    """
    return getattr(openvino.Type, {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision])


def _load_openvino(path: Path) -> Run:
    compiled = openvino_model(path, require("openvino", "openvino"), 0)

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        [y] = compiled({name: x.numpy() for name, x in inputs.items()}).values()
        return torch.from_numpy(np.array(y))

    return run


def _write_pt2(graph: Graph, path: Path) -> None:
    torch.export.save(graph.program(), path, extra_files={_PT2_METADATA: json.dumps(graph.metadata, indent=1)})


def _load_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return module(*inputs.values())

    return run


ONNX = Format("onnx", ".onnx", (), ("onnx", "onnxscript"), "onnxruntime", "onnx", _write_onnx, _load_onnx)
OPENVINO = Format(
    "openvino",
    ".xml",
    (".bin",),
    ("onnx", "onnxscript", "openvino"),
    "openvino",
    "openvino",
    _write_openvino,
    _load_openvino,
)
PT2 = Format("pt2", ".pt2", (), (), "torch", "", _write_pt2, _load_pt2)
FORMATS = {format.name: format for format in (ONNX, OPENVINO, PT2)}
