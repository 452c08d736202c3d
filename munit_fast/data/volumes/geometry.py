"""Where the voxels of resized slices are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def resized(old: Sequence[int], new: Sequence[int]) -> Matrix:
    """[4, 4]: the place among the old voxels of each new one, for volumes whose corners stay where they are.

    A voxel is counted at its centre, so new voxel i lies at (i + 1/2) · old / new − 1/2.

    Args:
        old: Sizes of the three axes.
        new: The same, resized.
    """
    ratio = np.array(old, np.float64) / np.array(new, np.float64)
    matrix = np.diag([*ratio, 1.0])
    matrix[:3, 3] = (ratio - 1) / 2
    return matrix
