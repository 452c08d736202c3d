// How a thread walks an epilogue: its channels' parameters, the activation, and where a pixel shows in the padded result.
#pragma once

#include "block.cuh"

namespace munit_fast::cuda {

__device__ inline int min_int(int a, int b) { return a < b ? a : b; }

// The numbers of a block's channels, in shared memory: a row of `columns` floats each. The threads fetch them side by
// side (one by one they would cost a trip to memory each), then every thread takes those of its own channels.
enum TableRow { mean_row, scale_row, weight_row, bias_row, slope_row, shift_row, along_row, table_rows };
static_assert(table_rows == table_floats);

// Where eps goes is part of each norm.
__device__ inline float reciprocal(const Epilogue& e, float spread) {
  return e.norm == Norm::instance ? 1 / sqrtf(spread + e.eps) : 1 / (spread + e.eps);
}

__device__ inline float table_entry(const Epilogue& e, int row, int sample, int channel, bool has_statistics) {
  if (row == weight_row) return e.weight.data ? read(e.weight, sample, channel) : 1;
  if (row == bias_row) return e.bias.data ? read(e.bias, sample, channel) : 0;
  if (row == slope_row) return e.slopes.data ? read(e.slopes, sample, channel) : e.slope;
  if (!has_statistics) return row == scale_row;
  const bool layer = e.norm == Norm::layer;
  const int64_t rows = static_cast<int64_t>(e.n) * (layer ? 1 : e.c);
  const int64_t at = layer ? sample : static_cast<int64_t>(sample) * e.c + channel;
  return row == mean_row ? e.stats[at] : reciprocal(e, e.stats[rows + at]);
}

// Fills the rows up to the slope; the caller synchronises.
__device__ inline void fill_table(const Epilogue& e, int sample, int first_channel, int columns, bool has_statistics,
                                  float* table) {
  for (int i = threadIdx.x; i <= slope_row * columns + columns - 1; i += threads) {
    const int row = i / columns, channel = first_channel + i - row * columns;
    table[i] = channel < e.c ? table_entry(e, row, sample, channel, has_statistics) : 0;
  }
}

// Puts mean and scale of a column into the table, and the statistics into the result where `writes`; the caller
// synchronises.
__device__ inline void settle(const Epilogue& e, int sample, int first_channel, int columns, int column, float mean,
                              float squares, float count, bool writes, float* table) {
  const bool layer = e.norm == Norm::layer;
  const int channel = first_channel + column;
  // The second statistic: the biased variance (instance) or the unbiased standard deviation (layer).
  const float spread = layer ? sqrtf(squares / (count - 1)) : squares / count;
  table[mean_row * columns + column] = mean;
  table[scale_row * columns + column] = reciprocal(e, spread);
  if (!writes || channel >= e.c || (layer && channel > 0)) return;
  const int64_t at = layer ? sample : static_cast<int64_t>(sample) * e.c + channel;
  e.stats[at] = mean;
  e.stats[static_cast<int64_t>(e.n) * (layer ? 1 : e.c) + at] = spread;
}

// Unites moments (see merge) and settles all columns of the block with them. All threads may read the table afterwards.
template <class Load>
__device__ inline void merge_and_settle(const Epilogue& e, int sample, int first_channel, int columns, int area,
                                        int entries, bool writes, float* table, float* scratch, float* out,
                                        const Load& load) {
  const bool layer = e.norm == Norm::layer;  // then there is one column for all
  const Place at(layer ? 1 : columns);
  const float count = layer ? static_cast<float>(e.c) * area : area;
  float* of_sample = out + 3;
  merge<1>(at, entries, count, scratch, out, load, [&](int i, float mean, float squares) {
    if (layer) of_sample[0] = mean, of_sample[1] = squares;
    else settle(e, sample, first_channel, columns, i, mean, squares, count, writes, table);
  });
  __syncthreads();
  if (!layer) return;
  for (int i = threadIdx.x; i < columns; i += threads)
    settle(e, sample, first_channel, columns, i, of_sample[0], of_sample[1], count, writes, table);
  __syncthreads();
}

template <int V> struct Channels {
  float mean[V], gain[V], bias[V], slope[V];  // gain: one over the deviation, times the weight

  __device__ Channels(const float* table, int columns, int lane) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float* at = table + lane * V + j;
      mean[j] = at[mean_row * columns];
      gain[j] = at[scale_row * columns] * at[weight_row * columns];
      bias[j] = at[bias_row * columns];
      slope[j] = at[slope_row * columns];
    }
  }
  // The mean is subtracted before anything else: folded into the bias it would cost digits off centre.
  __device__ float centre(int j, float x) const { return x - mean[j]; }
  __device__ float affine(int j, float centred) const { return centred * gain[j] + bias[j]; }
};

constexpr float selu_scale = 1.0507009873554804934193349852946f;
constexpr float selu_alpha = 1.6732632423543772848170429916717f;

