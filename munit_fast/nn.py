"""Modules over `munit_fast.functional`, with the parameters, buffers and state_dict of what they replace.

Each takes `act`, `slope`, `pad`, `pad_mode` and `impl` on top of the original's arguments and then also does what
follows the norm. A learned slope (act="prelu") is the module's parameter `slope`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from munit_fast import functional
from munit_fast.reference import layers

__all__ = ["AdaptiveInstanceNorm2d", "BiasAct", "InstanceNorm2d", "L1Loss", "LSGANLoss", "LayerNorm2d"]


class _EpilogueModule(nn.Module):
    """The options that all these modules share."""

    slope: float | Tensor

    def _set_epilogue(self, act: str, slope: float, pad: int, pad_mode: str, impl: str) -> None:
        functional.check_names(act, pad_mode, impl)
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


class InstanceNorm2d(nn.InstanceNorm2d, _EpilogueModule):
    """`torch.nn.InstanceNorm2d` with what follows it; see `functional.instance_norm`.

    With track_running_stats=True and in evaluation, when the running statistics are used, and while they are being
    tracked, the norm itself is PyTorch's. Shape: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in `torch.nn.InstanceNorm2d`.
        bias: False: with affine=True a weight only.
        act, slope, pad, pad_mode, impl: what follows the norm, as in `munit_fast.functional`.

    Raises:
        ValueError: act, pad_mode or impl is unknown.
    """

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
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch's own argument came with 2.13
            self.register_parameter("bias", None)
        self._set_epilogue(act, slope, pad, pad_mode, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() == 3:  # one image without a batch, as torch.nn.InstanceNorm2d takes it
            return self.forward(x[None], None if residual is None else residual[None])[0]
        if self.track_running_stats:
            return functional.bias_act(super().forward(x), residual=residual, **self._epilogue())  # type: ignore[arg-type]
        return functional.instance_norm(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            residual=residual,
            **self._epilogue(),  # type: ignore[arg-type]
        )

    def extra_repr(self) -> str:
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
        act, slope, pad, pad_mode, impl: what follows the norm, as in `munit_fast.functional`.

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
        return super().extra_repr() + self._epilogue_repr()


class LayerNorm2d(layers.LayerNorm, _EpilogueModule):
    """The published LayerNorm (parameters gamma and beta) with what follows it; see `functional.layer_norm2d`.

    Shape: [N, C·r², H, W] -> [N, C, r·H + 2·pad, r·W + 2·pad] with r = depth_to_space and C = num_features.

    Args:
        num_features: C, the channels of the result.
        eps: added to the standard deviation.
        affine: whether gamma and beta are learned.
        depth_to_space: side r of the blocks of channels that become pixels; 1 for none.
        act, slope, pad, pad_mode, impl: what follows the norm, as in `munit_fast.functional`.

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
        shuffle = f", depth_to_space={self.depth_to_space}" if self.depth_to_space > 1 else ""
        return super().extra_repr() + shuffle + self._epilogue_repr()


class BiasAct(_EpilogueModule):
    """A learned bias [C] (absent with bias=False) and what follows it; see `functional.bias_act`.

    Shape: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

    Args:
        num_features: number of channels C.
        bias: False: no bias.
        act, slope, pad, pad_mode, impl: as in `munit_fast.functional`.

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
        return functional.bias_act(x, self.bias, residual=residual, **self._epilogue())  # type: ignore[arg-type]

    def extra_repr(self) -> str:
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
        return functional.lsgan_loss(outputs, target, impl=self.impl)
