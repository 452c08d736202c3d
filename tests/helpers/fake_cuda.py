"""CUDA streams and graphs without a GPU: what a graph does to a training run, played on the CPU.

A capture records every operation below autograd and undoes what it wrote, so that nothing has run; a replay runs the
recorded operations on the recorded tensors. What CUDA refuses while it captures is refused: reading a value, copying a
constant from the host, drawing random numbers, and summing a gradient on another stream than the capture's.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from munit_fast.train import cuda_graph, trainer

REFUSED = "operation not permitted when stream is capturing"
# Not scalar_tensor: in the backward of torch.where it fills a tensor on its device. `trace` finds those of the host.
_SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")
_RANDOM = ("randn", "rand", "randint", "normal_", "uniform_", "bernoulli_", "random_")


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        pass


def accumulator(p: Tensor) -> Any:
    """The node that sums the gradient of `p`: the one of the graphs that are alive, else a new one."""
    with torch.enable_grad():
        return p.view_as(p).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


class Event:
    """Takes no time to speak of."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class _Recorder(TorchDispatchMode):
    def __init__(self, refused: dict[str, str]) -> None:
        super().__init__()
        self.refused = refused
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.born: set[int] = set()
        self.before: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _SYNCHRONISING or name in _RANDOM:
            raise RuntimeError(f"{REFUSED} (aten::{name})")
        if name in self.refused:
            raise RuntimeError(self.refused[name])
        kwargs = kwargs or {}
        given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs  # such as out=
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given:
                self._keep(given[argument.name])
        held = _held((args, kwargs))
        result = func(*args, **kwargs)
        for t in _tensors(result):
            if all(t.untyped_storage()._cdata != s.untyped_storage()._cdata for s in _tensors((args, kwargs))):
                self.born.add(t.untyped_storage()._cdata)
        self.calls.append((func, *held, _held(result)))
        return result

    def _keep(self, value: Any) -> None:
        for t in _tensors(value):
            storage = t.untyped_storage()
            if storage._cdata not in self.born and all(storage._cdata != s._cdata for s, _ in self.before):
                self.before.append((storage, storage.clone()))

    def undo(self) -> None:
        for storage, content in self.before:
            storage.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if func.namespace == "c10d":  # what waits for the exchange is no operator
                again[1].wait()
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _held(nest: Any) -> Any:
    """The same memory without the autograd graph, which a CUDA graph does not keep alive either."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, nest)


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


class _StreamContext:
    """As torch's: what is not left stays, and nothing tidies up behind it."""

    def __init__(self, cuda: FakeCuda, stream: Stream) -> None:
        self.cuda, self.stream = cuda, stream

    def __enter__(self) -> None:
        self.before, self.cuda.current = self.cuda.current, self.stream

    def __exit__(self, *_: object) -> None:
        self.cuda.current = self.before


class FakeCuda:
    """What torch.cuda is replaced by.

    refused: what operations raise inside a capture, by their names. fail: what ending a capture raises, if anything.
    """

    def __init__(self) -> None:
        self.default = self.current = Stream()
        self.modules: list[nn.Module] = []  # whose accumulators a capture looks at
        self.pools: list[Any] = []  # of each capture
        self.released: list[Any] = []
        self.replays = 0
        self.graphs: weakref.WeakSet[Any] = weakref.WeakSet()  # that are held
        self.refused: dict[str, str] = {}
        self.fail: str | None = None

    def stream(self, stream: Stream) -> _StreamContext:
        return _StreamContext(self, stream)

    def mark(self) -> None:
        """What sums gradients now was made on the current stream."""
        for node in self._accumulators():
            node.metadata["stream"] = self.current

    def check_accumulators(self) -> None:
        if any(node.metadata.get("stream", self.current) is not self.current for node in self._accumulators()):
            raise RuntimeError("dependency created on uncaptured work in another stream")

    def _accumulators(self) -> list[Any]:
        leaves = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        for module in self.modules:
            for weights in getattr(module, "_weights", {}).values():
                leaves += [c.leaf for copies in weights._copies.values() for c in copies]
        return [accumulator(p) for p in leaves]


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Let trainers on the CPU train as on a GPU, for a test."""
    cuda = FakeCuda()

    class Graph:
        def __init__(self) -> None:
            self.recorder: _Recorder | None = None
            self.handle: Any = None
            cuda.graphs.add(self)

        def capture_begin(self, pool: Any, capture_error_mode: str, **_: Any) -> None:
            assert cuda.current is not cuda.default and capture_error_mode == "thread_local"
            self.taken, self.recorder = pool, _Recorder(cuda.refused)
            cuda.pools.append(pool)
            self.recorder.__enter__()

        def capture_end(self) -> None:
            assert self.recorder is not None
            self.recorder.__exit__(None, None, None)
            self.recorder.undo()
            if cuda.fail is not None:
                raise RuntimeError(cuda.fail)
            cuda.check_accumulators()
            self.handle = self.taken

        def replay(self) -> None:
            assert self.recorder is not None and self.handle is not None
            cuda.replays += 1
            self.recorder.replay()

        def pool(self) -> Any:
            if self.handle is None:
                raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
            return self.handle

    reason = cuda_graph.unsupported_reason
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "stream": cuda.stream,
        "current_stream": lambda device=None: cuda.current,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "graph_pool_handle": lambda: object(),
        "CUDAGraph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda index, pool: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: cuda.released.append(pool), raising=False)
    monkeypatch.setattr(cuda_graph, "unsupported_reason", lambda t, device: reason(t, torch.device("cuda")))
    cuda_graph._stream.cache_clear()
    # As on a GPU: nothing is read back, weights are copied and gradients gathered.
    monkeypatch.setattr(trainer._Trainer, "_on_gpu", True)
    return cuda
