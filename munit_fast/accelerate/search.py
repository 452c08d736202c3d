"""The search for norms and convolutions in a network, and for what belongs to them: `accelerate`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from munit_fast import nn as fused_nn
from munit_fast.accelerate import containers, convolutions, norms, swaps
from munit_fast.accelerate.probe import difference
from munit_fast.accelerate.report import Fused, Report, Skipped
from munit_fast.accelerate.swaps import Swapped, is_plain, is_swapped, kind_of, swap
from munit_fast.ops import native, winograd
from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.planned_conv import has_plan
from munit_fast.reference import layers
from munit_fast.utils import env

_FUNCTIONS: dict[type[Swapped], str] = {
    norms.InstanceNorm: "instance_norm",
    norms.GroupNorm: "group_norm",
    norms.LayerNorm: "layer_norm2d",
    norms.AssignedAdaIN: "adain",
    norms.PassedAdaIN: "adain",
}
# The attributes that the published class of this name has.
_PUBLISHED: dict[str, tuple[str, ...]] = {
    "AdaptiveInstanceNorm2d": ("num_features", "eps"),
    "LayerNorm": ("num_features", "eps", "affine"),
    "Conv2dBlock": ("pad", "conv", "norm", "activation"),
    "ResBlock": ("model",),
    "ResnetBlock": ("conv_block",),
}
CONVOLUTION = "norm_act_conv2d"
_CONV_NORMS: dict[type[Swapped], str] = {norms.LayerNorm: "layer", norms.GroupNorm: "group"}  # its names for them
ITSELF = "(the module itself)"
HOOKED = "has a hook, so norm and activation stay two calls"
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_OTHER_NORMS = (_NormBase, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


def accelerate(module: nn.Module, impl: str = "auto") -> Report:
    """Run the norms and convolutions of any network by `munit_fast.functional`, in place, with what belongs to them.

    Found are, anywhere inside `module` and in itself:

    - `torch.nn.InstanceNorm1d`, 2d and 3d, and that of `munit_fast.reference`, without running statistics; and
      `torch.nn.GroupNorm`;
    - in a `torch.nn.Sequential`: such a norm with ReLU or another activation of `norms.ACTIVATIONS` after it, then with
      ReflectionPad2d, ReplicationPad2d or ZeroPad2d of four equal sides (CycleGAN, pix2pix, U-Nets, PatchGAN);
    - MUNIT's own classes, the published ones and those of `munit_fast.reference`: AdaptiveInstanceNorm2d, LayerNorm,
      norm and activation of Conv2dBlock, and the sum of ResBlock; also that of CycleGAN's ResnetBlock. These are known
      by class name and attributes, and then tried out: a small copy of the module and one of its fused form must agree
      in values and gradients, or it is left alone. The trial disturbs neither the module nor the random state;
    - `torch.nn.Conv2d` with kernel 3×3 and stride 1, or 4×4 and stride 2, groups and dilation 1, and padding that is
      equal on all sides and not circular; in a `torch.nn.Sequential` with a padding before it, or with a norm and what
      stands between the two (CycleGAN's residual blocks, U-Nets). On CPUs, those with float32 weights run by Winograd's
      algorithms wherever `munit_fast.ops.conv_plans` has a plan for the size at hand, which each call asks; by PyTorch
      otherwise, and with impl other than "auto" and "cpu".

    Results and gradients are the same up to rounding; `munit_fast.functional.norm_act_conv2d` says how far convolutions
    differ. Modules, parameters, buffers, hooks, modes, the state_dict and its order are untouched, so optimizers and
    checkpoints go on working, and so do deepcopy, pickle (where munit_fast is installed), .to(), DataParallel and
    torch.compile. Only the class of a module changes, to a subclass with its name: see `munit_fast.accelerate.swaps`.
    Tensors that the fused functions do not take run as before, and with impl="auto" so do all where no fast backend
    serves them (`munit-fast doctor` says why). Calling this again finds nothing more to do.

    Three things do differ. A channels_last input gives a channels_last result, where PyTorch's norms return NCHW
    memory. Under autocast MUNIT's LayerNorm returns x's dtype, where PyTorch's promotion gave float32; and a group norm
    before a convolution in a Sequential keeps x's dtype, where autocast on a GPU makes it float32 in between. Second
    derivatives, the transforms of torch.func, torch.jit.trace and exports run in PyTorch's own operators; restore()
    before torch.jit.script, which reads a module's source.

    Args:
        module: the network; on any device (meta too), in any dtype and mode.
        impl: "auto", or the backend that must serve: see `munit_fast.functional`.

    Returns:
        What was replaced and what was skipped, with the way back: `report.restore()`.

    Raises:
        TypeError: module is no torch.nn.Module.
        ValueError: impl is unknown.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    report = Report()
    named = _named(module, report)
    search = _Search(report, impl, named)
    # Containers after what they contain: a module that is shared may be listed before its second container.
    for find in (search.norm, search.convolution, search.sequential, search.block, search.residual):
        for name, child in named:
            find(name, child)
    search.report_all()
    return report


def _named(module: nn.Module, report: Report) -> list[tuple[str, nn.Module]]:
    """The modules by name, without what is TorchScript."""
    named: list[tuple[str, nn.Module]] = []
    closed: list[str] = []
    for name, child in module.named_modules():
        if any(not outer or name.startswith(f"{outer}.") for outer in closed):
            continue
        if isinstance(child, torch.jit.ScriptModule):
            closed.append(name)
            report.skipped.append(Skipped(name or ITSELF, "TorchScript, which cannot be changed"))
        else:
            named.append((name or ITSELF, child))
    return named


def _arguments(module: nn.Module) -> list[str]:
    """The names of what the forward of the module's own class takes."""
    return list(inspect.signature(swaps.original_class(module).forward).parameters)[1:]


class _Search:
    """One call of `accelerate`: what was found so far, in `report`."""

    def __init__(self, report: Report, impl: str, named: list[tuple[str, nn.Module]]) -> None:
        self.report, self.impl = report, impl
        self.names = {module: name for name, module in named}
        self.mine: set[nn.Module] = set()
        # What a norm does besides, for each place that it stands in: the name, the modules after it, the keywords.
        self.tails: dict[nn.Module, list[tuple[str, list[str], swaps.Keywords]]] = {}
        # What a convolution does besides, likewise: the name, the modules before it, and what they ask of it.
        self.leads: dict[nn.Module, list[tuple[str, list[nn.Module], convolutions.Lead]]] = {}

    def skip(self, name: str, reason: str) -> None:
        self.report.skipped.append(Skipped(name, reason))

    def swap(self, name: str, module: nn.Module, kind: type[Swapped]) -> bool:
        try:
            swap(module, kind, self.impl)
        except TypeError as error:  # a class may forbid subclasses, or run code of its own when it gets one
            self.skip(name, f"{type(module).__name__} cannot be derived from: {error}")
            return False
        self.mine.add(module)
        self.report._swapped.append(module)
        return True

    def tail(self, norm: nn.Module, name: str, after: list[str], keywords: swaps.Keywords) -> None:
        self.tails.setdefault(norm, []).append((name, after, keywords))

    def tail_with_sum(self, norm: nn.Module, name: str) -> None:
        name, after, keywords = self.tails[norm].pop() if norm in self.tails else (name, [], {})
        self.tail(norm, name, [*after, "sum"], {**keywords, "residual": "x"})

    def norm(self, name: str, module: nn.Module) -> None:
        kind = _norm_kind(module)
        if isinstance(kind, str):
            self.skip(name, kind)
        elif kind is not None:
            self.swap(name, module, kind)

    def convolution(self, name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Conv2d) or is_swapped(module):
            return
        reason = _conv_reason(module, self.impl)
        if reason is None:
            self.swap(name, module, convolutions.Conv2d)
        else:
            self.skip(name, f"{type(module).__name__} {reason}")

    def sequential(self, name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Sequential) or is_swapped(module):
            return
        names, children = list(module._modules), list(module._modules.values())
        found: list[tuple[nn.Module, str, list[str], swaps.Keywords]] = []
        for i, child in enumerate(children):
            after = children[i + 1 :]
            idle = next((n for n, m in enumerate(after) if not norms.is_idle(m)), len(after))
            if not isinstance(child, norms.Norm) or not _fits(child, after[idle : idle + 1]):
                continue
            if hooked := next((n for n, m in zip(names[i:], [child, *after[: idle + 1]]) if not is_plain(m)), None):
                self.skip(_inside(name, hooked), HOOKED)
                continue
            keywords, used = norms.followers(child, after)
            found.append((child, _inside(name, names[i]), [type(m).__name__ for m in after[:used]], keywords))
        leads = [(i, lead) for i in range(len(children)) if (lead := convolutions.lead(children[i:])) is not None]
        joined = [i + lead.length for i, lead in leads]
        if not found and not any(
            lead.length or isinstance(next(iter(children[at + 1 :]), None), norms.Norm)
            for at, (_, lead) in zip(joined, leads)
        ):
            return
        if type(module).forward is not nn.Sequential.forward or "forward" in vars(module):
            self.skip(name, "a Sequential with its own forward: the modules inside stay calls of their own")
        elif self.swap(name, module, containers.Sequential):
            for run in found:
                self.tail(*run)
            for n, (at, (i, lead)) in enumerate(zip(joined, leads)):
                if at not in joined[:n]:  # a padding that a norm takes with it leads to the same convolution
                    before = children[i:at]
                    self.leads.setdefault(children[at], []).append((_inside(name, names[at]), before, lead))

    def block(self, name: str, module: Any) -> None:
        if not _has_shape_of(module, "Conv2dBlock") or not isinstance(module.norm, norms.Norm):
            return
        act = module.activation
        asked = {} if act is None else norms.activation(act)
        if asked is None:
            return self.skip(name, f"its activation {type(act).__name__} has no fused form; its norm is fused alone")
        parts = {n: m for n, m in module._modules.items() if n in ("norm", "activation") and m is not None}
        if hooked := next((n for n, m in parts.items() if not is_plain(m)), None):
            return self.skip(_inside(name, hooked), HOOKED)
        if self.tried(name, module, containers.Block, norms.channels_of(module.norm)) and act is not None:
            self.tail(module.norm, _inside(name, "norm"), [type(act).__name__], asked)

    def residual(self, name: str, module: Any) -> None:
        last: Any = None
        kind: type[Swapped] = containers.ResBlock
        if _has_shape_of(module, "ResBlock") and type(module.model) is nn.Sequential:
            blocks = list(module.model)
            if len(blocks) == 2 and all(isinstance(block, containers.Block) for block in blocks):
                last = blocks[-1].norm
        elif _has_shape_of(module, "ResnetBlock") and isinstance(module.conv_block, nn.Sequential):
            kind, last = containers.ResnetBlock, next(reversed(module.conv_block), None)
        if isinstance(last, norms.Norm) and self.tried(name, module, kind, norms.channels_of(last)):
            self.tail_with_sum(last, self.names[last])

    def tried(self, name: str, module: nn.Module, kind: type[Swapped], channels: int) -> bool:
        """Swap the container if its forward takes the known arguments and passes the trial."""
        arguments = _arguments(module)
        reason = difference(module, kind, channels)
        if len(arguments) != 1 and arguments[1:] != ["adain"]:
            reason = f"its forward takes ({', '.join(arguments)})"
        if reason:
            self.skip(name, f"{type(module).__name__}: {reason}")
            return False
        return self.swap(name, module, kind)

    def report_all(self) -> None:
        for module, name in self.names.items():
            if not isinstance(module, (norms.Norm, convolutions.Conv2d)) or not is_swapped(module):
                continue
            if module not in self.mine and module not in self.tails and module not in self.leads:
                self.skip(name, "is accelerated already")
            elif isinstance(module, norms.Norm):
                for place, after, keywords in self.tails.get(module, [(name, [], {})]):
                    what = " + ".join([type(module).__name__, *after])
                    self.replace(place, what, _FUNCTIONS[kind_of(module)], keywords)
            else:
                for place, before, lead in self.leads.get(module, [(name, [], convolutions.Lead(0, None, {}))]):
                    what = " + ".join(type(m).__name__ for m in [*before, module])
                    self.replace(place, what, CONVOLUTION, _conv_keywords(before, module, lead))

    def replace(self, name: str, what: str, function: str, keywords: swaps.Keywords) -> None:
        shown = ", ".join(f"{k}={_shown(v)}" for k, v in keywords.items())
        self.report.replaced.append(Fused(name, what, f"{function}({shown})"))


def _inside(name: str, child: str) -> str:
    return child if name == ITSELF else f"{name}.{child}"


def _shown(value: Any) -> str:
    return "the weight" if isinstance(value, torch.Tensor) else str(value)


def _fits(norm: nn.Module, modules: list[nn.Module]) -> bool:
    """Whether the first module can follow a norm in one call, hooks aside."""
    if not modules:
        return False
    images = norms.spatial_dimensions(norm) == 2
    return norms.activation(modules[0]) is not None or (images and norms.padding(modules[0]) is not None)


def _has_shape_of(module: nn.Module, name: str) -> bool:
    """Whether the module is not accelerated yet, has the published class name and its attributes."""
    if is_swapped(module) or type(module).__name__ != name or "forward" in vars(module):
        return False
    return all(hasattr(module, attribute) for attribute in _PUBLISHED[name])


def _norm_kind(module: Any) -> type[norms.Norm] | str | None:
    """The fused forward of a norm; or why there is none; or None for a module that is no norm."""
    cls = type(module)
    is_norm = isinstance(module, (nn.GroupNorm, *_OTHER_NORMS)) or cls.__name__ in (
        "AdaptiveInstanceNorm2d",
        "LayerNorm",
    )
    if is_swapped(module) or not is_norm:
        return None
    if isinstance(module, fused_nn._EpilogueModule):
        return f"munit_fast.nn.{cls.__name__} is fused by itself"
    if isinstance(module, Swapped) or parametrize.is_parametrized(module):
        return f"{cls.__name__} has a parametrization, or another class on top"
    if "forward" in vars(module):
        return f"{cls.__name__}: its forward was replaced on the object"
    if cls.__call__ is not nn.Module.__call__:
        return f"{cls.__name__} has its own __call__"
    if isinstance(module, LazyModuleMixin):
        return f"{cls.__name__} has no parameters yet: call the network once, then accelerate"
    if isinstance(module, _INSTANCE_NORMS):
        return _torch_kind(module)
    if isinstance(module, nn.GroupNorm):
        return _group_kind(module)
    if isinstance(module, _OTHER_NORMS):
        return f"{cls.__name__} has no fused form"
    missing = [name for name in _PUBLISHED[cls.__name__] if not hasattr(module, name)]
    if not missing and cls.__name__ == "LayerNorm" and module.affine:
        missing = [name for name in ("gamma", "beta") if name not in module._parameters]
    if missing:
        return f"{cls.__name__} is not MUNIT's: it has no {', '.join(missing)}"
    kinds: dict[str, dict[int, type[norms.Norm]]] = {
        "LayerNorm": {1: norms.LayerNorm},
        "AdaptiveInstanceNorm2d": {1: norms.AssignedAdaIN, 3: norms.PassedAdaIN},
    }
    arguments = _arguments(module)
    kind = kinds[cls.__name__].get(len(arguments))
    if kind is None:
        return f"{cls.__name__} is not MUNIT's: its forward takes ({', '.join(arguments)})"
    reason = difference(module, kind, module.num_features)
    return f"{cls.__name__}: {reason}" if reason else kind


def _torch_kind(module: Any) -> type[norms.Norm] | str:
    name = type(module).__name__
    if module.track_running_stats:
        return f"{name} uses running statistics (track_running_stats=True)"
    own = layers.InstanceNorm2d
    if type(module).forward not in (nn.InstanceNorm2d.forward, own.forward):  # torch's is that of all three
        return f"{name} has its own forward"
    itself = type(module) in (*_INSTANCE_NORMS, own)
    reason = None if itself else difference(module, norms.InstanceNorm, module.num_features)
    return f"{name}: {reason}" if reason else norms.InstanceNorm


def _group_kind(module: nn.GroupNorm) -> type[norms.Norm] | str:
    name = type(module).__name__
    if type(module).forward is not nn.GroupNorm.forward:
        return f"{name} has its own forward"
    reason = None if type(module) is nn.GroupNorm else difference(module, norms.GroupNorm, module.num_channels)
    return f"{name}: {reason}" if reason else norms.GroupNorm


def _conv_reason(module: nn.Conv2d, impl: str) -> str | None:
    """Why a convolution stays as it is; None if it gets a plan."""
    cls = type(module)
    if isinstance(module, Swapped) or parametrize.is_parametrized(module):
        return "has a parametrization, or another class on top"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "has a forward that was replaced on the object"
    if isinstance(module, LazyModuleMixin):
        return "has no parameters yet: call the network once, then accelerate"
    if cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
        return "has its own forward"
    if cls.__call__ is not nn.Module.__call__:
        return "has its own __call__"
    if "weight" not in module._parameters:
        return "has a weight that a hook computes (weight or spectral norm, pruning)"
    found = convolutions.geometry(module)
    if isinstance(found, str):
        return found
    if impl not in ("auto", "cpu"):
        return f"has no plan for impl={impl!r}"
    if not winograd.available():
        return f"has no plan on this processor ({native.native_error or 'it needs AVX2 or AVX-512'})"
    if not has_plan(module.kernel_size[0], found.stride, module.in_channels, module.out_channels):
        if env.conv() != "auto":
            return f"has no plan with MUNIT_FAST_CONV={env.conv()}"
        return f"with {module.in_channels} to {module.out_channels} channels is faster in PyTorch"
    return None


def _conv_keywords(before: list[nn.Module], module: Any, lead: convolutions.Lead) -> swaps.Keywords:
    """What a convolution with a plan does, as the keywords of `munit_fast.functional.norm_act_conv2d`."""
    found: Any = convolutions.geometry(module)
    pad, mode = (lead.outer["pad"], lead.outer["pad_mode"]) if lead.outer else (found.pad, found.pad_mode)
    keywords: swaps.Keywords = {"stride": found.stride} if found.stride > 1 else {}
    if pad:
        keywords |= {"padding": pad, "padding_mode": "zeros" if mode == "zero" else mode}
    if lead.inner is not None:
        keywords |= {"norm": _CONV_NORMS.get(kind_of(before[0]), "instance"), **lead.inner}
    return keywords
