"""Small trainers, and what they have learnt as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from munit_fast import make_config


def hyperparameters(**over: Any) -> dict[str, Any]:
    sizes = {"crop_image_height": 32, "crop_image_width": 40, "display_size": 2, "step_size": 4, "lr": 0.001}
    gen, dis = {"dim": 8, "mlp_dim": 8, "style_dim": 3, "n_res": 1}, {"dim": 8, "n_layer": 2, "num_scales": 2}
    return make_config({"gen": gen, "dis": {**dis, **over.pop("dis", {})}, **sizes, **over}).hyperparameters()


def parameters(trainer: Any) -> Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in trainer.parameters()])


def check_generator_gradients(trainer: Any, plain: Any) -> None:
    """The generators have the gradients of those of `plain`, to 1e-9, and the discriminators have none."""
    for name in ("gen_a", "gen_b"):
        mine, theirs = (
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()])
            for net in (getattr(trainer, name), getattr(plain, name))
        )
        assert float(theirs.norm()) > 0 and float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm())
    assert all(p.grad is None for net in trainer.discriminators.values() for p in net.parameters())
