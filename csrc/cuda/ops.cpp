// The CUDA kernels as torch operators (munit_fast_cuda::*), through the stable ABI: one build serves every supported
// torch, and loads beside one without CUDA, whose symbols are looked up when a tensor on a GPU arrives. Results are
// allocated by the caller and arguments were checked in Python; the checks here guard memory only. A file for the host's
// compiler: as .cu it would read torch's headers once for each architecture.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "launch.h"

// Tests build this file against a simulated GPU, as another library for tensors on the CPU.
#ifndef MUNIT_FAST_SIMULATED
#define MUNIT_FAST_LIBRARY munit_fast_cuda
#define MUNIT_FAST_KEY CUDA
#else
#define MUNIT_FAST_LIBRARY munit_fast_simulated
#define MUNIT_FAST_KEY CPU
extern "C" int simulated_device();
#endif

namespace munit_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

Number number_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Number::f32;
    case ScalarType::BFloat16: return Number::bf16;
    case ScalarType::Half: return Number::f16;
    default: STD_TORCH_CHECK(false, "munit_fast: float32, bfloat16 or float16 is needed");
  }
}

const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
void* mutable_data(const MaybeTensor& t) { return t ? t->mutable_data_ptr() : nullptr; }

#ifndef MUNIT_FAST_SIMULATED
static_assert(std::is_same_v<CurrentStream, AOTITorchError (*)(int32_t, void**)>);
#endif

// The device of `x`, for the life of an operation, its current stream, and room from torch's allocator.
class Where {
 public:
  explicit Where(const Tensor& x)
      : x_(x)
#ifndef MUNIT_FAST_SIMULATED
        ,
        guard_(x.get_device_index()),
        device_(cuda::device(x.get_device_index()))
#else
        ,
        device_(cuda::device(simulated_device()))
#endif
  {
  }
  const Device& device() const { return device_; }
  cudaStream_t stream() const {
#ifndef MUNIT_FAST_SIMULATED
    void* stream = nullptr;
    const int error = current_stream()(device_.index, &stream);
    STD_TORCH_CHECK(error == 0, "munit_fast: torch gives no current stream");
    return static_cast<cudaStream_t>(stream);
#else
    return nullptr;
#endif
  }
  Allocate allocate() {
    return [this](int64_t floats) {
      rooms_.push_back(torch::stable::new_empty(x_, {floats}, ScalarType::Float));
      return static_cast<float*>(rooms_.back().mutable_data_ptr());
    };
  }

 private:
  const Tensor& x_;
#ifndef MUNIT_FAST_SIMULATED
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  const Device& device_;
  std::vector<Tensor> rooms_;
};

