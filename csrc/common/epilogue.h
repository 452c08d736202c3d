// The operators epilogue_forward and epilogue_backward of every backend: their schemas, the sizes of their tensors and
// the checks of their arguments. A backend adds its own limits and the kernels.
//
// munit_fast/functional.py checks what a user passes, and munit_fast/ops allocates the results; the checks here guard
// memory.
#pragma once

#include <string>

#include "../torch/operators.h"
#include "enums.h"

namespace munit_fast {

// Whether no entry of a tensor of four dimensions is missing or twice in memory, in this layout.
inline bool is_dense(const Tensor& t, bool channels_last) {
  const int64_t *s = t.sizes(), *d = t.strides();
  const int64_t nchw[4] = {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  const int64_t nhwc[4] = {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  for (int i = 0; i < 4; ++i)
    if (s[i] > 1 && d[i] != (channels_last ? nhwc : nchw)[i]) return false;
  return true;
}

// Whether a dense tensor counts as channels_last, as munit_fast/ops/spec.py says it.
inline bool is_channels_last(const Tensor& t) {
  check(t.dim() == 4, "x must have four dimensions");
  const int64_t *s = t.sizes(), *d = t.strides();
  return is_dense(t, true) && (!is_dense(t, false) || (d[3] == s[1] && d[1] == 1 && s[1] > 1));
}

template <class Enum, size_t count>
Enum enum_of(const char* name, int64_t code, const char* const (&)[count]) {
  if (code < 0 || code >= static_cast<int64_t>(count))
    throw std::runtime_error(std::string("munit_fast: ") + name + " has no code " + std::to_string(code));
  return static_cast<Enum>(code);
}

// R of the statistics [2, R]: one column a plane, or a sample (layer). The planes of a group have equal entries.
inline int64_t stats_columns(Norm norm, int64_t n, int64_t c) {
  return norm == Norm::none ? 0 : norm == Norm::layer ? n : n * c;
}

// The arguments of both operators that are numbers, in the order of the schema.
struct EpilogueFlags {
  int64_t norm;
  double eps;
  int64_t act;
  double slope;
  int64_t block, pad, pad_mode, groups;
};

// weight, bias or prelu's slopes, [P] or [N, P] with dense rows: channel c of sample n reads entry
// n · per_sample + c % entries.
struct ChannelParam {
  const void* data = nullptr;  // null: not given
  Dtype dtype = Dtype::f32;
  int64_t entries = 1, per_sample = 0;

  ChannelParam(const char* name, const MaybeTensor& t, int64_t samples, int64_t channels) {
    if (!t) return;
    const int64_t dim = t->dim();
    const bool each_sample = dim == 2;
    check(dim == 1 || (each_sample && t->sizes()[0] == samples), " must be [P] or [N, P]", name);
    entries = t->sizes()[dim - 1];
    check(entries > 0 && channels % entries == 0, " must have a number of entries that divides the channels", name);
    check(entries == 1 || t->strides()[dim - 1] == 1, " must have dense rows", name);
    data = t->data(), dtype = t->floating_dtype(), per_sample = each_sample ? t->strides()[0] : 0;
  }
};

// The arguments that forward and backward share, checked.
class EpilogueArgs {
 public:
  const Tensor& x;  // [n, c, h, w], dense
  const bool channels_last;
  const Dtype dtype, accumulator;  // accumulator: f64 for f64, else f32
  const Norm norm;
  const Act act;
  const PadMode pad_mode;
  const double eps, slope;
  const int64_t n, c, h, w, block, pad, groups;
  const int64_t result_c, result_h, result_w;  // c / block², block·h + 2·pad, block·w + 2·pad
  const ChannelParam weight, bias, slopes;
  void* const stats;  // accumulator [2, R]: mean and spread; R = stats_columns

  EpilogueArgs(const Tensor& x_, const MaybeTensor& weight_, const MaybeTensor& bias_, const MaybeTensor& slopes_,
               const Tensor& stats_, const EpilogueFlags& f, bool channels_last_)
      : x(x_), channels_last(channels_last_), dtype(x.floating_dtype()),
        accumulator(dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32), norm(enum_of<Norm>("norm", f.norm, norm_names)),
        act(enum_of<Act>("act", f.act, activation_names)),
        pad_mode(enum_of<PadMode>("pad_mode", f.pad_mode, pad_mode_names)), eps(f.eps), slope(f.slope),
        n(size_of(x, 0)), c(size_of(x, 1)), h(size_of(x, 2)), w(size_of(x, 3)), block(divisor(f.block, c)), pad(f.pad),
        groups(f.groups),
        result_c(c / (block * block)), result_h(block * h + 2 * pad), result_w(block * w + 2 * pad),
        weight("weight", weight_, n, c), bias("bias", bias_, n, c), slopes("slope", slopes_, n, c),
        stats(stats_.mutable_data()) {
    check(is_dense(x, channels_last), "x must be dense in the stated layout");
    check(pad >= 0, "pad must not be negative");
    check(norm == Norm::group ? groups > 0 && c % groups == 0 : groups == 1,
          "groups must divide the channels for the group norm, and be 1 else");
    check(is_accumulator(stats_, 2 * stats_columns(norm, n, c)),
          "stats must be [2, R] in the accumulator's dtype");
  }

  bool is_accumulator(const Tensor& t, int64_t size) const {
    return t.is_contiguous() && t.dtype() == accumulator && t.numel() == size;
  }
  void check_result(const Tensor& y) const {
    check(fits(y, n, result_c, result_h, result_w) && is_dense(y, channels_last),
          "the result or its gradient has another dtype, size or layout");
  }
  void check_gradient(const MaybeTensor& t) const {
    check(!t || (fits(*t, n, c, h, w) && is_dense(*t, channels_last)), "gradients must be like x");
  }
  // A residual may be a window of a larger tensor, as long as the pixels of a row are dense.
  void check_residual(const MaybeTensor& t) const {
    if (!t) return;
    const int64_t* step = t->strides();
    check(fits(*t, n, c, h, w) && (w == 1 || step[3] == (channels_last ? c : 1)) &&
              (c == 1 || !channels_last || step[1] == 1),
          "residual must be like x, with dense rows");
  }

 private:
  static int64_t size_of(const Tensor& t, int i) {
    check(t.dim() == 4, "x must have four dimensions");
    return t.sizes()[i];
  }
  static int64_t divisor(int64_t block, int64_t channels) {
    check(block > 0 && channels % (block * block) == 0, "block² must divide the channels");
    return block;
  }
  bool fits(const Tensor& t, int64_t n_, int64_t c_, int64_t h_, int64_t w_) const {
    if (t.dim() != 4 || t.dtype() != dtype) return false;
    const int64_t* s = t.sizes();
    return s[0] == n_ && s[1] == c_ && s[2] == h_ && s[3] == w_;
  }
};

struct ForwardArgs : EpilogueArgs {
  const MaybeTensor& residual;  // like x, or a window of a larger tensor
  const Tensor& y;
  const bool has_statistics;  // `stats` is an input
};

struct BackwardArgs : EpilogueArgs {
  const Tensor& grad;                            // like the result
  const MaybeTensor &grad_x, &grad_residual;     // like x
  const MaybeTensor& sums;                       // accumulator [3, n, c]: of gz, gz·x̂ and g·z where z ≤ 0
};

// The functions that torch calls. A Backend has the type `Option` of the last argument of both operators and its
// declaration `option` in the schema, and says with channels_last(option) which layout it is asked for; its functions
// forward(ForwardArgs, option) and backward(BackwardArgs, option) compute.
template <class Backend> struct EpilogueOperators {
  using Option = typename Backend::Option;

  static void forward(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
                      const MaybeTensor& residual, const Tensor& y, const Tensor& stats, bool has_statistics,
                      int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
                      int64_t pad_mode, int64_t groups, Option option) {
    const EpilogueFlags flags{norm, eps, act, slope, block, pad, pad_mode, groups};
    const ForwardArgs a{{x, weight, bias, slopes, stats, flags, Backend::channels_last(option)},
                        residual, y, has_statistics};
    a.check_result(y);
    a.check_residual(residual);
    Backend::forward(a, option);
  }

  static void backward(const Tensor& grad, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                       const MaybeTensor& slopes, const Tensor& stats, const MaybeTensor& grad_x,
                       const MaybeTensor& grad_residual, const MaybeTensor& sums, int64_t norm, double eps,
                       int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode, int64_t groups,
                       Option option) {
    const EpilogueFlags flags{norm, eps, act, slope, block, pad, pad_mode, groups};
    const BackwardArgs a{{x, weight, bias, slopes, stats, flags, Backend::channels_last(option)},
                         grad, grad_x, grad_residual, sums};
    a.check_result(grad);
    a.check_gradient(grad_x);
    a.check_gradient(grad_residual);
    check(!sums || a.is_accumulator(*sums, 3 * a.n * a.c), "sums must be [3, N, C] in the accumulator's dtype");
    Backend::backward(a, option);
  }

  static void define(Library& library) {
    const std::string flags =
        std::string("int norm, float eps, int act, float slope, int block, int pad, int pad_mode, int groups, ") +
        Backend::option + ") -> ()";
    library.define(("epilogue_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor? residual, "
                    "Tensor(a!) y, Tensor(b!) stats, bool has_statistics, " + flags).c_str());
    library.define(("epilogue_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, "
                    "Tensor stats, Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? sums, " + flags).c_str());
  }

  static void implement(Library& library) {
    library.implement<&forward>("epilogue_forward");
    library.implement<&backward>("epilogue_backward");
  }
};

}  // namespace munit_fast
