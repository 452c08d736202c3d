"""Terms that ask two styles for two different translations of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.train.terms.base import Step, Term

_EPS = 1e-5  # of the published code of mode seeking


def mode_seeking(step: Step, domain: str, noise: Sequence[Tensor]) -> Tensor:
    """Mode seeking (Mao et al., "Mode Seeking Generative Adversarial Networks …", CVPR 2019, eq. 3), to be minimised.

    The mean over images of 1 / (d(x₁, x₂) / d(z₁, z₂) + 1e-5): x₁ and x₂ are the translations of one image in the
    styles z₁ and z₂, and d is the mean absolute difference of two images or of two style codes.

    Args:
        step: What the generator update has computed, with the translations in the styles of its own noise.
        domain: "a" or "b", of the translations.
        noise: Further styles, as `second_styles` draws them.

    Returns:
        A scalar.
    """
    of_images = _distance(step.fake[domain], _second_translation(step, domain, noise))
    of_styles = _distance(*(styles["ab".index(domain)].to(of_images) for styles in (step.noise, noise)))
    return (1 / (of_images / of_styles + _EPS)).mean()


def diversity(step: Step, domain: str, noise: Sequence[Tensor]) -> Tensor:
    """Diversity of styles (Choi et al., "StarGAN v2: Diverse Image Synthesis …", CVPR 2020, eq. 3), to be minimised.

    The mean over images of -|x₁ - x₂|, the mean absolute difference of the translations of one image in two styles.
    Its weight stays as it is; StarGAN v2 lets it fall to 0.

    Args:
        step: As of `mode_seeking`.
        domain: "a" or "b", of the translations.
        noise: Further styles, as `second_styles` draws them.

    Returns:
        A scalar.
    """
    return -_distance(step.fake[domain], _second_translation(step, domain, noise)).mean()


def second_styles(nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """One more random style of each domain, [N, style_dim, 1, 1] each."""
    return [torch.randn(x.shape[0], nets.style_dim, 1, 1, generator=generator) for x in (x_a, x_b)]


def _second_translation(step: Step, domain: str, noise: Sequence[Tensor]) -> Tensor:
    """The translations into the domain in the second styles, decoded once for all terms."""
    key = ("second translation", domain)
    if key not in step.kept:
        nets, codes = step.nets, step.codes
        generator, code, style = (
            (nets.gen_a, codes.c_b, noise[0]) if domain == "a" else (nets.gen_b, codes.c_a, noise[1])
        )
        step.kept[key] = generator.decode(code, style.to(step.real[domain]))
    translation: Tensor = step.kept[key]
    return translation


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """The mean absolute difference of each row, [N], in float32 at least."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first - second).abs().flatten(1).mean(1, dtype=dtype)


MODE_SEEKING = Term("mode_seeking_w", "mode_seeking", "gen", mode_seeking, second_styles, 2, trainers=("MUNIT",))
DIVERSITY = Term("diversity_w", "diversity", "gen", diversity, second_styles, 2, trainers=("MUNIT",))
