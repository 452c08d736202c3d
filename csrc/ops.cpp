// The CPU kernels as torch operators (munit_fast_cpu::*). Results are allocated by the caller, and arguments were
// checked in munit_fast/functional.py; the checks here guard memory only.
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "torch/operators.h"

namespace munit_fast::cpu {

void run_tasks(int64_t count, void (*task)(int64_t, void*), void* context) {
  struct Tasks {
    void (*task)(int64_t, void*);
    void* context;
  } tasks{task, context};
  const auto body = [](int64_t begin, int64_t end, void* all) {
    const auto [run, its_context] = *static_cast<Tasks*>(all);
    for (int64_t i = begin; i < end; ++i) run(i, its_context);
  };
  succeed(torch_parallel_for(0, count, 1, body, &tasks), "running its threads");
}

int64_t thread_count() {
  uint32_t threads = 1;
  succeed(torch_get_num_threads(&threads), "counting its threads");
  return threads;
}

namespace {

Dtype dtype_of(const Tensor& x) {
  switch (x.type()) {
    case ScalarType::f32: return Dtype::f32;
    case ScalarType::f64: return Dtype::f64;
    case ScalarType::bf16: return Dtype::bf16;
    case ScalarType::f16: return Dtype::f16;
    default: throw std::runtime_error("munit_fast: a floating-point tensor is needed");
  }
}

bool is_accumulator(const Epilogue& e, const Tensor& t) {
  return t.is_contiguous() && t.type() == (e.dtype == Dtype::f64 ? ScalarType::f64 : ScalarType::f32);
}

bool dense(const Tensor& t, bool channels_last) {
  const int64_t *s = t.sizes(), *d = t.strides();
  const int64_t nchw[4] = {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  const int64_t nhwc[4] = {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  for (int i = 0; i < 4; ++i)
    if (s[i] > 1 && d[i] != (channels_last ? nhwc : nchw)[i]) return false;
  return true;
}

double number(const void* p, int64_t i, Dtype dtype) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  if (dtype == Dtype::f64) return static_cast<const double*>(p)[i];
  const uint16_t bits = static_cast<const uint16_t*>(p)[i];
  if (dtype == Dtype::bf16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -size : size;
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
    const int64_t dim = t->dim();
    const bool per_sample = dim == 2;
    const bool fits = dim == 1 || (per_sample && t->sizes()[0] == e.n);
    check(fits && t->is_contiguous(), " must be contiguous, [P] or [N, P]", name);
    const int64_t entries = t->sizes()[dim - 1];
    check(entries > 0 && e.c % entries == 0, " must have a number of entries that divides the channels", name);
    const void* from = t->data();
    const Dtype dtype = dtype_of(*t);
    for (int64_t n = 0; n < e.n; ++n)
      for (int64_t c = 0; c < e.c; ++c)
        set(n * e.c + c, number(from, (per_sample ? n * entries : 0) + c % entries, dtype));
  }
  const void* data() const { return values_.data(); }

 private:
  void set(int64_t i, double value) {
    if (wide_) reinterpret_cast<double*>(values_.data())[i] = value;
    else values_[i] = static_cast<float>(value);
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
  check(x.dim() == 4 && dense(x, channels_last), "x must be dense in the stated layout");
  const int64_t* size = x.sizes();
  e.dtype = dtype_of(x);
  e.norm = static_cast<Norm>(norm), e.act = static_cast<Act>(act), e.pad_mode = static_cast<PadMode>(pad_mode);
  e.channels_last = channels_last, e.eps = eps, e.block = block, e.pad = pad;
  e.n = size[0], e.c = size[1], e.h = size[2], e.w = size[3];
  check(block > 0 && pad >= 0 && e.c % (block * block) == 0, "block² must divide the channels");
  const int64_t rows = e.norm == Norm::none ? 0 : e.norm == Norm::instance ? e.n * e.c : e.n;
  check(is_accumulator(e, stats) && stats.numel() == 2 * rows, "stats must be [2, R]");
  e.x = x.data();
  e.stats = stats.mutable_data();
}

// Measured on a processor with 32 MB of third-level cache: below this a result still serves its reader from there.
constexpr int64_t large_result = 12 << 20;

bool large(const Epilogue& e, const Tensor& t) {
  const int64_t bytes = e.dtype == Dtype::f64 ? 8 : e.dtype == Dtype::f32 ? 4 : 2;
  return t.numel() * bytes >= large_result;
}

void check_result(const Epilogue& e, const Tensor& y, const Tensor& x) {
  check(y.type() == x.type() && y.dim() == 4 && dense(y, e.channels_last) &&
            y.numel() == e.n * (e.c / (e.block * e.block)) * (e.block * e.h + 2 * e.pad) * (e.block * e.w + 2 * e.pad),
        "the result or its gradient has another dtype, size or layout");
}

void check_like(const Epilogue& e, const MaybeTensor& t, const Tensor& x) {
  check(!t || (t->type() == x.type() && t->dim() == 4 && t->numel() == x.numel() && dense(*t, e.channels_last)),
        "residual and gradients must be like x");
}

// The residual may be a window of a larger tensor, as long as the pixels of a row are dense.
void point_to_residual(Forward& f, const MaybeTensor& residual, const Tensor& x) {
  if (!residual) return;
  const int64_t *size = residual->sizes(), *expected = x.sizes(), *step = residual->strides();
  bool fits = residual->dim() == 4 && residual->type() == x.type();
  for (int i = 0; fits && i < 4; ++i) fits = size[i] == expected[i];
  const int64_t pixel = f.channels_last ? f.c : 1;
  fits = fits && (f.w == 1 || step[3] == pixel) && (f.c == 1 || !f.channels_last || step[1] == 1);
  check(fits, "residual must be like x, with dense rows");
  f.residual = residual->data();
  f.residual_image = step[0], f.residual_plane = step[1], f.residual_row = step[2];
}

void epilogue_forward(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
                      const MaybeTensor& residual, const Tensor& y, const Tensor& stats, bool has_statistics,
                      int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
                      int64_t pad_mode, bool channels_last) {
  Forward f{};
  fill(f, x, stats, norm, eps, act, block, pad, pad_mode, channels_last);
  const Parameters parameters(f, weight, bias, slopes, slope);
  parameters.point(f);
  check_result(f, y, x);
  point_to_residual(f, residual, x);
  f.y = y.mutable_data(), f.streams = large(f, y), f.has_statistics = has_statistics;
  active().forward(f);
}

void epilogue_backward(const Tensor& grad, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                       const MaybeTensor& slopes, const Tensor& stats, const MaybeTensor& grad_x,
                       const MaybeTensor& grad_residual, const MaybeTensor& sums, int64_t norm, double eps, int64_t act,
                       double slope, int64_t block, int64_t pad, int64_t pad_mode, bool channels_last) {
  Backward b{};
  fill(b, x, stats, norm, eps, act, block, pad, pad_mode, channels_last);
  const Parameters parameters(b, weight, bias, slopes, slope);
  parameters.point(b);
  check_result(b, grad, x);
  check_like(b, grad_x, x);
  check_like(b, grad_residual, x);
  check(!sums || (sums->numel() == 3 * b.n * b.c && is_accumulator(b, *sums)), "sums must be [3, N, C]");
  b.grad = grad.data();
  b.grad_x = mutable_data(grad_x), b.grad_residual = mutable_data(grad_residual), b.sums = mutable_data(sums);
  b.streams = large(b, x);
  active().backward(b);
}

double l1_sum(const Tensor& a, const Tensor& b) {
  L1 l{};
  l.dtype = dtype_of(a), l.size = a.numel(), l.a = a.data(), l.b = b.data();
  check(b.numel() == l.size && b.type() == a.type(), "a and b differ");
  return active().l1_sum(l);
}

void l1_backward(const Tensor& a, const Tensor& b, double grad, const MaybeTensor& grad_a, const MaybeTensor& grad_b) {
  L1 l{};
  l.dtype = dtype_of(a), l.size = a.numel(), l.a = a.data(), l.b = b.data(), l.grad = grad;
  for (const Tensor* t : {&b, grad_a ? &*grad_a : nullptr, grad_b ? &*grad_b : nullptr})
    check(!t || (t->numel() == l.size && t->type() == a.type()), "a, b and their gradients differ");
  l.grad_a = mutable_data(grad_a), l.grad_b = mutable_data(grad_b);
  active().l1_backward(l);
}

double lsgan_sum(const Tensor& output, double target) {
  Lsgan l{};
  l.dtype = dtype_of(output), l.size = output.numel(), l.output = output.data(), l.target = target;
  return active().lsgan_sum(l);
}

void lsgan_backward(const Tensor& output, double target, double grad, const Tensor& grad_output) {
  Lsgan l{};
  l.dtype = dtype_of(output), l.size = output.numel(), l.output = output.data(), l.target = target;
  check(grad_output.numel() == l.size && grad_output.type() == output.type(), "the gradient must be like the output");
  l.grad = grad, l.grad_output = grad_output.mutable_data();
  active().lsgan_backward(l);
}

}  // namespace

void register_operators() {
  Library m("munit_fast_cpu");
  m.define(
      "epilogue_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!) stats, bool has_statistics, int norm, float eps, int act, float slope, int block, int pad, "
      "int pad_mode, bool channels_last) -> ()");
  m.define(
      "epilogue_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor stats, "
      "Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? sums, int norm, float eps, int act, float slope, "
      "int block, int pad, int pad_mode, bool channels_last) -> ()");
  m.define("l1_sum(Tensor a, Tensor b) -> float");
  m.define("l1_backward(Tensor a, Tensor b, float grad, Tensor(a!)? grad_a, Tensor(b!)? grad_b) -> ()");
  m.define("lsgan_sum(Tensor output, float target) -> float");
  m.define("lsgan_backward(Tensor output, float target, float grad, Tensor(a!) grad_output) -> ()");

  Library on_cpu("munit_fast_cpu", "CPU");
  on_cpu.implement<&epilogue_forward>("epilogue_forward");
  on_cpu.implement<&epilogue_backward>("epilogue_backward");
  on_cpu.implement<&l1_sum>("l1_sum");
  on_cpu.implement<&l1_backward>("l1_backward");
  on_cpu.implement<&lsgan_sum>("lsgan_sum");
  on_cpu.implement<&lsgan_backward>("lsgan_backward");
}

}  // namespace munit_fast::cpu
