"""What the levels share: `Contender`, its `Work`, the variants of the published modules, and wrappers around both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast.benchmarks.cases import DTYPES, Case
from munit_fast.config import make_config
from munit_fast.train.cuda_graph import WARM_UP, capture, capture_stream

OURS = "munit_fast"
PUBLISHED = "published"
BATCH_NORM = "F.batch_norm, N = 1"
GROUP_NORM = "group_norm(C)"
MAX_AUTOTUNE = "torch.compile max-autotune"
COMPILED = {"torch.compile": "default", MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}
FROZEN = "torch.compile freezing"  # in the default mode, weights constant: folded and laid out when it is compiled
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
# The files of `munit-fast export` in their runtimes, and the formats' names. They are ours, and so is their first word.
EXPORTED_ONNX, EXPORTED_OPENVINO = f"{OURS} export, {ONNX_RUNTIME}", f"{OURS} export, {OPENVINO}"
EXPORTED_PT2 = f"{OURS} export, torch.export (pt2)"
EXPORTED = {EXPORTED_ONNX: "onnx", EXPORTED_OPENVINO: "openvino", EXPORTED_PT2: "pt2"}
TRITON = "Triton's wrapper"
NETWORK_ALONE = "network alone"  # of files that are translated: no reading, no writing
_PARTS = ("enc_content", "enc_style", "dec", "dis_a", "dis_b")  # of the networks, each of which runs as one call
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Unavailable(RuntimeError):
    """This contender cannot run on this machine: something is not installed, or the processor lacks it."""


@dataclass
class Work:
    """One contender, built and ready to run.

    Attributes:
        step: What is timed. Its results are checked against the expected ones.
        numbers: For a training iteration, whose step returns nothing: runs it and returns what to check.
        state_bytes: Size of weights and optimizer moments, which exist before and after a step.
        verify: Raises if the step did not run as the contender's name says, as a CUDA graph for example.
        launches: Kernels of a step, where that is not to be counted on a GPU.
    """

    step: Callable[[], Sequence[Tensor]]
    numbers: Callable[[], Sequence[Tensor]] | None = None
    state_bytes: int | None = None
    verify: Callable[[], None] = lambda: None
    launches: int | None = None


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        implementation: `OURS`, `PUBLISHED` or the name of another baseline; a value of the rows.
        layout: A key of `LAYOUTS`.
        make: Builds the work; can be expensive.
        graph: Whether the step is replayed from a CUDA graph.
        precision: The dtype of its autocast where that is not the case's.
    """

    implementation: str
    layout: str
    make: Callable[[], Work]
    graph: bool = False
    precision: str | None = None

    @property
    def ours(self) -> bool:
        """Whether it is munit_fast's, on any backend or as an exported file: no baseline."""
        return self.implementation.partition(" ")[0] == OURS

    @property
    def compiled(self) -> bool:
        """Whether torch.compile makes it."""
        return self.implementation in (*COMPILED, FROZEN)

    @property
    def external(self) -> bool:
        """Whether another runtime than torch computes it: torch sees neither its memory nor its operations."""
        return self.implementation in (ONNX_RUNTIME, OPENVINO, EXPORTED_ONNX, EXPORTED_OPENVINO)

    @property
    def algorithm(self) -> str:
        """What is multiplied: that of PUBLISHED, OURS, or of the graphs that munit-fast exports."""
        if self.implementation in EXPORTED:
            return "export"
        return OURS if self.ours else PUBLISHED

    def __str__(self) -> str:
        words = [self.implementation, self.layout]
        words += [self.precision] if self.precision else []
        return " ".join(words) + (" in a CUDA graph" if self.graph else "")


class Variant(NamedTuple):
    """One way to run the published modules: eager or compiled, in which layout, under autocast to which dtype."""

    implementation: str
    layout: str
    precision: str

    def contender(self, case: Case, make: Callable[[], Work], graph: bool = False) -> Contender:
        """The contender of a case that runs this variant."""
        precision = None if self.precision == case.dtype else self.precision
        return Contender(self.implementation, self.layout, make, graph, precision)


def published_variants(case: Case) -> list[Variant]:
    """The published modules eager in each layout, eager in float32 where the case is not, and compiled."""
    variants = [Variant(PUBLISHED, layout, case.dtype) for layout in LAYOUTS]
    variants += [Variant(PUBLISHED, "NCHW", "fp32")] if case.dtype != "fp32" else []
    return variants + [Variant(name, "channels_last", case.dtype) for name in COMPILED]


