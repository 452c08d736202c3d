// An operator's arguments as the CPU kernels take them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../common/epilogue.h"
#include "kernels.h"

namespace munit_fast {
class Library;
}

namespace munit_fast::cpu {

inline double number(const void* p, int64_t i, Dtype dtype) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  if (dtype == Dtype::f64) return static_cast<const double*>(p)[i];
  const uint16_t bits = static_cast<const uint16_t*>(p)[i];
  if (dtype == Dtype::bf16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -size : size;
}

// A parameter as the kernels read it: one entry of the accumulator's type for each plane [n, c]. What is laid out like
// that already is read where it is.
class PlaneValues {
 public:
  PlaneValues(const EpilogueArgs& a, const ChannelParam& p, double otherwise) {
    const bool for_each = p.entries == a.c && (a.n == 1 || p.per_sample == a.c);
    if (p.data && p.dtype == a.accumulator && for_each) {
      data_ = p.data;
      return;
    }
    if (a.accumulator == Dtype::f64) fill<double>(a, p, otherwise);
    else fill<float>(a, p, otherwise);
    data_ = values_.get();
  }
  const void* data() const { return data_; }

 private:
  template <class A> void fill(const EpilogueArgs& a, const ChannelParam& p, double otherwise) {
    values_.reset(new char[a.n * a.c * sizeof(A)]);
    A* to = reinterpret_cast<A*>(values_.get());
    if (!p.data) {
      std::fill_n(to, a.n * a.c, static_cast<A>(otherwise));
      return;
    }
    for (int64_t n = 0; n < a.n; ++n, to += a.c)
      if (n > 0 && p.per_sample == 0) {
        std::memcpy(to, to - a.c, a.c * sizeof(A));
      } else {
        for (int64_t c = 0; c < p.entries; ++c)
          to[c] = static_cast<A>(number(p.data, n * p.per_sample + c, p.dtype));
        for (int64_t c = p.entries; c < a.c; c += p.entries) std::memcpy(to + c, to, p.entries * sizeof(A));
      }
  }
  const void* data_;
  std::unique_ptr<char[]> values_;
};

// The kernels' parameters, and the memory of those that were made for them.
template <class Params> struct Call {
  PlaneValues weight, bias, slope;
  Params params{};

  explicit Call(const EpilogueArgs& a) : weight(a, a.weight, 1), bias(a, a.bias, 0), slope(a, a.slopes, a.slope) {
    EpilogueParams& e = params;
    e.dtype = a.dtype, e.norm = a.norm, e.act = a.act, e.pad_mode = a.pad_mode, e.channels_last = a.channels_last;
    e.n = a.n, e.c = a.c, e.h = a.h, e.w = a.w, e.block = a.block, e.pad = a.pad;
    e.groups = a.groups, e.eps = a.eps;
    e.x = a.x.data(), e.stats = a.stats;
    e.weight = weight.data(), e.bias = bias.data(), e.slope = slope.data();
  }
};

// conv_ops.cpp: the schemas of the convolutions, and their kernels.
void define_convolutions(Library& library);
void implement_convolutions(Library& on_cpu);

}  // namespace munit_fast::cpu
