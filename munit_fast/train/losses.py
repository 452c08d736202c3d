"""What one discriminator and one generator update compute, with the work that repeats itself done once.

Same mathematics as `munit_fast.reference.trainers` (MUNIT eqs. 2 to 6), fewer operations: a generator's within- and
cross-domain codes are decoded as one batch, both encoders read the same padded image, all L1 terms are one operation.
Losses are float32 whatever the networks compute in. Nothing here steps an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from munit_fast import functional
from munit_fast.models.networks import AdaINGen, VAEGen


class Codes(NamedTuple):
    """The content codes of a batch, and for MUNIT the padded images that they were made of."""

    c_a: Tensor  # [N, dim · 2^d, h, w]
    c_b: Tensor
    p_a: Tensor | None = None  # [N, C, H + 6, W + 6]
    p_b: Tensor | None = None

    def detached(self) -> tuple[Tensor, Tensor]:
        return self.c_a.detach(), self.c_b.detach()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` takes a gradient inside."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _together(decode: Callable[..., Tensor], *calls: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """decode of each call's arguments, as one batch where their sizes allow it."""
    if len({tuple(call[0].shape[1:]) for call in calls}) > 1:
        return [decode(*call) for call in calls]
    sizes = [call[0].shape[0] for call in calls]
    return decode(*(torch.cat(parts) for parts in zip(*calls))).split(sizes)


def _l1(pairs: dict[str, tuple[Tensor, Tensor]], impl: str) -> dict[str, Tensor]:
    """mean(|a - b|) of each pair: one operation for each dtype, so that nothing is cast that need not be."""
    groups: dict[torch.dtype, list[str]] = {}
    for name, (a, b) in pairs.items():
        groups.setdefault(torch.promote_types(a.dtype, b.dtype), []).append(name)
    found: dict[str, Tensor] = {}
    for names in groups.values():
        found |= dict(zip(names, functional.l1_losses([pairs[name] for name in names], impl=impl).unbind()))
    return {name: found[name] for name in pairs}


def _kl(mean: Tensor) -> Tensor:
    return mean.to(torch.promote_types(mean.dtype, torch.float32)).square().mean()


def munit_codes(gen_a: AdaINGen, gen_b: AdaINGen, x_a: Tensor, x_b: Tensor) -> Codes:
    """The content codes of images [N, C, H, W]: the same in both updates of an iteration."""
    p_a, p_b = gen_a.pad_image(x_a), gen_b.pad_image(x_b)
    return Codes(gen_a.content_of(p_a), gen_b.content_of(p_b), p_a, p_b)


class Generated(NamedTuple):
    """What the generator update adds to its losses: the translations, for the adversarial and perceptual terms."""

    losses: dict[str, Tensor]
    x_ab: Tensor
    x_ba: Tensor


def munit_generator(
    gen_a: AdaINGen,
    gen_b: AdaINGen,
    x_a: Tensor,
    x_b: Tensor,
    codes: Codes,
    s_a: Tensor,
    s_b: Tensor,
    cycle: bool,
) -> Generated:
    """Reconstruction losses of images, styles, codes and (cycle) cycles: the published names without `loss_`."""
    c_a, c_b, p_a, p_b = codes
    assert p_a is not None and p_b is not None
    own_a, own_b = gen_a.style_of(p_a), gen_b.style_of(p_b)
    x_a_recon, x_ba = _together(gen_a.decode, (c_a, own_a), (c_b, s_a.to(own_a.dtype)))
    x_b_recon, x_ab = _together(gen_b.decode, (c_b, own_b), (c_a, s_b.to(own_b.dtype)))
    c_b_recon, s_a_recon = gen_a.encode(x_ba)
    c_a_recon, s_b_recon = gen_b.encode(x_ab)
    pairs = {
        "gen_recon_x_a": (x_a_recon, x_a),
        "gen_recon_x_b": (x_b_recon, x_b),
        "gen_recon_s_a": (s_a_recon, s_a),
        "gen_recon_s_b": (s_b_recon, s_b),
        "gen_recon_c_a": (c_a_recon, c_a),
        "gen_recon_c_b": (c_b_recon, c_b),
    }
    if cycle:
        pairs["gen_cycrecon_x_a"] = (gen_a.decode(c_a_recon, own_a), x_a)
        pairs["gen_cycrecon_x_b"] = (gen_b.decode(c_b_recon, own_b), x_b)
    return Generated(_l1(pairs, gen_a.impl), x_ab, x_ba)


def unit_codes(gen_a: VAEGen, gen_b: VAEGen, x_a: Tensor, x_b: Tensor) -> Codes:
    """The means of the codes, which are the same in both updates; the noise is not."""
    return Codes(gen_a.enc(x_a), gen_b.enc(x_b))


def unit_generator(
    gen_a: VAEGen,
    gen_b: VAEGen,
    x_a: Tensor,
    x_b: Tensor,
    codes: Codes,
    draw: Callable[[Tensor], Tensor],
    cycle: bool,
) -> Generated:
    """UNIT's reconstruction and KL losses. draw(mean) gives the next noise, like `mean`, in the published order."""
    h_a, h_b = codes.c_a, codes.c_b
    z_a, z_b = h_a + draw(h_a), h_b + draw(h_b)
    x_a_recon, x_ba = _together(gen_a.decode, (z_a,), (z_b,))
    x_b_recon, x_ab = _together(gen_b.decode, (z_b,), (z_a,))
    h_b_recon = gen_a.enc(x_ba)
    n_b_recon = draw(h_b_recon)
    h_a_recon = gen_b.enc(x_ab)
    n_a_recon = draw(h_a_recon)
    pairs = {"gen_recon_x_a": (x_a_recon, x_a), "gen_recon_x_b": (x_b_recon, x_b)}
    if cycle:
        pairs["gen_cyc_x_a"] = (gen_a.decode(h_a_recon + n_a_recon), x_a)
        pairs["gen_cyc_x_b"] = (gen_b.decode(h_b_recon + n_b_recon), x_b)
    losses = _l1(pairs, gen_a.impl) | {
        "gen_recon_kl_a": _kl(h_a),
        "gen_recon_kl_b": _kl(h_b),
        "gen_recon_kl_cyc_aba": _kl(h_a_recon),
        "gen_recon_kl_cyc_bab": _kl(h_b_recon),
    }
    return Generated(losses, x_ab, x_ba)
