"""The blocks that MUNIT's networks are made of: a convolution with its padding, norm and activation, and the norms.

The order in which a block registers its parts (norm, activation, convolution) is not the order in which it runs them
(pad, convolution, norm, activation): optimizer files index parameters by registration order, so it is part of the
file format.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDINGS: dict[str, type[nn.Module]] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "zero": nn.ZeroPad2d,
}
ACTIVATIONS = ("relu", "lrelu", "prelu", "selu", "tanh", "none")
NORMS = ("none", "bn", "in", "ln", "adain", "sn")


def _choose(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}; got {name!r}")


def make_activation(name: str) -> nn.Module | None:
    """The activation called `name`, or None for "none"; "lrelu" has slope 0.2, "prelu" one learned slope.

    Raises:
        ValueError: `name` is not one of ACTIVATIONS.
    """
    _choose("activation", name, ACTIVATIONS)
    if name == "relu":
        return nn.ReLU()
    if name == "lrelu":
        return nn.LeakyReLU(0.2)
    if name == "prelu":
        return nn.PReLU()
    if name == "selu":
        return nn.SELU()
    if name == "tanh":
        return nn.Tanh()
    return None


def make_norm(name: str, channels: int) -> nn.Module | None:
    """The normalisation called `name` over `channels`; "none" and "sn" (which acts on the weight) give None.

    Raises:
        ValueError: `name` is not one of NORMS.
    """
    _choose("norm", name, NORMS)
    if name == "bn":
        return nn.BatchNorm2d(channels)
    if name == "in":
        return InstanceNorm2d(channels)
    if name == "ln":
        return LayerNorm(channels)
    if name == "adain":
        return AdaptiveInstanceNorm2d(channels)
    return None


def _in_legacy_onnx_export() -> bool:
    """Whether torch.onnx.export(dynamo=False) looks on."""
    return torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export()


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, bit for bit, with the right gradient at batch 1 whatever layout it comes in.

    On CPUs, torch's gradient is wrong where one image's gradient is channels_last
    (docs/upstream/instance_norm_gradient.py). Lines have one layout only, and a plane is a line to an instance norm.

    Shape: [N, C, H, W] or [C, H, W], kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x, in its dtype and shape."""
        if x.dim() == 3:
            return self.forward(x[None])[0]
        if _in_legacy_onnx_export():  # which forgets how many channels a flattened tensor has
            return super().forward(x)
        y = F.instance_norm(
            x.flatten(2),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum or 0.0,
            self.eps,
        )
        return y.view(x.shape)


class LayerNorm(nn.Module):
    """MUNIT's layer norm: per sample over C·H·W, then a scale and a shift per channel.

        y = gamma · (x - mean(x)) / (std(x) + eps) + beta

    The standard deviation is the unbiased one (divided by C·H·W - 1) and eps is added outside the root, so this is
    not GroupNorm(1). gamma starts uniform in [0, 1), beta at 0.

    Shape: [N, C, H, W] -> [N, C, H, W].

    Args:
        num_features: channels C.
        eps: added to the standard deviation.
        affine: whether gamma and beta [C] are learned.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        if affine:
            self.gamma = nn.Parameter(torch.empty(num_features).uniform_())
            self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x [N, C, H, W], in its dtype and shape."""
        flat = x.reshape(x.shape[0], -1)
        mean = flat.mean(dim=1).view(-1, 1, 1, 1)
        std = flat.std(dim=1).view(-1, 1, 1, 1)
        y = (x - mean) / (std + self.eps)
        if self.affine:
            y = y * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)
        return y

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class AdaptiveInstanceNorm2d(nn.Module):
    """Adaptive instance norm (section 5.1 of the MUNIT paper; Huang & Belongie, ICCV 2017), style passed as arguments.

        y = weight · (x - mean(x)) / sqrt(var(x) + eps) + bias

    Mean and biased variance are those of each sample's channel plane, in training and in evaluation. The two buffers
    exist for the published state_dict and never change.

    Shape: x [N, C, H, W]; weight, bias [N, C] -> [N, C, H, W].

    Args:
        num_features: channels C.
        eps: added to the variance.

    Raises:
        ValueError: in a call: a 1×1 plane (its variance is zero by definition), or parameters of another shape.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The norm of x.

        Args:
            x: [N, C, H, W].
            weight: [N, C].
            bias: [N, C].

        Returns:
            [N, C, H, W] in x's dtype.

        Raises:
            ValueError: a plane is 1×1, or weight or bias is not [N, C].
        """
        n, c, h, w = x.shape
        if h * w == 1:
            raise ValueError("adaptive instance norm needs planes larger than 1×1; use a larger image")
        for name, value in (("weight", weight), ("bias", bias)):
            if value.shape != (n, c):
                raise ValueError(f"{name} must have shape [{n}, {c}] for x {list(x.shape)}; got {list(value.shape)}")
        if _in_legacy_onnx_export():  # whose batch norm needs a number of channels that it knows
            return F.instance_norm(x, eps=self.eps) * weight[:, :, None, None] + bias[:, :, None, None]
        # A batch norm over one sample of N·C channels is an instance norm with one (weight, bias) per sample. To
        # reshape one image would only change a stride, by which torch mistakes channels_last for NCHW in the gradient
        # on CPUs (docs/upstream/instance_norm_gradient.py). A trace of one image must serve several, so it reshapes.
        as_it_is = torch._C._get_tracing_state() is None and n == 1
        y = F.batch_norm(
            x if as_it_is else x.reshape(1, n * c, h, w),
            None,
            None,
            weight.reshape(-1),
            bias.reshape(-1),
            training=True,
            eps=self.eps,
        )
        return y if as_it_is else y.view(n, c, h, w)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.num_features}, eps={self.eps}"


