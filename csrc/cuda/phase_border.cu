// The kernels of the border of a phase convolution, for every dtype: phase_border.cuh has their code.
#include "phase_border.cuh"

#include "kernels.h"

namespace munit_fast::cuda {

#define PHASE_BORDER(name, type)                                               \
  extern "C" __global__ void __launch_bounds__(threads, blocks_resident)       \
  munit_fast_phase_border_##name(const __grid_constant__ PhaseBorderLaunch a) { \
    phase_border<type>(a);                                                     \
  }                                                                            \
  extern "C" __global__ void __launch_bounds__(threads, blocks_resident)       \
  munit_fast_phase_border_backward_##name(const __grid_constant__ PhaseBorderBackwardLaunch a) { \
    phase_border_backward<type>(a);                                            \
  }
PHASE_BORDER(f32, float)
PHASE_BORDER(bf16, bf16)
PHASE_BORDER(f16, f16)

const PhaseBorderKernels& phase_border_kernels(Dtype dtype) {
  static const PhaseBorderKernels tables[] = {{munit_fast_phase_border_f32, munit_fast_phase_border_backward_f32},
                                              {munit_fast_phase_border_bf16, munit_fast_phase_border_backward_bf16},
                                              {munit_fast_phase_border_f16, munit_fast_phase_border_backward_f16}};
  return tables[static_cast<int>(dtype)];
}

}  // namespace munit_fast::cuda
