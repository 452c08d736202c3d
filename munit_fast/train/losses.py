"""The losses of the trainers' two updates, with the work that repeats itself done once.

Same mathematics as `munit_fast.reference.trainers` (MUNIT eqs. 1 to 5), fewer operations: a generator's within- and
cross-domain codes are decoded as one batch, both encoders read the same padded image, all L1 terms are one operation,
and the content codes of a batch serve both updates. Losses are float32 whatever the networks compute in.

An objective has no state: each of its methods takes the trainer as `nets`, for its networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast import functional
from munit_fast.models.networks import shared_weights
from munit_fast.reference.trainers import Hyperparameters, Losses, _replay, munit_total, unit_total
from munit_fast.train.terms import Step

__all__ = ["Codes", "Losses", "MUNITObjective", "Objective", "ReferenceObjective", "UNITObjective"]


class Codes(NamedTuple):
    """The content codes of a batch, and for MUNIT the padded images that they were computed from."""

    c_a: Tensor  # [N, dim · 2^d, h, w]
    c_b: Tensor
    p_a: Tensor | None = None  # [N, C, H + 6, W + 6]
    p_b: Tensor | None = None

    def detached(self) -> tuple[Tensor, Tensor]:
        """The two codes without their graph."""
        return self.c_a.detach(), self.c_b.detach()


class CachedCodes:
    """Content codes with their graph, for a generator update on the tensors of the discriminator update before it.

    Args:
        nets: the trainer whose generators encoded the images.
        x_a: images of domain A, [N, C, H, W]; held, so that no other tensor can pass for them.
        x_b: images of domain B, likewise.
        codes: their content codes.
        precision: whatever else the codes depend on.
    """

    def __init__(self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, precision: Any) -> None:
        self.x_a, self.x_b, self.codes = x_a, x_b, codes
        self.computed_from = _versions(nets, x_a, x_b, precision)

    def get(self, nets: Any, x_a: Tensor, x_b: Tensor, precision: Any) -> Codes | None:
        """The codes, or None if images, generator parameters or precision are not the same any more.

        Args:
            nets: the trainer.
            x_a: images of domain A; they must be the very tensor.
            x_b: images of domain B, likewise.
            precision: as given when the codes were cached.
        """
        same = self.x_a is x_a and self.x_b is x_b and self.computed_from == _versions(nets, x_a, x_b, precision)
        return self.codes if same else None


def _versions(nets: Any, x_a: Tensor, x_b: Tensor, precision: Any) -> list[Any]:
    """Equal lists mean equal codes. A write to a parameter through `.data` goes unnoticed."""
    kind = x_a.device.type
    ambient = (precision, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
    tensors = (x_a, x_b, *_parameters(nets.gen_a, nets.gen_b))
    return [ambient, *((t.data_ptr(), t._version, t.requires_grad) for t in tensors)]


def _parameters(*networks: nn.Module) -> list[nn.Parameter]:
    """All parameters, in an order that depends on the modules alone; nn.Module.parameters takes five times as long."""
    found: list[nn.Parameter] = []
    modules: list[nn.Module | None] = list(networks)
    while modules:
        module = modules.pop()
        if module is not None:
            found.extend(p for p in module._parameters.values() if p is not None)
            modules.extend(module._modules.values())
    return found


class Objective(ABC):
    """What the discriminator and the generator update of an iteration minimise."""

    unsupported: ClassVar[Mapping[str, str]] = {}  # feature -> why a trainer with this objective does without

    def require(self, feature: str, prefix: str = "") -> None:
        """Raise ValueError, its text after `prefix`, where a trainer with this objective does without a feature."""
        if (reason := self.unsupported.get(feature)) is not None:
            raise ValueError(prefix + reason)

    def encode(self, nets: Any, x_a: Tensor, x_b: Tensor) -> Codes | None:
        """What both updates need of images, with its graph; None: nothing is shared.

        Args:
            nets: the trainer.
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
        """
        return None

    @abstractmethod
    def dis_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        """The discriminators' losses by their published names; `loss_dis_total` is minimised.

        Args:
            nets: the trainer.
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            codes: what `encode` returned for them, or None to encode here.
            noise: as the published updates take it.
            hp: the published configuration keys.
        """

    @abstractmethod
    def gen_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        """The generators' losses by their published names; `loss_gen_total` is minimised.

        Args:
            nets: the trainer.
            x_a: images of domain A, [N, C, H, W] in [-1, 1].
            x_b: images of domain B.
            codes: what `encode` returned for them, or None to encode here.
            noise: as the published updates take it.
            hp: the published configuration keys.
        """


class ReferenceObjective(Objective):
    """impl="reference": the losses as `munit_fast.reference` computes them."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "fp16": "amp='fp16' needs loss scaling, which impl='reference' does not have; use 'bf16' or 'off'",
        "accumulation": "accumulation needs the fast trainers; impl='reference' takes a batch at once",
        "distribute": "impl='reference' trains in one process; use another impl for several",
        "CUDA graph": "impl='reference' runs the published updates",
        "options": "impl='reference' has the published losses only; use another impl, or turn these keys off",
    }

    def dis_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        """As `Objective.dis_losses`; codes are not used."""
        losses: Losses = nets.dis_losses(x_a, x_b, hp, noise)
        return losses

    def gen_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        """As `Objective.gen_losses`; codes are not used."""
        losses: Losses = nets.gen_losses(x_a, x_b, hp, noise)
        return losses


