"""A generator as a graph whose every layer can be asked for a box of its pixels.

A layer computes the box from what it reads, one or a few pixels larger on each side, and pads at the true borders of
the image only. Its norm takes statistics that are given. So a tile equals the same pixels of the untiled result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.models.blocks import padding
from munit_fast.reference.layers import InstanceNorm2d
from munit_fast.tiles.plan import Box, Planes
from munit_fast.tiles.statistics import Moments

Read: TypeAlias = Callable[["Node", Box], Tensor]
_MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}


class Node(ABC):
    """Features of all planes.

    Attributes:
        name: Of files and messages.
        channels: C.
        height: Rows of each plane.
        width: Columns of each plane.
        level: How often the image was halved.
        inputs: What it is computed from.
        readers: How many nodes are computed from it.
    """

    def __init__(self, name: str, channels: int, height: int, width: int, level: int, inputs: Sequence[Node]) -> None:
        self.name, self.channels, self.height, self.width, self.level = name, channels, height, width, level
        self.inputs, self.readers = tuple(inputs), 0
        for node in inputs:
            node.readers += 1

    @abstractmethod
    def compute(self, read: Read, box: Box) -> Tensor:
        """The features [1, C, box.height, box.width], from those that `read` gives of the inputs."""

    @property
    def macs(self) -> int:
        """Multiplications of one plane."""
        return 0


class Image(Node):
    """The image that goes in.

    Args:
        channels: C.
        planes: Where the planes lie in it.
        read_image: Gives [1, C, h, w] in [-1, 1] for a box of the whole image.
    """

    def __init__(self, channels: int, planes: Planes, read_image: Callable[[Box], Tensor]) -> None:
        super().__init__("image", channels, planes.height, planes.width, 0, [])
        self.planes, self.read_image = planes, read_image

    def compute(self, read: Read, box: Box) -> Tensor:
        """The pixels of a box."""
        top, left = self.planes.offsets[box.plane]
        return self.read_image(Box(0, box.top + top, box.bottom + top, box.left + left, box.right + left))


class Conv(Node):
    """The convolution of a `reference.Conv2dBlock`, with its padding, without norm and activation.

    Args:
        name: Of the node.
        block: The block.
        source: What it reads.
    """

    def __init__(self, name: str, block: Any, source: Node) -> None:
        self.block: Any = block
        conv: nn.Conv2d = block.conv
        (self.kernel, _), (self.stride, _) = conv.kernel_size, conv.stride
        self.pad, self.mode = padding(block)
        height, width = ((n + 2 * self.pad - self.kernel) // self.stride + 1 for n in (source.height, source.width))
        super().__init__(name, conv.out_channels, height, width, source.level + (self.stride == 2), [source])

    @property
    def normed(self) -> bool:
        """Whether a norm follows."""
        return self.block.norm is not None

    @property
    def macs(self) -> int:
        """Multiplications of one plane."""
        return self.height * self.width * self.block.conv.weight.numel()

    def compute(self, read: Read, box: Box) -> Tensor:
        """The convolution's output in a box."""
        source = self.inputs[0]
        top, bottom, above, below = self._needed(box.top, box.bottom, source.height)
        left, right, before, behind = self._needed(box.left, box.right, source.width)
        x = read(source, Box(box.plane, top, bottom, left, right))
        if above or below or before or behind:
            x = F.pad(x, (before, behind, above, below), _MODES[self.mode])
        conv = self.block.conv
        # As in the fast networks: an instance norm removes a bias, and with it some of its precision.
        bias = conv.bias if _kind(self.block) != "instance" else None
        return F.conv2d(x, conv.weight, bias, self.stride).to(conv.weight.dtype)

    def _needed(self, first: int, last: int, size: int) -> tuple[int, int, int, int]:
        """For outputs first..last along an axis: the inputs from, to, and the padding before and behind them."""
        begin = first * self.stride - self.pad
        end = (last - 1) * self.stride - self.pad + self.kernel
        before, behind = max(0, -begin), max(0, end - size)
        return begin + before, end - behind, before, behind


class Normed(Node):
    """Norm and activation behind a convolution, and the sum at the end of a residual block.

    Args:
        conv: The convolution.
        moments: Where the statistics of the norms will be, by the convolutions' names.
        adain: (weight, bias), both [1, C], of a norm "adain".
        residual: What is added.
    """

    def __init__(
        self,
        conv: Conv,
        moments: dict[str, Moments],
        adain: tuple[Tensor, Tensor] | None = None,
        residual: Node | None = None,
    ) -> None:
        inputs = [conv] if residual is None else [conv, residual]
        super().__init__(f"{conv.name}.out", conv.channels, conv.height, conv.width, conv.level, inputs)
        self.conv, self.moments, self.adain, self.residual = conv, moments, adain, residual

    def compute(self, read: Read, box: Box) -> Tensor:
        """The block's result in a box."""
        x = read(self.conv, box)
        block = self.conv.block
        if block.norm is not None:
            mean, scale, shift = (torch.from_numpy(v).to(x)[:, None, None] for v in self._affine())
            x = x.sub_(mean).mul_(scale).add_(shift)  # nobody else reads it
        if block.activation is not None:
            x = block.activation(x)
        return x if self.residual is None else x + read(self.residual, box)

    def _affine(self) -> tuple[np.ndarray[Any, Any], ...]:
        """(mean, scale, shift), each [C] float64: the norm is (x - mean) · scale + shift."""
        norm, moments = self.conv.block.norm, self.moments[self.conv.name]
        if isinstance(norm, reference.LayerNorm):
            whole = moments.over_channels()
            mean = np.broadcast_to(whole.mean, moments.mean.shape).copy()
            scale = np.broadcast_to(1 / (np.sqrt(whole.variance(1)) + norm.eps), mean.shape)
            weight, bias = (_float64(p) for p in (norm.gamma, norm.beta)) if norm.affine else (1.0, 0.0)
        else:
            mean, scale = moments.mean, 1 / np.sqrt(moments.variance() + norm.eps)
            weight, bias = (_float64(p[0]) for p in self.adain) if self.adain is not None else (1.0, 0.0)
        return mean, scale * weight, np.zeros_like(mean) + bias


