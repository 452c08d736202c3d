"""The fused forwards of containers: where the modules inside become one call, and only while that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from munit_fast.accelerate.convolutions import is_channels_last, lead, statistics_wanted
from munit_fast.accelerate.norms import Norm, PassedAdaIN, activation, cast_dtype, followers, is_widened, narrows
from munit_fast.accelerate.swaps import Keywords, Swapped, is_plain
from munit_fast.ops.fused_conv import ConvOutput


def _convolved(modules: Sequence[Any], after: Any, output: ConvOutput) -> tuple[ConvOutput, int] | None:
    """A convolution with what leads to it at the head of `modules` as one call, and how many modules these are.

    None if that is not what stands there, or if the convolution has no plan for these tensors.
    """
    found = lead(modules) if isinstance(output.z, Tensor) else None
    if found is None:
        return None
    conv, args = modules[found.length], None
    if found.inner is not None:
        norm = modules[0]
        args = norm._munit_fast_args(output.z, (), found.inner) if norm._munit_fast_takes(output.z) else None
        if args is None or args.impl != conv._munit_fast_impl:
            return None
    following = [*modules[found.length + 1 :], after]
    result = conv._munit_fast_convolved(output, args, found.outer, statistics_wanted(following[0]))
    return None if result is None else (result, found.length + 1)


def _run(modules: Sequence[Any], x: Any, after: Any = None) -> ConvOutput:
    """The modules in order, with those fused that can be, and the statistics that `after`, the next one, may need."""
    i, output = 0, ConvOutput(x)
    moved = False  # whether the tensor is channels_last though PyTorch's would not be: between fused calls only
    while i < len(modules):
        if (joined := _convolved(modules[i:], after, output)) is not None:
            weight = modules[i + joined[1] - 1].weight
            moved = not (is_channels_last(weight) or (is_channels_last(output.z) and not moved))
            output, used = joined
            i += used
            continue
        module, y = modules[i], None
        i += 1
        if isinstance(module, Norm) and is_plain(module):
            keywords, used = followers(module, modules[i:])
            if isinstance(output.z, Tensor) and not narrows(modules[i + used : i + used + 1]):
                output = output._replace(z=module._munit_fast_input(output.z))
            if (used or output.stats is not None) and (y := module._munit_fast_fused(output, (), keywords)) is not None:
                i += used
                if is_widened(y, keywords) and not narrows(modules[i : i + 1]):
                    y = y.float()
        if y is None:
            y, moved = module(output.z.contiguous() if moved else output.z), False
        output = ConvOutput(y)
    return output._replace(z=output.z.contiguous()) if moved else output


class Sequential(Swapped):
    """`torch.nn.Sequential` that runs a norm, the activation after it and the padding after that as one.

    With the convolution after that too, where it has a plan.
    """

    def forward(self, input: Any) -> Any:
        """The modules in order, with those fused that can be."""
        return _run(list(self._modules.values()), input).z


class Block(Swapped):
    """MUNIT's Conv2dBlock: pad and convolution, then norm and activation as one."""

    pad: nn.Module
    conv: nn.Module
    norm: nn.Module | None
    activation: nn.Module | None

    def _munit_fast_fused(self, x: Tensor, adain: Any, residual: Tensor | None = None) -> Tensor | None:
        """block(x, adain) + residual; None if there is nothing to fuse."""
        norm, act = self.norm, self.activation
        if not isinstance(norm, Norm) or not is_plain(norm) or (act is None and residual is None):
            return None
        asked: Keywords | None = {}
        if act is not None:
            asked = activation(act) if is_plain(act) else None
        if asked is None or isinstance(norm, PassedAdaIN) != (adain is not None):
            return None
        style = () if adain is None else tuple(adain)
        output = _run([self.pad, self.conv], x, norm)
        output = output._replace(z=norm._munit_fast_input(output.z))
        y = norm._munit_fast_fused(output, style, asked if residual is None else {**asked, "residual": residual})
        if y is not None:
            return y
        y = norm(output.z, *style)
        y = y if act is None else act(y)
        return y if residual is None else y + residual

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        """The block with its norm and activation fused, or the module's own forward where that cannot be."""
        adain = keywords.get("adain", rest[0] if rest else None)
        y = self._munit_fast_fused(x, adain) if len(rest) + len(keywords) <= 1 else None
        return super().forward(x, *rest, **keywords) if y is None else y


def _may_join(x: Any, chain: nn.Module, last: nn.Module) -> bool:
    """Whether the sum with x can move into `last`, the end of `chain`.

    Where autocast makes the convolutions' dtype another than x's, an original that adds in place and one that does not
    give different dtypes: only its own forward knows.
    """
    if not isinstance(x, Tensor) or not (is_plain(chain) and is_plain(last)):
        return False
    return cast_dtype(x) in (None, x.dtype)


class ResBlock(Swapped):
    """MUNIT's residual block, two Conv2dBlocks: the sum joins the norm of the second."""

    model: nn.Sequential

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        """The block with its sum fused into the last norm, or the module's own forward where that cannot be."""
        blocks = list(self.model._modules.values())
        last = blocks[-1] if len(blocks) == 2 else None
        if not isinstance(last, Block) or not _may_join(x, self.model, last):
            return super().forward(x, *rest, **keywords)
        first: Any = blocks[0]
        style_1, style_2 = keywords.get("adain", rest[0] if rest else None) or (None, None)
        y = first(x) if style_1 is None else first(x, style_1)
        joined = last._munit_fast_fused(y, style_2, residual=x)
        if joined is not None:
            return joined
        return (last(y) if style_2 is None else last(y, style_2)) + x


class ResnetBlock(Swapped):
    """CycleGAN's residual block, x + conv_block(x): the sum joins the last norm of `conv_block`."""

    conv_block: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """The block with its sum fused into the last norm, or the module's own forward where that cannot be."""
        *modules, last = self.conv_block._modules.values()
        if not isinstance(last, Norm) or not _may_join(x, self.conv_block, last):
            return super().forward(x)
        y = _run(modules, x, last)
        y = y._replace(z=last._munit_fast_input(y.z))
        joined = last._munit_fast_fused(y, (), {"residual": x})
        return x + last(y.z) if joined is None else joined
