// The activations and their gradients, on the channels of one access.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace munit_fast::cuda {

constexpr float selu_scale = 1.0507009873554804934193349852946f;
constexpr float selu_alpha = 1.6732632423543772848170429916717f;

__device__ inline float hyperbolic_tangent(float z) {
  const float decay = expf(-2 * fabsf(z)), far = __fdividef(1 - decay, 1 + decay), s = z * z;
  // Near zero the quotient would lose the leading digits; there the series needs five terms.
  const float near =
      z * (1 + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  return fabsf(z) < 0.25f ? near : z < 0 ? -far : far;
}

// sigmoid(z) and sigmoid(-z), neither as a difference from 1. expf goes to zero by itself for large |z|.
struct Sigmoid {
  float of_z, of_minus_z;
  __device__ explicit Sigmoid(float z) {
    const float decay = expf(-fabsf(z)), larger = __fdividef(1, 1 + decay), smaller = decay * larger;
    of_z = z < 0 ? smaller : larger, of_minus_z = z < 0 ? larger : smaller;
  }
};

// The normal distribution function Φ(z), from exp(-z²/2). The tail is a product, so small values keep their digits.
__device__ inline float normal_distribution(float z, float decay) {
  const float t = __fdividef(1, 1 + 0.32f * fabsf(z));
  // 2 Φ(-|z|) exp(z²/2) / t: a minimax polynomial over 0 < t ≤ 1, with a relative error of 3·10⁻⁸.
  float p = -0.04215634519f * t + 0.1908145536f;
  p = p * t - 0.2934149956f;
  p = p * t + 0.1306561272f;
  p = p * t - 0.01875516576f;
  p = p * t + 0.1173079454f;
  p = p * t + 0.1756581942f;
  p = p * t + 0.2292447151f;
  p = p * t + 0.2553218872f;
  p = p * t + 0.2553230518f;
  const float tail = 0.5f * decay * (t * p);
  return z < 0 ? tail : 1 - tail;
}

constexpr float gelu_tanh_scale = 1.5957691216057307f;  // 2 √(2/π)
constexpr float gelu_tanh_cube = 0.044715f;

// NaN stays NaN: every comparison with it is false and selects a branch that computes from z.
template <int V> __device__ inline void activate(Act act, float (&z)[V], const float (&slope)[V]) {
  if (act == Act::none) return;
  if (act == Act::selu || act == Act::tanh) {
    const bool selu = act == Act::selu;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      // exp(z) - 1 = 2t / (1 - t) with t = tanh(z / 2): no digits are lost near zero.
      const float t = hyperbolic_tangent(selu ? 0.5f * z[j] : z[j]);
      const float below = selu_scale * selu_alpha * __fdividef(2 * t, 1 - t);
      z[j] = !selu ? t : z[j] > 0 ? selu_scale * z[j] : below;
    }
    return;
  }
  if (act == Act::silu) {
#pragma unroll
    for (int j = 0; j < V; ++j) z[j] *= Sigmoid(z[j]).of_z;
    return;
  }
  if (act == Act::gelu) {
#pragma unroll
    for (int j = 0; j < V; ++j) z[j] *= normal_distribution(z[j], expf(-0.5f * z[j] * z[j]));
    return;
  }
  if (act == Act::gelu_tanh) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      // (1 + tanh(w / 2)) / 2 = sigmoid(w)
      z[j] *= Sigmoid(gelu_tanh_scale * z[j] * (1 + gelu_tanh_cube * z[j] * z[j])).of_z;
    }
    return;
  }
  const bool relu = act == Act::relu;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float below = relu ? (z[j] < 0 ? 0 : z[j]) : z[j] * slope[j];
    z[j] = z[j] > 0 ? z[j] : below;
  }
}

// g · act'(z), for V numbers.
template <int V>
__device__ inline void activate_backward(Act act, const float (&g)[V], const float (&z)[V], const float (&slope)[V],
                                         float (&gz)[V]) {
  if (act == Act::selu || act == Act::tanh) {
    const bool selu = act == Act::selu;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float decay = expf(selu ? z[j] : -2 * fabsf(z[j])), more = 1 + decay;
      // 1 - tanh² without the subtraction, which cancels where tanh is close to one.
      const float of_tanh = __fdividef(4 * decay, more * more);
      gz[j] = g[j] * (!selu ? of_tanh : selu_scale * (z[j] > 0 ? 1 : selu_alpha * decay));
    }
    return;
  }
  if (act == Act::silu) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Sigmoid s(z[j]);
      gz[j] = g[j] * (s.of_z * (1 + z[j] * s.of_minus_z));
    }
    return;
  }
  if (act == Act::gelu) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float decay = expf(-0.5f * z[j] * z[j]);
      gz[j] = g[j] * (normal_distribution(z[j], decay) + z[j] * (0.3989422804f * decay));
    }
    return;
  }
  if (act == Act::gelu_tanh) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      // Beyond the bound sigmoid'(w) is 0, and must not be multiplied by infinity.
      const float square = z[j] * z[j] > 1e4f ? 1e4f : z[j] * z[j];
      const Sigmoid s(gelu_tanh_scale * z[j] * (1 + gelu_tanh_cube * square));
      const float slope_of_w = gelu_tanh_scale * (1 + 3 * gelu_tanh_cube * square);
      gz[j] = g[j] * (s.of_z + z[j] * (slope_of_w * (s.of_z * s.of_minus_z)));
    }
    return;
  }
  const bool none = act == Act::none, relu = act == Act::relu;
#pragma unroll
  for (int j = 0; j < V; ++j) gz[j] = none || z[j] > 0 ? g[j] : relu ? 0 : g[j] * slope[j];
}

}  // namespace munit_fast::cuda