bool channels_last(const Tensor& t) {
  auto s = t.sizes(), d = t.strides();
  const int64_t dense[4] = {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  for (int i = 0; i < 4; ++i)
    if (s[i] > 1 && d[i] != dense[i]) return false;
  return true;
}

Parameter parameter(const char* name, const MaybeTensor& t, int64_t samples, int64_t channels) {
  if (!t) return {nullptr, Number::f32, 1, 0};
  const int64_t entries = t->size(t->dim() - 1);
  const bool per_sample = t->dim() == 2;
  STD_TORCH_CHECK(t->is_contiguous() && entries > 0 && channels % entries == 0 &&
                      (per_sample ? t->size(0) == samples : t->dim() == 1),
                  "munit_fast: ", name, " must be contiguous, [P] or [N, P]");
  return {t->const_data_ptr(), number_of(*t), static_cast<int>(entries), per_sample ? static_cast<int>(entries) : 0};
}

int64_t result_size(const Epilogue& e) {  // of one sample
  return static_cast<int64_t>(e.result_channels) * (e.rows + 2 * e.pad) * e.result_width;
}

void fill(Epilogue& e, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
          const Tensor& stats, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
          int64_t pad_mode) {
  STD_TORCH_CHECK(x.dim() == 4 && channels_last(x), "munit_fast: x must be dense and channels_last");
  STD_TORCH_CHECK(block > 0 && pad >= 0 && x.size(1) % (block * block) == 0,
                  "munit_fast: block² must divide the channels");
  e.norm = static_cast<Norm>(norm), e.act = static_cast<Act>(act), e.pad_mode = static_cast<PadMode>(pad_mode);
  e.eps = static_cast<float>(eps), e.slope = static_cast<float>(slope);
  constexpr int64_t most = 1 << 30;  // offsets inside a sample are 32-bit
  STD_TORCH_CHECK(x.size(1) * x.size(2) * x.size(3) <= most && block < 256 && pad < 65536,
                  "munit_fast: a sample must have at most 2^30 elements");
  e.set_sizes(static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(x.size(2)),
              static_cast<int>(x.size(3)), static_cast<int>(block), static_cast<int>(pad));
  STD_TORCH_CHECK(result_size(e) <= most, "munit_fast: a sample must have at most 2^30 elements, padding included");
  e.weight = parameter("weight", weight, e.n, e.c), e.bias = parameter("bias", bias, e.n, e.c);
  e.slopes = parameter("slope", slopes, e.n, e.c);
  const int64_t rows = e.norm == Norm::none ? 0 : e.norm == Norm::instance ? static_cast<int64_t>(e.n) * e.c : e.n;
  STD_TORCH_CHECK(stats.is_contiguous() && stats.scalar_type() == ScalarType::Float && stats.numel() == 2 * rows,
                  "munit_fast: stats must be float32 [2, R]");
  e.x = x.const_data_ptr();
  e.stats = static_cast<float*>(stats.mutable_data_ptr());
}

void check_result(const Epilogue& e, const Tensor& y, const Tensor& x) {
  STD_TORCH_CHECK(y.dim() == 4 && y.scalar_type() == x.scalar_type() && channels_last(y) &&
                      y.numel() == e.n * result_size(e),
                  "munit_fast: the result or its gradient has another dtype, size or layout");
}

void check_like(const MaybeTensor& t, const Tensor& x) {
  STD_TORCH_CHECK(!t || (t->scalar_type() == x.scalar_type() && t->dim() == 4 && t->numel() == x.numel() &&
                         channels_last(*t)),
                  "munit_fast: gradients must be like x");
}

void point_to_residual(Forward& f, const MaybeTensor& residual, const Tensor& x) {
  if (!residual) return;
  auto size = residual->sizes(), expected = x.sizes(), step = residual->strides();
  bool fits = residual->dim() == 4 && residual->scalar_type() == x.scalar_type();
  for (int i = 0; fits && i < 4; ++i) fits = size[i] == expected[i];
  fits = fits && (f.w == 1 || step[3] == f.c) && (f.c == 1 || step[1] == 1) && step[2] * f.h < int64_t{1} << 31;
  STD_TORCH_CHECK(fits, "munit_fast: residual must be like x, with dense rows");
  f.residual = residual->const_data_ptr();
  f.residual_image = step[0], f.residual_row = static_cast<int>(step[2]);
}

void epilogue_forward_op(const Tensor x, const MaybeTensor weight, const MaybeTensor bias, const MaybeTensor slopes,
                         const MaybeTensor residual, Tensor y, Tensor stats, bool has_statistics, int64_t norm,
                         double eps, int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode,
                         int64_t way) {
  Forward f{};
  fill(f, x, weight, bias, slopes, stats, norm, eps, act, slope, block, pad, pad_mode);
  check_result(f, y, x);
  if (x.numel() == 0) return;
  point_to_residual(f, residual, x);
  f.y = y.mutable_data_ptr();
  Where where(x);
  epilogue_forward(where.device(), where.stream(), number_of(x), f, has_statistics, static_cast<Way>(way),
                   where.allocate());
}

void epilogue_backward_op(const Tensor grad, const Tensor x, const MaybeTensor weight, const MaybeTensor bias,
                          const MaybeTensor slopes, const Tensor stats, MaybeTensor grad_x, MaybeTensor grad_residual,
                          MaybeTensor sums, int64_t norm, double eps, int64_t act, double slope, int64_t block,
                          int64_t pad, int64_t pad_mode, int64_t way) {
  Backward b{};
  fill(b, x, weight, bias, slopes, stats, norm, eps, act, slope, block, pad, pad_mode);
  check_result(b, grad, x);
  check_like(grad_x, x);
  check_like(grad_residual, x);
  STD_TORCH_CHECK(!sums || (sums->is_contiguous() && sums->scalar_type() == ScalarType::Float &&
                            sums->numel() == 3LL * b.n * b.c),
                  "munit_fast: sums must be float32 [3, N, C]");
  if (x.numel() == 0) return;
  b.grad = grad.const_data_ptr();
  b.grad_x = mutable_data(grad_x), b.grad_residual = mutable_data(grad_residual);
  b.sums = static_cast<float*>(mutable_data(sums));
  Where where(x);
  epilogue_backward(where.device(), where.stream(), number_of(x), b, static_cast<Way>(way), where.allocate());
}

// first, second: at most max_tensors; second empty: least squares. In the lists of gradients an empty tensor of one
// dimension stands for one that is not wanted; the lists may be empty.
void losses_op(const std::vector<Tensor> first, const std::vector<Tensor> second, double target,
               const MaybeTensor grad, std::vector<Tensor> grad_first, std::vector<Tensor> grad_second,
               MaybeTensor value) {
  LossLaunch l{};
  l.count = static_cast<int>(first.size());
  STD_TORCH_CHECK(l.count >= 1 && l.count <= max_tensors && (second.empty() || second.size() == first.size()),
                  "munit_fast: one to eight tensors, or pairs");
  l.per_group = second.empty() ? l.count : 1;
  l.target = static_cast<float>(target);
  const int64_t groups = l.count / l.per_group;
  auto wanted = [&](std::vector<Tensor>& list, int i) -> void* {
    if (list.empty() || (list[i].dim() == 1 && list[i].numel() == 0)) return nullptr;
    STD_TORCH_CHECK(list[i].numel() == first[i].numel() && list[i].scalar_type() == first[i].scalar_type(),
                    "munit_fast: a gradient must be like its tensor");
    return list[i].mutable_data_ptr();
  };
  for (int i = 0; i < l.count; ++i) {
    STD_TORCH_CHECK(first[i].scalar_type() == first[0].scalar_type() &&
                        (second.empty() || (second[i].numel() == first[i].numel() &&
                                            second[i].scalar_type() == first[i].scalar_type())),
                    "munit_fast: the tensors of a pair differ");
    l.size[i] = first[i].numel();
    l.first[i] = first[i].const_data_ptr();
    l.second[i] = second.empty() ? nullptr : second[i].const_data_ptr();
    l.grad_first[i] = wanted(grad_first, i), l.grad_second[i] = wanted(grad_second, i);
  }
  auto is_list = [&](const MaybeTensor& t) {
    return !t || (t->is_contiguous() && t->scalar_type() == ScalarType::Float && t->numel() == groups);
  };
  STD_TORCH_CHECK(is_list(grad) && is_list(value), "munit_fast: grad and value must be float32, one for each group");
  l.grad = static_cast<const float*>(data(grad));
  l.value = static_cast<float*>(mutable_data(value));
  Where where(first[0]);
  losses(where.device(), where.stream(), number_of(first[0]), l, where.allocate());
}

}  // namespace

STABLE_TORCH_LIBRARY(MUNIT_FAST_LIBRARY, m) {
  m.def(
      "epilogue_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!) stats, bool has_statistics, int norm, float eps, int act, float slope, int block, int pad, "
      "int pad_mode, int way) -> ()");
  m.def(
      "epilogue_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor stats, "
      "Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? sums, int norm, float eps, int act, float slope, "
      "int block, int pad, int pad_mode, int way) -> ()");
  m.def(
      "losses(Tensor[] first, Tensor[] second, float target, Tensor? grad, Tensor(a!)[] grad_first, "
      "Tensor(b!)[] grad_second, Tensor(c!)? value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(MUNIT_FAST_LIBRARY, MUNIT_FAST_KEY, m) {
  m.impl("epilogue_forward", TORCH_BOX(&epilogue_forward_op));
  m.impl("epilogue_backward", TORCH_BOX(&epilogue_backward_op));
  m.impl("losses", TORCH_BOX(&losses_op));
}

}  // namespace munit_fast::cuda
