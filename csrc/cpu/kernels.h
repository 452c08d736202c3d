// The CPU kernels' contract: plain pointers and sizes in, one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "../common/enums.h"

namespace munit_fast::cpu {

// One epilogue: normalise -> act -> + residual -> depth-to-space -> pad.
// x [n, c, h, w] and y [n, c / block^2, block·h + 2·pad, block·w + 2·pad] are dense, both channels_last or both NCHW.
// "Accumulator" is double for f64 and float otherwise.
struct EpilogueParams {
  Dtype dtype;
  Norm norm;
  Act act;
  PadMode pad_mode;
  bool channels_last;
  int64_t n, c, h, w, block, pad, groups;
  double eps;
  const void* x;
  const void* weight;  // accumulator [n, c]: one entry for each plane of x
  const void* bias;    // accumulator [n, c]
  const void* slope;   // accumulator [n, c]; read by lrelu and prelu
  void* stats;         // accumulator [2, R]: mean and spread; R = n·c (instance, group), n (layer), 0 (none)
};

struct ForwardParams : EpilogueParams {
  const void* residual;  // like x but for its strides, or null
  int64_t residual_image, residual_plane, residual_row;  // entries from one image, plane (NCHW) and row to the next
  void* y;
  bool streams;         // the result will not stay in a cache
  bool has_statistics;  // `stats` is an input
};

struct BackwardParams : EpilogueParams {
  const void* grad;     // like y
  void* grad_x;         // like x, or null
  void* grad_residual;  // like x, or null
  void* sums;           // accumulator [3, n, c], or null
  bool streams;         // the gradients will not stay in a cache
};

// One pair of an L1 reconstruction loss over `size` elements; grad_a, grad_b may be null.
struct L1 {
  Dtype dtype;
  int64_t size;
  const void *a, *b;
  double grad;  // upstream gradient / size
  void *grad_a, *grad_b;
};

// One scale of the LSGAN loss.
struct Lsgan {
  Dtype dtype;
  int64_t size;
  const void* output;
  double target;
  double grad;  // 2 · upstream gradient / size
  void* grad_output;
};

// A k×k convolution as one of its k columns: result[row, w, o] = bias[o] + Σ over j of columns[row, w + j, j, o], where
// columns is [rows, width + k - 1, k, channels] and result [rows, width, channels].
struct Columns {
  int64_t rows, width, kernel, channels;  // channels: 1 … 4
  const float* columns;
  const float* bias;  // [channels], or null
  float* result;
};

// ---- Winograd's convolutions, channels_last ----

// The input of a convolution: the epilogue of x, which includes the convolution's padding. Its statistics are given.
struct WinogradInput : EpilogueParams {
  WinogradPlan plan;
  bool plain;  // no norm, no activation, no parameters
};

struct WinogradConv : WinogradInput {
  bool transposed;        // the input gradient: x is the gradient, padded by zeros, and `u` has turned kernels
  int64_t k;              // channels of the result
  int64_t rows, columns;  // of the result, before folding
  const float* u;         // the transformed weights
  const float* bias;      // [k], or null
  void* y;                // [n, k, rows - 2·fold, columns - 2·fold]
  const void* add;        // like y, added to it; or null
  int64_t fold;           // 0 or 1 pixels of padding whose gradient is added to the pixels that it was read from
  PadMode fold_mode;
  bool streams;           // the result will not stay in a cache
  Norm y_norm;            // of the statistics that are wanted
  void* y_stats;          // like EpilogueParams::stats, of y; or null
};

struct WinogradWeightGradient : WinogradInput {
  int64_t k, rows, columns;  // of grad
  const void* grad;          // [n, k, rows, columns]
  float* grad_weight;        // [k, c, side, side], at these steps
  int64_t step[4];
};

struct WinogradWeights {
  WinogradPlan plan;
  bool transposed;
  int64_t k, c;
  const float* weight;  // [k, c, side, side], at these steps
  int64_t step[4];
  float* u;
  bool streams;         // u is not read at once
};

// The weight gradient of a square convolution without padding, one of whose tensors has few channels: the input, or,
// at stride 1, the result's gradient. Both are channels_last.
struct NarrowGradient {
  bool of_input;  // the narrow tensor is the input
  int64_t n, kernel, stride;
  const float* narrow;
  int64_t narrow_rows, narrow_columns, narrow_channels;
  const float* wide;
  int64_t wide_rows, wide_columns, wide_channels;
  float* grad_weight;  // [k, c, kernel, kernel], at these steps
  int64_t step[4];
};

// The border of an upsampling convolution behind reflection padding: what it adds to the result of the phases. Of
// WinogradInput the plan is not read.
struct PhaseBorder : WinogradInput {
  int64_t o;            // channels of a phase
  const float* weight;  // [o, c, 5, 5], at these steps
  int64_t step[4];
  void* y;              // [n, 4·o, h, w], added to
  const void* grad;     // like y
  void* grad_x;         // [n, c, h, w] of the epilogue's result, added to; or null
  float* grad_weight;   // like weight; or null
};

struct Kernels {
  const char* name;
  void (*forward)(const ForwardParams&);
  void (*backward)(const BackwardParams&);
  void (*statistics)(const EpilogueParams&);  // of x, channels_last
  double (*l1_sum)(const L1&);
  void (*l1_backward)(const L1&);
  double (*lsgan_sum)(const Lsgan&);
  void (*lsgan_backward)(const Lsgan&);
  void (*add_columns)(const Columns&);
  int64_t vector_floats;  // of a register; 0: none of the convolutions below
  void (*winograd_conv)(const WinogradConv&);
  void (*winograd_weight_gradient)(const WinogradWeightGradient&);
  void (*winograd_weights)(const WinogradWeights&);
  void (*phase_border)(const PhaseBorder&);
  void (*phase_border_backward)(const PhaseBorder&);
  void (*narrow_gradient)(const NarrowGradient&);
};

// Tables that this build has; null where the compiler's target is another architecture.
const Kernels* avx512_bf16_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* baseline_kernels();  // plain x86-64, or aarch64 with its NEON

// dispatch.cpp
const Kernels& active();
const char* const* available();          // null-terminated, best first
bool force(const char* name);            // null: the best again; false: not available on this machine

// Threads of torch's pool; defined beside the registration. Tasks 0 … count - 1 run in any order.
void run_tasks(int64_t count, void (*task)(int64_t index, void* context), void* context);
int64_t thread_count();

// Memory of the calling thread, kept from call to call, aligned to 64 bytes; the next call may move it.
float* scratch(int64_t floats);

void register_operators();  // torch.ops.munit_fast_cpu; std::runtime_error says what torch refused

}  // namespace munit_fast::cpu
