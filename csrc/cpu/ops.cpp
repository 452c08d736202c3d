// The CPU kernels as torch operators, torch.ops.munit_fast_cpu, and torch's threads for them.
#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "arena.h"
#include "arguments.h"
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

float* scratch(int64_t floats) {
  thread_local Arena arena;
  return arena.of(floats);
}

namespace {

// Measured on a processor with 32 MB of third-level cache: below this a result still serves its reader from there.
constexpr int64_t large_result = 12 << 20;

bool is_large(const Tensor& t) {
  const Dtype dtype = t.dtype();
  return t.numel() * (dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2) >= large_result;
}

// Joins rows of an image without padding into longer ones, because loops over short rows spend more time on starting
// than on their numbers. A joined row has at most 16384 entries, so that there are still rows to share among threads.
// `row` is the distance in entries from one row of the residual to the next. Returns how many rows became one.
int64_t join_rows(EpilogueParams& e, int64_t row) {
  const int64_t entries = (e.channels_last ? e.c : 1) * e.w;
  if (e.pad > 0 || e.block > 1 || row != entries || entries == 0 || e.h == 0) return 1;
  int64_t joined = std::min<int64_t>(e.h, std::max<int64_t>(16384 / entries, 1));
  while (e.h % joined) --joined;
  e.h /= joined, e.w *= joined;
  return joined;
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
    f.residual_row *= join_rows(f, a.residual ? f.residual_row : (a.channels_last ? a.c : 1) * a.w);
    f.y = a.y.mutable_data(), f.streams = is_large(a.y), f.has_statistics = a.has_statistics;
    active().forward(f);
  }

  static void backward(const BackwardArgs& a, Option) {
    if (a.n == 0) return;  // nothing is written
    Call<BackwardParams> call(a);
    BackwardParams& b = call.params;
    join_rows(b, (a.channels_last ? a.c : 1) * a.w);
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
                                    int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode,
                                    int64_t groups) {
  const bool channels_last = is_channels_last(x);
  Tensor y = empty_result(x, block, pad, channels_last);
  const Norm kind = enum_of<Norm>("norm", norm, norm_names);
  const int64_t columns = stats_columns(kind, x.sizes()[0], x.sizes()[1]);
  const int64_t size[2] = {2, columns}, strides[2] = {std::max<int64_t>(1, columns), 1};
  Tensor stats = Tensor::empty(2, size, strides, accumulator_of(x), x);
  Operators::forward(x, weight, bias, slopes, residual, y, stats, false, norm, eps, act, slope, block, pad, pad_mode,
                     groups, channels_last);
  return {std::move(y), std::move(stats)};
}

Tensor epilogue_again(const Tensor& x, const Tensor& stats, const MaybeTensor& weight, const MaybeTensor& bias,
                      const MaybeTensor& residual, const MaybeTensor& slopes, int64_t norm, double eps, int64_t act,
                      double slope, int64_t block, int64_t pad, int64_t pad_mode, int64_t groups) {
  const bool channels_last = is_channels_last(x);
  Tensor y = empty_result(x, block, pad, channels_last);
  Operators::forward(x, weight, bias, slopes, residual, y, stats, true, norm, eps, act, slope, block, pad, pad_mode,
                     groups, channels_last);
  return y;
}

// What is not needed is missing.
std::tuple<MaybeTensor, MaybeTensor, MaybeTensor> epilogue_gradients(
    const Tensor& grad, const Tensor& x, const Tensor& stats, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& slopes, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
    int64_t pad_mode, int64_t groups, bool need_x, bool need_residual, bool need_sums) {
  const bool channels_last = is_channels_last(x);
  const int64_t *s = x.sizes(), like_x[4] = {s[0], s[1], s[2], s[3]};
  const int64_t size[3] = {3, s[0], s[1]}, strides[3] = {s[0] * s[1], s[1], 1};
  const Dtype dtype = x.floating_dtype();
  MaybeTensor grad_x, grad_residual, sums;
  if (need_x) grad_x = Tensor::empty_image(like_x, channels_last, dtype, x);
  if (need_residual) grad_residual = Tensor::empty_image(like_x, channels_last, dtype, x);
  if (need_sums) sums = Tensor::empty(3, size, strides, accumulator_of(x), x);
  Operators::backward(grad, x, weight, bias, slopes, stats, grad_x, grad_residual, sums, norm, eps, act, slope, block,
                      pad, pad_mode, groups, channels_last);
  return {std::move(grad_x), std::move(grad_residual), std::move(sums)};
}

// The statistics that epilogue_forward gives, alone.
void statistics(const Tensor& x, const Tensor& stats, int64_t norm, int64_t groups) {
  const EpilogueArgs args{x, std::nullopt, std::nullopt, std::nullopt, stats, {norm, 0, 0, 0, 1, 0, 0, groups}, true};
  check(args.norm != Norm::none, "statistics are those of a norm");
  const Call<ForwardParams> call(args);
  active().statistics(call.params);
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

}  // namespace

void register_operators() {
  Library m("munit_fast_cpu");
  Operators::define(m);
  const std::string flags = "int norm, float eps, int act, float slope, int block, int pad, int pad_mode, int groups";
  const std::string parameters = "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? slopes, ";
  m.define(("epilogue(Tensor x, " + parameters + flags + ") -> (Tensor y, Tensor stats)").c_str());
  m.define(("epilogue_again(Tensor x, Tensor stats, " + parameters + flags + ") -> Tensor").c_str());
  m.define(("epilogue_gradients(Tensor grad, Tensor x, Tensor stats, Tensor? weight, Tensor? bias, Tensor? slopes, " +
            flags + ", bool need_x, bool need_residual, bool need_sums) -> (Tensor?, Tensor?, Tensor?)").c_str());
  m.define("statistics(Tensor x, Tensor(a!) stats, int norm, int groups) -> ()");
  m.define("l1_sum(Tensor a, Tensor b) -> float");
  m.define("l1_backward(Tensor a, Tensor b, float grad, Tensor(a!)? grad_a, Tensor(b!)? grad_b) -> ()");
  m.define("lsgan_sum(Tensor output, float target) -> float");
  m.define("lsgan_backward(Tensor output, float target, float grad, Tensor(a!) grad_output) -> ()");
  define_convolutions(m);

  Library on_cpu("munit_fast_cpu", "CPU");
  Operators::implement(on_cpu);
  on_cpu.implement<&epilogue>("epilogue");
  on_cpu.implement<&epilogue_again>("epilogue_again");
  on_cpu.implement<&epilogue_gradients>("epilogue_gradients");
  on_cpu.implement<&statistics>("statistics");
  on_cpu.implement<&l1_sum>("l1_sum");
  on_cpu.implement<&l1_backward>("l1_backward");
  on_cpu.implement<&lsgan_sum>("lsgan_sum");
  on_cpu.implement<&lsgan_backward>("lsgan_backward");
  implement_convolutions(on_cpu);
}

}  // namespace munit_fast::cpu
