// The CUDA kernels as torch operators, torch.ops.munit_fast_cuda. They load beside a torch without CUDA too, since what
// they need of that is looked up when a tensor on a GPU arrives.
#include <algorithm>
#include <vector>

#include "../common/epilogue.h"
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

Dtype check_served(Dtype dtype) {
  const bool served = dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16;
  check(served, "float32, bfloat16 or float16 is needed");
  return dtype;
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
class LaunchContext {
 public:
  explicit LaunchContext(const Tensor& x)
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
      rooms_.push_back(Tensor::empty(floats, Dtype::f32, x_));
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

ChannelParam narrow(const munit_fast::ChannelParam& p) {
  return {p.data, check_served(p.dtype), static_cast<int>(p.entries), static_cast<int>(p.per_sample)};
}

// The kernels' parameters; throws where a sample has more elements than 32-bit offsets reach.
template <class Params> Params params_of(const EpilogueArgs& a) {
  constexpr int64_t most = 1 << 30;
  check_served(a.dtype);
  check(a.c * a.h * a.w <= most && a.block < 256 && a.pad < 65536, "a sample must have at most 2^30 elements");
  check(a.result_c * a.result_h * a.result_w <= most, "a sample must have at most 2^30 elements, padding included");
  Params params{};
  EpilogueParams& e = params;
  e.norm = a.norm, e.act = a.act, e.pad_mode = a.pad_mode;
  e.eps = static_cast<float>(a.eps), e.slope = static_cast<float>(a.slope);
  e.n = static_cast<int>(a.n), e.c = static_cast<int>(a.c), e.h = static_cast<int>(a.h), e.w = static_cast<int>(a.w);
  e.block = static_cast<int>(a.block), e.pad = static_cast<int>(a.pad);
  e.groups = static_cast<int>(a.groups);
  e.result_channels = static_cast<int>(a.result_c), e.result_width = static_cast<int>(a.result_w);
  e.rows = e.block * e.h, e.columns = e.block * e.w;
  e.weight = narrow(a.weight), e.bias = narrow(a.bias), e.slopes = narrow(a.slopes);
  e.x = a.x.data();
  e.stats = static_cast<float*>(a.stats);
  return params;
}

struct Cuda {
  using Option = int64_t;  // a Way
  static constexpr const char* option = "int way";
  static bool channels_last(Option) { return true; }

  static void forward(const ForwardArgs& a, Option way) {
    ForwardParams f = params_of<ForwardParams>(a);
    if (a.x.numel() == 0) return;
    if (a.residual) {
      const int64_t* step = a.residual->strides();
      check(step[2] * a.h < int64_t{1} << 31, "residual must be like x, with dense rows");
      f.residual = a.residual->data();
      f.residual_image = step[0], f.residual_row = static_cast<int>(step[2]);
    }
    f.y = a.y.mutable_data();
    LaunchContext context(a.x);
    epilogue_forward(context.device(), context.stream(), a.dtype, f, a.has_statistics, static_cast<Way>(way),
                     context.allocate());
  }

  static void backward(const BackwardArgs& a, Option way) {
    BackwardParams b = params_of<BackwardParams>(a);
    if (a.x.numel() == 0) return;
    b.grad = a.grad.data();
    b.grad_x = mutable_data(a.grad_x), b.grad_residual = mutable_data(a.grad_residual);
    b.sums = static_cast<float*>(mutable_data(a.sums));
    LaunchContext context(a.x);
    epilogue_backward(context.device(), context.stream(), a.dtype, b, static_cast<Way>(way), context.allocate());
  }
};

// first, second: at most max_tensors; second empty: least squares. In the lists of gradients an empty tensor of one
// dimension stands for one that is not wanted; the lists may be empty.
void losses_of_lists(const std::vector<Tensor>& first, const std::vector<Tensor>& second, double target,
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
    check(same_size_and_dtype(list[i], first[i]), "a gradient must be like its tensor");
    return list[i].mutable_data();
  };
  for (int i = 0; i < l.count; ++i) {
    check(first[i].dtype() == first[0].dtype() && (second.empty() || same_size_and_dtype(first[i], second[i])),
          "the tensors of a pair differ");
    l.size[i] = first[i].numel();
    l.first[i] = first[i].data();
    l.second[i] = second.empty() ? nullptr : second[i].data();
    l.grad_first[i] = wanted(grad_first, i), l.grad_second[i] = wanted(grad_second, i);
  }
  auto is_list = [&](const MaybeTensor& t) {
    return !t || (t->is_contiguous() && t->dtype() == Dtype::f32 && t->numel() == groups);
  };
  check(is_list(grad) && is_list(value), "grad and value must be float32, one for each group");
  l.grad = static_cast<const float*>(data(grad));
  l.value = static_cast<float*>(mutable_data(value));
  const Dtype dtype = check_served(first[0].dtype());
  LaunchContext context(first[0]);
  losses(context.device(), context.stream(), dtype, l, context.allocate());
}

PhaseBorderParams border_params(const Tensor& of_result, const Tensor& a, const Tensor& weight) {
  constexpr int64_t most = 1 << 30;
  check(of_result.dim() == 4 && a.dim() == 4 && weight.dim() == 4, "tensors of four dimensions are needed");
  const int64_t *size = a.sizes(), *kernel = weight.sizes(), *result = of_result.sizes();
  const int64_t n = size[0], c = size[1], h = size[2] - 2, w = size[3] - 2, o = kernel[0];
  check(h >= 2 && w >= 2 && kernel[1] == c && kernel[2] == 5 && kernel[3] == 5 && result[0] == n &&
            result[1] == 4 * o && result[2] == h && result[3] == w,
        "[n, 4·o, h, w], [n, c, h + 2, w + 2] and [o, c, 5, 5] are needed");
  check(a.numel() <= n * most && of_result.numel() <= n * most, "a sample must have at most 2^30 elements");
  const Dtype dtype = check_served(a.dtype());
  check(of_result.dtype() == dtype && (weight.dtype() == dtype || weight.dtype() == Dtype::f32),
        "one dtype is needed, of the weight float32 or the same");
  PhaseBorderParams p{a.data(), weight.data(), {}, weight.dtype(), 0, 0, 0, 0, 0};
  std::copy_n(weight.strides(), 4, p.weight_strides);
  p.n = static_cast<int>(n), p.h = static_cast<int>(h), p.w = static_cast<int>(w);
  p.c = static_cast<int>(c), p.o = static_cast<int>(o);
  return p;
}

// All but the weight dense and channels_last, as `munit_fast.ops.phase_border` has checked.
void border_forward(const Tensor& y, const Tensor& a, const Tensor& weight) {
  const PhaseBorderLaunch l{border_params(y, a, weight), y.mutable_data(), 0};
  const LaunchContext context(a);
  phase_border(context.stream(), a.dtype(), l);
}

void border_backward(const Tensor& grad, const Tensor& a, const Tensor& weight, const MaybeTensor& grad_a,
                     const MaybeTensor& grad_weight) {
  PhaseBorderBackwardLaunch l{border_params(grad, a, weight), grad.data(), nullptr, nullptr, {}, 0, 0, 0};
  if (grad_a) {
    check(same_size_and_dtype(*grad_a, a), "a gradient must be like its tensor");
    l.grad_a = grad_a->mutable_data();
  }
  if (grad_weight) {
    check(same_size_and_dtype(*grad_weight, weight) && grad_weight->dim() == 4, "a gradient must be like its tensor");
    l.grad_weight = grad_weight->mutable_data();
    std::copy_n(grad_weight->strides(), 4, l.grad_weight_strides);
  }
  const LaunchContext context(a);
  phase_border_backward(context.stream(), a.dtype(), l);
}

}  // namespace

void register_operators() {
  Library m(MUNIT_FAST_LIBRARY);
  EpilogueOperators<Cuda>::define(m);
  m.define(
      "losses(Tensor[] first, Tensor[] second, float target, Tensor? grad, Tensor(a!)[] grad_first, "
      "Tensor(b!)[] grad_second, Tensor(c!)? value) -> ()");
  m.define("phase_border(Tensor(a!) y, Tensor a, Tensor weight) -> ()");
  m.define(
      "phase_border_backward(Tensor grad, Tensor a, Tensor weight, Tensor(a!)? grad_a, Tensor(b!)? grad_weight) -> ()");

  Library on_device(MUNIT_FAST_LIBRARY, MUNIT_FAST_KEY);
  EpilogueOperators<Cuda>::implement(on_device);
  on_device.implement<&losses_of_lists>("losses");
  on_device.implement<&border_forward>("phase_border");
  on_device.implement<&border_backward>("phase_border_backward");
}

#ifdef MUNIT_FAST_SIMULATED
const bool registered = (register_operators(), true);
#endif

}  // namespace munit_fast::cuda
