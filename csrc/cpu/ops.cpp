// The CPU kernels as torch operators, torch.ops.munit_fast_cpu, and torch's threads for them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "../common/epilogue.h"
#include "kernels.h"

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

// A parameter as the kernels read it: one entry of the accumulator's type for each plane [n, c]. What is laid out like
// that already is read where it is.
class PlaneValues {
 public:
  PlaneValues(const EpilogueArgs& a, const ChannelParam& p, double otherwise) {
    const bool for_each = p.entries == a.c && (a.n == 1 || p.per_sample == a.c);
    if (p.data && p.dtype == a.accumulator && for_each) {
      data_ = p.data;
      return;
    }
    if (a.accumulator == Dtype::f64) fill<double>(a, p, otherwise);
    else fill<float>(a, p, otherwise);
    data_ = values_.get();
  }
  const void* data() const { return data_; }

 private:
  template <class A> void fill(const EpilogueArgs& a, const ChannelParam& p, double otherwise) {
    values_.reset(new char[a.n * a.c * sizeof(A)]);
    A* to = reinterpret_cast<A*>(values_.get());
    if (!p.data) {
      std::fill_n(to, a.n * a.c, static_cast<A>(otherwise));
      return;
    }
    for (int64_t n = 0; n < a.n; ++n, to += a.c)
      if (n > 0 && p.per_sample == 0) {
        std::memcpy(to, to - a.c, a.c * sizeof(A));
      } else {
        for (int64_t c = 0; c < p.entries; ++c)
          to[c] = static_cast<A>(number(p.data, n * p.per_sample + c, p.dtype));
        for (int64_t c = p.entries; c < a.c; c += p.entries) std::memcpy(to + c, to, p.entries * sizeof(A));
      }
  }
  const void* data_;
  std::unique_ptr<char[]> values_;
};

// The kernels' parameters, and the memory of those that were made for them.
template <class Params> struct Call {
  PlaneValues weight, bias, slope;
  Params params{};

  explicit Call(const EpilogueArgs& a) : weight(a, a.weight, 1), bias(a, a.bias, 0), slope(a, a.slopes, a.slope) {
    EpilogueParams& e = params;
    e.dtype = a.dtype, e.norm = a.norm, e.act = a.act, e.pad_mode = a.pad_mode, e.channels_last = a.channels_last;
    e.n = a.n, e.c = a.c, e.h = a.h, e.w = a.w, e.block = a.block, e.pad = a.pad, e.eps = a.eps;
    e.x = a.x.data(), e.stats = a.stats;
    e.weight = weight.data(), e.bias = bias.data(), e.slope = slope.data();
  }
};

// Measured on a processor with 32 MB of third-level cache: below this a result still serves its reader from there.
constexpr int64_t large_result = 12 << 20;

bool is_large(const Tensor& t) {
  const Dtype dtype = t.dtype();
  return t.numel() * (dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2) >= large_result;
}

struct Cpu {
  using Option = bool;
  static constexpr const char* option = "bool channels_last";
  static bool channels_last(Option chosen) { return chosen; }

  static void forward(const ForwardArgs& a, Option) {
    Call<ForwardParams> call(a);
    ForwardParams& f = call.params;
    if (a.residual) {
      const int64_t* step = a.residual->strides();
      f.residual = a.residual->data();
      f.residual_image = step[0], f.residual_plane = step[1], f.residual_row = step[2];
    }
    f.y = a.y.mutable_data(), f.streams = is_large(a.y), f.has_statistics = a.has_statistics;
    active().forward(f);
  }

  static void backward(const BackwardArgs& a, Option) {
    Call<BackwardParams> call(a);
    BackwardParams& b = call.params;
    b.grad = a.grad.data(), b.grad_x = mutable_data(a.grad_x), b.grad_residual = mutable_data(a.grad_residual);
    b.sums = mutable_data(a.sums), b.streams = is_large(a.x);
    active().backward(b);
  }
};

// The operators of munit_fast with memory for their results, for munit_fast/ops/epilogue.py where nobody traces.
using Operators = EpilogueOperators<Cpu>;

Dtype accumulator_of(const Tensor& x) { return x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32; }

