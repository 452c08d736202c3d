// The operations on a device: which kernels, in which shape. Plain pointers and sizes in, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

#include "tiling.h"

namespace munit_fast::cuda {

// Room for that many floats, which lives until the operation has been enqueued (from the caller's stream-ordered pool).
using Allocate = std::function<float*(int64_t floats)>;

// The device's limits. The first call for a device loads all kernels and sets their attributes; `prepare` makes it, so
// that none of that happens while a graph is captured. The device becomes the current one. Throws std::runtime_error
// with the reason.
const Device& device(int index);

// torch's function for its current stream, by name, since this file is linked without torch's CUDA part: `import torch`
// loads that for itself alone, where RTLD_DEFAULT does not look. Throws std::runtime_error with the reason.
using CurrentStream = int32_t (*)(int32_t device, void** stream);
CurrentStream current_stream();

void epilogue_forward(const Device& device, cudaStream_t stream, Dtype dtype, const ForwardParams& f,
                      bool has_statistics, Way way, const Allocate& allocate);
void epilogue_backward(const Device& device, cudaStream_t stream, Dtype dtype, const BackwardParams& b, Way way,
                       const Allocate& allocate);
// Their grids are set here.
void phase_border(cudaStream_t stream, Dtype dtype, PhaseBorderLaunch l);
void phase_border_backward(cudaStream_t stream, Dtype dtype, PhaseBorderBackwardLaunch l);
// All groups of `l`, value and gradients as they are asked for.
void losses(const Device& device, cudaStream_t stream, Dtype dtype, LossLaunch l, const Allocate& allocate);

}  // namespace munit_fast::cuda
