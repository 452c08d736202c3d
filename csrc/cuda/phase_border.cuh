// The border of a phase convolution behind reflection padding, forward and backward, in one launch each; the formulas
// are those of munit_fast/ops/upsample_conv.py. What the two outermost lines of the large image lack lies along one line
// of each side: the pixels of the second line minus those of the first, doubled. Sides are numbered top, bottom, left,
// right; a place of a side's line is a pixel of the large image, from 0 to 2·length - 1, and reads the doubled line at
// places x to x + 4. Every element of a result is written by one block, which adds all sides that reach it.
#pragma once

#include "epilogue_common.cuh"

namespace munit_fast::cuda {

// A side's line: its pixels, and the pixels across it.
struct SideLine {
  bool row, last;
  int length, across;
  __device__ SideLine(const PhaseBorderParams& p, int side)
      : row(side < 2), last(side % 2), length(row ? p.w : p.h), across(row ? p.h : p.w) {}

  // Where place x lies in a sample of the result [h, w, 4·o].
  __device__ int64_t of_result(const PhaseBorderParams& p, int x) const {
    const int across_at = last ? across - 1 : 0;
    const int pixel = row ? across_at * p.w + x / 2 : x / 2 * p.w + across_at;
    const int phase = row ? 2 * last + x % 2 : x % 2 * 2 + last;
    return (static_cast<int64_t>(4) * pixel + phase) * p.o;
  }

  // The doubled line at place t, of channel c; a: a sample of the input [h + 2, w + 2, c].
  template <class T> __device__ float at(const PhaseBorderParams& p, const T* a, int t, int c) const {
    int pixel = t / 2;
    // Pixels -1 and 2·length mirror into the pixels that replication gives, -2 and 2·length + 1 do not.
    if (row && t == 0) pixel = 2;
    if (row && t == 2 * length + 3) pixel = length - 1;
    const int outer = last ? across : 1, inner = last ? across - 1 : 2;
    const int64_t line = row ? p.w + 2 : 1, step = row ? 1 : p.w + 2;
    return number(a, (inner * line + pixel * step) * p.c + c) - number(a, (outer * line + pixel * step) * p.c + c);
  }

  // Where tap k of the kernel line that it reads lies in a kernel with these strides.
  __device__ int64_t tap(const int64_t (&strides)[4], int k) const {
    const int fixed = last ? 4 : 0;
    return row ? fixed * strides[2] + k * strides[3] : k * strides[2] + fixed * strides[3];
  }

  template <class T> __device__ static float number(const T* from, int64_t at) {
    float value[1];
    load<T, 1>(from, at).get(value);
    return value[0];
  }
};

template <class T> __device__ inline void add_number(T* to, int64_t at, float value) {
  const float sum[1] = {SideLine::number(to, at) + value};
  Pack<T, 1> packed;
  packed.set(sum);
  store<T, 1>(to, at, packed);
}

__device__ inline float kernel_number(const PhaseBorderParams& p, int64_t at) {
  if (p.weight_dtype == Dtype::f32) return static_cast<const float*>(p.weight)[at];
  if (p.weight_dtype == Dtype::bf16) return SideLine::number(static_cast<const bf16*>(p.weight), at);
  return SideLine::number(static_cast<const f16*>(p.weight), at);
}

// A product of two matrices, [border_tile][border_tile] of it in the registers of a block: thread (i, j) has column j of
// rows i, i + 8, i + 16, i + 24. The factors come through shared memory, border_tile terms of the sums at a time.
struct BorderProduct {
  float (*left)[border_tile + 1];   // [term][row]
  float (*right)[border_tile + 1];  // [term][column]
  float sum[border_tile / border_rows] = {};

  __device__ explicit BorderProduct(unsigned char* shared)
      : left(reinterpret_cast<float (*)[border_tile + 1]>(shared)), right(left + border_tile) {}

  __device__ static int column() { return threadIdx.x % border_tile; }
  __device__ static int row(int i) { return threadIdx.x / border_tile + border_rows * i; }

