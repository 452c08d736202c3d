"""A training iteration on a GPU, counted without one: launches, bytes, and what would keep it out of a CUDA graph.

The trainer lies on the meta device, whose tensors have sizes and no memory, and runs the code that it runs on a GPU:
every operator of PyTorch is seen below autograd, every Triton kernel where it would be launched. What PyTorch's own
operators do inside is known for those that launch several kernels (`_LAUNCHES`); cuDNN's and cuBLAS's helpers, such as
the sum of a split product, are not counted.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from munit_fast import kernels
from munit_fast.kernels import launch
from munit_fast.ops import backends
from munit_fast.ops.backends import registry
from munit_fast.reference.perceptual import Vgg16
from munit_fast.train import trainer as trainers
from munit_fast.train.step_options import StepOptions
from munit_fast.train.trainer import MUNIT_Trainer, UNIT_Trainer

_META = torch.device("meta")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
_CAPABILITY = (9, 0)  # of the GPU that is traced: Hopper

# What a value is read back for, or what waits for the GPU in another way.
_SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "unique")
# Operators without a kernel that do not look like a view by their schema.
_FREE = ("detach", "_unsafe_view", "lift_fresh", "set_", "resize_", "is_same_size", "_has_compatible_shallow_copy_type")
_KINDS = {
    "_to_copy": "cast or copy",
    "clone": "cast or copy",
    "copy_": "cast or copy",
    "zeros_like": "fill",
    "zero_": "fill",
    "fill_": "fill",
    "zeros": "fill",
    "ones": "fill",
    "ones_like": "fill",
    "full": "fill",
    "full_like": "fill",
    "new_zeros": "fill",
    "new_ones": "fill",
    "new_full": "fill",
    "convolution": "convolution",
    "convolution_backward": "convolution",
    "mm": "matrix product",
    "addmm": "matrix product",
    "bmm": "matrix product",
    "mv": "matrix product",
}


class TritonLaunch(NamedTuple):
    """A launch as `kernels.launch.run` was asked for it; the tensors have no memory."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    meta: dict[str, Any]


class Operation(NamedTuple):
    """An operator, or a kernel, of the iteration.

    Attributes:
        kind: "Triton", "convolution", "matrix product", "cast or copy", "fill", "multi-tensor" or "other".
        name: of the operator or kernel.
        launches: kernels that it launches.
        read: bytes, each tensor once.
        written: bytes, each tensor once.
        sizes: of its first tensor.
    """

    kind: str
    name: str
    launches: int
    read: int
    written: int
    sizes: tuple[int, ...]


