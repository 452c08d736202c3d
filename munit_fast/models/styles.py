"""Random style codes by seed and place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def random_styles(seed: int, num_style: int, style_dim: int, place: int) -> Tensor:
    """Draw the random styles of one image; they do not depend on the other images.

    Args:
        seed: Seed of the whole folder.
        num_style: How many styles.
        style_dim: Length of a code.
        place: The image's index in the sorted folder.

    Returns:
        Codes [num_style, style_dim] from N(0, I), float32 on the CPU.
    """
    word = np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word >> 1))
    return torch.randn(num_style, style_dim, generator=generator)
