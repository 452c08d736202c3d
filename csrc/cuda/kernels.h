// The compiled kernels: one table for each dtype in memory and width of access.
#pragma once

#include "params.h"

namespace munit_fast::cuda {

struct Kernels {
  int itemsize, channels;  // bytes of a number, numbers of an access
  void (*statistics)(StatisticsLaunch);
  void (*forward)(ForwardLaunch);
  void (*backward_sums)(BackwardLaunch);
  void (*backward)(BackwardLaunch);
  void (*slab_forward)(SlabForwardLaunch);  // these with 16-byte accesses only, else null
  void (*slab_backward)(SlabBackwardLaunch);
};

struct GroupKernels {
  void (*statistics)(GroupStatisticsLaunch);
  void (*terms)(GroupTermsLaunch);
};

struct PhaseBorderKernels {
  void (*forward)(PhaseBorderLaunch);
  void (*backward)(PhaseBorderBackwardLaunch);
};

struct LossKernels {
  void (*losses)(LossLaunch);
  void (*combine)(CombineLaunch);
};

const Kernels& kernels_f32(bool wide);
const Kernels& kernels_bf16(bool wide);
const Kernels& kernels_f16(bool wide);
const GroupKernels& group_kernels();
const PhaseBorderKernels& phase_border_kernels(Dtype dtype);
const LossKernels& loss_kernels(Dtype dtype);

inline const Kernels& kernels(Dtype dtype, bool wide) {
  return dtype == Dtype::f32 ? kernels_f32(wide) : dtype == Dtype::bf16 ? kernels_bf16(wide) : kernels_f16(wide);
}

}  // namespace munit_fast::cuda
