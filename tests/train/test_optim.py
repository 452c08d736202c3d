"""What a CUDA graph forbids an iteration to do, seen without a GPU: on tensors of the "meta" device.

What such an iteration does on another device it would do on the host: constants, copies, values that are read back.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from munit_fast import make_config
from munit_fast.ops import upsample_conv
from munit_fast.reference import Vgg16
from munit_fast.train import trainer as trainers

# What puts Python numbers into a tensor, and what reads a tensor back: as operators, and as the functions that are
# called where torch shows no operator.
HOST_OPERATORS = ("aten::lift_fresh", "aten::scalar_tensor", "aten::_local_scalar_dense", "aten::item")
HOST_FUNCTIONS = ("tensor", "new_tensor", "as_tensor", "asarray", "from_numpy", "item", "tolist", "numpy", "cpu")


class HostOperators(TorchDispatchMode):
    """Keeps the names of the operators that touch a tensor outside of `device`, and of HOST_OPERATORS."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.found: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.namespace.startswith("profiler"):
            self.operators += 1
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            if any(t.device.type != self.device for t in tensors) or func._schema.name in HOST_OPERATORS:
                self.found.append(str(func))
        return result


class HostFunctions(TorchFunctionMode):
    """Keeps the names of HOST_FUNCTIONS that are called, and of indexing by lists, which become tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        if name in HOST_FUNCTIONS or any(isinstance(i, list) for i in (index if type(index) is tuple else (index,))):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def meta_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """autocast and fused Adam take "meta" for a device that they serve."""
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    precision: list[torch.dtype | None] = [None]

    @contextmanager
    def autocast(device: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> Iterator[None]:
        precision.append(dtype if enabled else None)
        yield
        precision.pop()

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(
        torch,
        "is_autocast_enabled",
        lambda *kind: precision[-1] is not None if kind == ("meta",) else enabled(*kind),
    )
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: precision[-1] if kind == "meta" else dtype(kind))
    # torch.optim.adam is a name that torch deletes.
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)


def hyperparameters(**over: Any) -> dict[str, Any]:
    gen = {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1, **over.pop("gen", {})}
    dis = {"dim": 4, "n_layer": 2, "num_scales": 2, **over.pop("dis", {})}
    sizes = {"crop_image_height": 32, "crop_image_width": 40, "display_size": 2}
    return make_config({"gen": gen, "dis": dis, **sizes, **over}).hyperparameters()


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "cycle": {"recon_x_cyc_w": 1},
    "vgg": {"vgg_w": 1},
    "nsgan": {"dis": {"gan_type": "nsgan"}},
    "accumulation": {"accumulation": 2},
    **{f"pad {pad}": {"gen": {"pad_type": pad}, "dis": {"pad_type": pad}} for pad in ("zero", "replicate")},
    **{f"activ {a}": {"gen": {"activ": a}, "dis": {"activ": a}} for a in ("lrelu", "prelu", "selu", "tanh")},
    **{f"norm {norm}": {"dis": {"norm": norm}} for norm in ("in", "ln", "bn")},
}
# Convolutions of plain PyTorch, which these have, are cast by autocast itself; it does not know "meta".
CASES = [(name, "off") for name in CONFIGURATIONS]
CASES += [(name, "bf16") for name in CONFIGURATIONS if name not in ("vgg", "norm bn")]


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
@pytest.mark.parametrize(("name", "amp"), CASES)
def test_an_iteration_leaves_the_host_alone(
    name: str, amp: str, kind: str, meta_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vgg16, "from_file", lambda path: Vgg16().requires_grad_(False))
    hp = hyperparameters(**CONFIGURATIONS[name])
    with torch.device("meta"):
        trainer: Any = getattr(trainers, kind)(hp, amp=amp)
    x_a, x_b = torch.empty(2, 2, 3, 32, 40, device="meta")
    of_dis, of_gen = ([n.to("meta") for n in noise] for noise in trainer.draw_noise(x_a, x_b, torch.Generator()))
    for _ in range(2):  # the first makes Adam's moments
        with HostFunctions() as functions, HostOperators("meta") as operators:
            trainer.dis_update(x_a, x_b, hp, of_dis)
            trainer.gen_update(x_a, x_b, hp, of_gen)
    assert operators.operators > 500
    assert not operators.found and not functions.found


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.tensor(1.0),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 1]],
        lambda x: x.copy_(torch.zeros(2)),
        lambda x: torch.where(x > 0, 1.0, x),
    ],
)
def test_work_of_the_host_is_seen(work: Callable[[Tensor], Any]) -> None:
    x = torch.empty(2, device="meta")
    with HostFunctions() as functions, HostOperators("meta") as operators:
        x.new_full((2,), 3.0) * 2 + 1
        assert not operators.found and not functions.found
        work(x)
    assert operators.found or functions.found


class Reads(TorchDispatchMode):
    """Keeps a weak reference to every storage that is read but was not made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, StorageWeakRef] = {}
        self.made: dict[int, StorageWeakRef] = {}  # held, so that no other storage takes its address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage.cdata not in self.made:
                self.found.setdefault(storage.cdata, storage)
        result = func(*args, **(kwargs or {}))
        self.made.update((s.cdata, s) for s in _storages(result) if s.cdata not in self.found)
        return result


