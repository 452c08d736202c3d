// All CPU kernels for one instruction set: the whole of each isa_*.cpp, which says which set by defining MUNIT_FAST_ISA
// (its name), MUNIT_FAST_TABLE (the function of kernels.h), MUNIT_FAST_VECTOR_BYTES and, on x86-64, the set's own macro.
#include <cmath>
#include <cstdlib>

#include "kernels.h"

#if !defined(__x86_64__) && (defined(MUNIT_FAST_AVX2) || defined(MUNIT_FAST_AVX512))
const munit_fast::cpu::Kernels* munit_fast::cpu::MUNIT_FAST_TABLE() { return nullptr; }
#else

#if defined(MUNIT_FAST_AVX2) || defined(MUNIT_FAST_AVX512)
#include <immintrin.h>
#if !defined(__AVX2__) || (defined(MUNIT_FAST_AVX512) && !defined(__AVX512F__)) || \
    (defined(MUNIT_FAST_AVX512_BF16) && !defined(__AVX512BF16__))
#error "csrc/ninja_build.py has the flags that this file is compiled with"
#endif
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#endif
#endif

namespace munit_fast::cpu {
namespace {

#include "simd.inl"
#include "activations.inl"
#include "tensor_view.inl"
#include "statistics.inl"
#include "plane_params.inl"
#include "epilogue_forward.inl"
#include "epilogue_backward.inl"
#include "losses.inl"
#include "columns.inl"
#if defined(MUNIT_FAST_AVX2) || defined(MUNIT_FAST_AVX512)
#include "products.inl"
#include "narrow_gradient.inl"
#include "winograd_transforms.inl"
#include "winograd_input.inl"
#include "winograd.inl"
#include "phase_border.inl"
#endif

#define MUNIT_FAST_BY_DTYPE(function, arguments)                  \
  switch (arguments.dtype) {                                      \
    case Dtype::f32: return function<float>(arguments);           \
    case Dtype::f64: return function<double>(arguments);          \
    case Dtype::bf16: return function<bf16>(arguments);           \
    default: return function<f16>(arguments);                     \
  }

void forward(const ForwardParams& f) { MUNIT_FAST_BY_DTYPE(forward_of, f) }
void backward(const BackwardParams& b) { MUNIT_FAST_BY_DTYPE(backward_of, b) }
void statistics(const EpilogueParams& e) { MUNIT_FAST_BY_DTYPE(statistics_of, e) }
double l1_sum(const L1& l) { MUNIT_FAST_BY_DTYPE(l1_sum_of, l) }
void l1_backward(const L1& l) { MUNIT_FAST_BY_DTYPE(l1_backward_of, l) }
double lsgan_sum(const Lsgan& l) { MUNIT_FAST_BY_DTYPE(lsgan_sum_of, l) }
void lsgan_backward(const Lsgan& l) { MUNIT_FAST_BY_DTYPE(lsgan_backward_of, l) }
void add_columns(const Columns& c) {
  switch (c.channels) {
    case 1: return add_columns_of<1>(c);
    case 2: return add_columns_of<2>(c);
    case 3: return add_columns_of<3>(c);
    default: return add_columns_of<4>(c);
  }
}

constexpr Kernels table = {
    MUNIT_FAST_ISA, forward, backward, statistics, l1_sum, l1_backward, lsgan_sum, lsgan_backward,
    add_columns,
#if defined(MUNIT_FAST_AVX2) || defined(MUNIT_FAST_AVX512)
    width<float>, winograd_conv, winograd_weight_gradient, winograd_weights, phase_border,
    phase_border_backward, narrow_gradient,
#else  // with vectors of four numbers there is nothing to gain over a direct convolution
    0, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
#endif
};

}  // namespace

const Kernels* MUNIT_FAST_TABLE() { return &table; }

}  // namespace munit_fast::cpu

#endif
