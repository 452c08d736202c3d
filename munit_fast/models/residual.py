"""The residual discriminator over fused epilogues."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from munit_fast import reference
from munit_fast.models.blocks import (
    ConvInput,
    apply_epilogue,
    check_planes,
    conv_args,
    conv_chain,
    epilogue_args,
    norm_of,
    pad_input,
    padding,
)
from munit_fast.models.discriminators import MsImageDis
from munit_fast.models.weights import weight_of
from munit_fast.ops.fused_conv import convolution
from munit_fast.reference.networks import Params


class ResidualDis(reference.ResidualDis, MsImageDis):
    """`reference.ResidualDis`, whose state_dict it shares: one score for a whole image, as a map [N, 1, 1, 1].

    Its features are those of the last block, [N, C, H / 2^n_layer, W / 2^n_layer]. With norm "bn", which no epilogue
    has, the reference's forward runs. Outputs are float32 under autocast.

    Args:
        input_dim: Channels C of the images.
        params: The `dis:` section of a configuration: dim, norm, activ, n_layer, gan_type, pad_type, weight_norm.
        impl: The backend, as in `munit_fast.functional`; "reference": the reference's own forward.

    Raises:
        ValueError: norm is "sn", or a value is unknown.
    """

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        MsImageDis.__init__(self, input_dim, self.of_one_scale(params), impl)

    forward = MsImageDis.forward

    def _net(self, net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *blocks, score = net
        y = self._chain(x, [first])
        for block in blocks:
            halved = block.pool(y)
            skipped = convolution(halved, conv_args(block.skip, ConvInput.of(halved, self.impl))).z
            y = block.joined(block.pool(self._chain(y, list(block.model))), skipped)
        pooled = score.pooled(y.to(score.fc.bias.dtype))
        return F.linear(pooled, weight_of(score.fc), score.fc.bias)[:, :, None, None], y

    def _chain(self, x: Tensor, blocks: list[Any]) -> Tensor:
        """The result of `Conv2dBlock`s, one after the other."""
        output = conv_chain(pad_input(x, *padding(blocks[0]), x.dtype, self.impl), blocks, self.impl)
        if norm_of(blocks[-1]) == "instance":
            check_planes(output.z, "the image")
        return apply_epilogue(output, epilogue_args(blocks[-1], 0, "zero", self.impl))
