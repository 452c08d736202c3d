// What the forward and the backward kernels share: the table of a block's channel parameters, the norm's parameters from
// its statistics, and the positions of the padded result that a pixel is written to.
#pragma once

#include "activations.cuh"
#include "reduce.cuh"

namespace munit_fast::cuda {

__device__ inline int min_int(int a, int b) { return a < b ? a : b; }

// The numbers of a block's channels, in shared memory: a row of `columns` floats each. The threads fetch them side by
// side (one by one they would cost a trip to memory each), then every thread takes those of its own channels.
enum TableRow { mean_row, scale_row, weight_row, bias_row, slope_row, shift_row, along_row, table_rows };
static_assert(table_rows == table_floats);

// Where eps goes is part of each norm.
__device__ inline float reciprocal(const EpilogueParams& e, float spread) {
  return e.norm == Norm::layer ? 1 / (spread + e.eps) : 1 / sqrtf(spread + e.eps);
}

__device__ inline float table_entry(const EpilogueParams& e, int row, int sample, int channel, bool has_statistics) {
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
__device__ inline void fill_table(const EpilogueParams& e, int sample, int first_channel, int columns,
                                  bool has_statistics, float* table) {
  for (int i = threadIdx.x; i <= slope_row * columns + columns - 1; i += threads) {
    const int row = i / columns, channel = first_channel + i - row * columns;
    table[i] = channel < e.c ? table_entry(e, row, sample, channel, has_statistics) : 0;
  }
}

// Puts mean and scale of a column into the table, and the statistics into the result where `writes`; the caller
// synchronises.
__device__ inline void store_norm_params(const EpilogueParams& e, int sample, int first_channel, int columns,
                                         int column, float mean, float squares, float count, bool writes,
                                         float* table) {
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

// Unites moments (see merge) and stores the norm's parameters of all columns. All threads may read the table afterwards.
template <class Load>
__device__ inline void merge_and_store_norm_params(const EpilogueParams& e, int sample, int first_channel, int columns,
                                                   int area, int entries, bool writes, float* table, float* scratch,
                                                   float* out, const Load& load) {
  const bool layer = e.norm == Norm::layer;  // then there is one column for all
  const ThreadPosition at(layer ? 1 : columns);
  const float count = layer ? static_cast<float>(e.c) * area : area;
  float* of_sample = out + 3;
  merge<1>(at, entries, count, scratch, out, load, [&](int i, float mean, float squares) {
    if (layer) of_sample[0] = mean, of_sample[1] = squares;
    else store_norm_params(e, sample, first_channel, columns, i, mean, squares, count, writes, table);
  });
  __syncthreads();
  if (!layer) return;
  for (int i = threadIdx.x; i < columns; i += threads)
    store_norm_params(e, sample, first_channel, columns, i, of_sample[0], of_sample[1], count, writes, table);
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

// The positions on a padded axis that hold pixel `i` of `size`: its own, and copies beyond the low and the high edge.
struct PaddedCopies {
  int own, low, lows, high, highs;
  __device__ PaddedCopies(int i, int size, int pad, PadMode mode) : own(i + pad), low(0), lows(0), high(0), highs(0) {
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
struct PaddedResult {
  const EpilogueParams& e;
  int phase_row, phase_column, channel;
  __device__ PaddedResult(const EpilogueParams& e_, int input_channel) : e(e_) {
    const int phase = input_channel / e.result_channels;
    phase_row = phase / e.block, phase_column = phase % e.block, channel = input_channel - phase * e.result_channels;
  }
  __device__ PaddedCopies row_copies(int row) const {
    return PaddedCopies(row * e.block + phase_row, e.rows, e.pad, e.pad_mode);
  }
  __device__ PaddedCopies column_copies(int column) const {
    return PaddedCopies(column * e.block + phase_column, e.columns, e.pad, e.pad_mode);
  }
  __device__ int entry(int row, int column) const {
    return (row * e.result_width + column) * e.result_channels + channel;
  }
  __device__ int own_entry(int row, int column) const {
    return entry(row * e.block + phase_row + e.pad, column * e.block + phase_column + e.pad);
  }
  __device__ static int64_t sample_size(const EpilogueParams& e) {
    return static_cast<int64_t>(e.result_channels) * (e.rows + 2 * e.pad) * e.result_width;
  }
};

// What a block of threads works on.
template <class T, int V> struct ThreadTile : ThreadPosition {
  int columns, sample, first_channel, channel, area, first, last;  // pixels [first, last)
  bool valid;  // this thread's channels exist
  __device__ ThreadTile(const EpilogueParams& e, const Tiling& t, int channel_block, int split)
      : ThreadPosition(t.lanes), columns(t.lanes * V), sample(blockIdx.z), first_channel(channel_block * columns),
        channel(first_channel + lane * V), area(e.h * e.w), first(split * t.pixels),
        last(min_int(first + t.pixels, area)), valid(channel < e.c) {}
  // A sample of a tensor like x.
  template <class P> __device__ P* like_x(const EpilogueParams& e, P* tensor) const {
    return tensor + static_cast<int64_t>(sample) * e.c * area;
  }
};

}  // namespace munit_fast::cuda
