"""A discriminator of whole images: residual blocks and one score, in place of maps of patches."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Conv2dBlock, make_activation
from .networks import MsImageDis, Params

_MOST = 8  # times the channels of the first convolution


class DownBlock(nn.Module):
    """(pool(block(block(x))) + conv1×1(pool(x))) / √2, as in StyleGAN2's discriminator (Karras et al., CVPR 2020).

    `pool` is the mean of 2×2 pixels; an odd last row or column is left out.

    Shape: x [N, input_dim, H, W] -> [N, output_dim, H // 2, W // 2].

    Args:
        input_dim: channels of x.
        output_dim: channels of the result.
        norm: of the two blocks, one of `layers.NORMS`.
        activ: one of `layers.ACTIVATIONS`.
        pad_type: one of `layers.PADDINGS`.
    """

    def __init__(self, input_dim: int, output_dim: int, norm: str, activ: str, pad_type: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(input_dim, input_dim, 3, 1, 1, norm, activ, pad_type),
            Conv2dBlock(input_dim, output_dim, 3, 1, 1, norm, activ, pad_type),
        )
        self.skip = Conv2dBlock(input_dim, output_dim, 1, 1, 0, "none", "none", pad_type)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """The block on x [N, input_dim, H, W]."""
        return self.joined(self.pool(self.model(x)), self.skip(self.pool(x)))

    @staticmethod
    def joined(x: Tensor, skipped: Tensor) -> Tensor:
        """The sum of the two branches, of the variance of one."""
        return (x + skipped) * 0.5**0.5


class Score(nn.Module):
    """Features -> one number for each image: activation, mean of the pixels, linear layer.

    Shape: [N, dim, h, w] -> [N, 1, 1, 1].
    """

    def __init__(self, dim: int, activ: str) -> None:
        super().__init__()
        self.activation = make_activation(activ)
        self.fc = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The scores [N, 1, 1, 1] of features x [N, dim, h, w]."""
        return self.fc(self.pooled(x))[:, :, None, None]

    def pooled(self, x: Tensor) -> Tensor:
        """What the linear layer reads, [N, dim]."""
        x = x if self.activation is None else self.activation(x)
        return x.mean((2, 3))


class ResidualDis(MsImageDis):
    """A discriminator that gives one score for a whole image, and not a map of its patches; not published by MUNIT.

    A 3×3 convolution with an activation to `dim` channels, `n_layer` of `DownBlock`, each of which halves the side and
    doubles the channels up to 8 · dim, and a `Score`. In the state_dict these are cnns.0.0.conv,
    cnns.0.<i>.model.0.conv, .model.1.conv and .skip.conv for i = 1 … n_layer, and cnns.0.<n_layer + 1>.fc.

    Keys of `params`: dim, norm, activ, n_layer, gan_type, pad_type, weight_norm. There is one scale: num_scales is not
    read.

    Raises:
        ValueError: norm is "sn".
    """

    arch = "residual"

    def __init__(self, input_dim: int, params: Params) -> None:
        super().__init__(input_dim, self.of_one_scale(params))

    @staticmethod
    def of_one_scale(params: Params) -> Params:
        """`params` with num_scales 1. Raises ValueError for norm "sn"."""
        if params["norm"] == "sn":
            raise ValueError("norm sn is of arch multiscale; use weight_norm: spectral with norm none, in or ln")
        return {**params, "num_scales": 1}

    @staticmethod
    def _make_net(input_dim: int, params: Params) -> nn.Sequential:
        dim, activ, pad_type = params["dim"], params["activ"], params["pad_type"]
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 3, 1, 1, "none", activ, pad_type)]
        for _ in range(params["n_layer"]):
            doubled = min(2 * dim, _MOST * params["dim"])
            layers.append(DownBlock(dim, doubled, params["norm"], activ, pad_type))
            dim = doubled
        layers.append(Score(dim, activ))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map [N, 1, 1, 1], the scores of images x [N, C, H, W] in [-1, 1]."""
        return [self.cnns[0](x)]
