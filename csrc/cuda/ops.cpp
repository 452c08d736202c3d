// The CUDA kernels as torch operators (munit_fast_cuda::*). They load beside a torch without CUDA too, since what they
// need of that is looked up when a tensor on a GPU arrives. Results are allocated by the caller and arguments were
// checked in Python; the checks here guard memory only.
#include <vector>

#include "../torch/operators.h"
#include "launch.h"
#include "prepare.h"

// Tests build this file against a simulated GPU, as another library for tensors on the CPU.
#ifndef MUNIT_FAST_SIMULATED
#define MUNIT_FAST_LIBRARY "munit_fast_cuda"
#define MUNIT_FAST_KEY "CUDA"
#else
#define MUNIT_FAST_LIBRARY "munit_fast_simulated"
#define MUNIT_FAST_KEY "CPU"
extern "C" int simulated_device();
#endif

namespace munit_fast::cuda {
namespace {

Number number_of(const Tensor& t) {
  switch (t.type()) {
    case ScalarType::f32: return Number::f32;
    case ScalarType::bf16: return Number::bf16;
    case ScalarType::f16: return Number::f16;
    default: throw std::runtime_error("munit_fast: float32, bfloat16 or float16 is needed");
  }
}

#ifndef MUNIT_FAST_SIMULATED
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) {
    succeed(aoti_torch_create_device_guard(index, &handle_), "choosing a device");
  }
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardOpaque* handle_ = nullptr;
};
#endif

// The device of `x`, for the life of an operation, its current stream, and room from torch's allocator.
class Where {
 public:
  explicit Where(const Tensor& x)
      : x_(x)
#ifndef MUNIT_FAST_SIMULATED
        ,
        guard_(x.device_index()),
        device_(cuda::device(x.device_index()))
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
    succeed(current_stream()(device_.index, &stream), "giving its current stream");
    return static_cast<cudaStream_t>(stream);
#else
    return nullptr;
#endif
  }
  Allocate allocate() {
    return [this](int64_t floats) {
      rooms_.push_back(Tensor::empty(floats, ScalarType::f32, x_));
      return static_cast<float*>(rooms_.back().mutable_data());
    };
  }

 private:
  const Tensor& x_;
#ifndef MUNIT_FAST_SIMULATED
  DeviceGuard guard_;
#endif
  const Device& device_;
  std::vector<Tensor> rooms_;
};

bool channels_last(const Tensor& t) {
  const int64_t *s = t.sizes(), *d = t.strides();
  const int64_t dense[4] = {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  for (int i = 0; i < 4; ++i)
    if (s[i] > 1 && d[i] != dense[i]) return false;
  return true;
}

Parameter parameter(const char* name, const MaybeTensor& t, int64_t samples, int64_t channels) {
  if (!t) return {nullptr, Number::f32, 1, 0};
  const int64_t dim = t->dim();
  const bool per_sample = dim == 2;
  const bool fits = dim == 1 || (per_sample && t->sizes()[0] == samples);
  check(fits && t->is_contiguous(), " must be contiguous, [P] or [N, P]", name);
  const int64_t entries = t->sizes()[dim - 1];
  check(entries > 0 && channels % entries == 0, " must have a number of entries that divides the channels", name);
  return {t->data(), number_of(*t), static_cast<int>(entries), per_sample ? static_cast<int>(entries) : 0};
}

int64_t result_size(const Epilogue& e) {  // of one sample
  return static_cast<int64_t>(e.result_channels) * (e.rows + 2 * e.pad) * e.result_width;
}

void fill(Epilogue& e, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
          const Tensor& stats, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
          int64_t pad_mode) {
  check(x.dim() == 4 && channels_last(x), "x must be dense and channels_last");
  const int64_t* size = x.sizes();
  check(block > 0 && pad >= 0 && size[1] % (block * block) == 0, "block² must divide the channels");
  e.norm = static_cast<Norm>(norm), e.act = static_cast<Act>(act), e.pad_mode = static_cast<PadMode>(pad_mode);
  e.eps = static_cast<float>(eps), e.slope = static_cast<float>(slope);
  constexpr int64_t most = 1 << 30;  // offsets inside a sample are 32-bit
  check(size[1] * size[2] * size[3] <= most && block < 256 && pad < 65536, "a sample must have at most 2^30 elements");
  e.set_sizes(static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2]),
              static_cast<int>(size[3]), static_cast<int>(block), static_cast<int>(pad));
  check(result_size(e) <= most, "a sample must have at most 2^30 elements, padding included");
  e.weight = parameter("weight", weight, e.n, e.c), e.bias = parameter("bias", bias, e.n, e.c);
  e.slopes = parameter("slope", slopes, e.n, e.c);
  const int64_t rows = e.norm == Norm::none ? 0 : e.norm == Norm::instance ? static_cast<int64_t>(e.n) * e.c : e.n;
  check(stats.is_contiguous() && stats.type() == ScalarType::f32 && stats.numel() == 2 * rows,
        "stats must be float32 [2, R]");
  e.x = x.data();
  e.stats = static_cast<float*>(stats.mutable_data());
}

void check_result(const Epilogue& e, const Tensor& y, const Tensor& x) {
  check(y.dim() == 4 && y.type() == x.type() && channels_last(y) && y.numel() == e.n * result_size(e),
        "the result or its gradient has another dtype, size or layout");
}

void check_like(const MaybeTensor& t, const Tensor& x) {
  check(!t || (t->type() == x.type() && t->dim() == 4 && t->numel() == x.numel() && channels_last(*t)),
        "gradients must be like x");
}

