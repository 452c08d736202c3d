// The norms, activations and padding modes of an epilogue, the plans of Winograd's convolutions, and the data types that
// kernels compute on. Each list below gives an enum and the names of its codes; munit_fast._C.enums() hands the names to
// Python, which compares them with its own when it is imported.
#pragma once

#define MUNIT_FAST_NORMS(X) X(none) X(instance) X(layer) X(group)
#define MUNIT_FAST_ACTIVATIONS(X) \
  X(none) X(relu) X(lrelu) X(prelu) X(selu) X(tanh) X(silu) X(gelu) X(gelu_tanh)
#define MUNIT_FAST_PAD_MODES(X) X(reflect) X(replicate) X(zero)

#define MUNIT_FAST_WINOGRAD_PLANS(X) X(f43) X(f23) X(f42)

#define MUNIT_FAST_CODE(name) name,
#define MUNIT_FAST_NAME(name) #name,

namespace munit_fast {

enum class Norm : int { MUNIT_FAST_NORMS(MUNIT_FAST_CODE) };
enum class Act : int { MUNIT_FAST_ACTIVATIONS(MUNIT_FAST_CODE) };
enum class PadMode : int { MUNIT_FAST_PAD_MODES(MUNIT_FAST_CODE) };
enum class WinogradPlan : int { MUNIT_FAST_WINOGRAD_PLANS(MUNIT_FAST_CODE) };

constexpr const char* const norm_names[] = {MUNIT_FAST_NORMS(MUNIT_FAST_NAME)};
constexpr const char* const activation_names[] = {MUNIT_FAST_ACTIVATIONS(MUNIT_FAST_NAME)};
constexpr const char* const pad_mode_names[] = {MUNIT_FAST_PAD_MODES(MUNIT_FAST_NAME)};
constexpr const char* const winograd_plan_names[] = {MUNIT_FAST_WINOGRAD_PLANS(MUNIT_FAST_NAME)};

enum class Dtype : int { f32, bf16, f16, f64, other };  // f64: on the CPU only

}  // namespace munit_fast