@dataclass
class Trace:
    """What an iteration does.

    Attributes:
        operations: in their order.
        triton: the Triton launches among them.
        parameter_casts: names of parameters that are cast to another dtype one by one.
        host_bytes: of tensors that the captured part makes on the host.
        noise_bytes: of noise that is drawn on the host before.
        blocking: what would keep a CUDA graph from capturing it; empty: nothing.
    """

    operations: list[Operation] = field(default_factory=list)
    triton: list[TritonLaunch] = field(default_factory=list)
    parameter_casts: list[str] = field(default_factory=list)
    host_bytes: int = 0
    noise_bytes: int = 0
    blocking: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Kernels, in all."""
        return sum(operation.launches for operation in self.operations)

    def by_kind(self) -> dict[str, tuple[int, int, int]]:
        """Launches, bytes read and bytes written of each kind, most launches first."""
        found: dict[str, tuple[int, int, int]] = {}
        for o in self.operations:
            launches, read, written = found.get(o.kind, (0, 0, 0))
            found[o.kind] = launches + o.launches, read + o.read, written + o.written
        return dict(sorted(found.items(), key=lambda item: -item[1][0]))

    def by_name(self) -> Counter[tuple[str, str]]:
        """Launches by kind and name."""
        counts: Counter[tuple[str, str]] = Counter()
        for o in self.operations:
            counts[o.kind, o.name] += o.launches
        return counts


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _memory(t: Tensor) -> int:
    """What tells tensors apart that do not share their memory."""
    return t.untyped_storage()._cdata


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


# ---- multi-tensor operators: torch's ForeachUtils.cuh and MultiTensorApply.cuh ----

_CHUNK, _MOST_BLOCKS = 65536, 320
_MOST_TENSORS = (110, 64, 48, 36, 30)  # of one launch, by the number of lists


def multi_tensor_launches(sizes: Sequence[int], lists: int) -> int:
    """The launches of a multi-tensor operator: each takes so many tensors, and so many chunks, at most.

    Args:
        sizes: elements of each tensor of a list.
        lists: of tensors that it reads or writes.
    """
    launches = blocks = tensors = 0
    for size in sizes:
        if size == 0:
            continue
        tensors += 1
        for chunk in range(chunks := -(-size // _CHUNK)):
            blocks += 1
            last = chunk + 1 == chunks
            if blocks == _MOST_BLOCKS or (last and tensors == _MOST_TENSORS[lists - 1]):
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


def _foreach_launches(name: str, arguments: Sequence[Any]) -> int:
    lists = [a for a in arguments if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    if not lists:
        return 0
    # Else one operator for each tensor: torch's check_fast_path_restrictions. A copy may convert.
    dtypes = [{t.dtype for t in tensors} for tensors in lists]
    alike = all(len(found) == 1 for found in dtypes) and (name == "_foreach_copy_" or len(set.union(*dtypes)) == 1)
    laid_out_alike = all(len({t.stride() for t in group}) == 1 for group in zip(*lists))
    if not (alike and laid_out_alike):
        return sum(t.numel() > 0 for t in lists[0])
    return multi_tensor_launches([t.numel() for t in lists[0]], len(lists))


def _adam_launches(arguments: Sequence[Any]) -> int:
    return multi_tensor_launches([t.numel() for t in arguments[0]], 4)


def _convolution_backward_launches(arguments: Sequence[Any]) -> int:
    return sum(arguments[-1])


_LAUNCHES: dict[str, Callable[[Sequence[Any]], int]] = {
    "convolution_backward": _convolution_backward_launches,
    "_fused_adam_": _adam_launches,
    "slice_backward": lambda arguments: 2,  # zeros, and a copy into them
    "select_backward": lambda arguments: 2,
}


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _as_cudnn_lays_out(name: str, args: Sequence[Any], result: Any) -> Any:
    """The results of a convolution in the layout that cuDNN gives them: channels_last if an operand has it."""
    operands = args[:2] if name == "convolution" else args[:3]
    layout = torch.channels_last
    if not any(t.is_contiguous(memory_format=layout) and not t.is_contiguous() for t in operands):
        return result

    def lay_out(t: Any) -> Any:
        is_image = isinstance(t, Tensor) and t.dim() == 4
        return torch.empty_like(t, memory_format=layout) if is_image else t

    return lay_out(result) if isinstance(result, Tensor) else tuple(lay_out(t) for t in result)


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.trace, self.parameters = trace, parameters

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "munit_fast":  # the operator itself, not what stands for it where there is no memory
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        if name in _SYNCHRONISING and any(t.device == _META for t in inputs):
            self.trace.blocking.append(f"aten::{name} reads a value back")
            if name == "_local_scalar_dense":
                return 1.0
        # The fused step returns nothing, and has no form for tensors without memory.
        result = None if name.startswith("_fused") else func(*args, **kwargs)
        if name.startswith("convolution"):
            result = _as_cudnn_lays_out(name, args, result)
        outputs = _tensors(result)
        if all(t.device != _META for t in (*inputs, *outputs)):
            made = name == "lift_fresh" or not _is_view(func)  # the first is torch.tensor's
            self.trace.host_bytes += _bytes(outputs) if made else 0
            return result
        if any(t.device != _META and t.dim() > 0 for t in inputs):
            self.trace.blocking.append(f"aten::{name} reads memory of the host")
        if _is_view(func) or name in _FREE or name.startswith(("empty", "new_empty")):
            return result
        self._count(func, name, args, inputs, outputs)
        return result

    def _count(self, func: Any, name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        written = [
            t
            for argument, value in zip(func._schema.arguments, args)
            if argument.alias_info is not None and argument.alias_info.is_write
            for t in _tensors(value)
        ]
        fills = name in ("copy_", "fill_", "zero_")
        read = [t for t in inputs if not (fills and any(t is w for w in written))]
        new = [t for t in outputs if all(t is not w for w in written)]
        multi = name.startswith(("_foreach", "_fused", "_amp_foreach"))
        kind = "multi-tensor" if multi else _KINDS.get(name, "other")
        launches = _LAUNCHES[name](args) if name in _LAUNCHES else _foreach_launches(name, args) if multi else 1
        if not multi and outputs and all(t.numel() == 0 for t in (*new, *written)):
            launches = 0
        sizes = tuple(inputs[0].shape) if inputs else ()
        operation = Operation(kind, name, launches, _bytes(read), _bytes([*written, *new]), sizes)
        self.trace.operations.append(operation)
        if name == "_to_copy" and outputs[0].dtype != inputs[0].dtype:
            self.trace.parameter_casts += [self.parameters[i] for i in map(_memory, read) if i in self.parameters]


class _Autocast(TorchFunctionMode):
    """What autocast does to the convolutions and products of PyTorch's modules; the meta device has no autocast."""

    _CAST = ("conv2d", "linear", "matmul", "bmm", "mm", "addmm", "conv_transpose2d")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._CAST and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")

            def cast(value: Any) -> Any:
                is_wide = isinstance(value, Tensor) and value.device == _META and value.dtype == torch.float32
                return value.to(dtype) if is_wide else value

            args, kwargs = tuple(cast(a) for a in args), {name: cast(a) for name, a in kwargs.items()}
        return func(*args, **kwargs)


