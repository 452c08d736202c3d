// All CPU kernels, compiled once for each instruction set. The including file has opened namespace munit_fast::cpu and
// an anonymous namespace inside it.
#include "simd.inl"
#include "view.inl"
#include "statistics.inl"
#include "planes.inl"
#include "epilogue_forward.inl"
#include "epilogue_backward.inl"
#include "losses.inl"

#define MUNIT_FAST_BY_DTYPE(function, arguments)                  \
  switch (arguments.dtype) {                                      \
    case Dtype::f32: return function<float>(arguments);           \
    case Dtype::f64: return function<double>(arguments);          \
    case Dtype::bf16: return function<bf16>(arguments);           \
    default: return function<f16>(arguments);                     \
  }

void forward(const Forward& f) { MUNIT_FAST_BY_DTYPE(forward_of, f) }
void backward(const Backward& b) { MUNIT_FAST_BY_DTYPE(backward_of, b) }
double l1_sum(const L1& l) { MUNIT_FAST_BY_DTYPE(l1_sum_of, l) }
void l1_backward(const L1& l) { MUNIT_FAST_BY_DTYPE(l1_backward_of, l) }
double lsgan_sum(const Lsgan& l) { MUNIT_FAST_BY_DTYPE(lsgan_sum_of, l) }
void lsgan_backward(const Lsgan& l) { MUNIT_FAST_BY_DTYPE(lsgan_backward_of, l) }

constexpr Kernels table_called(const char* name) {
  return {name, forward, backward, l1_sum, l1_backward, lsgan_sum, lsgan_backward};
}
