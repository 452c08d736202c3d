"""R1, the gradient penalty of the discriminators on real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from munit_fast.train.terms.base import Step, Term


def r1_penalty(step: Step, domain: str, noise: Sequence[Tensor]) -> Tensor:
    """R1 (Mescheder, Geiger & Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9).

    1/2 · E‖∇D(T(x))‖² over the real images x, where D is the sum of the discriminator's outputs over scales and places
    and T is the augmentation of this update, if any: the gradient is that of the images as they are, through T (Karras
    et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020). In float32 at least, also under
    autocast: a square of a gradient has twice its exponent.

    Args:
        step: What the discriminator update has computed.
        domain: "a" or "b".
        noise: None.

    Returns:
        A scalar.
    """
    real = step.real[domain]
    with torch.autocast(real.device.type, enabled=False):
        x = real.detach().to(torch.promote_types(real.dtype, torch.float32)).requires_grad_()
        outputs = step.nets.discriminators[domain].judge(step.seen_real.see(domain, x)).outputs
        total = torch.stack([output.sum() for output in outputs]).sum()
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean() / 2


R1 = Term("r1_w", "r1", "dis", r1_penalty, interval="r1_iter", every=16)