Tensor empty_result(const Tensor& x, int64_t block, int64_t pad, bool channels_last) {
  check(block > 0 && pad >= 0, "block must be positive, pad not negative");
  const int64_t* s = x.sizes();
  const int64_t size[4] = {s[0], s[1] / (block * block), block * s[2] + 2 * pad, block * s[3] + 2 * pad};
  return Tensor::empty_image(size, channels_last, x.floating_dtype(), x);
}

std::tuple<Tensor, Tensor> epilogue(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                                    const MaybeTensor& residual, const MaybeTensor& slopes, int64_t norm, double eps,
                                    int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode) {
  const bool channels_last = is_channels_last(x);
  Tensor y = empty_result(x, block, pad, channels_last);
  const Norm kind = enum_of<Norm>("norm", norm, norm_names);
  const int64_t columns = kind == Norm::none ? 0 : x.sizes()[0] * (kind == Norm::instance ? x.sizes()[1] : 1);
  const int64_t size[2] = {2, columns}, strides[2] = {std::max<int64_t>(1, columns), 1};
  Tensor stats = Tensor::empty(2, size, strides, accumulator_of(x), x);
  Operators::forward(x, weight, bias, slopes, residual, y, stats, false, norm, eps, act, slope, block, pad, pad_mode,
                     channels_last);
  return {std::move(y), std::move(stats)};
}

Tensor epilogue_again(const Tensor& x, const Tensor& stats, const MaybeTensor& weight, const MaybeTensor& bias,
                      const MaybeTensor& residual, const MaybeTensor& slopes, int64_t norm, double eps, int64_t act,
                      double slope, int64_t block, int64_t pad, int64_t pad_mode) {
  const bool channels_last = is_channels_last(x);
  Tensor y = empty_result(x, block, pad, channels_last);
  Operators::forward(x, weight, bias, slopes, residual, y, stats, true, norm, eps, act, slope, block, pad, pad_mode,
                     channels_last);
  return y;
}

// What is not needed is missing.
std::tuple<MaybeTensor, MaybeTensor, MaybeTensor> epilogue_gradients(
    const Tensor& grad, const Tensor& x, const Tensor& stats, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& slopes, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
    int64_t pad_mode, bool need_x, bool need_residual, bool need_sums) {
  const bool channels_last = is_channels_last(x);
  const int64_t *s = x.sizes(), like_x[4] = {s[0], s[1], s[2], s[3]};
  const int64_t size[3] = {3, s[0], s[1]}, strides[3] = {s[0] * s[1], s[1], 1};
  const Dtype dtype = x.floating_dtype();
  MaybeTensor grad_x, grad_residual, sums;
  if (need_x) grad_x = Tensor::empty_image(like_x, channels_last, dtype, x);
  if (need_residual) grad_residual = Tensor::empty_image(like_x, channels_last, dtype, x);
  if (need_sums) sums = Tensor::empty(3, size, strides, accumulator_of(x), x);
  Operators::backward(grad, x, weight, bias, slopes, stats, grad_x, grad_residual, sums, norm, eps, act, slope, block,
                      pad, pad_mode, channels_last);
  return {std::move(grad_x), std::move(grad_residual), std::move(sums)};
}

double l1_sum(const Tensor& a, const Tensor& b) {
  L1 l{};
  l.dtype = a.floating_dtype(), l.size = a.numel(), l.a = a.data(), l.b = b.data();
  check(same_size_and_dtype(a, b), "a and b differ");
  return active().l1_sum(l);
}

void l1_backward(const Tensor& a, const Tensor& b, double grad, const MaybeTensor& grad_a, const MaybeTensor& grad_b) {
  L1 l{};
  l.dtype = a.floating_dtype(), l.size = a.numel(), l.a = a.data(), l.b = b.data(), l.grad = grad;
  for (const Tensor* t : {&b, grad_a ? &*grad_a : nullptr, grad_b ? &*grad_b : nullptr})
    check(!t || same_size_and_dtype(*t, a), "a, b and their gradients differ");
  l.grad_a = mutable_data(grad_a), l.grad_b = mutable_data(grad_b);
  active().l1_backward(l);
}

