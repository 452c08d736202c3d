// Memory that the calls of a thread share.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace munit_fast::cpu {

// Memory that grows and stays: what is mapped afresh in each call costs more than what it is used for.
class Arena {
 public:
  float* of(int64_t floats) {
    if (floats > size_) {
      constexpr size_t page = size_t{2} << 20;  // a large one, where the system has them
      const size_t bytes = (floats * sizeof(float) + page - 1) / page * page;
      memory_.reset(), size_ = 0;
      memory_.reset(static_cast<float*>(std::aligned_alloc(page, bytes)));
      if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
      madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
      size_ = static_cast<int64_t>(bytes / sizeof(float));
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace munit_fast::cpu
