// The CPU kernels as torch operators (munit_fast_cpu::*), through the stable ABI: one build serves every supported torch.
// Results are allocated by the caller, and arguments were checked in munit_fast/functional.py; the checks here guard
// memory only.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"

namespace munit_fast::cpu {

void run_tasks(int64_t count, void (*task)(int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i, context);
  });
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, "munit_fast: a floating-point tensor is needed");
  }
}

bool is_accumulator(const Epilogue& e, const Tensor& t) {
  return t.is_contiguous() && t.scalar_type() == (e.dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float);
}

const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
void* mutable_data(const MaybeTensor& t) { return t ? t->mutable_data_ptr() : nullptr; }

bool dense(const Tensor& t, bool channels_last) {
  auto s = t.sizes(), d = t.strides();
  const int64_t nchw[4] = {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  const int64_t nhwc[4] = {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  for (int i = 0; i < 4; ++i)
    if (s[i] > 1 && d[i] != (channels_last ? nhwc : nchw)[i]) return false;
  return true;
}

// weight, bias or slope as one accumulator entry for each plane [n, c]; channel c reads entry c % P of [P] or [n, P].
class PerPlane {
 public:
  PerPlane(const char* name, const MaybeTensor& t, double otherwise, const Epilogue& e)
      : wide_(e.dtype == Dtype::f64), values_(e.n * e.c * (wide_ ? 2 : 1)) {
    if (!t) {
      for (int64_t i = 0; i < e.n * e.c; ++i) set(i, otherwise);
      return;
    }
    const int64_t entries = t->size(t->dim() - 1);
    const bool per_sample = t->dim() == 2;
    STD_TORCH_CHECK(t->is_contiguous() && entries > 0 && e.c % entries == 0 &&
                        (per_sample ? t->size(0) == e.n : t->dim() == 1),
                    "munit_fast: ", name, " must be contiguous, [P] or [N, P]");
    for (int64_t n = 0; n < e.n; ++n)
      for (int64_t c = 0; c < e.c; ++c) set(n * e.c + c, get(*t, (per_sample ? n * entries : 0) + c % entries));
  }
  const void* data() const { return values_.data(); }

 private:
  void set(int64_t i, double value) {
    if (wide_) reinterpret_cast<double*>(values_.data())[i] = value;
    else values_[i] = static_cast<float>(value);
  }
  static double get(const Tensor& t, int64_t i) {
    const void* p = t.const_data_ptr();
    switch (dtype_of(t)) {
      case Dtype::f32: return static_cast<const float*>(p)[i];
      case Dtype::f64: return static_cast<const double*>(p)[i];
      case Dtype::bf16: return static_cast<const torch::headeronly::BFloat16*>(p)[i];
      default: return static_cast<const torch::headeronly::Half*>(p)[i];
    }
  }
  bool wide_;
  std::vector<float> values_;  // two for each double
};

struct Parameters {
  PerPlane weight, bias, slope;
  Parameters(const Epilogue& e, const MaybeTensor& weight_, const MaybeTensor& bias_, const MaybeTensor& slopes,
             double slope_)
      : weight("weight", weight_, 1, e), bias("bias", bias_, 0, e), slope("slope", slopes, slope_, e) {}
  void point(Epilogue& e) const { e.weight = weight.data(), e.bias = bias.data(), e.slope = slope.data(); }
};

void fill(Epilogue& e, const Tensor& x, const Tensor& stats, int64_t norm, double eps, int64_t act, int64_t block,
          int64_t pad, int64_t pad_mode, bool channels_last) {
  STD_TORCH_CHECK(x.dim() == 4 && dense(x, channels_last), "munit_fast: x must be dense in the stated layout");
  auto size = x.sizes();
  e.dtype = dtype_of(x);
  e.norm = static_cast<Norm>(norm), e.act = static_cast<Act>(act), e.pad_mode = static_cast<PadMode>(pad_mode);
  e.channels_last = channels_last, e.eps = eps, e.block = block, e.pad = pad;
  e.n = size[0], e.c = size[1], e.h = size[2], e.w = size[3];
  STD_TORCH_CHECK(block > 0 && pad >= 0 && e.c % (block * block) == 0, "munit_fast: block² must divide the channels");
  const int64_t rows = e.norm == Norm::none ? 0 : e.norm == Norm::instance ? e.n * e.c : e.n;
  STD_TORCH_CHECK(is_accumulator(e, stats) && stats.numel() == 2 * rows, "munit_fast: stats must be [2, R]");
  e.x = x.const_data_ptr();
  e.stats = stats.mutable_data_ptr();
}

// Measured on a processor with 32 MB of third-level cache: below this a result still serves its reader from there.
constexpr int64_t large_result = 12 << 20;

bool large(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()) >= large_result; }

void check_result(const Epilogue& e, const Tensor& y, const Tensor& x) {
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && dense(y, e.channels_last) &&
                      y.numel() == e.n * (e.c / (e.block * e.block)) * (e.block * e.h + 2 * e.pad) *
                                       (e.block * e.w + 2 * e.pad),
                  "munit_fast: the result or its gradient has another dtype, size or layout");
}

void check_like(const Epilogue& e, const MaybeTensor& t, const Tensor& x) {
  STD_TORCH_CHECK(!t || (t->scalar_type() == x.scalar_type() && t->numel() == x.numel() && dense(*t, e.channels_last)),
                  "munit_fast: residual and gradients must be like x");
}