# ---- Triton ----


@cache
def written_pointers(kernel: Any) -> frozenset[str]:
    """The parameters of a kernel that it stores to, by its source: directly, or through what is computed from them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kernel, "fn", kernel))))
    parameters = {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    origins: dict[str, set[str]] = {name: {name} for name in parameters}

    def of(node: ast.AST) -> set[str]:
        return set().union(*(origins.get(n.id, set()) for n in ast.walk(node) if isinstance(n, ast.Name)))

    written: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    origins[target.id] = origins.get(target.id, set()) | of(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "store":
            written |= of(node.args[0])
    return frozenset(name for name in written if name.startswith("p_"))


def _triton_operation(launch: TritonLaunch) -> Operation:
    stored = written_pointers(launch.kernel)
    names = launch.kernel.arg_names
    pairs = [(name, _tensors(value)) for name, value in zip(names, launch.arguments)]
    read = [t for name, tensors in pairs if name not in stored for t in tensors]
    written = [t for name, tensors in pairs if name in stored for t in tensors]
    sizes = tuple(next((tuple(t.shape) for _, tensors in pairs for t in tensors), ()))
    return Operation("Triton", launch.kernel.__name__, 1, _bytes(read), _bytes(written), sizes)


# ---- the iteration ----


def _or_cpu(kind: str | None) -> Any:
    return "cpu" if kind == "meta" else kind


@contextmanager
def _as_on_a_gpu(record: Callable[..., None]) -> Iterator[None]:
    """Tensors without memory take the ways of those on a GPU; each Triton launch is handed to `record`."""
    enabled, dtype, autocast, order = (
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
        torch.autocast,
        registry.order,
    )

    def supported(device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "meta" and dtype in kernels.DTYPES else "it is not traced"

    patches: list[AbstractContextManager[Any]] = [
        patch.object(torch, "is_autocast_enabled", lambda *kind: enabled(*map(_or_cpu, kind))),
        patch.object(torch, "get_autocast_dtype", lambda kind: dtype(_or_cpu(kind))),
        patch.object(torch, "autocast", lambda kind, *args, **kw: autocast(_or_cpu(kind), *args, **kw)),
        patch.object(registry, "order", lambda device, capability, problem: order("cuda", _CAPABILITY, problem)),
        patch.object(kernels, "unsupported_reason", supported),
        patch.object(launch, "run", record),
        patch.object(
            inspect.getmodule(torch.optim.Optimizer), "_get_fused_kernels_supported_devices", lambda: ["meta"]
        ),
    ]
    backends.choose.cache_clear()
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        try:
            yield
        finally:
            backends.choose.cache_clear()


def missing_reason() -> str | None:
    """Why nothing can be traced here; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "a trace launches Triton's kernels, if on no GPU: install triton"
    return None


