"""Modules over `munit_fast.functional`, with the parameters, buffers and state_dict of what they replace.

Each takes `act`, `slope`, `pad`, `pad_mode` and `impl` on top of the original's arguments and then also does what
follows the norm. A learned slope (act="prelu") is the module's parameter `slope`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast import functional
from munit_fast.ops import formulas
from munit_fast.ops.arguments import check_names
from munit_fast.reference import layers

__all__ = [
    "AdaptiveInstanceNorm2d",
    "BiasAct",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "L1Loss",
    "LSGANLoss",
    "LayerNorm2d",
]


class _EpilogueModule(nn.Module):
    """The options that all these modules share."""

    slope: float | Tensor

    def _set_epilogue(self, act: str, slope: float, pad: int, pad_mode: str, impl: str) -> None:
        check_names(act, pad_mode, impl)
        self.act, self.pad, self.pad_mode, self.impl = act, pad, pad_mode, impl
        # As torch.nn.PReLU: one slope for all channels.
        self.slope = nn.Parameter(torch.full((1,), float(slope))) if act == "prelu" else slope

    def _epilogue(self) -> dict[str, object]:
        return {
            "act": self.act,
            "slope": self.slope,
            "pad": self.pad,
            "pad_mode": self.pad_mode,
            "impl": self.impl,
        }

    def _epilogue_repr(self) -> str:
        shown = [f"act={self.act}"] if self.act != "none" else []
        shown += [f"slope={self.slope}"] if self.act == "lrelu" else []
        shown += [f"pad={self.pad}, pad_mode={self.pad_mode}"] if self.pad else []
        return "".join(f", {part}" for part in shown)


class _InstanceNorm(_EpilogueModule):
    """The forward of the three instance norms, over the parameters and buffers of PyTorch's."""

    spatial: int  # dimensions
    eps: float
    momentum: float | None
    track_running_stats: bool
    weight: Any  # as PyTorch's modules declare these
    bias: Any
    running_mean: Tensor | None
    running_var: Tensor | None
    _apply_instance_norm: Callable[[Tensor], Tensor]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: str = "none",
        slope: float = 0.2,
        impl: str = "auto",
    ) -> None:
        # Behind this class and its base comes PyTorch's module of each.
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch's own argument came with 2.13
            self.register_parameter("bias", None)
        self._set_epilogue(act, slope, 0, "zero", impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Norm, activation, residual and, of images, padding.

        Args:
            x: [N, C, *spatial], or one sample [C, *spatial].
            residual: like x, added after the activation; or None.

        Returns:
            [N, C, *spatial], padded, or without N, in x's dtype and layout.

        Raises:
            ValueError: As `functional.instance_norm`.
            TypeError: As `functional.instance_norm`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        if x.dim() == self.spatial + 1:  # one sample without a batch, as PyTorch's modules take it
            return self.forward(x[None], None if residual is None else residual[None])[0]
        if x.dim() != self.spatial + 2:
            shape = ("L", "H, W", "D, H, W")[self.spatial - 1]
            raise ValueError(f"x must be [N, C, {shape}] or [C, {shape}]; got {list(x.shape)}")
        options: dict[str, Any] = {"residual": residual, **self._epilogue()}
        mean, variance = self.running_mean, self.running_var
        if self.training or not self.track_running_stats:  # as PyTorch's modules decide and track
            if mean is not None and formulas.are_needed():  # whose function may change buffers under torch.func
                return functional.scale_bias_act(self._apply_instance_norm(x), **options)
            y = functional.instance_norm(x, self.weight, self.bias, eps=self.eps, **options)
            if mean is not None:
                self._track(x)
            return y
        if mean is None or variance is None:
            raise RuntimeError("there are no running statistics: build the module with track_running_stats=True")
        wide = torch.promote_types(mean.dtype, torch.float32)
        scale = (variance.to(wide) + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean.to(wide) * scale if self.bias is None else self.bias - mean.to(wide) * scale
        return functional.scale_bias_act(x, scale, shift, **options)

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        """The running statistics as torch.nn.functional.instance_norm updates them: momentum None counts as zero."""
        assert self.running_mean is not None
        if x.shape[1] != self.running_mean.shape[0]:
            raise ValueError(f"x must have {self.running_mean.shape[0]} channels; got {list(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide.flatten(2), 2)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value.mean(0).to(running.dtype), self.momentum or 0.0)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return super().extra_repr() + self._epilogue_repr()


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with what follows it; see `functional.instance_norm`.

    With track_running_stats=True the running statistics are updated in training, which normalises by those of each
    plane, and replace them in evaluation, as one scale and one shift a channel.

    Shape: [N, C, L] -> [N, C, L].

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: as in `torch.nn.InstanceNorm1d`.
        affine: whether weight and bias [C] are learned.
        track_running_stats: as in `torch.nn.InstanceNorm1d`.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: False: with affine=True a weight only.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act or impl is unknown.
    """

    spatial = 1


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with what follows it; see `functional.instance_norm`.

    With track_running_stats=True the running statistics are updated in training, which normalises by those of each
    plane, and replace them in evaluation, as one scale and one shift a channel.

    Shape: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: as in `torch.nn.InstanceNorm2d`.
        affine: whether weight and bias [C] are learned.
        track_running_stats: as in `torch.nn.InstanceNorm2d`.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: False: with affine=True a weight only.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act, pad_mode or impl is unknown.
    """

    spatial = 2

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: str = "none",
        slope: float = 0.2,
        pad: int = 0,
        pad_mode: str = "reflect",
        impl: str = "auto",
    ) -> None:
        check_names(act, pad_mode, impl)
        options: dict[str, Any] = {"bias": bias, "act": act, "slope": slope, "impl": impl}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.pad, self.pad_mode = pad, pad_mode


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with what follows it; see `functional.instance_norm`.

    With track_running_stats=True the running statistics are updated in training, which normalises by those of each
    plane, and replace them in evaluation, as one scale and one shift a channel.

    Shape: [N, C, D, H, W] -> [N, C, D, H, W].

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: as in `torch.nn.InstanceNorm3d`.
        affine: whether weight and bias [C] are learned.
        track_running_stats: as in `torch.nn.InstanceNorm3d`.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: False: with affine=True a weight only.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act or impl is unknown.
    """

    spatial = 3


class GroupNorm(_EpilogueModule, nn.GroupNorm):
    """`torch.nn.GroupNorm` with what follows it; see `functional.group_norm`.

    Shape: [N, C, …] -> [N, C, …] with up to three spatial dimensions; [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_groups: a divisor of C.
        num_channels: number of channels C.
        eps: added to the variance.
        affine: whether weight and bias [C] are learned.
        device: of the parameters.
        dtype: of the parameters.
        bias: False: with affine=True a weight only.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        pad: pixels of padding on each side of an image.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: num_groups does not divide num_channels; act, pad_mode or impl is unknown.
    """

    weight: Any  # as PyTorch's module declares these
    bias: Any

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: str = "none",
        slope: float = 0.2,
        pad: int = 0,
        pad_mode: str = "reflect",
        impl: str = "auto",
    ) -> None:
        check_names(act, pad_mode, impl)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias:  # torch's own argument came with 2.13
            self.register_parameter("bias", None)
        self._set_epilogue(act, slope, pad, pad_mode, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Norm, activation, residual and, of images, padding.

        Args:
            x: [N, C, *spatial], with up to three spatial dimensions.
            residual: like x, added after the activation; or None.

        Returns:
            [N, C, *spatial], padded, in x's dtype and layout.

        Raises:
            ValueError: As `functional.group_norm`.
            TypeError: As `functional.group_norm`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        options: dict[str, Any] = {"residual": residual, **self._epilogue()}
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, eps=self.eps, **options)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return super().extra_repr() + self._epilogue_repr()


class AdaptiveInstanceNorm2d(layers.AdaptiveInstanceNorm2d, _EpilogueModule):
    """The published AdaIN with what follows it; see `functional.adain`.

    weight and bias come as arguments, [N, C] (or flat, [N·C]). Code in the published manner that assigns them to the
    module's `weight` and `bias` before each forward works too. The two buffers exist for the published state_dict and
    never change. Shape: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: of the published constructor; nothing is tracked.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act, pad_mode or impl is unknown; in a call, weight and bias were neither given nor assigned.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        act: str = "none",
        slope: float = 0.2,
        pad: int = 0,
        pad_mode: str = "reflect",
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps)
        self.momentum = momentum  # of the published constructor; nothing is tracked
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self._set_epilogue(act, slope, pad, pad_mode, impl)

    def forward(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Norm, activation, residual and padding.

        Args:
            x: [N, C, H, W].
            weight: [N, C] or [N·C]; None: what was assigned to the module.
            bias: [N, C] or [N·C]; None: what was assigned to the module.
            residual: [N, C, H, W], added after the activation; or None.

        Returns:
            [N, C, H + 2·pad, W + 2·pad] in x's dtype and layout.

        Raises:
            ValueError: weight or bias is missing; else as `functional.adain`.
            TypeError: As `functional.adain`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        weight = self.weight if weight is None else weight
        bias = self.bias if bias is None else bias
        if weight is None or bias is None:
            raise ValueError("weight and bias must be given, or assigned to the module, before AdaIN is called")
        size = tuple(x.shape[:2])
        if weight.dim() == 1 and weight.numel() == size[0] * size[1]:
            weight = weight.view(size)
        if bias.dim() == 1 and bias.numel() == size[0] * size[1]:
            bias = bias.view(size)
        return functional.adain(x, weight, bias, eps=self.eps, residual=residual, **self._epilogue())  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return super().extra_repr() + self._epilogue_repr()


class LayerNorm2d(layers.LayerNorm, _EpilogueModule):
    """The published LayerNorm (parameters gamma and beta) with what follows it; see `functional.layer_norm2d`.

    Shape: [N, C·r², H, W] -> [N, C, r·H + 2·pad, r·W + 2·pad] with r = depth_to_space and C = num_features.

    Args:
        num_features: C, the channels of the result.
        eps: added to the standard deviation.
        affine: whether gamma and beta are learned.
        depth_to_space: side r of the blocks of channels that become pixels; 1 for none.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act, pad_mode or impl is unknown.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        depth_to_space: int = 1,
        act: str = "none",
        slope: float = 0.2,
        pad: int = 0,
        pad_mode: str = "reflect",
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.depth_to_space = depth_to_space
        self._set_epilogue(act, slope, pad, pad_mode, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Norm, activation, residual, depth-to-space and padding.

        Args:
            x: [N, C·r², H, W].
            residual: [N, C·r², H, W], added after the activation; or None.

        Returns:
            [N, C, r·H + 2·pad, r·W + 2·pad] in x's dtype and layout.

        Raises:
            ValueError: As `functional.layer_norm2d`.
            TypeError: As `functional.layer_norm2d`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        weight, bias = (self.gamma, self.beta) if self.affine else (None, None)
        return functional.layer_norm2d(
            x,
            weight,
            bias,
            eps=self.eps,
            residual=residual,
            depth_to_space=self.depth_to_space,
            **self._epilogue(),  # type: ignore[arg-type]
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        shuffle = f", depth_to_space={self.depth_to_space}" if self.depth_to_space > 1 else ""
        return super().extra_repr() + shuffle + self._epilogue_repr()


class BiasAct(_EpilogueModule):
    """A learned bias [C] (absent with bias=False) and what follows it; see `functional.bias_act`.

    Shape: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_features: number of channels C.
        bias: False: no bias.
        act: the activation, as in `munit_fast.functional`.
        slope: of "lrelu"; of "prelu" the initial value of the learned slope [1].
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        ValueError: act, pad_mode or impl is unknown.
    """

    def __init__(
        self,
        num_features: int,
        bias: bool = True,
        *,
        act: str = "none",
        slope: float = 0.2,
        pad: int = 0,
        pad_mode: str = "reflect",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.bias = nn.Parameter(torch.zeros(num_features)) if bias else None
        self._set_epilogue(act, slope, pad, pad_mode, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Bias, activation, residual and padding.

        Args:
            x: [N, C, H, W].
            residual: [N, C, H, W], added after the activation; or None.

        Returns:
            [N, C, H + 2·pad, W + 2·pad] in x's dtype and layout.

        Raises:
            ValueError: As `functional.bias_act`.
            TypeError: As `functional.bias_act`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        return functional.bias_act(x, self.bias, residual=residual, **self._epilogue())  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.num_features}, bias={self.bias is not None}" + self._epilogue_repr()


class L1Loss(nn.Module):
    """`mean(|a - b|)` of two tensors of one shape, a scalar, with a gradient to both sides; see `functional.l1_loss`.

    Args:
        impl: the backend, as in `munit_fast.functional`.
    """

    def __init__(self, impl: str = "auto") -> None:
        super().__init__()
        self.impl = impl

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`mean(|a - b|)`.

        Args:
            a: any shape, floating-point.
            b: a's shape.

        Returns:
            A scalar in float32 (float64 for float64).

        Raises:
            ValueError: As `functional.l1_losses`.
            TypeError: As `functional.l1_losses`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        return functional.l1_loss(a, b, impl=self.impl)


class LSGANLoss(nn.Module):
    """Σ over scales of mean((output - target)²), a scalar; see `functional.lsgan_loss`.

    Args:
        impl: the backend, as in `munit_fast.functional`.
    """

    def __init__(self, impl: str = "auto") -> None:
        super().__init__()
        self.impl = impl

    def forward(self, outputs: Tensor | list[Tensor], target: float) -> Tensor:
        """Σ over outputs of mean((output - target)²).

        Args:
            outputs: of each scale, any shapes, floating-point; a tensor stands for one scale.
            target: what the outputs are to be: 1 for real, 0 for fake.

        Returns:
            A scalar in float32 (float64 for float64).

        Raises:
            ValueError: As `functional.lsgan_loss`.
            TypeError: As `functional.lsgan_loss`.
            RuntimeError: `impl` cannot serve these tensors.
        """
        return functional.lsgan_loss(outputs, target, impl=self.impl)
