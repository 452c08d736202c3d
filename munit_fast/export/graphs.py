"""The networks of a model as graphs that any runtime takes: padding and cropping inside, every size dynamic.

Four graphs for MUNIT: the translation of both directions and the style encoder of both domains; two for UNIT, which has
no styles. Each is a module in plain PyTorch, ready for torch.export. What is special is written for the exporters:
sizes stay symbolic, so pixels are gathered by computed places rather than padded and sliced, and no operation sees a
plane whose side may be 1, which torch.export takes for a constant.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast.config import smallest_generator_size
from munit_fast.export.metadata import describe
from munit_fast.export.phase_conv import with_phase_convs
from munit_fast.models.munit import MODELS, MUNIT, UNIT, Direction
from munit_fast.reference.layers import AdaptiveInstanceNorm2d, LayerNorm
from munit_fast.reference.networks import StyleEncoder

Precision = Literal["fp32", "fp16"]
DIRECTIONS: tuple[Direction, ...] = ("a2b", "b2a")

BATCH, HEIGHT, WIDTH, STYLES = "batch", "height", "width", "styles"  # the dimensions that vary


@dataclass(frozen=True)
class Graph:
    """A module to export and what a file of it says.

    Attributes:
        name: "a2b", "b2a", "style-a" or "style-b": the end of the file's name.
        module: The module, in evaluation mode, on the CPU.
        inputs: Example arguments by name, float32, in the order of the module's.
        dynamic: The name of each dimension that varies, by input and axis.
        output: The name of what it returns.
        output_dynamic: The name of each dimension of the output that varies, by axis.
        metadata: What the file says of itself, text by name.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    output: str
    output_dynamic: dict[int, str]
    metadata: dict[str, str]

    def program(self) -> torch.export.ExportedProgram:
        """The graph in the operators of ATen, with its dimensions free, without what names this machine's files."""
        free = {name: torch.export.Dim(name, min=1) for axes in self.dynamic.values() for name in axes.values()}
        shapes = tuple({axis: free[name] for axis, name in axes.items()} for axes in self.dynamic.values())
        with torch.no_grad():
            program = torch.export.export(self.module, tuple(self.inputs.values()), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        program.example_inputs = None  # which a .pt2 file would hold as a pickle
        return program


def make_graphs(
    model: MUNIT | UNIT,
    directions: Sequence[Direction] = DIRECTIONS,
    *,
    dtype: Precision = "fp32",
    notes: dict[str, str] | None = None,
) -> list[Graph]:
    """The graphs of a model.

    Args:
        model: The model, which stays as it is.
        directions: Which translations; for MUNIT each brings the style encoder of its target.
        dtype: What the convolutions are computed in. With "fp16" the norms, the style code's network, the inputs and
            the outputs are float32 all the same.
        notes: Further text by name for the metadata, such as "licence".

    Returns:
        A translation and, for MUNIT, a style encoder for each direction.
    """
    plain = MODELS[model.trainer](model.config, impl="reference")
    plain.load_state_dict(model.state_dict())
    plain.float().eval().requires_grad_(False)
    config, style_dim = model.config, model.config.gen.style_dim
    least, multiple = smallest_generator_size(config.gen), config.size_multiple
    checksum = _checksum(plain)
    graphs = []
    for direction in directions:
        a, b = direction[0], direction[2]
        source, target = copy.deepcopy((plain.gen_a, plain.gen_b) if a == "a" else (plain.gen_b, plain.gen_a))
        channels = {name: getattr(config, f"input_dim_{name}") for name in (a, b)}
        # Two images of sides that differ, and neither of which is a multiple: torch.export keeps them apart.
        images = {name: torch.zeros(2, channels[name], 70, 66) for name in (a, b)}
        by_size = {0: BATCH, 2: HEIGHT, 3: WIDTH}
        inputs: dict[str, Tensor] = {"image": images[a]}
        dynamic = {"image": by_size}
        target.dec.model = with_phase_convs(target.dec, config.gen.pad_type)
        translation: nn.Module
        if isinstance(plain, UNIT):
            translation = _UnitTranslation(source, target, multiple, least)
        else:
            translation = _Translation(source, target, multiple, least)
            inputs["style"] = torch.zeros(2, 3, style_dim)
            dynamic["style"] = {0: BATCH, 1: STYLES}
        if dtype == "fp16":
            _halve(translation)
        about = partial(describe, model, dtype=dtype, notes=notes, smallest_size=str(least), weights=checksum)
        graphs.append(
            Graph(
                direction,
                translation.eval(),
                inputs,
                dynamic,
                "translation",
                {0: BATCH, 3: HEIGHT, 4: WIDTH} | ({1: STYLES} if "style" in inputs else {}),
                about(role="translation", direction=direction, size_multiple=str(multiple)),
            )
        )
        if isinstance(plain, MUNIT):
            encoder: nn.Module = _StyleCode(copy.deepcopy(plain.gen_b if b == "b" else plain.gen_a).enc_style, least)
            if dtype == "fp16":
                _halve(encoder)
            metadata = about(role="style", domain=b, size_multiple="1")
            graphs.append(
                Graph(
                    f"style-{b}",
                    encoder.eval(),
                    {"image": images[b]},
                    {"image": by_size},
                    "style",
                    {0: BATCH},
                    metadata,
                )
            )
    return graphs


def _checksum(model: nn.Module) -> str:
    """SHA-256 of names and weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class _Translation(nn.Module):
    """Images [N, C, H, W] and codes [N, S, style_dim] to images [N, S, C', H, W]: `MUNIT.translate`."""

    def __init__(self, source: Any, target: Any, multiple: int, least: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.mlp = source.enc_content, target.dec, target.mlp
        self.decode = target.decode
        self.multiple, self.least, self.halved = multiple, least, False
        for module in self.decoder.modules():
            if isinstance(module, AdaptiveInstanceNorm2d):
                module.forward = partial(adain, module.eps)  # type: ignore[method-assign]

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        n, _, h, w = image.shape
        styles = style.shape[1]
        content = self.encoder(_cast(self, _enlarge(image, self.multiple, self.least)))
        content = content[:, None].expand(n, styles, *content.shape[1:]).flatten(0, 1)
        y = self.decode(content, style.flatten(0, 1)[:, :, None, None])
        return _crop(y.to(image.dtype), h, w).unflatten(0, (n, styles))


class _UnitTranslation(nn.Module):
    """Images [N, C, H, W] to images [N, 1, C', H, W]: `UNIT.translate`."""

    def __init__(self, source: Any, target: Any, multiple: int, least: int) -> None:
        super().__init__()
        self.encoder, self.decoder = source.enc, target.dec
        self.multiple, self.least, self.halved = multiple, least, False

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[2:]
        y = self.decoder(self.encoder(_cast(self, _enlarge(image, self.multiple, self.least))))
        return _crop(y.to(image.dtype), h, w)[:, None]


class _StyleCode(nn.Module):
    """Images [N, C, H, W] to codes [N, style_dim]: `MUNIT.encode_style`."""

    def __init__(self, encoder: StyleEncoder, least: int) -> None:
        super().__init__()
        *blocks, last_block, _, linear = encoder.model
        self.blocks = nn.Sequential(*blocks)
        self.last_block: Any = last_block
        self.linear: Any = linear
        self.least, self.halved = least, False

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(_cast(self, _enlarge(image, 1, self.least)))
        # The last plane may be 1×1: a row and a column too many, which have no weight in the mean.
        h, w = x.shape[2] // 2, x.shape[3] // 2
        block = self.last_block
        x = block.activation(block.conv(F.pad(block.pad(x), (0, 2, 0, 2)))).to(image.dtype)
        rows, columns = ((torch.arange(x.shape[axis]) < side).to(x.dtype) for axis, side in ((2, h), (3, w)))
        mean = (x * (rows[:, None] / rows.sum() * (columns / columns.sum()))).sum((2, 3))
        return F.linear(mean, self.linear.weight.flatten(1), self.linear.bias)


def _enlarge(x: Tensor, multiple: int, least: int) -> Tensor:
    """To the right and below, to sides that are multiples and at least `least`, as the model does."""
    return x[:, :, _places(x.shape[2], multiple, least)][..., _places(x.shape[3], multiple, least)]


def _places(size: int, multiple: int, least: int) -> Tensor:
    """Where each pixel of an enlarged axis comes from: mirrored where there is enough to mirror, else the last one."""
    least = -(-least // multiple) * multiple
    to = torch.sym_max(least, (size + multiple - 1) // multiple * multiple)
    place = torch.arange(to)
    mirrored = (size - 1) - (place - (size - 1)).abs()
    return torch.where(mirrored[-1:] >= 0, mirrored, place.clamp(max=size - 1))


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    # Not a slice: torch.export could not tell that it is no longer than what is cut.
    return x[:, :, torch.arange(height)][..., torch.arange(width)]


def _cast(module: Any, x: Tensor) -> Tensor:
    return x.half() if module.halved else x


def adain(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """AdaIN as one instance norm of N · C channels: ONNX has no batch norm that uses its batch's statistics.

    Args:
        eps: Added to the variance.
        x: [N, C, H, W], float32 or float16; the statistics are float32.
        weight: [N · C], in any shape, float32.
        bias: Likewise.

    Returns:
        [N, C, H, W] in the dtype of `x`.
    """
    n, c, h, w = x.shape
    flat = x.to(weight.dtype).reshape(1, n * c, h, w)
    y = F.instance_norm(flat, weight=weight.reshape(-1), bias=bias.reshape(-1), eps=eps)
    return y.view(n, c, h, w).to(x.dtype)


def _halve(module: Any) -> None:
    """Compute convolutions in float16, what is small or sensitive in float32."""
    module.half()
    module.halved = True
    for part in module.modules():
        if isinstance(part, (nn.InstanceNorm2d, LayerNorm)):
            part.float()
            part.forward = partial(_in_float32, part.forward)  # type: ignore[method-assign]
    for name in ("mlp", "linear"):
        if hasattr(module, name):
            getattr(module, name).float()


def _in_float32(norm: Any, x: Tensor) -> Tensor:
    return norm(x.float()).to(x.dtype)
