// Winograd's convolutions (Lavin & Gray 2016) of channels_last tensors: 3×3 of stride 1 by F43 or F23, and 4×4 of stride 2
// as four 2×2 ones by F42. Inside, everything is float.
//
// A result is computed by tiles of m × m pixels: input transform to V [n²][channel / width][tile][width], for each of the
// n² frequencies a matrix product with the transformed weights U, giving M [n²][tile][K], output transform. A few dozen
// tiles at a time, so that V and M stay in the caches. The sums over the channels run in the channels' order, and units
// of tiles depend on the sizes alone: the bits depend neither on the threads nor on how tiles share a block.

constexpr int64_t block_tiles = 64;      // 28 … 128 measure alike; fewer read U too often
constexpr int64_t gradient_tiles = 128;  // of a block of the weight gradient
constexpr int64_t strip_entries = 98304; // of the rows that a tile row reads
constexpr int64_t skew = 5 * width<float>;  // between frequencies: powers of two would meet in the same cache sets

#include "winograd_weights.inl"
#include "winograd_conv.inl"
#include "winograd_gradient.inl"

#define MUNIT_FAST_BY_FLOAT(function, plan, arguments)                  \
  switch (arguments.dtype) {                                            \
    case Dtype::bf16: return function<plan, bf16>(arguments);           \
    case Dtype::f16: return function<plan, f16>(arguments);             \
    default: return function<plan, float>(arguments);                   \
  }
#define MUNIT_FAST_BY_PLAN(function, arguments)                              \
  switch (arguments.plan) {                                                  \
    case WinogradPlan::f43: MUNIT_FAST_BY_FLOAT(function, F43, arguments)    \
    case WinogradPlan::f23: MUNIT_FAST_BY_FLOAT(function, F23, arguments)    \
    default: MUNIT_FAST_BY_FLOAT(function, F42, arguments)                   \
  }

void winograd_conv(const WinogradConv& a) { MUNIT_FAST_BY_PLAN(conv_of, a) }
void winograd_weight_gradient(const WinogradWeightGradient& a) { MUNIT_FAST_BY_PLAN(weight_gradient_of, a) }
void winograd_weights(const WinogradWeights& a) {
  switch (a.plan) {
    case WinogradPlan::f43: return weights_of<F43>(a);
    case WinogradPlan::f23: return weights_of<F23>(a);
    default: return weights_of<F42>(a);
  }
}