__device__ inline float hyperbolic_tangent(float z) {
  const float decay = expf(-2 * fabsf(z)), far = __fdividef(1 - decay, 1 + decay), s = z * z;
  // Near zero the quotient would lose the leading digits; there the series needs five terms.
  const float near =
      z * (1 + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  return fabsf(z) < 0.25f ? near : z < 0 ? -far : far;
}

// NaN stays NaN: every comparison with it is false and selects a branch that computes from z.
template <int V> __device__ inline void activate(Act act, float (&z)[V], const float (&slope)[V]) {
  if (act == Act::none) return;
  if (act == Act::selu || act == Act::tanh) {
    const bool selu = act == Act::selu;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      // exp(z) - 1 = 2t / (1 - t) with t = tanh(z / 2): no digits are lost near zero.
      const float t = hyperbolic_tangent(selu ? 0.5f * z[j] : z[j]);
      const float below = selu_scale * selu_alpha * __fdividef(2 * t, 1 - t);
      z[j] = !selu ? t : z[j] > 0 ? selu_scale * z[j] : below;
    }
    return;
  }
  const bool relu = act == Act::relu;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float below = relu ? (z[j] < 0 ? 0 : z[j]) : z[j] * slope[j];
    z[j] = z[j] > 0 ? z[j] : below;
  }
}

// g · act'(z), for V numbers.
template <int V>
__device__ inline void activate_backward(Act act, const float (&g)[V], const float (&z)[V], const float (&slope)[V],
                                         float (&gz)[V]) {
  if (act == Act::selu || act == Act::tanh) {
    const bool selu = act == Act::selu;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float decay = expf(selu ? z[j] : -2 * fabsf(z[j])), more = 1 + decay;
      // 1 - tanh² without the subtraction, which cancels where tanh is close to one.
      const float of_tanh = __fdividef(4 * decay, more * more);
      gz[j] = g[j] * (!selu ? of_tanh : selu_scale * (z[j] > 0 ? 1 : selu_alpha * decay));
    }
    return;
  }
  const bool none = act == Act::none, relu = act == Act::relu;
#pragma unroll
  for (int j = 0; j < V; ++j) gz[j] = none || z[j] > 0 ? g[j] : relu ? 0 : g[j] * slope[j];
}

// The positions of a padded axis that show pixel `i` of `size`: one of its own, and copies at the low and the high edge.
struct Shown {
  int own, low, lows, high, highs;
  __device__ Shown(int i, int size, int pad, PadMode mode) : own(i + pad), low(0), lows(0), high(0), highs(0) {
    if (mode == PadMode::reflect) {
      low = pad - i, lows = i >= 1 && i <= pad;
      high = pad + 2 * (size - 1) - i, highs = i <= size - 2 && i >= size - 1 - pad;
    } else if (mode == PadMode::replicate) {
      lows = i == 0 ? pad : 0;
      high = pad + size, highs = i == size - 1 ? pad : 0;
    }
  }
  __device__ int count() const { return 1 + lows + highs; }
  __device__ int at(int k) const { return k == 0 ? own : k <= lows ? low + k - 1 : high + k - 1 - lows; }
};

// The padded result as one thread sees it: its channel run of one phase of the depth-to-space.
struct Result {
  const Epilogue& e;
  int phase_row, phase_column, channel;
  __device__ Result(const Epilogue& e_, int input_channel) : e(e_) {
    const int phase = input_channel / e.result_channels;
    phase_row = phase / e.block, phase_column = phase % e.block, channel = input_channel - phase * e.result_channels;
  }
  __device__ Shown shown_rows(int row) const { return Shown(row * e.block + phase_row, e.rows, e.pad, e.pad_mode); }
  __device__ Shown shown_columns(int column) const {
    return Shown(column * e.block + phase_column, e.columns, e.pad, e.pad_mode);
  }
  __device__ int entry(int row, int column) const {
    return (row * e.result_width + column) * e.result_channels + channel;
  }
  __device__ int own_entry(int row, int column) const {
    return entry(row * e.block + phase_row + e.pad, column * e.block + phase_column + e.pad);
  }
  __device__ static int64_t sample_size(const Epilogue& e) {
    return static_cast<int64_t>(e.result_channels) * (e.rows + 2 * e.pad) * e.result_width;
  }
};

// What a block of threads works on.
template <class T, int V> struct Tile : Place {
  int columns, sample, first_channel, channel, area, first, last;  // pixels [first, last)
  bool valid;  // this thread's channels exist
  __device__ Tile(const Epilogue& e, const Tiling& t, int channel_block, int split)
      : Place(t.lanes), columns(t.lanes * V), sample(blockIdx.z), first_channel(channel_block * columns),
        channel(first_channel + lane * V), area(e.h * e.w), first(split * t.pixels),
        last(min_int(first + t.pixels, area)), valid(channel < e.c) {}
  // A sample of a tensor like x.
  template <class P> __device__ P* like_x(const Epilogue& e, P* tensor) const {
    return tensor + static_cast<int64_t>(sample) * e.c * area;
  }
};

}  // namespace munit_fast::cuda
