// Which table of kernels this process uses: the best that the processor runs, or the one that was asked for.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstring>

#include "kernels.h"

namespace munit_fast::cpu {
namespace {

bool runs_avx512() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

bool runs_avx512_bf16() {
#if defined(__x86_64__)
  return runs_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool runs_avx2() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c, d;  // clang's builtin does not know f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
#else
  return false;
#endif
}

struct Choices {
  const Kernels* tables[4] = {};
  const char* names[5] = {};
  const Kernels* chosen = nullptr;

  Choices() {
    int count = 0;
    auto offer = [&](const Kernels* table) {
      tables[count] = table;
      names[count++] = table->name;
    };
    if (avx512_bf16_kernels() && runs_avx512_bf16()) offer(avx512_bf16_kernels());
    if (avx512_kernels() && runs_avx512()) offer(avx512_kernels());
    if (avx2_kernels() && runs_avx2()) offer(avx2_kernels());
    offer(baseline_kernels());
    chosen = tables[0];
  }
};

Choices& choices() {
  static Choices all;
  return all;
}

}  // namespace

const Kernels& active() { return *choices().chosen; }

const char* const* available() { return choices().names; }

bool force(const char* name) {
  if (name == nullptr) {
    choices().chosen = choices().tables[0];
    return true;
  }
  for (int i = 0; choices().names[i]; ++i)
    if (std::strcmp(choices().names[i], name) == 0) {
      choices().chosen = choices().tables[i];
      return true;
    }
  return false;
}

}  // namespace munit_fast::cpu
