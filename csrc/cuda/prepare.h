#pragma once

namespace munit_fast::cuda {

// Loads all kernels on a device and sets their attributes. Throws std::runtime_error in words.
void prepare(int index);

}  // namespace munit_fast::cuda
