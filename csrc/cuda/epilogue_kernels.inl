// The epilogue's kernels for one type: include after defining TYPE and NAME.
#include "backward.cuh"
#include "kernels.h"

#define JOIN_(a, b, c) munit_fast_##a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define KERNEL(kernel, argument, width, numbers)                                                                \
  extern "C" __global__ void __launch_bounds__(threads, blocks_resident)                                        \
  JOIN(kernel, NAME, width)(const __grid_constant__ argument a) {                                               \
    kernel<TYPE, numbers>(a);                                                                                   \
  }
#define PASSES(width, numbers)                             \
  KERNEL(statistics, StatisticsLaunch, width, numbers)     \
  KERNEL(forward, ForwardLaunch, width, numbers)           \
  KERNEL(backward_sums, BackwardLaunch, width, numbers)    \
  KERNEL(backward, BackwardLaunch, width, numbers)
#define TABLE(width, numbers, ...)                                                                      \
  {sizeof(TYPE), numbers, JOIN(statistics, NAME, width), JOIN(forward, NAME, width),                    \
   JOIN(backward_sums, NAME, width), JOIN(backward, NAME, width), __VA_ARGS__}
#define FUNCTION_(name) kernels_##name
#define FUNCTION(name) FUNCTION_(name)

namespace munit_fast::cuda {

PASSES(wide, wide<TYPE>)
PASSES(single, 1)
KERNEL(slab_forward, SlabForwardLaunch, wide, wide<TYPE>)
KERNEL(slab_backward, SlabBackwardLaunch, wide, wide<TYPE>)

const Kernels& FUNCTION(NAME)(bool wide_accesses) {
  static const Kernels wide_table =
      TABLE(wide, wide<TYPE>, JOIN(slab_forward, NAME, wide), JOIN(slab_backward, NAME, wide));
  static const Kernels single_table = TABLE(single, 1, nullptr, nullptr);
  return wide_accesses ? wide_table : single_table;
}

}  // namespace munit_fast::cuda
