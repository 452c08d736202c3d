// The kernels of the group norm, for every dtype: group.cuh has their code.
#include "group.cuh"

#include "kernels.h"

namespace munit_fast::cuda {

extern "C" __global__ void __launch_bounds__(threads, blocks_resident)
munit_fast_group_statistics(const __grid_constant__ GroupStatisticsLaunch a) {
  group_statistics(a);
}

extern "C" __global__ void __launch_bounds__(threads, blocks_resident)
munit_fast_group_terms(const __grid_constant__ GroupTermsLaunch a) {
  group_terms(a);
}

const GroupKernels& group_kernels() {
  static const GroupKernels table = {munit_fast_group_statistics, munit_fast_group_terms};
  return table;
}

}  // namespace munit_fast::cuda