def trace_iteration(
    hyperparameters: Mapping[str, Any],
    trainer: str = "MUNIT",
    amp: str = "bf16",
    batch: int | None = None,
    checkpointing: bool = False,
    iteration: int = 1,
) -> Trace:
    """What one iteration of training launches on a GPU, as a CUDA graph would hold it.

    Args:
        hyperparameters: the published configuration keys.
        trainer: "MUNIT" or "UNIT".
        amp: "bf16", "fp16" or "off".
        batch: images of each domain; None: as configured, times accumulation.
        checkpointing: whether the backward computes activations again.
        iteration: its number, on which it depends what is computed of terms that not every iteration computes.

    Raises:
        ValueError: an unknown trainer or amp, or no images.
        RuntimeError: Triton is not installed.
    """
    made = {"MUNIT": MUNIT_Trainer, "UNIT": UNIT_Trainer}
    if trainer not in made:
        raise ValueError(f"trainer must be one of {', '.join(made)}; got {trainer!r}")
    if amp not in _DTYPES:
        raise ValueError(f"amp must be one of {', '.join(_DTYPES)}; got {amp!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1; got {batch}")
    if (reason := missing_reason()) is not None:
        raise RuntimeError(reason)
    hp = hyperparameters
    batch = hp["batch_size"] * hp.get("accumulation", 1) if batch is None else batch
    trace = Trace()

    def record(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any) -> None:
        if 0 in grid:
            return
        trace.triton.append(TritonLaunch(kernel, grid, args, meta))
        trace.operations.append(_triton_operation(trace.triton[-1]))

    with ExitStack() as stack:
        stack.enter_context(_as_on_a_gpu(record))
        stack.enter_context(patch.object(Vgg16, "from_file", lambda path: Vgg16().eval().requires_grad_(False)))
        stack.enter_context(patch.object(trainers, "amp_dtype", lambda amp, *_: _DTYPES[amp]))
        with _META:
            nets = made[trainer](hp, amp=amp, checkpointing=checkpointing).to(_META)
            size = (hp["crop_image_height"], hp["crop_image_width"])
            x_a, x_b = (torch.empty(batch, hp[f"input_dim_{d}"], *size) for d in "ab")
        on_host = torch.Generator()
        drawn = nets.draw_noise(x_a, x_b, on_host)
        noise_bytes = sum(map(_bytes, drawn)) if nets.noise_device.type == "cpu" else 0
        of_dis, of_gen = ([n.to(_META) for n in of_update] for of_update in drawn)
        stack.enter_context(_Autocast())
        for optimizer in (nets.dis_opt, nets.gen_opt):
            optimizer.make_capturable()
        nets.iterations = iteration - 1
        nets.update_learning_rate()
        for _ in range(2):  # the optimizers make their state in the first one
            trace = Trace(noise_bytes=noise_bytes)
            names = {_memory(p): name for name, p in nets.named_parameters()}
            with _Recorder(trace, names):
                nets._iterate(x_a, x_b, hp, (of_dis, of_gen))
                nets.update_average(batch)
    return trace


class Kind(NamedTuple):
    """A kind of iteration that computes more than the others do.

    Attributes:
        every: its first iteration, and the iterations from one to the next, which may be of a kind that computes more.
        computes: the keys of what it computes that others do not.
        trace: of such an iteration.
    """

    every: int
    computes: tuple[str, ...]
    trace: Trace


def trace_kinds(
    hyperparameters: Mapping[str, Any],
    trainer: str = "MUNIT",
    amp: str = "bf16",
    batch: int | None = None,
    checkpointing: bool = False,
) -> tuple[Trace, list[Kind]]:
    """What each kind of iteration launches, where `r1_iter` or `ada_iter` makes several.

    Args:
        hyperparameters: as of `trace_iteration`.
        trainer: likewise.
        amp: likewise.
        batch: likewise.
        checkpointing: likewise.

    Returns:
        The trace of an iteration that computes nothing but what all do, and the kinds that compute more.

    Raises:
        ValueError: as of `trace_iteration`.
        RuntimeError: likewise.
    """
    common, *others = [
        (i, due, trace_iteration(hyperparameters, trainer, amp, batch, checkpointing, i))
        for i, due in StepOptions(hyperparameters, trainer).kinds(hyperparameters).items()
    ]
    return common[2], [Kind(i, tuple(key for key in due if key not in common[1]), found) for i, due, found in others]