def hyperparameters(case: Case) -> dict[str, Any]:
    """The published configuration at the case's size; small images get fewer scales."""
    small = case.side < 128
    dis = {"dim": case.channels, "n_layer": 2 if small else 4, "num_scales": 2 if small else 3}
    return make_config(
        {
            "gen": {"dim": case.channels},
            "dis": dis,
            "crop_image_height": case.side,
            "crop_image_width": case.side,
            "display_size": 1,
            "ema_half_life": 0,  # the published iteration has no average
        }
    ).hyperparameters()


def placed(module: Any, layout: str, device: torch.device) -> Any:
    """A module on a device, its weights in a layout."""
    return module.to(device).to(memory_format=LAYOUTS[layout])


def compiled(function: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    """torch.compile of `function` as the contender of that name says."""
    if implementation == FROZEN:  # see `frozen`; the option keeps what COMPILED made of the same code from being reused
        return torch.compile(function, options={"freezing": True}, dynamic=False)
    return torch.compile(function, mode=COMPILED[implementation], dynamic=False)


def compile_parts(module: nn.Module, implementation: str) -> None:
    """Compile each part of the networks that runs as one call; their `forward`, which the losses call by itself."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in _PARTS:
            part.forward = compiled(part.forward, implementation)


def frozen(step: Callable[[], Any]) -> None:
    """Run `step`, which compiles its functions here and without gradients, with their weights as constants.

    dynamo and inductor read this setting from inductor's configuration while they compile; as an option of
    torch.compile alone it has no effect. Raises RuntimeError where the weights of the convolutions stayed inputs.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import config

    packed = "mkldnn_conv_weight_pack_matcher_count"
    before = counters["inductor"][packed]
    with config.patch(freezing=True):
        step()
    if torch.backends.mkldnn.is_available() and counters["inductor"][packed] == before:
        raise RuntimeError("torch.compile did not freeze the weights")


def autocast(dtype: str, device: torch.device) -> Any:
    """torch.autocast for a case's dtype; nothing for fp32."""
    if dtype == "fp32":
        return nullcontext()
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.autocast(device.type, DTYPES[dtype], cache_enabled=not capturing)


def in_graph(work: Work) -> Work:
    """The same work with its step captured in a CUDA graph; what it reads must stay where it is.

    The work must have been made on the current stream, `munit_fast.train.cuda_graph.capture_stream`. Its
    results are filled with NaN before the first replay, so that a check sees what the replay writes.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.current_stream() != capture_stream(device):
        raise RuntimeError("what is captured must be made on munit_fast.train.cuda_graph.capture_stream")
    for _ in range(WARM_UP):
        work.step()
    graph, results = capture(work.step, device)
    for result in results:
        result.fill_(float("nan"))

    def step() -> Sequence[Tensor]:
        graph.replay()
        return results

    return Work(step)


@lru_cache(1)  # the contenders of a case share it
def _upstream(sizes: tuple[torch.Size, ...], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=random) for size in sizes]


def differentiable(
    run: Callable[[], Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], mode: str, seed: int = 7
) -> Work:
    """Work of a differentiable function in a case's mode.

    forward: its results, without a graph. training: results and gradients of `inputs` for a random upstream gradient.
    backward: the gradients alone, from a graph that is kept, made on the current stream.

    Args:
        run: the function.
        inputs: what is differentiated.
        mode: "forward", "training" or "backward".
        seed: of the upstream gradient.
    """

    def flat() -> list[Tensor]:
        y = run()
        return [y] if isinstance(y, Tensor) else list(y)

    @torch.no_grad()
    def infer() -> list[Tensor]:
        return flat()

    upstream = []
    results = infer()
    for y, drawn in zip(results, _upstream(tuple(y.shape for y in results), seed)):
        given = drawn.to(y)
        last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        upstream.append(given.contiguous(memory_format=torch.channels_last) if last else given)

    def gradients(results: Sequence[Tensor], keep: bool) -> list[Tensor]:
        found = torch.autograd.grad(results, list(inputs), upstream, allow_unused=True, retain_graph=keep)
        return [g for g in found if g is not None]

    def train() -> list[Tensor]:
        results = flat()
        return [*(y.detach() for y in results), *gradients(results, False)]

    if mode == "forward":
        return Work(infer)
    if mode == "training":
        return Work(train)
    kept = flat()
    return Work(lambda: gradients(kept, True))