class _FusedObjective(Objective):
    """What MUNIT's and UNIT's objective over the fused networks share."""

    published_noise: ClassVar[Mapping[str, int]] = {"dis": 2, "gen": 2}  # random tensors of each update

    @abstractmethod
    def encode(self, nets: Any, x_a: Tensor, x_b: Tensor) -> Codes: ...

    @abstractmethod
    def _translate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x_ab, x_ba), [N, C, H, W] each, for the discriminators."""

    @abstractmethod
    def _generate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor], cycle: bool
    ) -> tuple[Losses, Tensor, Tensor]:
        """The reconstruction losses; x_ab and x_ba, for the adversarial and perceptual ones."""

    @abstractmethod
    def _total(self, losses: Losses, hp: Hyperparameters) -> Tensor: ...

    def dis_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        noise, of_views, of_terms = nets.options.split(self.published_noise["dis"], "dis", noise)
        with shared_weights():
            with torch.no_grad():
                codes = self.encode(nets, x_a, x_b) if codes is None else codes
                x_ab, x_ba = self._translate(nets, x_a, x_b, codes, noise)
            real, fake = {"a": x_a, "b": x_b}, {"a": x_ba, "b": x_ab}
            seen_real, seen_fake = nets.options.views(real, fake, of_views)
            judged = {d: net.judge_both(seen_fake[d], seen_real[d]) for d, net in nets.discriminators.items()}
            losses: Losses = {f"loss_dis_{d}": nets.discriminators[d].dis_loss(*judged[d]) for d in "ab"}
            judged_fake, judged_real = ({d: judged[d][i] for d in "ab"} for i in (0, 1))
            losses |= nets.options.observe(nets, judged_real)
            step = Step(nets, codes, noise, real, fake, seen_real, seen_fake, judged_real, judged_fake, {})
            terms, optional = nets.options.terms.losses("dis", step, of_terms, hp, nets.iterations)
        total = hp["gan_w"] * losses["loss_dis_a"] + hp["gan_w"] * losses["loss_dis_b"]
        return losses | terms | {"loss_dis_total": total if optional is None else total + optional}

    def gen_losses(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes | None, noise: Sequence[Tensor], hp: Hyperparameters
    ) -> Losses:
        noise, of_views, of_terms = nets.options.split(self.published_noise["gen"], "gen", noise)
        with frozen(nets.dis_a, nets.dis_b), shared_weights():
            codes = self.encode(nets, x_a, x_b) if codes is None else codes
            losses, x_ab, x_ba = self._generate(nets, x_a, x_b, codes, noise, hp["recon_x_cyc_w"] > 0)
            real, fake = {"a": x_a, "b": x_b}, {"a": x_ba, "b": x_ab}
            seen_real, seen_fake = nets.options.views(real, fake, of_views)
            judged = {d: net.judge(seen_fake[d]) for d, net in nets.discriminators.items()}
            losses |= {f"loss_gen_adv_{d}": nets.discriminators[d].gen_loss(judged[d]) for d in "ab"}
            losses |= nets.perceptual_losses(x_a, x_b, x_ab, x_ba)
            step = Step(nets, codes, noise, real, fake, seen_real, seen_fake, {}, judged, {})
            terms, optional = nets.options.terms.losses("gen", step, of_terms, hp, nets.iterations)
        total = self._total(losses, hp)
        return losses | terms | {"loss_gen_total": total if optional is None else total + optional}


class MUNITObjective(_FusedObjective):
    """MUNIT's losses (eqs. 1 to 5) over fused networks. noise: [s_a, s_b] in both updates, [N, style_dim, 1, 1]."""

    def encode(self, nets: Any, x_a: Tensor, x_b: Tensor) -> Codes:
        """The content codes and the padded images, which the style encoders read too."""
        p_a, p_b = nets.gen_a.pad_image(x_a), nets.gen_b.pad_image(x_b)
        return Codes(nets.gen_a.content_of(p_a), nets.gen_b.content_of(p_b), p_a, p_b)

    def _translate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        (c_a, c_b), (s_a, s_b) = codes.detached(), noise
        x_ba = nets.gen_a.decode(c_b, s_a.to(x_a))
        return nets.gen_b.decode(c_a, s_b.to(x_b)), x_ba

    def _generate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor], cycle: bool
    ) -> tuple[Losses, Tensor, Tensor]:
        gen_a, gen_b = nets.gen_a, nets.gen_b
        (c_a, c_b, p_a, p_b), (s_a, s_b) = codes, noise
        own_a, own_b = gen_a.style_of(p_a), gen_b.style_of(p_b)
        x_a_recon, x_ba = _together(gen_a.decode, (c_a, own_a), (c_b, s_a.to(x_a).to(own_a.dtype)))
        x_b_recon, x_ab = _together(gen_b.decode, (c_b, own_b), (c_a, s_b.to(x_b).to(own_b.dtype)))
        c_b_recon, s_a_recon = gen_a.encode(x_ba)
        c_a_recon, s_b_recon = gen_b.encode(x_ab)
        pairs = {
            "loss_gen_recon_x_a": (x_a_recon, x_a),
            "loss_gen_recon_x_b": (x_b_recon, x_b),
            "loss_gen_recon_s_a": (s_a_recon, s_a),
            "loss_gen_recon_s_b": (s_b_recon, s_b),
            "loss_gen_recon_c_a": (c_a_recon, c_a),
            "loss_gen_recon_c_b": (c_b_recon, c_b),
        }
        off = {"loss_gen_cycrecon_x_a": 0.0, "loss_gen_cycrecon_x_b": 0.0}
        if cycle:
            pairs["loss_gen_cycrecon_x_a"] = (gen_a.decode(c_a_recon, own_a), x_a)
            pairs["loss_gen_cycrecon_x_b"] = (gen_b.decode(c_b_recon, own_b), x_b)
        return off | _l1(pairs, gen_a.impl), x_ab, x_ba

    def _total(self, losses: Losses, hp: Hyperparameters) -> Tensor:
        total: Tensor = munit_total(losses, hp)
        return total


