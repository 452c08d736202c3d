// The convolutions of the CPU kernels as torch operators; registered by ops.cpp.
#include <algorithm>
#include <string>
#include <vector>

#include "arena.h"
#include "arguments.h"

namespace munit_fast::cpu {
namespace {

constexpr int64_t large_convolution = 2 << 20;  // whose weights fill the caches

constexpr int64_t plan_inputs[] = {6, 4, 5}, plan_taps[] = {3, 3, 2};  // n and r, by WinogradPlan

WinogradPlan plan_of(int64_t code) { return enum_of<WinogradPlan>("plan", code, winograd_plan_names); }
int64_t phases_of(WinogradPlan plan) { return plan == WinogradPlan::f42 ? 4 : 1; }

// Entries of the transformed weights [n² + 1][rows][columns]; see winograd_weights.inl.
int64_t transformed_size(int64_t k, int64_t c, WinogradPlan plan, bool transposed) {
  const int64_t w = active().vector_floats, n = plan_inputs[static_cast<int>(plan)], phases = phases_of(plan);
  const auto whole = [w](int64_t entries) { return (entries + w - 1) / w * w; };
  const int64_t rows = transposed ? k : phases == 1 ? c : phases * whole(c);
  return (n * n + 1) * (rows * whole(transposed ? phases * c : k) + 5 * w);  // frequency_size there
}

void check_served() { check(active().winograd_conv, "this instruction set has no Winograd convolutions"); }

// [k, c, side, side], in any layout.
void check_weight(const Tensor& weight, WinogradPlan plan) {
  const int64_t side = plan == WinogradPlan::f42 ? 4 : 3;
  check(weight.dim() == 4 && weight.dtype() == Dtype::f32 && weight.sizes()[2] == side && weight.sizes()[3] == side &&
            weight.sizes()[0] > 0 && weight.sizes()[1] > 0,
        "the weight must be float32 and [K, C, 3, 3], or 4×4 for f42");
}

bool is_channels_last(const Tensor& t, Dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
  if (t.dim() != 4 || t.dtype() != dtype) return false;
  const int64_t* s = t.sizes();
  return s[0] == n && s[1] == c && s[2] == h && s[3] == w && is_dense(t, true);
}

template <class Params> struct ConvCall : Call<Params> {
  explicit ConvCall(const EpilogueArgs& a) : Call<Params>(a) {
    check_served();
    check(a.dtype != Dtype::f64, "float64 is convolved directly");
    check(a.result_c > 0, "a convolution needs channels");
    WinogradInput& e = this->params;
    e.plain = a.norm == Norm::none && a.act == Act::none && !a.weight.data && !a.bias.data;
  }
};

WinogradWeights weights_of(const Tensor& weight, WinogradPlan plan, bool transposed) {
  check_weight(weight, plan);
  WinogradWeights a{};
  a.plan = plan, a.transposed = transposed, a.k = weight.sizes()[0], a.c = weight.sizes()[1];
  a.weight = static_cast<const float*>(weight.data());
  std::memcpy(a.step, weight.strides(), sizeof(a.step));
  return a;
}

const float* checked(const Tensor& u, int64_t k, int64_t c, WinogradPlan plan, bool transposed) {
  check(u.dtype() == Dtype::f32 && u.is_contiguous() && u.numel() == transformed_size(k, c, plan, transposed),
        "the transformed weights have another size");
  return static_cast<const float*>(u.data());
}

// What a product carries to its highest bits must come down again, or two changed signs would cancel.
inline uint64_t mix(uint64_t state, uint64_t next) {
  state = (state ^ next) * 0x9e3779b97f4a7c15u;
  return state ^ (state >> 32);
}

// A number that other contents of the same memory would not give, but by chance once in 2^64.
int64_t fingerprint(const Tensor& t) {
  check(t.dtype() == Dtype::f32 && t.is_contiguous(), "a contiguous float32 tensor is needed");
  constexpr int64_t part = 1 << 18, lanes = 8;  // bytes of a task, and independent states
  struct Context {
    const char* bytes;
    int64_t size;
    uint64_t* states;
  };
  const int64_t size = t.numel() * 4, parts = (size + part - 1) / part;
  std::vector<uint64_t> states(parts);
  Context context{static_cast<const char*>(t.data()), size, states.data()};
  run_tasks(parts, [](int64_t i, void* all) {
    const Context& c = *static_cast<const Context*>(all);
    const int64_t end = std::min(c.size, (i + 1) * part);
    uint64_t state[lanes] = {1, 2, 3, 4, 5, 6, 7, 8};
    const auto take = [&state](const char* bytes) {
      uint64_t words[lanes];
      std::memcpy(words, bytes, sizeof(words));
#pragma GCC unroll 8
      for (int64_t l = 0; l < lanes; ++l) state[l] = mix(state[l], words[l]);
    };
    int64_t at = i * part;
    for (; at + 8 * lanes <= end; at += 8 * lanes) take(c.bytes + at);
    char rest[8 * lanes] = {};
    std::memcpy(rest, c.bytes + at, end - at);
    take(rest);
    uint64_t found = 0;
    for (const uint64_t of_lane : state) found = mix(found, of_lane);
    c.states[i] = found;
  }, &context);
  uint64_t found = static_cast<uint64_t>(size);
  for (const uint64_t of_part : states) found = mix(found, of_part);
  return static_cast<int64_t>(found);
}

void winograd_weights(const Tensor& weight, int64_t plan, const Tensor& u) {
  check_served();
  WinogradWeights a = weights_of(weight, plan_of(plan), false);
  checked(u, a.k, a.c, a.plan, false);
  a.u = static_cast<float*>(u.mutable_data()), a.streams = true;
  active().winograd_weights(a);
}

// For one call: where they are used at once, they stay in the caches.
const float* transform(const Tensor& weight, WinogradPlan plan, bool transposed) {
  thread_local Arena arena;
  WinogradWeights a = weights_of(weight, plan, transposed);
  a.u = arena.of(transformed_size(a.k, a.c, plan, transposed));
  active().winograd_weights(a);
  return a.u;
}

void winograd_conv(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
                   const Tensor& stats, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
                   int64_t pad_mode, int64_t groups, int64_t plan, bool transposed, const Tensor& conv_weight,
                   const MaybeTensor& u, const MaybeTensor& conv_bias, int64_t fold, int64_t fold_mode,
                   const MaybeTensor& add, const Tensor& y, int64_t y_norm, const MaybeTensor& y_stats) {
  const EpilogueArgs args{x, weight, bias, slopes, stats, {norm, eps, act, slope, block, pad, pad_mode, groups}, true};
  ConvCall<WinogradConv> call(args);
  WinogradConv& a = call.params;
  a.plan = plan_of(plan);
  check(y.dim() == 4, "y must have four dimensions");
  a.transposed = transposed, a.k = y.sizes()[1], a.fold = fold;
  a.fold_mode = enum_of<PadMode>("fold_mode", fold_mode, pad_mode_names);
  // A tile must hold a padding's pixel together with the one that it was read from.
  check(fold == 0 || (fold == 1 && transposed && a.plan != WinogradPlan::f23 &&
                      (a.plan != WinogradPlan::f42 || a.fold_mode != PadMode::replicate)),
        "fold must be 0, or 1 of a gradient by f43, or by f42 if its padding is not replicated");
  const int64_t taps = plan_taps[static_cast<int>(a.plan)], step = a.plan == WinogradPlan::f42 ? 2 : 1;
  a.rows = y.sizes()[2] + 2 * fold, a.columns = y.sizes()[3] + 2 * fold;
  check(is_channels_last(y, args.dtype, args.n, a.k, y.sizes()[2], y.sizes()[3]), "y must be channels_last, like x");
  if (transposed) {
    // Padded by zeros, the gradient gives taps - 1 more rows than it has; of a stride those of both parities.
    check(pad == taps - 1 && args.pad_mode == PadMode::zero && block == 1, "a gradient is padded by its kernel's zeros");
    check(a.rows <= step * (args.h + pad) + step - 1 && a.columns <= step * (args.w + pad) + step - 1,
          "y is larger than the convolution's input");
    check(fold == 0 || (a.rows >= 7 * step && a.columns >= 7 * step), "y is too small to fold its padding");
  } else {
    const int64_t side = taps * step;
    check(a.rows == (args.result_h - side) / step + 1 && a.columns == (args.result_w - side) / step + 1 &&
              args.result_h >= side && args.result_w >= side,
          "y has another size than the convolution's result");
  }
  check_weight(conv_weight, a.plan);
  const int64_t k = transposed ? args.result_c : a.k, c = transposed ? a.k : args.result_c;
  check(conv_weight.sizes()[0] == k && conv_weight.sizes()[1] == c, "the weight has other numbers of channels");
  if (conv_bias) {
    check(!transposed && conv_bias->dtype() == Dtype::f32 && conv_bias->is_contiguous() && conv_bias->numel() == a.k,
          "the bias must be float32 [K]");
    a.bias = static_cast<const float*>(conv_bias->data());
  }
  if (add) {
    check(is_channels_last(*add, args.dtype, args.n, a.k, y.sizes()[2], y.sizes()[3]), "what is added must be like y");
    a.add = add->data();
  }
  a.y = y.mutable_data(), a.streams = y.numel() * (args.dtype == Dtype::f32 ? 4 : 2) >= large_convolution;
  a.y_norm = enum_of<Norm>("y_norm", y_norm, norm_names);
  if (y_stats) {
    check(!transposed && (a.y_norm == Norm::instance || a.y_norm == Norm::layer),
          "y_norm must be instance or layer, and no gradient has statistics");
    check(args.is_accumulator(*y_stats, 2 * stats_columns(a.y_norm, args.n, a.k)),
          "y_stats must be [2, R] in float32");
    a.y_stats = y_stats->mutable_data();
  }
  if (y.numel() == 0) return;
  a.u = u ? checked(*u, k, c, a.plan, transposed) : transform(conv_weight, a.plan, transposed);
  active().winograd_conv(a);
}

void winograd_weight_gradient(const Tensor& grad, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                              const MaybeTensor& slopes, const Tensor& stats, int64_t norm, double eps, int64_t act,
                              double slope, int64_t block, int64_t pad, int64_t pad_mode, int64_t groups, int64_t plan,
                              const Tensor& grad_weight) {
  const EpilogueArgs args{x, weight, bias, slopes, stats, {norm, eps, act, slope, block, pad, pad_mode, groups}, true};
  ConvCall<WinogradWeightGradient> call(args);
  WinogradWeightGradient& a = call.params;
  a.plan = plan_of(plan);
  check_weight(grad_weight, a.plan);
  a.k = grad_weight.sizes()[0];
  const int64_t step = a.plan == WinogradPlan::f42 ? 2 : 1, side = a.plan == WinogradPlan::f42 ? 4 : 3;
  check(grad_weight.sizes()[1] == args.result_c, "the gradient of the weight has another number of channels");
  check(args.result_h >= side && args.result_w >= side, "x is smaller than the kernel");
  a.rows = (args.result_h - side) / step + 1, a.columns = (args.result_w - side) / step + 1;
  check(is_channels_last(grad, args.dtype, args.n, a.k, a.rows, a.columns), "grad must be like the result");
  a.grad = grad.data(), a.grad_weight = static_cast<float*>(grad_weight.mutable_data());
  std::memcpy(a.step, grad_weight.strides(), sizeof(a.step));
  active().winograd_weight_gradient(a);
}

// Of the border of an upsampling convolution: its 5×5 kernel, and its result or that one's gradient.
void describe_border(const EpilogueArgs& args, PhaseBorder& a, const Tensor& weight, const Tensor& y) {
  check(args.pad == 0 && args.result_h > 1 && args.result_w > 1, "a border has no padding, and two pixels a side");
  check(weight.dim() == 4 && weight.dtype() == Dtype::f32 && weight.sizes()[1] == args.result_c &&
            weight.sizes()[2] == 5 && weight.sizes()[3] == 5 && weight.sizes()[0] > 0,
        "the weight must be float32 and [O, C, 5, 5]");
  a.o = weight.sizes()[0], a.weight = static_cast<const float*>(weight.data());
  std::memcpy(a.step, weight.strides(), sizeof(a.step));
  check(is_channels_last(y, args.dtype, args.n, 4 * a.o, args.result_h, args.result_w),
        "the result, or its gradient, must be [N, 4·O, H, W], channels_last, like x");
}

void phase_border(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& slopes,
                  const Tensor& stats, int64_t norm, double eps, int64_t act, double slope, int64_t block, int64_t pad,
                  int64_t pad_mode, int64_t groups, const Tensor& border_weight, const Tensor& y) {
  const EpilogueArgs args{x, weight, bias, slopes, stats, {norm, eps, act, slope, block, pad, pad_mode, groups}, true};
  ConvCall<PhaseBorder> call(args);
  describe_border(args, call.params, border_weight, y);
  call.params.y = y.mutable_data();
  active().phase_border(call.params);
}

void phase_border_backward(const Tensor& grad, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                           const MaybeTensor& slopes, const Tensor& stats, int64_t norm, double eps, int64_t act,
                           double slope, int64_t block, int64_t pad, int64_t pad_mode, int64_t groups,
                           const Tensor& border_weight, const MaybeTensor& grad_x, const MaybeTensor& grad_weight) {
  const EpilogueArgs args{x, weight, bias, slopes, stats, {norm, eps, act, slope, block, pad, pad_mode, groups}, true};
  ConvCall<PhaseBorder> call(args);
  PhaseBorder& a = call.params;
  describe_border(args, a, border_weight, grad);
  check(!grad_x || is_channels_last(*grad_x, args.dtype, args.n, args.result_c, args.result_h, args.result_w),
        "the gradient of the input must be like it, channels_last");
  check(!grad_weight || (grad_weight->dtype() == Dtype::f32 && grad_weight->dim() == 4 &&
                         std::equal(grad_weight->sizes(), grad_weight->sizes() + 4, border_weight.sizes()) &&
                         std::equal(grad_weight->strides(), grad_weight->strides() + 4, border_weight.strides())),
        "the gradient of the weight must be like it");
  a.grad = grad.data(), a.grad_x = mutable_data(grad_x);
  a.grad_weight = static_cast<float*>(mutable_data(grad_weight));
  active().phase_border_backward(a);
}

void narrow_weight_gradient(const Tensor& grad, const Tensor& x, int64_t stride, const Tensor& grad_weight) {
  check(active().narrow_gradient, "this instruction set has no gradient of narrow convolutions");
  check(grad_weight.dim() == 4 && grad.dim() == 4 && x.dim() == 4, "tensors of four dimensions are needed");
  const int64_t *size = grad_weight.sizes(), *of_x = x.sizes();
  NarrowGradient a{};
  a.kernel = size[2], a.stride = stride, a.of_input = size[1] <= size[0], a.n = of_x[0];
  check(grad_weight.dtype() == Dtype::f32 && size[3] == a.kernel && a.kernel > 0 && stride > 0,
        "a square float32 kernel is needed");
  check(a.of_input || stride == 1, "a stride is served of few input channels only");
  check(of_x[2] >= a.kernel && of_x[3] >= a.kernel &&
            is_channels_last(x, Dtype::f32, a.n, size[1], of_x[2], of_x[3]) &&
            is_channels_last(grad, Dtype::f32, a.n, size[0], (of_x[2] - a.kernel) / stride + 1,
                             (of_x[3] - a.kernel) / stride + 1),
        "x and grad must be float32, channels_last and of the convolution's sizes");
  const Tensor &narrow = a.of_input ? x : grad, &wide = a.of_input ? grad : x;
  a.narrow = static_cast<const float*>(narrow.data()), a.wide = static_cast<const float*>(wide.data());
  a.narrow_channels = narrow.sizes()[1], a.narrow_rows = narrow.sizes()[2], a.narrow_columns = narrow.sizes()[3];
  a.wide_channels = wide.sizes()[1], a.wide_rows = wide.sizes()[2], a.wide_columns = wide.sizes()[3];
  a.grad_weight = static_cast<float*>(grad_weight.mutable_data());
  std::memcpy(a.step, grad_weight.strides(), sizeof(a.step));
  active().narrow_gradient(a);
}

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

void define_convolutions(Library& m) {
  const std::string input =
      "Tensor x, Tensor? weight, Tensor? bias, Tensor? slopes, Tensor stats, int norm, float eps, int act, float slope, "
      "int block, int pad, int pad_mode, int groups, ";
  m.define(("winograd_conv(" + input + "int plan, bool transposed, Tensor conv_weight, Tensor? u, Tensor? conv_bias, "
            "int fold, int fold_mode, Tensor? add, Tensor(a!) y, int y_norm, Tensor(b!)? y_stats) -> ()").c_str());
  m.define(("winograd_weight_gradient(Tensor grad, " + input + "int plan, Tensor(a!) grad_weight) -> ()").c_str());
  m.define(("phase_border(" + input + "Tensor border_weight, Tensor(a!) y) -> ()").c_str());
  m.define(("phase_border_backward(Tensor grad, " + input + "Tensor border_weight, Tensor(a!)? grad_x, "
            "Tensor(b!)? grad_weight) -> ()").c_str());
  m.define("winograd_weights(Tensor weight, int plan, Tensor(a!) u) -> ()");
  m.define("fingerprint(Tensor t) -> int");
  m.define("narrow_weight_gradient(Tensor grad, Tensor x, int stride, Tensor(a!) grad_weight) -> ()");
  m.define("add_columns(Tensor columns, Tensor? bias, int kernel, Tensor(a!) y) -> ()");
}

void implement_convolutions(Library& on_cpu) {
  on_cpu.implement<&winograd_conv>("winograd_conv");
  on_cpu.implement<&winograd_weight_gradient>("winograd_weight_gradient");
  on_cpu.implement<&phase_border>("phase_border");
  on_cpu.implement<&phase_border_backward>("phase_border_backward");
  on_cpu.implement<&winograd_weights>("winograd_weights");
  on_cpu.implement<&fingerprint>("fingerprint");
  on_cpu.implement<&narrow_weight_gradient>("narrow_weight_gradient");
  on_cpu.implement<&add_columns>("add_columns");
}

}  // namespace munit_fast::cpu
