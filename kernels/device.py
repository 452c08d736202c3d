"""Functions that kernels call: activations and their derivatives, and the index arithmetic of padding.

They use exp only. The device library's tanh and expm1 are missing from Triton's interpreter and differ between
vendors; tl.tanh and exp(z) - 1 lose the leading digits near zero.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

SELU_SCALE = tl.constexpr(1.0507009873554804934193349852946)
SELU_ALPHA = tl.constexpr(1.6732632423543772848170429916717)
GELU_TANH_SCALE = tl.constexpr(2 * (2 / math.pi) ** 0.5)
GELU_TANH_CUBE = tl.constexpr(0.044715)


@triton.jit
def reciprocal(b_spread, eps, NORM: tl.constexpr):
    """r: one over the standard deviation, from the second statistic; where eps goes is part of each norm."""
    if NORM == "layer":
        return 1.0 / (b_spread + eps)
    else:
        return tl.rsqrt(b_spread + eps)


@triton.jit
def tanh_near_zero(z):
    """tanh for |z| < 1/4, where its series needs five terms for full fp32 precision."""
    s = z * z
    return z * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))


@triton.jit
def tanh(z):
    """tanh in fp32, with full precision near zero."""
    b_decay = tl.exp(-2.0 * tl.abs(z))
    b_far = (1.0 - b_decay) / (1.0 + b_decay)
    return tl.where(tl.abs(z) < 0.25, tanh_near_zero(z), tl.where(z < 0, -b_far, b_far))


@triton.jit
def expm1(z):
    """exp(z) - 1 for z ≤ 0 (any value for z > 0); near zero as 2t / (1 - t) with t = tanh(z / 2)."""
    t = tanh_near_zero(0.5 * z)
    return tl.where(z > -0.5, 2.0 * t / (1.0 - t), tl.exp(z) - 1.0)


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), from exp of what is not positive: nothing overflows, and small values keep their digits."""
    b_decay = tl.exp(-tl.abs(z))
    return tl.where(z < 0, b_decay, 1.0) / (1.0 + b_decay)


@triton.jit
def normal_distribution(z, b_decay):
    """Φ(z) in fp32, from exp(-z²/2): the tail is a product, so small values keep their digits."""
    t = 1.0 / (1.0 + 0.32 * tl.abs(z))
    # 2 Φ(-|z|) exp(z²/2) / t: a minimax polynomial over 0 < t ≤ 1, with a relative error of 3·10⁻⁸.
    p = -0.04215634519 * t + 0.1908145536
    p = p * t - 0.2934149956
    p = p * t + 0.1306561272
    p = p * t - 0.01875516576
    p = p * t + 0.1173079454
    p = p * t + 0.1756581942
    p = p * t + 0.2292447151
    p = p * t + 0.2553218872
    p = p * t + 0.2553230518
    b_tail = 0.5 * b_decay * t * p
    return tl.where(z < 0, b_tail, 1.0 - b_tail)


@triton.jit
def activate(z, slope, ACT: tl.constexpr):
    """act(z) in fp32. NaN stays NaN: every comparison with it is false and selects a branch that computes from z."""
    if ACT == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "lrelu" or ACT == "prelu":
        z = tl.where(z > 0, z, z * slope)
    elif ACT == "selu":
        z = SELU_SCALE * tl.where(z > 0, z, SELU_ALPHA * expm1(z))
    elif ACT == "tanh":
        z = tanh(z)
    elif ACT == "silu":
        z = z * sigmoid(z)
    elif ACT == "gelu":
        z = z * normal_distribution(z, tl.exp(-0.5 * z * z))
    elif ACT == "gelu_tanh":
        # (1 + tanh(w / 2)) / 2 = sigmoid(w)
        z = z * sigmoid(z * (1.0 + z * z * GELU_TANH_CUBE) * GELU_TANH_SCALE)
    return z


@triton.jit
def activate_backward(g, z, slope, ACT: tl.constexpr):
    """g · act'(z) in fp32."""
    if ACT == "relu":
        g = tl.where(z > 0, g, 0.0)
    elif ACT == "lrelu" or ACT == "prelu":
        g = tl.where(z > 0, g, g * slope)
    elif ACT == "selu":
        g = g * (SELU_SCALE * tl.where(z > 0, 1.0, SELU_ALPHA * tl.exp(z)))
    elif ACT == "tanh":
        # 1 - tanh² written without the subtraction, which cancels where tanh is close to one.
        b_decay = tl.exp(-2.0 * tl.abs(z))
        g = g * (4.0 * b_decay / ((1.0 + b_decay) * (1.0 + b_decay)))
    elif ACT == "silu":
        g = g * sigmoid(z) * (1.0 + z * sigmoid(-z))
    elif ACT == "gelu":
        b_decay = tl.exp(-0.5 * z * z)
        g = g * (normal_distribution(z, b_decay) + z * (0.3989422804 * b_decay))
    elif ACT == "gelu_tanh":
        # Beyond the bound sigmoid'(w) is 0, and must not be multiplied by infinity.
        b_square = tl.where(z * z > 1e4, 1e4, z * z)
        w = z * (1.0 + b_square * GELU_TANH_CUBE) * GELU_TANH_SCALE
        b_slope = (1.0 + 3.0 * b_square * GELU_TANH_CUBE) * GELU_TANH_SCALE
        g = g * (sigmoid(w) + z * (b_slope * (sigmoid(w) * sigmoid(-w))))
    return g


@triton.jit
def padding_source(i, size, MODE: tl.constexpr):
    """Where position i of an axis of `size` pixels reads from; i runs from -pad to size + pad - 1.

    For zero padding the position itself: the caller masks what lies outside.
    """
    if MODE == "reflect":
        i = tl.abs(i)
        i = tl.where(i < size, i, 2 * (size - 1) - i)
    elif MODE == "replicate":
        i = tl.minimum(tl.maximum(i, 0), size - 1)
    return i


@triton.jit
def padding_copy(i, k, size, PAD: tl.constexpr, MODE: tl.constexpr, TWICE: tl.constexpr):
    """The k-th position of the padded axis, besides i + PAD, that reads pixel i; and whether there is one.

    A pixel has copies beyond the low edge or beyond the high edge. TWICE says that the axis is so short that one
    pixel may have both; then the first half of the k are the low ones and the second half the high ones.
    """
    if MODE == "reflect":
        m_low = (i >= 1) & (i <= PAD)
        m_high = (i <= size - 2) & (i >= size - 1 - PAD)
        b_low = PAD - i
        b_high = PAD + 2 * (size - 1) - i
        if TWICE:
            m_low = m_low & (k == 0)
            m_high = m_high & (k == 1)
    else:
        m_low = i == 0
        m_high = i == size - 1
        b_low = i + k
        b_high = i + PAD + 1 + k
        if TWICE:
            m_low = m_low & (k < PAD)
            m_high = m_high & (k >= PAD)
            b_high = b_high - PAD
    return tl.where(m_low, b_low, b_high), m_low | m_high