class Doubled(Node):
    """Nearest-neighbour upsampling by 2."""

    def __init__(self, source: Node) -> None:
        super().__init__(
            f"{source.name}.x2", source.channels, 2 * source.height, 2 * source.width, source.level - 1, [source]
        )

    def compute(self, read: Read, box: Box) -> Tensor:
        """The pixels of a box."""
        small = Box(box.plane, box.top // 2, -(-box.bottom // 2), box.left // 2, -(-box.right // 2))
        x = F.interpolate(read(self.inputs[0], small), scale_factor=2)
        return x[:, :, box.top % 2 :, box.left % 2 :][:, :, : box.height, : box.width]


class Reader:
    """Computes boxes of nodes, reads those that are kept, and remembers within a tile what several nodes read.

    Args:
        kept: Gives a box of a node that is kept; None where it is not.
    """

    def __init__(self, kept: Callable[[Node, Box], Tensor | None] = lambda node, box: None) -> None:
        self.kept = kept
        self.shared: dict[Node, tuple[Box, Tensor]] = {}

    def tile(self, node: Node, box: Box) -> Tensor:
        """Compute a box of a node, as a new tile."""
        self.shared.clear()
        return node.compute(self.read, box)

    def read(self, node: Node, box: Box) -> Tensor:
        """A box of what another node reads."""
        found = self.kept(node, box)
        if found is not None:
            return found
        if node in self.shared and self.shared[node][0].contains(box):
            outer, x = self.shared[node]
            rows, columns = box.inside(outer)
            return x[:, :, rows, columns]
        x = node.compute(self.read, box)
        if node.readers > 1:
            self.shared[node] = (box, x)
        return x


def encoder_nodes(encoder: Any, image: Node, moments: dict[str, Moments]) -> Node:
    """The content code of a `reference.ContentEncoder`."""
    x = image
    *halving, chain = encoder.model
    for i, block in enumerate(halving):
        x = Normed(Conv(f"encoder.{i}", block, x), moments)
    return _res_blocks("encoder", chain.model, x, moments, None)


def decoder_nodes(
    decoder: Any, code: Node, moments: dict[str, Moments], adain: list[tuple[Tensor, Tensor]] | None
) -> Node:
    """The image of a `reference.Decoder`, in [-1, 1]."""
    chain, *layers = decoder.model
    x = _res_blocks("decoder", chain.model, code, moments, adain)
    for i, layer in enumerate(layers):
        x = Doubled(x) if isinstance(layer, nn.Upsample) else Normed(Conv(f"decoder.{i}", layer, x), moments)
    return x


def style_nodes(encoder: Any, image: Node) -> Node:
    """What a `reference.StyleEncoder` takes the mean of."""
    x = image
    for i, block in enumerate(encoder.model[:-2]):
        x = Normed(Conv(f"style.{i}", block, x), {})
    return x


def ancestors(node: Node, stop: Callable[[Node], bool]) -> list[Node]:
    """The nodes that computing a node computes or reads, itself not among them; beyond those that stop, none."""
    found: dict[Node, None] = {}

    def visit(one: Node) -> None:
        for other in one.inputs:
            if other not in found:
                if not stop(other):
                    visit(other)
                found[other] = None

    visit(node)
    return list(found)


def reach(node: Node, side: int = 1) -> int:
    """How many pixels of the image beyond its edges a square of a node depends on, at most.

    Args:
        node: Of the image's size.
        side: Of the square.
    """
    level = max(other.level for other in ancestors(node, lambda _: False))
    first = 2**level * 1024  # far from the border
    needed = {node: (first, first + side)}
    for other in reversed([*ancestors(node, lambda _: False), node]):
        low, high = needed[other]
        for source in other.inputs:
            begin, end = low, high
            if isinstance(other, Conv):
                begin, end = low * other.stride - other.pad, (high - 1) * other.stride - other.pad + other.kernel
            elif isinstance(other, Doubled):
                begin, end = low // 2, -(-high // 2)
            before = needed.get(source, (begin, end))
            needed[source] = (min(begin, before[0]), max(end, before[1]))
            image = needed[source]
    # The grids of halved features tell places apart, by less than one of their pixels.
    return max(first - image[0], image[1] - first - side) + 2**level - 1


def _res_blocks(
    prefix: str, blocks: Any, x: Node, moments: dict[str, Moments], adain: list[tuple[Tensor, Tensor]] | None
) -> Node:
    for i, block in enumerate(blocks):
        first, second = block.model
        style_1, style_2 = adain[2 * i : 2 * i + 2] if adain is not None else (None, None)
        hidden = Normed(Conv(f"{prefix}.res{i}.0", first, x), moments, style_1)
        x = Normed(Conv(f"{prefix}.res{i}.1", second, hidden), moments, style_2, residual=x)
    return x


def _kind(block: Any) -> str:
    return "instance" if isinstance(block.norm, (InstanceNorm2d, reference.AdaptiveInstanceNorm2d)) else "other"


def _float64(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().double().cpu().numpy()