  // Adds a step's terms: left_at(term, row) · right_at(term, column). Neighbouring threads read neighbouring terms of the
  // factor that `terms_of_left` (or right) says has them side by side in memory, else neighbouring rows (or columns).
  template <bool terms_of_left, bool terms_of_right, class Left, class Right>
  __device__ void add(const Left& left_at, const Right& right_at) {
    for (int i = threadIdx.x; i < border_tile * border_tile; i += threads) {
      const int fast = i % border_tile, slow = i / border_tile;
      if constexpr (terms_of_left) left[fast][slow] = left_at(fast, slow);
      else left[slow][fast] = left_at(slow, fast);
      if constexpr (terms_of_right) right[fast][slow] = right_at(fast, slow);
      else right[slow][fast] = right_at(slow, fast);
    }
    __syncthreads();
#pragma unroll 8
    for (int term = 0; term < border_tile; ++term) {
      const float factor = right[term][column()];
#pragma unroll
      for (int i = 0; i < border_tile / border_rows; ++i) sum[i] += left[term][row(i)] * factor;
    }
    __syncthreads();
  }
};

// Adds what a side gives to place place_of(row) of the result, outputs from `o` on; a place below zero gets nothing.
template <class T, class Place>
__device__ inline void add_side(BorderProduct& product, const PhaseBorderParams& p, const T* a, int side, int o,
                                const Place& place_of) {
  const SideLine line(p, side);
  for (int first = 0; first < p.c; first += border_tile)
    for (int k = 0; k < 5; ++k) {
      const int64_t tap = line.tap(p.weight_strides, k);
      product.add<true, false>(
          [&](int term, int row) {
            const int x = place_of(row), c = first + term;
            return x >= 0 && c < p.c ? line.at(p, a, x + k, c) : 0;
          },
          [&](int term, int column) {
            const int c = first + term;
            if (c >= p.c || o + column >= p.o) return 0.0f;
            return kernel_number(p, (o + column) * p.weight_strides[0] + c * p.weight_strides[1] + tap);
          });
    }
}

// Grid (2 · row_tiles + 2 · tiles of a column, o / border_tile, n). The rows own the corners.
template <class T> __device__ inline void phase_border(const PhaseBorderLaunch& g) {
  DYNAMIC_SHARED(shared);
  const PhaseBorderParams& p = g.p;
  const int tile = blockIdx.x, column_tile = tile - 2 * g.row_tiles;
  const bool of_row = column_tile < 0;
  const int side = of_row ? tile % 2 : 2 + column_tile % 2, o = blockIdx.y * border_tile;
  const int first = (of_row ? tile / 2 : column_tile / 2) * border_tile;
  const SideLine line(p, side);
  const T* a = static_cast<const T*>(p.a) + static_cast<int64_t>(blockIdx.z) * (p.h + 2) * (p.w + 2) * p.c;
  T* y = static_cast<T*>(g.y) + static_cast<int64_t>(blockIdx.z) * p.h * p.w * 4 * p.o;
  const auto place_of = [&](int row) {
    const int x = first + row;
    const bool own = of_row ? x < 2 * line.length : x > 0 && x < 2 * line.length - 1;
    return own ? x : -1;
  };
  BorderProduct product(shared);
  add_side(product, p, a, side, o, place_of);
  for (int last = 0; of_row && last < 2; ++last) {
    const int corner = last * (2 * p.w - 1);
    if (first > corner || first + border_tile <= corner) continue;
    add_side(product, p, a, 2 + last, o, [&](int row) { return first + row == corner ? side * (2 * p.h - 1) : -1; });
  }
  const int output = o + product.column();
#pragma unroll
  for (int i = 0; i < border_tile / border_rows; ++i) {
    const int x = place_of(product.row(i));
    if (x >= 0 && output < p.o) add_number(y, line.of_result(p, x) + output, product.sum[i]);
  }
}

// How a padded pixel enters the lines of a first (0) or of a last side (1): -1 the outer, 1 the inner, 0 any other.
__device__ inline int edge_sign(int at, int last, int length) {
  const int outer = last ? length : 1, inner = last ? length - 1 : 2;
  return (at == inner) - (at == outer);
}

// Adds sign_of(row) times the gradient of a side's line at pixel at_of(row), 0 to length + 1, of channels from `c` on.
// Pixel q is doubled at places 2q and 2q + 1 of the line; a place of the result reads one of them, or both by two taps:
// six places for each pixel. Near the ends of a row, whose outermost places read pixels 2 and length - 1 in place of 0
// and length + 1, there are two more steps.
template <class T, class At, class Sign>
__device__ inline void add_side_backward(BorderProduct& product, const PhaseBorderParams& p, const T* grad, int side,
                                         int c, bool at_ends, const At& at_of, const Sign& sign_of) {
  const SideLine line(p, side);
  const int count = at_ends && line.row ? 8 : 6;
  for (int first = 0; first < p.o; first += border_tile)
    for (int step = 0; step < count; ++step) {
      const bool end = step >= 6, last = step == 7;
      // The taps that read the places 2q and 2q + 1.
      const int even = end ? 4 * last : step - 1, odd = end ? 5 : step;
      product.add<true, false>(
          [&](int term, int row) {
            const int at = at_of(row), o = first + term;
            const int x = end ? last * (2 * line.length - 1) : 2 * at + 1 - step;
            int sign = sign_of(row);
            if (end) sign *= (at == (last ? line.length - 1 : 2)) - (at == (last ? line.length + 1 : 0));
            if (sign == 0 || x < 0 || x >= 2 * line.length || o >= p.o) return 0.0f;
            const float value = SideLine::number(grad, line.of_result(p, x) + o);
            return sign < 0 ? -value : value;
          },
          [&](int term, int column) {
            const int o = first + term;
            if (o >= p.o || c + column >= p.c) return 0.0f;
            const int64_t kernel = o * p.weight_strides[0] + (c + column) * p.weight_strides[1];
            return (even >= 0 ? kernel_number(p, kernel + line.tap(p.weight_strides, even)) : 0) +
                   (odd < 5 ? kernel_number(p, kernel + line.tap(p.weight_strides, odd)) : 0);
          });
    }
}

// A tile of one of the four rows, or columns, that the lines read; the rows own what rows and columns share.
template <class T>
__device__ inline void border_input_gradient(BorderProduct& product, const PhaseBorderBackwardLaunch& g, int block) {
  const PhaseBorderParams& p = g.p;
  const int which = block % 4, tile = block / 4 % g.tiles, n = block / 4 / g.tiles, c = blockIdx.y * border_tile;
  const bool of_row = tile < g.row_tiles;
  const int first = (of_row ? tile : tile - g.row_tiles) * border_tile;
  const int length = of_row ? p.w : p.h, across = of_row ? p.h : p.w;
  const int fixed = which < 2 ? which + 1 : across - 3 + which;
  if (which >= 2 && fixed <= 2) return;  // of two or three rows, or columns, the last are among the first
  const auto own = [&](int at) {
    return at < length + 2 && (of_row || (edge_sign(at, 0, p.h) == 0 && edge_sign(at, 1, p.h) == 0));
  };
  const auto row_of = [&](int i) { return of_row ? fixed : first + i; };
  const auto column_of = [&](int i) { return of_row ? first + i : fixed; };
  const bool at_ends = first <= 2 || first + border_tile >= length;
  const T* grad = static_cast<const T*>(g.grad) + static_cast<int64_t>(n) * p.h * p.w * 4 * p.o;
  T* to = static_cast<T*>(g.grad_a) + static_cast<int64_t>(n) * (p.h + 2) * (p.w + 2) * p.c;
  for (int side = 0; side < 4; ++side) {
    const auto along = [&](int i) { return side < 2 ? column_of(i) : row_of(i); };
    const auto sign = [&](int i) {
      if (!own(first + i)) return 0;
      return side < 2 ? edge_sign(row_of(i), side % 2, p.h) : edge_sign(column_of(i), side % 2, p.w);
    };
    bool any = false;
    for (int i = 0; i < border_tile; ++i) any = any || sign(i) != 0;
    if (any) add_side_backward(product, p, grad, side, c, at_ends, along, sign);
  }
  const int channel = c + product.column();
#pragma unroll
  for (int i = 0; i < border_tile / border_rows; ++i) {
    const int at = product.row(i);
    if (!own(first + at) || channel >= p.c) continue;
    add_number(to, (static_cast<int64_t>(row_of(at)) * (p.w + 2) + column_of(at)) * p.c + channel, product.sum[i]);
  }
}

// The gradient of a tap, for a tile of outputs and channels: of the side of a row, of a column, of both, or zero.
template <class T>
__device__ inline void tap_gradient(BorderProduct& product, const PhaseBorderBackwardLaunch& g, int block) {
  const PhaseBorderParams& p = g.p;
  const int y = block % 25 / 5, x = block % 5, o = block / 25 * border_tile, c = blockIdx.y * border_tile;
  for (int vertical = 0; vertical < 2; ++vertical) {
    const int across = vertical ? x : y, k = vertical ? y : x;
    if (across % 4 != 0) continue;
    const SideLine line(p, 2 * vertical + across / 4);
    for (int n = 0; n < p.n; ++n) {
      const T* a = static_cast<const T*>(p.a) + static_cast<int64_t>(n) * (p.h + 2) * (p.w + 2) * p.c;
      const T* grad = static_cast<const T*>(g.grad) + static_cast<int64_t>(n) * p.h * p.w * 4 * p.o;
      for (int first = 0; first < 2 * line.length; first += border_tile)
        product.add<false, false>(
            [&](int term, int row) {
              const bool exists = first + term < 2 * line.length && o + row < p.o;
              return exists ? SideLine::number(grad, line.of_result(p, first + term) + o + row) : 0;
            },
            [&](int term, int column) {
              const bool exists = first + term < 2 * line.length && c + column < p.c;
              return exists ? line.at(p, a, first + term + k, c + column) : 0;
            });
    }
  }
  const int channel = c + product.column();
#pragma unroll
  for (int i = 0; i < border_tile / border_rows; ++i) {
    const int output = o + product.row(i);
    if (output >= p.o || channel >= p.c) continue;
    const int64_t(&s)[4] = g.grad_weight_strides;
    const int64_t at = output * s[0] + channel * s[1] + y * s[2] + x * s[3];
    if (p.weight_dtype == Dtype::f32) static_cast<float*>(g.grad_weight)[at] = product.sum[i];
    else {
      const float value[1] = {product.sum[i]};
      Pack<T, 1> packed;
      packed.set(value);
      store<T, 1>(g.grad_weight, at, packed);
    }
  }
}

// Grid (input_blocks + 25 · o / border_tile, c / border_tile): the gradient of the input, then of each tap.
template <class T> __device__ inline void phase_border_backward(const PhaseBorderBackwardLaunch& g) {
  DYNAMIC_SHARED(shared);
  BorderProduct product(shared);
  const int block = blockIdx.x;
  if (block < g.input_blocks) border_input_gradient<T>(product, g, block);
  else tap_gradient<T>(product, g, block - g.input_blocks);
}

}  // namespace munit_fast::cuda