def _l2normalize(v: Tensor, eps: float = 1e-12) -> Tensor:
    return v / (v.norm() + eps)


class SpectralNorm(nn.Module):
    """Spectral normalisation of a convolution (Miyato et al., ICLR 2018, algorithm 1) with one power iteration a call.

    The weight is divided by sigma = uᵀ W v, and the gradient flows through sigma. u and v advance in evaluation too.
    They are written through `.data`, so that the backward of *every* forward since the last step sees the newest u
    and v: the published implementation trains with that gradient.
    """

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__()
        self.module = module
        weight = module.weight.data
        height, width = weight.shape[0], weight[0].numel()
        u = _l2normalize(weight.new_empty(height).normal_(0, 1))
        v = _l2normalize(weight.new_empty(width).normal_(0, 1))
        # Without a `weight`, the wrapped convolution escapes weights_init, as it does in the published code.
        del module._parameters["weight"]
        module.register_parameter("weight_u", nn.Parameter(u, requires_grad=False))
        module.register_parameter("weight_v", nn.Parameter(v, requires_grad=False))
        module.register_parameter("weight_bar", nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x [N, C, H, W] with the normalised weight; advances u and v. The caller pads."""
        conv = self.module
        u, v, weight = conv.weight_u, conv.weight_v, conv.weight_bar
        assert isinstance(u, Tensor) and isinstance(v, Tensor) and isinstance(weight, Tensor)
        matrix = weight.view(weight.shape[0], -1)
        v.data.copy_(_l2normalize(torch.mv(matrix.data.t(), u.data)))
        u.data.copy_(_l2normalize(torch.mv(matrix.data, v.data)))
        sigma = u.dot(matrix.mv(v))
        return F.conv2d(x, weight / sigma, conv.bias, conv.stride)


class Conv2dBlock(nn.Module):
    """pad → convolution → norm → activation.

    Shape: x [N, input_dim, H, W] -> [N, output_dim, (H + 2·padding - kernel_size) // stride + 1, …].
    With norm "adain", `forward` takes that norm's (weight, bias), both [N, output_dim].

    Args:
        input_dim: channels of x.
        output_dim: channels of the result.
        kernel_size: side of the kernel.
        stride: of both axes.
        padding: pixels on each side.
        norm: one of NORMS.
        activation: one of ACTIVATIONS.
        pad_type: one of PADDINGS.

    Raises:
        ValueError: norm, activation or pad_type is unknown.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm: str = "none",
        activation: str = "relu",
        pad_type: str = "zero",
    ) -> None:
        super().__init__()
        _choose("pad_type", pad_type, tuple(PADDINGS))
        self.pad = PADDINGS[pad_type](padding)
        self.norm = make_norm(norm, output_dim)
        self.activation = make_activation(activation)
        conv = nn.Conv2d(input_dim, output_dim, kernel_size, stride)
        self.conv = SpectralNorm(conv) if norm == "sn" else conv

    def forward(self, x: Tensor, adain: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The block on x.

        Args:
            x: [N, input_dim, H, W].
            adain: (weight, bias), both [N, output_dim], for norm "adain"; ignored by other norms.

        Returns:
            [N, output_dim, (H + 2·padding - kernel_size) // stride + 1, …].

        Raises:
            ValueError: norm "adain" without `adain`.
        """
        x = self.conv(self.pad(x))
        if isinstance(self.norm, AdaptiveInstanceNorm2d):
            if adain is None:
                raise ValueError("a block with norm 'adain' needs its (weight, bias)")
            x = self.norm(x, *adain)
        elif self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ResBlock(nn.Module):
    """x + conv-norm-act-conv-norm(x), 3×3, without an activation after the sum. Shape: [N, dim, H, W], kept."""

    def __init__(self, dim: int, norm: str = "in", activation: str = "relu", pad_type: str = "zero") -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm=norm, activation=activation, pad_type=pad_type),
            Conv2dBlock(dim, dim, 3, 1, 1, norm=norm, activation="none", pad_type=pad_type),
        )

    def forward(self, x: Tensor, adain: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The block on x [N, dim, H, W]; `adain` holds the (weight, bias) of its two norms "adain", each [N, dim]."""
        first, second = self.model
        style_1, style_2 = adain if adain is not None else (None, None)
        return second(first(x, style_1), style_2) + x


class LinearBlock(nn.Module):
    """A linear layer with an activation. Shape: [N, input_dim] -> [N, output_dim]."""

    def __init__(self, input_dim: int, output_dim: int, activation: str = "relu") -> None:
        super().__init__()
        self.fc = nn.Linear(input_dim, output_dim)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, input_dim] -> [N, output_dim]."""
        x = self.fc(x)
        return x if self.activation is None else self.activation(x)
