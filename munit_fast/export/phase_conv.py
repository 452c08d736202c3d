"""Nearest ×2 and a 5×5 convolution with 9 multiplications a pixel instead of 25, in operators that every format has.

`munit_fast.ops.upsample_conv` has the algebra: one 3×3 convolution of the small image to the four phases of the large
one. There, what reflection changes is added to the outermost pixels in place; a graph has no such thing, so they are
computed by themselves, each line from the two lines of the small image that it sees, and put around the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast.ops.upsample_conv import phase_weight


class PhaseConv(nn.Module):
    """nn.Upsample(scale_factor=2) and a 5×5 `Conv2dBlock` of a decoder: [N, C, H, W] -> [N, O, 2·H, 2·W], H, W ≥ 2.

    Args:
        block: The block, of stride 1; its norm and activation are used as they are.
        pad_type: The block's padding: "reflect", "replicate" or "zero".
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, block: Any, pad_type: str) -> None:
        super().__init__()
        self.norm, self.activation = block.norm, block.activation
        w, b = block.conv.weight.detach(), block.conv.bias.detach()
        o, c = w.shape[:2]
        # From phase-major, in which ours are, to what pixel_shuffle takes.
        phases = phase_weight(w).view(4, o, c, 3, 3).transpose(0, 1).reshape(4 * o, c, 3, 3).contiguous()
        self.register_buffer("weight", phases)
        self.register_buffer("bias", b.repeat_interleave(4))
        self.mode = "constant" if pad_type == "zero" else "replicate"
        self.reflects = pad_type == "reflect"
        if self.reflects:
            # The large image's lines -2..2 are the small one's 1, 0, 0, 0, 1, seen from its border.
            rows = torch.stack([w[:, :, 1:4].sum(2), w[:, :, 0] + w[:, :, 4]], 2)
            columns = torch.stack([w[..., 1:4].sum(3), w[..., 0] + w[..., 4]], 3)
            for name, value in (("rows", rows), ("columns", columns), ("border_bias", b)):
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """The norm and activation of the convolution of the doubled image."""
        y = F.pixel_shuffle(F.conv2d(F.pad(x, (1, 1, 1, 1), mode=self.mode), self.weight, self.bias), 2)
        if self.reflects:
            left, right = (self._line(torch.cat(pair, 3), 3) for pair in self._outermost(x, 3))
            top, bottom = (self._line(torch.cat(pair, 2), 2) for pair in self._outermost(x, 2))
            inner = torch.cat([left[:, :, 1:-1], y[:, :, 1:-1, 1:-1], right[:, :, 1:-1]], 3)
            y = torch.cat([top, inner, bottom], 2)
        return self.activation(self.norm(y))

    @staticmethod
    def _outermost(x: Tensor, axis: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The first two lines, and the last two from the end."""
        return (x.narrow(axis, 0, 1), x.narrow(axis, 1, 1)), (x.narrow(axis, -1, 1), x.narrow(axis, -2, 1))

    def _line(self, pair: Tensor, axis: int) -> Tensor:
        """An outermost line of the result, from the two lines that it sees."""
        double, pad = ((1.0, 2.0), (2, 2, 0, 0)) if axis == 2 else ((2.0, 1.0), (0, 0, 2, 2))
        kernel: Any = self.rows if axis == 2 else self.columns
        border_bias: Any = self.border_bias
        return F.conv2d(F.pad(F.interpolate(pair, scale_factor=double), pad, mode="reflect"), kernel, border_bias)


def with_phase_convs(decoder: Any, pad_type: str) -> nn.Sequential:
    """The layers of a decoder, each upsampling and the block after it as one `PhaseConv`.

    Args:
        decoder: A `reference.Decoder`.
        pad_type: Of its convolutions.
    """
    layers: list[nn.Module] = []
    doubled = False
    for layer in decoder.model:
        if not isinstance(layer, nn.Upsample):
            layers.append(PhaseConv(layer, pad_type) if doubled else layer)
        doubled = isinstance(layer, nn.Upsample)
    return nn.Sequential(*layers)