class UNITObjective(_FusedObjective):
    """UNIT's losses over fused networks; its codes are the means of the published ones, noise is added here.

    noise: [n_a, n_b] in the discriminator update and [n_a, n_b, n_b_recon, n_a_recon] in the generator update, each of
    the code's shape.
    """

    published_noise: ClassVar[Mapping[str, int]] = {"dis": 2, "gen": 4}

    def encode(self, nets: Any, x_a: Tensor, x_b: Tensor) -> Codes:
        """The means of the codes."""
        return Codes(nets.gen_a.enc(x_a), nets.gen_b.enc(x_b))

    def _translate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        h_a, h_b = codes.detached()
        n_a, n_b = _noise_like(h_a, noise, 2)
        x_ba = nets.gen_a.decode(h_b + n_b)
        return nets.gen_b.decode(h_a + n_a), x_ba

    def _generate(
        self, nets: Any, x_a: Tensor, x_b: Tensor, codes: Codes, noise: Sequence[Tensor], cycle: bool
    ) -> tuple[Losses, Tensor, Tensor]:
        gen_a, gen_b, h_a, h_b = nets.gen_a, nets.gen_b, codes.c_a, codes.c_b
        n_a, n_b, n_b_recon, n_a_recon = _noise_like(h_a, noise, 4)
        z_a, z_b = h_a + n_a, h_b + n_b
        x_a_recon, x_ba = _together(gen_a.decode, (z_a,), (z_b,))
        x_b_recon, x_ab = _together(gen_b.decode, (z_b,), (z_a,))
        h_b_recon, h_a_recon = gen_a.enc(x_ba), gen_b.enc(x_ab)
        pairs = {"loss_gen_recon_x_a": (x_a_recon, x_a), "loss_gen_recon_x_b": (x_b_recon, x_b)}
        off = {"loss_gen_cyc_x_a": 0.0, "loss_gen_cyc_x_b": 0.0}
        if cycle:
            pairs["loss_gen_cyc_x_a"] = (gen_a.decode(h_a_recon + n_a_recon), x_a)
            pairs["loss_gen_cyc_x_b"] = (gen_b.decode(h_b_recon + n_b_recon), x_b)
        losses: Losses = off | _l1(pairs, gen_a.impl)
        losses["loss_gen_recon_kl_a"] = _kl(h_a)
        losses["loss_gen_recon_kl_b"] = _kl(h_b)
        losses["loss_gen_recon_kl_cyc_aba"] = _kl(h_a_recon)
        losses["loss_gen_recon_kl_cyc_bab"] = _kl(h_b_recon)
        return losses, x_ab, x_ba

    def _total(self, losses: Losses, hp: Hyperparameters) -> Tensor:
        total: Tensor = unit_total(losses, hp)
        return total


