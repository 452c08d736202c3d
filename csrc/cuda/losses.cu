// The kernels of the losses, for every dtype: losses.cuh has their code.
#include "losses.cuh"

#include "kernels.h"

namespace munit_fast::cuda {

#define LOSSES(name, type)                                                      \
  extern "C" __global__ void __launch_bounds__(threads, loss_blocks_resident)   \
  munit_fast_losses_##name(const __grid_constant__ LossLaunch a) {              \
    losses<type>(a);                                                            \
  }
LOSSES(f32, float)
LOSSES(bf16, bf16)
LOSSES(f16, f16)

extern "C" __global__ void __launch_bounds__(threads, loss_blocks_resident)
munit_fast_combine(const __grid_constant__ CombineLaunch a) {
  combine(a);
}

const LossKernels& loss_kernels(Dtype dtype) {
  static const LossKernels tables[] = {{munit_fast_losses_f32, munit_fast_combine},
                                       {munit_fast_losses_bf16, munit_fast_combine},
                                       {munit_fast_losses_f16, munit_fast_combine}};
  return tables[static_cast<int>(dtype)];
}

}  // namespace munit_fast::cuda