// The residual may be a window of a larger tensor, as long as the pixels of a row are dense.
void point_to_residual(Forward& f, const MaybeTensor& residual, const Tensor& x) {
  if (!residual) return;
  auto size = residual->sizes(), expected = x.sizes(), step = residual->strides();
  bool fits = residual->dim() == 4 && residual->scalar_type() == x.scalar_type();
  for (int i = 0; fits && i < 4; ++i) fits = size[i] == expected[i];
  const int64_t pixel = f.channels_last ? f.c : 1;
  fits = fits && (f.w == 1 || step[3] == pixel) && (f.c == 1 || !f.channels_last || step[1] == 1);
  STD_TORCH_CHECK(fits, "munit_fast: residual must be like x, with dense rows");
  f.residual = residual->const_data_ptr();
  f.residual_image = step[0], f.residual_plane = step[1], f.residual_row = step[2];
}

void epilogue_forward(const Tensor x, const MaybeTensor weight, const MaybeTensor bias, const MaybeTensor slopes,
                      const MaybeTensor residual, Tensor y, Tensor stats, bool has_statistics, int64_t norm, double eps,
                      int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode, bool channels_last) {
  Forward f{};
  fill(f, x, stats, norm, eps, act, block, pad, pad_mode, channels_last);
  const Parameters parameters(f, weight, bias, slopes, slope);
  parameters.point(f);
  check_result(f, y, x);
  point_to_residual(f, residual, x);
  f.y = y.mutable_data_ptr(), f.streams = large(y), f.has_statistics = has_statistics;
  active().forward(f);
}

void epilogue_backward(const Tensor grad, const Tensor x, const MaybeTensor weight, const MaybeTensor bias,
                       const MaybeTensor slopes, const Tensor stats, MaybeTensor grad_x, MaybeTensor grad_residual,
                       MaybeTensor sums, int64_t norm, double eps, int64_t act, double slope, int64_t block,
                       int64_t pad, int64_t pad_mode, bool channels_last) {
  Backward b{};
  fill(b, x, stats, norm, eps, act, block, pad, pad_mode, channels_last);
  const Parameters parameters(b, weight, bias, slopes, slope);
  parameters.point(b);
  check_result(b, grad, x);
  check_like(b, grad_x, x);
  check_like(b, grad_residual, x);
  STD_TORCH_CHECK(!sums || (sums->numel() == 3 * b.n * b.c && is_accumulator(b, *sums)),
                  "munit_fast: sums must be [3, N, C]");
  b.grad = grad.const_data_ptr();
  b.grad_x = mutable_data(grad_x), b.grad_residual = mutable_data(grad_residual), b.sums = mutable_data(sums);
  b.streams = large(x);
  active().backward(b);
}

double l1_sum(const Tensor a, const Tensor b) {
  L1 l{};
  l.dtype = dtype_of(a), l.size = a.numel(), l.a = a.const_data_ptr(), l.b = b.const_data_ptr();
  STD_TORCH_CHECK(b.numel() == l.size && b.scalar_type() == a.scalar_type(), "munit_fast: a and b differ");
  return active().l1_sum(l);
}

void l1_backward(const Tensor a, const Tensor b, double grad, MaybeTensor grad_a, MaybeTensor grad_b) {
  L1 l{};
  l.dtype = dtype_of(a), l.size = a.numel(), l.a = a.const_data_ptr(), l.b = b.const_data_ptr(), l.grad = grad;
  for (const MaybeTensor& t : {MaybeTensor(b), grad_a, grad_b})
    STD_TORCH_CHECK(!t || (t->numel() == l.size && t->scalar_type() == a.scalar_type()), "munit_fast: a and b differ");
  l.grad_a = mutable_data(grad_a), l.grad_b = mutable_data(grad_b);
  active().l1_backward(l);
}

double lsgan_sum(const Tensor output, double target) {
  Lsgan l{};
  l.dtype = dtype_of(output), l.size = output.numel(), l.output = output.const_data_ptr(), l.target = target;
  return active().lsgan_sum(l);
}

void lsgan_backward(const Tensor output, double target, double grad, Tensor grad_output) {
  Lsgan l{};
  l.dtype = dtype_of(output), l.size = output.numel(), l.output = output.const_data_ptr(), l.target = target;
  STD_TORCH_CHECK(grad_output.numel() == l.size && grad_output.scalar_type() == output.scalar_type(),
                  "munit_fast: the gradient must be like the output");
  l.grad = grad, l.grad_output = grad_output.mutable_data_ptr();
  active().lsgan_backward(l);
}

}  // namespace

STABLE_TORCH_LIBRARY(munit_fast_cpu, m) {
  m.def(
      "epilogue_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!) stats, bool has_statistics, int norm, float eps, int act, float slope, int block, int pad, "
      "int pad_mode, bool channels_last) -> ()");
  m.def(
      "epilogue_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor stats, "
      "Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? sums, int norm, float eps, int act, float slope, "
      "int block, int pad, int pad_mode, bool channels_last) -> ()");
  m.def("l1_sum(Tensor a, Tensor b) -> float");
  m.def("l1_backward(Tensor a, Tensor b, float grad, Tensor(a!)? grad_a, Tensor(b!)? grad_b) -> ()");
  m.def("lsgan_sum(Tensor output, float target) -> float");
  m.def("lsgan_backward(Tensor output, float target, float grad, Tensor(a!) grad_output) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(munit_fast_cpu, CPU, m) {
  m.impl("epilogue_forward", TORCH_BOX(&epilogue_forward));
  m.impl("epilogue_backward", TORCH_BOX(&epilogue_backward));
  m.impl("l1_sum", TORCH_BOX(&l1_sum));
  m.impl("l1_backward", TORCH_BOX(&l1_backward));
  m.impl("lsgan_sum", TORCH_BOX(&lsgan_sum));
  m.impl("lsgan_backward", TORCH_BOX(&lsgan_backward));
}

}  // namespace munit_fast::cpu
