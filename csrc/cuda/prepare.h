// What csrc/module.cpp calls of the CUDA part; needs no header of CUDA.
#pragma once

namespace munit_fast::cuda {

// Loads all kernels on a device and sets their attributes. Throws std::runtime_error with the reason.
void prepare(int index);

void register_operators();  // torch.ops.munit_fast_cuda; std::runtime_error says what torch refused

}  // namespace munit_fast::cuda
