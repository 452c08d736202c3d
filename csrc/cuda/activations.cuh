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
  const bool none = act == Act::none, relu = act == Act::relu;
#pragma unroll
  for (int j = 0; j < V; ++j) gz[j] = none || z[j] > 0 ? g[j] : relu ? 0 : g[j] * slope[j];
}

}  // namespace munit_fast::cuda