double lsgan_sum(const Tensor& output, double target) {
  Lsgan l{};
  l.dtype = output.floating_dtype(), l.size = output.numel(), l.output = output.data(), l.target = target;
  return active().lsgan_sum(l);
}

void lsgan_backward(const Tensor& output, double target, double grad, const Tensor& grad_output) {
  Lsgan l{};
  l.dtype = output.floating_dtype(), l.size = output.numel(), l.output = output.data(), l.target = target;
  check(same_size_and_dtype(grad_output, output), "the gradient must be like the output");
  l.grad = grad, l.grad_output = grad_output.mutable_data();
  active().lsgan_backward(l);
}

// columns [N, k·O, H, W + k - 1], channels_last, channel j·O + o; y [N, O, H, W], channels_last.
void add_columns(const Tensor& columns, const MaybeTensor& bias, int64_t kernel, const Tensor& y) {
  check(columns.dim() == 4 && y.dim() == 4, "columns and y must have four dimensions");
  const int64_t *from = columns.sizes(), *to = y.sizes(), channels = to[1];
  check(columns.dtype() == Dtype::f32 && y.dtype() == Dtype::f32, "columns and y must be float32");
  check(kernel > 0 && channels > 0 && channels <= 4, "there must be one to four channels, and a kernel");
  check(from[0] == to[0] && from[1] == kernel * channels && from[2] == to[2] && from[3] == to[3] + kernel - 1,
        "columns must be [N, k·O, H, W + k - 1] for y [N, O, H, W]");
  check(is_dense(columns, true) && is_dense(y, true), "columns and y must be dense in channels_last");
  check(!bias || (bias->dtype() == Dtype::f32 && bias->is_contiguous() && bias->numel() == channels),
        "bias must be [O] in float32");
  Columns c{};
  c.rows = to[0] * to[2], c.width = to[3], c.kernel = kernel, c.channels = channels;
  c.columns = static_cast<const float*>(columns.data());
  c.bias = static_cast<const float*>(data(bias)), c.result = static_cast<float*>(y.mutable_data());
  active().add_columns(c);
}

}  // namespace

void register_operators() {
  Library m("munit_fast_cpu");
  Operators::define(m);
  const std::string flags = "int norm, float eps, int act, float slope, int block, int pad, int pad_mode";
  const std::string parameters = "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? slopes, ";
  m.define(("epilogue(Tensor x, " + parameters + flags + ") -> (Tensor y, Tensor stats)").c_str());
  m.define(("epilogue_again(Tensor x, Tensor stats, " + parameters + flags + ") -> Tensor").c_str());
  m.define(("epilogue_gradients(Tensor grad, Tensor x, Tensor stats, Tensor? weight, Tensor? bias, Tensor? slopes, " +
            flags + ", bool need_x, bool need_residual, bool need_sums) -> (Tensor?, Tensor?, Tensor?)").c_str());
  m.define("l1_sum(Tensor a, Tensor b) -> float");
  m.define("l1_backward(Tensor a, Tensor b, float grad, Tensor(a!)? grad_a, Tensor(b!)? grad_b) -> ()");
  m.define("lsgan_sum(Tensor output, float target) -> float");
  m.define("lsgan_backward(Tensor output, float target, float grad, Tensor(a!) grad_output) -> ()");
  m.define("add_columns(Tensor columns, Tensor? bias, int kernel, Tensor(a!) y) -> ()");

  Library on_cpu("munit_fast_cpu", "CPU");
  Operators::implement(on_cpu);
  on_cpu.implement<&epilogue>("epilogue");
  on_cpu.implement<&epilogue_again>("epilogue_again");
  on_cpu.implement<&epilogue_gradients>("epilogue_gradients");
  on_cpu.implement<&l1_sum>("l1_sum");
  on_cpu.implement<&l1_backward>("l1_backward");
  on_cpu.implement<&lsgan_sum>("lsgan_sum");
  on_cpu.implement<&lsgan_backward>("lsgan_backward");
  on_cpu.implement<&add_columns>("add_columns");
}

}  // namespace munit_fast::cpu
