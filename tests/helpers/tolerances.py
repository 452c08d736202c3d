"""The one table of tolerances of the fused operators, with the reason for each number.

Every entry bounds ‖got - expected‖ / max(‖expected‖, scale) of one tensor. `expected` is computed in float64 from the
inputs as they are after rounding to the tested dtype, so the rounding of the inputs is no part of the error. `scale` is
the size of a gradient's terms before they cancel (a plane of two pixels has almost no gradient through its norm): the
yardstick of the arithmetic. All is counted in unit roundoffs, half a machine epsilon, of the accumulator: float32, or
float64 for float64.
"""

from __future__ import annotations

import math

import torch

# Roundings of the accumulator's arithmetic, by kind of tensor.
ROUNDINGS = {
    # x - mean, · scale, + bias, activation, + residual, one each, the polynomials of selu and tanh 2 to 4; the scale is
    # itself rounded three times. Measured: 3.
    "result": 12.0,
    # As the result, then the two sums of the norm's gradient and three more operations. Measured: 5.
    "grad": 24.0,
    # One entry is a sum over a plane of what "grad" bounds. Measured: 5.
    "grad_parameter": 24.0,
    # |a - b| or (output - target)²: two roundings a term, the division by the size; in float64 as much again in the
    # expected value. Measured: 5.
    "loss": 12.0,
}
# A sum of M terms of either sign in a few hundred running sums, as a share of √M: the partial sums walk at random.
# A plain running sum would show 0.3 √M; measured here 0.02 √M.
LENGTH = 0.05
# An error of the mean is an error of the normalised value times |mean| / std. The mean is kept in the accumulator type
# (half a unit in its last place), after running sums whose partial results are hundreds of times larger than a term.
# Measured: 2 for PyTorch's sums, 5 for the C++ kernels'.
CONDITION = 8.0
# One rounding to the stored type is at most one unit roundoff a value, and 0.38 units in norm over many values (a
# uniform error over a uniform significand). Cutting digits off instead would show 0.77. In a small tensor a single
# value, repeated by the padding, can decide the norm.
STORED_FEW, STORED_MANY = 1.0, 0.5
MANY = 4096


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def tolerance(
    dtype: torch.dtype,
    kind: str,
    size: int,
    length: int = 1,
    condition: float = 0.0,
    stored: torch.dtype | None = None,
) -> float:
    """The bound for a tensor of `size` different values computed from `dtype` and stored as `stored` (None: as dtype).

    length: terms of the longest sum behind one value. condition: the largest |mean| / sqrt(var + eps) of a plane.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    stored = dtype if stored is None else stored
    counted = ROUNDINGS[kind] + LENGTH * math.sqrt(length) + CONDITION * condition
    bound = counted * unit_roundoff(accumulator)
    if unit_roundoff(stored) > unit_roundoff(accumulator):
        bound += (STORED_MANY if size >= MANY else STORED_FEW) * unit_roundoff(stored)
    return bound


# Winograd's convolutions by plan: roundings of their transforms, and of a sum of M products as a share of √M. The
# products of one frequency are larger than the sums that they end in, and so are their roundings: what is 0.9 √M in
# direct summation is 1.5 √M in F(4×4, 3×3), whose points reach from 0 to 3/2. Measured, at 300 channels: 31 for f43, 11
# for f23, and 38 at 1200 for f42; gradients of weights at 200 to 500 tiles: 21, 19 and 18.
WINOGRAD = {"f43": (12.0, 2.0), "f23": (12.0, 1.0), "f42": (12.0, 1.5)}


def winograd_tolerance(plan: str, length: int, stored: torch.dtype = torch.float32, times_stored: int = 1) -> float:
    """The bound for a Winograd convolution, or one of its gradients, relative to sums of as many terms.

    length: products in the longest sum: channels, or tiles for the gradient of a weight. times_stored: roundings to the
    stored type, one for each operation that reads what the one before stored.
    """
    roundings, share = WINOGRAD[plan]
    bound = (roundings + share * math.sqrt(length)) * unit_roundoff(torch.float32)
    if stored != torch.float32:
        bound += times_stored * STORED_FEW * unit_roundoff(stored)
    return bound