def _storages(tensors: Any) -> list[StorageWeakRef]:
    return [StorageWeakRef(t.untyped_storage()) for t in tree_leaves(tensors) if isinstance(t, Tensor)]


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_what_a_graph_reads_stays_where_it_is(kind: str, tmp_path: Path) -> None:
    """A graph goes on reading the memory that it read when it was captured, whatever a cache has let go since."""
    hp = hyperparameters(recon_x_cyc_w=1)
    trainer: Any = getattr(trainers, kind)(hp)
    images = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    of_dis, of_gen = trainer.draw_noise(*images)
    for _ in range(2):  # the first makes Adam's moments
        with Reads() as reads:
            trainer.dis_update(*images, hp, of_dis)
            trainer.gen_update(*images, hp, of_gen)
    assert len(reads.found) > len(list(trainer.parameters()))

    def gone() -> set[int]:
        gc.collect()
        return {address for address, storage in reads.found.items() if storage.expired()}

    trainer.sample(*images)
    with torch.no_grad():
        for size in range(8):  # of as many images as there are styles, display_size
            trainer(*torch.rand(2, 2, 3, 48 + 8 * size, 64 + 12 * size))
    trainer.save(tmp_path, 1)
    assert not gone()
    moments = {s.cdata for o in (trainer.dis_opt, trainer.gen_opt) for s in _storages(list(o.state.values()))}
    loads = trainer.gen_opt.loads
    trainer.resume(tmp_path, hp)
    assert gone() <= moments and trainer.gen_opt.loads > loads  # and with other moments, another graph is captured


@pytest.mark.parametrize("size", [(1024, 2048), (3, 2)])
def test_the_ring_of_a_phase_convolution_is_made_where_the_image_is(size: tuple[int, int]) -> None:
    """From the first call on: what is made on the host for each new size costs more than the correction itself."""
    n, c, o = 2, 8, 4
    a = torch.empty(n, c, size[0] + 2, size[1] + 2, device="meta", memory_format=torch.channels_last)
    y = torch.empty(n, 4 * o, *size, device="meta", memory_format=torch.channels_last)
    weight = torch.empty(o, c, 5, 5, device="meta")
    with HostFunctions() as functions, HostOperators("meta") as operators:
        edges = upsample_conv.Edges.of_padded(a)
        upsample_conv.correct_reflect_border(y, edges, weight)
        _, of_edges = upsample_conv.correct_reflect_border_backward(y, edges, weight, True, True)
        of_edges.add_to_padded(torch.empty_like(a))
    assert operators.operators > 20
    assert not operators.found and not functions.found
