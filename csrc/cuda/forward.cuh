// Forward: statistics, then normalise → act → + residual → depth-to-space → pad. Two ways: a pass for each (statistics
// of splits, united at the start of the pass that writes), or one that keeps what it has read in shared memory.
#pragma once

#include "epilogue_common.cuh"

namespace munit_fast::cuda {

// Calls body(pixel, x) for this thread's pixels, with `ahead` reads of 16 bytes before it uses the first.
template <int ahead, class T, int V, class Body>
__device__ inline void each_pixel(const T* x, int channels, const ThreadTile<T, V>& t, const Body& body) {
  for (int i = t.first + t.row; i < t.last; i += ahead * t.rows) {
    Pack<T, V> packs[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u)
      if (i + u * t.rows < t.last) packs[u] = load<T, V>(x, (i + u * t.rows) * channels + t.channel);
#pragma unroll
    for (int u = 0; u < ahead; ++u)
      if (i + u * t.rows < t.last) body(i + u * t.rows, packs[u]);
  }
}

// The moments of a tile from those of its threads: put(column, mean, squares), for the layer norm one column.
template <class T, int V, class Put>
__device__ inline void tile_moments(const EpilogueParams& e, const ThreadTile<T, V>& t, const Welford<V>& w,
                                    float* scratch, float* out, const Put& put) {
  const bool layer = e.norm == Norm::layer;
  const float pixels = static_cast<float>(t.last - t.first);
  float* means = out + 3 * t.columns;
  merge<V>(t, t.rows, pixels, scratch, out, [&](int, float* mean, float* squares) {
#pragma unroll
    for (int j = 0; j < V; ++j) mean[j] = w.mean[j], squares[j] = w.squares[j];
    return w.count;
  }, [&](int i, float mean, float squares) {
    if (layer) means[i] = mean, means[t.columns + i] = squares;
    else put(i, mean, squares);
  });
  if (!layer) return;
  __syncthreads();
  float mean, squares;
  merge_columns(means, t.columns, min_int(t.columns, e.c - t.first_channel), pixels, &mean, &squares);
  if (threadIdx.x == 0) put(0, mean, squares);
}

// Grid (splits, channel_blocks, n). Reads x once; writes 8 bytes a split and channel (instance) or block (layer).
template <class T, int V> __device__ inline void statistics(const StatisticsLaunch& s) {
  DYNAMIC_SHARED(shared);
  const EpilogueParams& e = s.e;
  const ThreadTile<T, V> t(e, s.tiling, blockIdx.y, blockIdx.x);
  float* scratch = reinterpret_cast<float*>(shared);
  float* out = scratch + scratch_floats(2, t.columns);

  Welford<V> w;
  if (t.valid)
    each_pixel<4, T, V>(t.like_x(e, static_cast<const T*>(e.x)), e.c, t, [&](int, const Pack<T, V>& packed) {
      float v[V];
      packed.get(v);
      w.add(v);
    });
  const bool layer = e.norm == Norm::layer;
  const int64_t numbers = layer ? s.tiling.channel_blocks : e.c;  // of a split
  const int64_t first = (static_cast<int64_t>(t.sample) * s.tiling.splits + blockIdx.x) * numbers;
  tile_moments(e, t, w, scratch, out, [&](int i, float mean, float squares) {
    if (!layer && t.first_channel + i >= e.c) return;
    float* to = (layer ? s.out.totals + blockIdx.y : s.out.channels + t.first_channel) + first + i;
    to[0] = mean;
    to[e.n * s.tiling.splits * numbers] = squares;
  });
}

// One pixel of x, from its input to everywhere that shows it.
template <class T, int V>
__device__ inline void write_pixel(const ForwardParams& f, const Channels<V>& ch, const PaddedResult& r,
                                   const T* residual, T* y, int channel, int pixel, const Pack<T, V>& packed) {
  const int row = pixel / f.w, column = pixel - row * f.w;
  float z[V];
  packed.get(z);
#pragma unroll
  for (int j = 0; j < V; ++j) z[j] = ch.affine(j, ch.centre(j, z[j]));
  activate(f.act, z, ch.slope);
  if (residual) {
    float add[V];
    load<T, V>(residual, static_cast<int64_t>(row) * f.residual_row + column * f.c + channel).get(add);
#pragma unroll
    for (int j = 0; j < V; ++j) z[j] += add[j];
  }
  Pack<T, V> result;
  result.set(z);
  const PaddedCopies rows = r.row_copies(row), columns = r.column_copies(column);
  const int across = columns.count(), all = rows.count() * across;
  store<T, V>(y, r.entry(rows.own, columns.own), result);
  for (int k = 1; k < all; ++k) store<T, V>(y, r.entry(rows.at(k / across), columns.at(k % across)), result);
}

// The zeros around an image, by `count` threads that hold the same channels; this one is `index`.
template <class T, int V>
__device__ inline void write_zeros(const ForwardParams& f, const PaddedResult& r, T* y, int index, int count) {
  Pack<T, V> zero;
  const float zeros[V] = {};
  zero.set(zeros);
  const int top = 2 * f.pad * f.result_width, all = top + f.rows * 2 * f.pad;
  for (int i = index; i < all; i += count) {
    int row, column;
    if (i < top) {
      row = i / f.result_width, column = i - row * f.result_width;
      row += row < f.pad ? 0 : f.rows;
    } else {
      row = (i - top) / (2 * f.pad), column = (i - top) - row * 2 * f.pad;
      row += f.pad, column += column < f.pad ? 0 : f.columns;
    }
    store<T, V>(y, r.entry(row, column), zero);
  }
}

template <class T> struct ForwardPointers {
  const T* residual;
  T* y;
  __device__ ForwardPointers(const ForwardParams& f, int sample)
      : residual(f.residual ? static_cast<const T*>(f.residual) + sample * f.residual_image : nullptr),
        y(static_cast<T*>(f.y) + sample * PaddedResult::sample_size(f)) {}
};

// Grid (splits, channel_blocks, n). Unites the statistics of the splits, where there are any; reads x and the residual
// once, writes y once.
template <class T, int V> __device__ inline void forward(const ForwardLaunch& a) {
  DYNAMIC_SHARED(shared);
  const ForwardParams& f = a.f;
  const ThreadTile<T, V> t(f, a.tiling, blockIdx.y, blockIdx.x);
  const bool layer = f.norm == Norm::layer, united = a.partial.totals || a.partial.channels;
  float* table = reinterpret_cast<float*>(shared);
  float* scratch = table + table_rows * t.columns;
  float* out = scratch + scratch_floats(2, t.columns);
  fill_table(f, t.sample, t.first_channel, t.columns, f.norm != Norm::none && !united, table);
  if (united) {
    const Tiling& p = a.partial_tiling;
    const int entries = p.splits * (layer ? p.channel_blocks : 1), block_columns = p.lanes * V;
    const int stride = layer ? 1 : f.c, column = layer ? 0 : t.first_channel + threadIdx.x % t.columns;
    const float* from = (layer ? a.partial.totals : a.partial.channels) +
                        static_cast<int64_t>(t.sample) * entries * stride + column;
    const int64_t next = static_cast<int64_t>(f.n) * entries * stride;
    merge_and_store_norm_params(
        f, t.sample, t.first_channel, t.columns, t.area, column < f.c ? entries : 0, blockIdx.x == 0, table, scratch,
        out, [&](int i, float* mean, float* squares) {
          mean[0] = from[static_cast<int64_t>(i) * stride], squares[0] = from[next + static_cast<int64_t>(i) * stride];
          const int split = layer ? i / p.channel_blocks : i;
          const float pixels = min_int(p.pixels, t.area - split * p.pixels);
          return layer ? pixels * min_int(block_columns, f.c - (i - split * p.channel_blocks) * block_columns) : pixels;
        });
  } else {
    __syncthreads();
  }
  if (!t.valid) return;

  const Channels<V> ch(table, t.columns, t.lane);
  const PaddedResult r(f, t.channel);
  const ForwardPointers<T> to(f, t.sample);
  each_pixel<2, T, V>(t.like_x(f, static_cast<const T*>(f.x)), f.c, t, [&](int pixel, const Pack<T, V>& packed) {
    write_pixel<T, V>(f, ch, r, to.residual, to.y, t.channel, pixel, packed);
  });
  if (f.pad_mode == PadMode::zero && f.pad > 0 && t.channel < f.result_channels)
    write_zeros<T, V>(f, r, to.y, blockIdx.x * t.rows + t.row, gridDim.x * t.rows);
}

// Grid (cluster, clusters of a sample, n), in clusters of (cluster, 1, 1). Reads x and the residual once, writes y once;
// in between x lies in the shared memory of the cluster, and only two numbers a channel cross from block to block.
template <class T, int V> __device__ inline void slab_forward(const SlabForwardLaunch& a) {
  DYNAMIC_SHARED(shared);
  const ForwardParams& f = a.f;
  const bool layer = f.norm == Norm::layer;
  const int together = a.cluster_channel_blocks, split = blockIdx.x / together;
  const ThreadTile<T, V> t(f, a.tiling, blockIdx.y * together + blockIdx.x % together, split);

  Pack<T, V>* slab = reinterpret_cast<Pack<T, V>*>(shared);
  const size_t slab_bytes = (sizeof(Pack<T, V>) * a.tiling.pixels * t.lanes + 15) / 16 * 16;
  float* table = reinterpret_cast<float*>(shared + slab_bytes);
  float* scratch = table + table_rows * t.columns;
  float* out = scratch + scratch_floats(2, t.columns);
  float* published = out + 5 * t.columns;

  fill_table(f, t.sample, t.first_channel, t.columns, false, table);
  Welford<V> w;
  if (t.valid)
    each_pixel<4, T, V>(t.like_x(f, static_cast<const T*>(f.x)), f.c, t, [&](int pixel, const Pack<T, V>& packed) {
      slab[(pixel - t.first) * t.lanes + t.lane] = packed;  // for this thread itself
      float v[V];
      packed.get(v);
      w.add(v);
    });
  tile_moments(f, t, w, scratch, out, [&](int i, float mean, float squares) {
    published[i] = mean, published[t.columns + i] = squares;
  });
  cluster_sync();
  const int column = layer ? 0 : threadIdx.x % t.columns;
  merge_and_store_norm_params(f, t.sample, t.first_channel, t.columns, t.area, gridDim.x, split == 0, table, scratch,
                              out, [&](int i, float* mean, float* squares) {
                                const float* from = of_rank(published, i) + column;
                                mean[0] = from[0], squares[0] = from[t.columns];
                                const int of_split = i / together;
                                const float pixels = min_int(a.tiling.pixels, t.area - of_split * a.tiling.pixels);
                                return layer ? pixels * min_int(t.columns, f.c - (i - of_split * together) * t.columns)
                                             : pixels;
                              });
  cluster_has_read();
  if (t.valid) {
    const Channels<V> ch(table, t.columns, t.lane);
    const PaddedResult r(f, t.channel);
    const ForwardPointers<T> to(f, t.sample);
    for (int i = t.first + t.row; i < t.last; i += t.rows)
      write_pixel<T, V>(f, ch, r, to.residual, to.y, t.channel, i, slab[(i - t.first) * t.lanes + t.lane]);
    if (f.pad_mode == PadMode::zero && f.pad > 0 && t.channel < f.result_channels)
      write_zeros<T, V>(f, r, to.y, split * t.rows + t.row, a.tiling.splits * t.rows);
  }
  cluster_may_end();
}

}  // namespace munit_fast::cuda