def split_batch(
    count: int, x_a: Tensor, x_b: Tensor, noise: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Sequence[Tensor]]]:
    """The batch in equal parts, each with its noise.

    Args:
        count: number of parts.
        x_a: images of domain A, [N, C, H, W].
        x_b: images of domain B.
        noise: tensors with one row an image.

    Yields:
        Images of A, images of B and noise of a part.

    Raises:
        ValueError: `count` does not divide the batch.
    """
    if count == 1:
        yield x_a, x_b, noise
        return
    if x_a.shape[0] % count or x_b.shape[0] % count:
        sizes = f"{x_a.shape[0]} and {x_b.shape[0]}"
        raise ValueError(f"accumulation: {count} parts need a batch that they divide; got {sizes} images")
    for a, b, *n in zip(*(t.chunk(count) for t in (x_a, x_b, *noise)), strict=True):
        yield a, b, n


def detached(losses: Losses) -> Losses:
    """The losses without the graph that they came with.

    A graph holds the nodes that sum the gradients, and these stay on the stream on which it was made: a CUDA graph,
    which is captured on another one, could not use them.
    """
    return {name: loss.detach() if isinstance(loss, Tensor) else loss for name, loss in losses.items()}


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """The mean of each loss over equal parts of a batch."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` takes a gradient inside."""
    parameters = [p for p in _parameters(*modules) if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _noise_like(code: Tensor, noise: Sequence[Tensor], count: int) -> list[Tensor]:
    """The noise on the code's device and in its dtype. Raises ValueError unless there are `count` tensors."""
    return [n.to(code) for n in _replay(noise, count) if n is not None]


def _together(decode: Callable[..., Tensor], *calls: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """decode of each call's arguments, as one batch where their sizes allow it."""
    if len({tuple(call[0].shape[1:]) for call in calls}) > 1:
        return [decode(*call) for call in calls]
    sizes = [call[0].shape[0] for call in calls]
    return decode(*(torch.cat(parts) for parts in zip(*calls))).split(sizes)


def _l1(pairs: Mapping[str, tuple[Tensor, Tensor]], impl: str) -> Losses:
    """mean(|a - b|) of each pair: one operation for each dtype, so that nothing is cast that need not be."""
    groups: dict[torch.dtype, list[str]] = {}
    for name, (a, b) in pairs.items():
        groups.setdefault(torch.promote_types(a.dtype, b.dtype), []).append(name)
    found: Losses = {}
    for names in groups.values():
        found |= dict(zip(names, functional.l1_losses([pairs[name] for name in names], impl=impl).unbind()))
    return {name: found[name] for name in pairs}


def _kl(mean: Tensor) -> Tensor:
    """mean(mu²) of a code's means, in float32 at least."""
    return mean.to(torch.promote_types(mean.dtype, torch.float32)).square().mean()
