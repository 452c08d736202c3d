"""Mixed precision: the dtype that `--amp` selects on a device.

On a CPU "auto" is decided by measuring: processors with bfloat16 instructions but without AMX may run bfloat16
convolutions at half the speed of float32, or at twice, and no list of processors says which.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from munit_fast.ops import conv_plans, winograd

AMP = ("auto", "bf16", "fp16", "off")
# Linux's names of instructions that multiply bfloat16; "bf16" is aarch64's.
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# Of the measured convolution: about ten milliseconds on one core. Winograd's transforms of the weights, which the
# pixels share, then count for twice what they do in the published configuration.
_MAX_MACS = 600_000_000
_BUDGET = 0.12  # seconds of rounds after the warm-up
_MAX_ROUNDS = 40


def bf16_hardware(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions. On a CPU that does not say whether they are faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)  # AMD's are higher
    return not cpu_features().isdisjoint(BF16_FEATURES)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's instruction sets by Linux's names ("avx512_bf16", "amx_bf16"); empty where it is unknown."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return frozenset(found[1].split()) if found else frozenset()


class Workload(NamedTuple):
    """The convolution that most of a generator's time goes to: a residual block's, 3×3, stride 1.

    The default is that of the published configuration, one 256×256 image.
    """

    batch: int = 1
    channels: int = 256
    height: int = 64
    width: int = 64
    training: bool = True  # its two gradients too

    @classmethod
    def of(cls, config: Any, batch: int, training: bool) -> Workload:
        """The convolution of a configuration on images of its crop.

        Args:
            config: a Config, or a mapping with the published keys.
            batch: images.
            training: whether its two gradients count too.
        """

        def get(holder: Any, key: str, default: Any) -> Any:
            return holder.get(key, default) if isinstance(holder, dict) else getattr(holder, key, default)

        gen = get(config, "gen", {})
        halvings = get(gen, "n_downsample", 2)
        height, width = get(config, "crop_image_height", 256), get(config, "crop_image_width", 256)
        scale = 2**halvings
        return cls(batch, get(gen, "dim", 64) * scale, max(1, height // scale), max(1, width // scale), training)


@dataclass(frozen=True)
class Measured:
    """Milliseconds of the workload's convolution and of a matrix product of its sizes, in each precision."""

    conv_fp32: float
    conv_bf16: float
    product_fp32: float
    product_bf16: float
    planned: bool = False  # whether float32 is convolved by a Winograd plan

    @property
    def faster(self) -> str:
        """ "bf16" or "off": by the convolution, and where that is within a tenth the same by the product.

        With a plan float32 then stays: bfloat16 reads and rounds more around the same arithmetic.
        """
        by_convolution = self.conv_bf16 / self.conv_fp32
        alike = 0.9 < by_convolution < 1.1
        by_product = 1.0 if self.planned else self.product_bf16 / self.product_fp32
        return "bf16" if (by_product if alike else by_convolution) < 1 else "off"

    def describe(self) -> str:
        """The four times in one line."""
        values = {name: f"{value:.2f}" for name, value in asdict(self).items()}
        return (
            f"convolution {values['conv_fp32']} ms in float32, {values['conv_bf16']} ms in bfloat16; "
            f"product {values['product_fp32']} and {values['product_bf16']} ms"
        )