void point_to_residual(Forward& f, const MaybeTensor& residual, const Tensor& x) {
  if (!residual) return;
  const int64_t *size = residual->sizes(), *expected = x.sizes(), *step = residual->strides();
  bool fits = residual->dim() == 4 && residual->type() == x.type();
  for (int i = 0; fits && i < 4; ++i) fits = size[i] == expected[i];
  fits = fits && (f.w == 1 || step[3] == f.c) && (f.c == 1 || step[1] == 1) && step[2] * f.h < int64_t{1} << 31;
  check(fits, "residual must be like x, with dense rows");
  f.residual = residual->data();
  f.residual_image = step[0], f.residual_row = static_cast<int>(step[2]);
}

void epilogue_forward_op(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                         const MaybeTensor& slopes, const MaybeTensor& residual, const Tensor& y, const Tensor& stats,
                         bool has_statistics, int64_t norm, double eps, int64_t act, double slope, int64_t block,
                         int64_t pad, int64_t pad_mode, int64_t way) {
  Forward f{};
  fill(f, x, weight, bias, slopes, stats, norm, eps, act, slope, block, pad, pad_mode);
  check_result(f, y, x);
  if (x.numel() == 0) return;
  point_to_residual(f, residual, x);
  f.y = y.mutable_data();
  Where where(x);
  epilogue_forward(where.device(), where.stream(), number_of(x), f, has_statistics, static_cast<Way>(way),
                   where.allocate());
}

void epilogue_backward_op(const Tensor& grad, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                          const MaybeTensor& slopes, const Tensor& stats, const MaybeTensor& grad_x,
                          const MaybeTensor& grad_residual, const MaybeTensor& sums, int64_t norm, double eps,
                          int64_t act, double slope, int64_t block, int64_t pad, int64_t pad_mode, int64_t way) {
  Backward b{};
  fill(b, x, weight, bias, slopes, stats, norm, eps, act, slope, block, pad, pad_mode);
  check_result(b, grad, x);
  check_like(grad_x, x);
  check_like(grad_residual, x);
  check(!sums || (sums->is_contiguous() && sums->type() == ScalarType::f32 && sums->numel() == 3LL * b.n * b.c),
        "sums must be float32 [3, N, C]");
  if (x.numel() == 0) return;
  b.grad = grad.data();
  b.grad_x = mutable_data(grad_x), b.grad_residual = mutable_data(grad_residual);
  b.sums = static_cast<float*>(mutable_data(sums));
  Where where(x);
  epilogue_backward(where.device(), where.stream(), number_of(x), b, static_cast<Way>(way), where.allocate());
}

// first, second: at most max_tensors; second empty: least squares. In the lists of gradients an empty tensor of one
// dimension stands for one that is not wanted; the lists may be empty.
void losses_op(const std::vector<Tensor>& first, const std::vector<Tensor>& second, double target,
               const MaybeTensor& grad, const std::vector<Tensor>& grad_first, const std::vector<Tensor>& grad_second,
               const MaybeTensor& value) {
  LossLaunch l{};
  l.count = static_cast<int>(first.size());
  check(l.count >= 1 && l.count <= max_tensors && (second.empty() || second.size() == first.size()),
        "one to eight tensors, or pairs");
  l.per_group = second.empty() ? l.count : 1;
  l.target = static_cast<float>(target);
  const int64_t groups = l.count / l.per_group;
  auto wanted = [&](const std::vector<Tensor>& list, int i) -> void* {
    if (list.empty() || (list[i].dim() == 1 && list[i].numel() == 0)) return nullptr;
    check(list[i].numel() == first[i].numel() && list[i].type() == first[i].type(),
          "a gradient must be like its tensor");
    return list[i].mutable_data();
  };
  for (int i = 0; i < l.count; ++i) {
    check(first[i].type() == first[0].type() &&
              (second.empty() || (second[i].numel() == first[i].numel() && second[i].type() == first[i].type())),
          "the tensors of a pair differ");
    l.size[i] = first[i].numel();
    l.first[i] = first[i].data();
    l.second[i] = second.empty() ? nullptr : second[i].data();
    l.grad_first[i] = wanted(grad_first, i), l.grad_second[i] = wanted(grad_second, i);
  }
  auto is_list = [&](const MaybeTensor& t) {
    return !t || (t->is_contiguous() && t->type() == ScalarType::f32 && t->numel() == groups);
  };
  check(is_list(grad) && is_list(value), "grad and value must be float32, one for each group");
  l.grad = static_cast<const float*>(data(grad));
  l.value = static_cast<float*>(mutable_data(value));
  Where where(first[0]);
  losses(where.device(), where.stream(), number_of(first[0]), l, where.allocate());
}

}  // namespace

void register_operators() {
  Library m(MUNIT_FAST_LIBRARY);
  m.define(
      "epilogue_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor? residual, Tensor(a!) y, "
      "Tensor(b!) stats, bool has_statistics, int norm, float eps, int act, float slope, int block, int pad, "
      "int pad_mode, int way) -> ()");
  m.define(
      "epilogue_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor stats, "
      "Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? sums, int norm, float eps, int act, float slope, "
      "int block, int pad, int pad_mode, int way) -> ()");
  m.define(
      "losses(Tensor[] first, Tensor[] second, float target, Tensor? grad, Tensor(a!)[] grad_first, "
      "Tensor(b!)[] grad_second, Tensor(c!)? value) -> ()");

  Library on_device(MUNIT_FAST_LIBRARY, MUNIT_FAST_KEY);
  on_device.implement<&epilogue_forward_op>("epilogue_forward");
  on_device.implement<&epilogue_backward_op>("epilogue_backward");
  on_device.implement<&losses_op>("losses");
}

#ifdef MUNIT_FAST_SIMULATED
const bool registered = (register_operators(), true);
#endif

}  // namespace munit_fast::cuda
