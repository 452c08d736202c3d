// The operations on a device: which kernels, in which shape. Plain pointers and sizes in, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "plan.h"

namespace munit_fast::cuda {

// Room for that many floats, which lives until the operation has been enqueued (from the caller's stream-ordered pool).
using Allocate = std::function<float*(int64_t floats)>;

// The device's limits. The first call for a device loads all kernels and sets their attributes, so that none of that
// happens while a graph is captured. Throws std::runtime_error in words.
const Device& device(int index);

void epilogue_forward(const Device& device, cudaStream_t stream, Number type, const Forward& f, bool has_statistics,
                      Way way, const Allocate& allocate);
void epilogue_backward(const Device& device, cudaStream_t stream, Number type, const Backward& b, Way way,
                       const Allocate& allocate);
// All groups of `l`, value and gradients as they are asked for.
void losses(const Device& device, cudaStream_t stream, Number type, LossLaunch l, const Allocate& allocate);

}  // namespace munit_fast::cuda