def convolution(load: Workload, dtype: torch.dtype, macs: int = _MAX_MACS) -> Callable[[], object]:
    """A call that computes the workload's convolution, or a part of it, and in training its two gradients.

    Args:
        load: the convolution.
        dtype: of its tensors, channels_last on the CPU.
        macs: about as many multiplications the part has at most.
    """
    n, c, h, w, training = load
    # Pixels and channels are alike: fewer of them cost less and compare the same.
    c = min(c, 256)
    pixels = macs // (9 * c * c)
    n = max(1, min(n, pixels // (h * w)))
    h = min(h, max(4, pixels // (n * w)))
    w = min(w, max(8, pixels // (n * h)))
    generator = torch.Generator("cpu").manual_seed(0)  # the process's own stays as it is

    def draw(*size: int) -> Tensor:
        value = torch.randn(size, generator=generator, device="cpu").to(dtype)
        return value.contiguous(memory_format=torch.channels_last)

    x, k, grad = draw(n, c, h, w), draw(c, c, 3, 3), draw(n, c, h, w)

    if (plan := _plan(load, dtype)) is not None:
        return _planned(x, k.float(), grad, plan, training)

    def run() -> object:
        y = F.conv2d(x, k, padding=1)
        # Not through autograd, whose first use imports modules for longer than all of this takes.
        return backward(grad, x, k, None, *geometry, [True, True, False]) if training else y

    backward, geometry = torch.ops.aten.convolution_backward, ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    return run


def _plan(load: Workload, dtype: torch.dtype) -> str | None:
    """The plan of the whole workload, of which a part is measured."""
    c = min(load.channels, 256)
    shape = conv_plans.ConvShape(3, 1, c, c, load.batch, load.height, load.width, dtype, kept=not load.training)
    return conv_plans.choose(shape).result


def _planned(x: Tensor, k: Tensor, grad: Tensor, plan: str, training: bool) -> Callable[[], object]:
    source = winograd.Source(x, None, None, None, None, winograd.NO_EPILOGUE._replace(pad=1))
    transformed = None if training else winograd.transform_weight(k, plan)

    def run() -> object:
        y, _ = winograd.conv(source, k, transformed, None, plan, "none")
        if not training:
            return y
        gradient = winograd.input_gradient(grad, k, source, plan)
        return gradient, winograd.weight_gradient(grad, source, k, plan), None

    return run


def _product(load: Workload, dtype: torch.dtype) -> Callable[[], object]:
    c = min(load.channels, 256)
    rows = min(load.batch * load.height * load.width, _MAX_MACS // c**2)
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = (torch.randn(n, c, generator=generator, device="cpu").to(dtype) for n in (rows, c))
    return lambda: a @ b


def _seconds(run: Callable[[], object]) -> float:
    """What this thread spends on a call: the time that other programs take from it does not count."""
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(64)
def measure(load: Workload = Workload()) -> Measured:  # noqa: B008 - a constant
    """Float32 against bfloat16 on this CPU, below 0.3 s; once a process for each workload.

    With one thread: where other programs share the cores, several wait for each other, and what they take says more
    about those programs than about the two precisions.
    """
    with _one_thread(), torch.autocast("cpu", enabled=False), torch.no_grad():
        runs = [make(load, dtype) for make in (convolution, _product) for dtype in (torch.float32, torch.bfloat16)]
        for run in runs:
            run()
        best, begin = [float("inf")] * len(runs), time.perf_counter()
        for _ in range(_MAX_ROUNDS):
            # In turns, and the least of them: what else the machine does slows some turns of both down.
            best = [min(known, _seconds(run)) for known, run in zip(best, runs)]
            if time.perf_counter() - begin > _BUDGET:
                break
    conv_fp32, conv_bf16, product_fp32, product_bf16 = (1e3 * seconds for seconds in best)
    planned = _plan(load, torch.float32) is not None
    return Measured(conv_fp32, conv_bf16, product_fp32, product_bf16, planned)


def resolve(amp: str, device: torch.device, load: Workload | None = None) -> str:
    """The precision that `amp` selects.

    "auto" is bf16 on GPUs that have it and, on CPUs, the faster one of bf16 and off for `load`, as `measure` finds it.

    Args:
        amp: one of `AMP`.
        device: where the networks run.
        load: the convolution to measure; None: the published configuration's.

    Returns:
        "bf16", "fp16" or "off".

    Raises:
        ValueError: an unknown name.
    """
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}")
    if amp != "auto":
        return amp
    if not bf16_hardware(device):
        return "off"  # where bfloat16 is emulated there is nothing to measure
    return measure(load or Workload()).faster if device.type == "cpu" else "bf16"


def amp_dtype(amp: str, device: torch.device, load: Workload | None = None) -> torch.dtype | None:
    """The dtype of torch.autocast, or None for full precision.

    Args:
        amp: as in `resolve`.
        device: as in `resolve`.
        load: as in `resolve`.

    Raises:
        ValueError: an unknown name.
    """
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[resolve(amp, device, load)]


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """torch.autocast to `dtype`, or nothing for None."""
    if dtype is None:
        return nullcontext()
    # Its cache would keep tensors of a graph's memory beyond the capture.
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.autocast(device.type, dtype, cache_enabled=not capturing)
