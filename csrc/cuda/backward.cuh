// Backward: the sums over each plane, then the gradients of x and of the residual. The activation is computed again from
// x and the gradient of the padding is gathered while reading, so the forward keeps nothing but x and two numbers a plane.
//
//   dx = weight · r · gz - shift - (x - mean) · along, where shift and along come from the sums: r and r² times what
//   munit_fast/reference/epilogue.py takes off. With x̂ = (x - mean) · r multiplied out, a thread holds fewer numbers.
#pragma once

#include "forward.cuh"

namespace munit_fast::cuda {

template <int V> struct Sums {
  float of[3][V] = {};  // gz, gz · (x - mean), and g · z where z ≤ 0 (prelu)
};

// What reaches x through the statistics.
template <int V> struct NormGradTerms {
  float shift[V], along[V];
  __device__ NormGradTerms(const float* table, int columns, int lane) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      shift[j] = table[shift_row * columns + lane * V + j];
      along[j] = table[along_row * columns + lane * V + j];
    }
  }
};

// Fills the rows shift and along: from Σ gz and Σ gz·x̂ of each column in sums[0], sums[columns] (instance), or from the
// sample's weighted `total` and `total_along` (layer). All threads may read the table afterwards.
__device__ inline void store_norm_grad_terms(const EpilogueParams& e, int sample, int columns, const float* sums,
                                             float total, float total_along, float area, float* table) {
  for (int i = threadIdx.x; i < columns; i += threads) {
    const float scale = table[scale_row * columns + i], weight = table[weight_row * columns + i];
    float shift = 0, along = 0;
    if (e.norm == Norm::instance) {
      shift = weight * sums[i] / area * scale;
      along = weight * sums[columns + i] / area * scale * scale;
    } else if (e.norm == Norm::group) {  // these are group_terms
      shift = sums[i] * scale;
      along = sums[columns + i] * scale * scale;
    } else if (e.norm == Norm::layer) {  // no second term where the deviation is zero
      const float count = e.c * area, deviation = e.stats[e.n + sample];
      shift = total / count * scale;
      along = deviation > 0 ? total_along / ((count - 1) * deviation) * scale : 0;
    }
    table[shift_row * columns + i] = shift;
    table[along_row * columns + i] = along;
  }
  __syncthreads();
}

template <class T> struct BackwardPointers {
  const T *x, *grad;
  T *grad_x, *grad_residual;
  template <int V> __device__ BackwardPointers(const BackwardParams& b, const ThreadTile<T, V>& t) {
    x = t.like_x(b, static_cast<const T*>(b.x));
    grad = static_cast<const T*>(b.grad) + t.sample * PaddedResult::sample_size(b);
    grad_x = b.grad_x ? t.like_x(b, static_cast<T*>(b.grad_x)) : nullptr;
    grad_residual = b.grad_residual ? t.like_x(b, static_cast<T*>(b.grad_residual)) : nullptr;
  }
};

// The gradient of a pixel before padding: its own, and what copies beyond the edges add. Few pixels have any.
template <class T, int V>
__device__ inline void gather(const T* grad, const PaddedResult& r, int row, int column, const Pack<T, V>& own,
                              float (&g)[V]) {
  own.get(g);
  const PaddedCopies rows = r.row_copies(row), columns = r.column_copies(column);
  const int across = columns.count(), all = rows.count() * across;
  for (int k = 1; k < all; ++k) {
    float copy[V];
    load<T, V>(grad, r.entry(rows.at(k / across), columns.at(k % across))).get(copy);
#pragma unroll
    for (int j = 0; j < V; ++j) g[j] += copy[j];
  }
}

// gz, and x - mean in place of x. Adds to `sums` where it is given.
template <int V>
__device__ inline void activation_grad(const BackwardParams& b, const Channels<V>& ch, const float (&g)[V],
                                       float (&x)[V], float (&gz)[V], Sums<V>* sums) {
  float z[V];
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = ch.centre(j, x[j]), z[j] = ch.affine(j, x[j]);
  activate_backward(b.act, g, z, ch.slope, gz);
  if (!sums) return;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    sums->of[0][j] += gz[j];
    sums->of[1][j] += gz[j] * x[j];
    if (b.act == Act::prelu) sums->of[2][j] += z[j] > 0 ? 0 : g[j] * z[j];
  }
}

template <class T, int V> __device__ inline void store_floats(T* to, int at, const float (&v)[V]) {
  Pack<T, V> packed;
  packed.set(v);
  store<T, V>(to, at, packed);
}

// This thread's pixels: body(pixel, row, column, x, grad). One of x and of the gradient is read ahead (two, where that is
// half as many numbers): 512 resident threads then have 16 KB under way, and two would not fit their registers.
template <class T, int V, class Body>
__device__ inline void each_pair(const BackwardParams& b, const BackwardPointers<T>& s, const PaddedResult& r,
                                 const ThreadTile<T, V>& t, bool needs_x, const Body& body) {
  constexpr int ahead = V == 8 ? 1 : 2;
  for (int i = t.first + t.row; i < t.last; i += ahead * t.rows) {
    Pack<T, V> x[ahead], g[ahead];
    int row[ahead], column[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      const int pixel = i + u * t.rows;
      row[u] = pixel / b.w, column[u] = pixel - row[u] * b.w;
      if (pixel >= t.last) continue;
      x[u] = needs_x ? load<T, V>(s.x, pixel * b.c + t.channel) : Pack<T, V>{};
      g[u] = load<T, V>(s.grad, r.own_entry(row[u], column[u]));
    }
#pragma unroll
    for (int u = 0; u < ahead; ++u)
      if (i + u * t.rows < t.last) body(i + u * t.rows, row[u], column[u], x[u], g[u]);
  }
}

// The sums of a block's pixels, with x - mean scaled to x̂, into out[3][columns].
template <int V>
__device__ inline void finish_sums(const ThreadPosition& at, Sums<V>& sums, const float* table, float* scratch,
                                   float* out) {
  const int columns = at.lanes * V;
#pragma unroll
  for (int j = 0; j < V; ++j) sums.of[1][j] *= table[scale_row * columns + at.lane * V + j];
  block_sums(at, sums.of, scratch, out);
}

// Σ weight · gz and Σ weight · gz·x̂ over the block's channels, from their sums; every thread gets them.
__device__ inline void weighted_totals(const float* sums, const float* table, int columns, int valid, float* first,
                                       float* second) {
  float a = 0, b = 0;
  for (int i = threadIdx.x % 32; i < valid; i += 32) {
    const float weight = table[weight_row * columns + i];
    a += weight * sums[i];
    b += weight * sums[columns + i];
  }
  *first = warp_sum(a), *second = warp_sum(b);
}

// Grid (splits, channel_blocks, n): the sums over each split. Without a norm the gradients come from the same pass.
// Reads x and the gradient once.
template <class T, int V> __device__ inline void backward_sums(const BackwardLaunch& a) {
  DYNAMIC_SHARED(shared);
  const BackwardParams& b = a.b;
  const ThreadTile<T, V> t(b, a.tiling, blockIdx.y, blockIdx.x);
  float* table = reinterpret_cast<float*>(shared);
  float* scratch = table + table_rows * t.columns;
  float* out = scratch + scratch_floats(3, t.columns);
  fill_table(b, t.sample, t.first_channel, t.columns, b.norm != Norm::none, table);
  __syncthreads();

  Sums<V> sums;
  if (t.valid) {
    const Channels<V> ch(table, t.columns, t.lane);
    const BackwardPointers<T> s(b, t);
    const PaddedResult r(b, t.channel);
    const bool writes = b.norm == Norm::none;
    each_pair<T, V>(b, s, r, t, true, [&](int i, int row, int column, const Pack<T, V>& x_packed, const Pack<T, V>& own) {
                      float g[V], x[V], gz[V];
                      gather<T, V>(s.grad, r, row, column, own, g);
                      const int at = i * b.c + t.channel;
                      if (writes && s.grad_residual) store_floats(s.grad_residual, at, g);
                      x_packed.get(x);
      activation_grad(b, ch, g, x, gz, &sums);
                      if (!writes || !s.grad_x) return;
#pragma unroll
                      for (int j = 0; j < V; ++j) gz[j] *= ch.gain[j];
                      store_floats(s.grad_x, at, gz);
                    });
  }
  finish_sums(t, sums, table, scratch, out);

  const int64_t row = static_cast<int64_t>(b.n) * a.tiling.splits * b.c;
  const int64_t to = (static_cast<int64_t>(t.sample) * a.tiling.splits + blockIdx.x) * b.c + t.first_channel;
  for (int i = threadIdx.x; i < 3 * t.columns; i += threads) {
    const int k = i / t.columns, c = i - k * t.columns;
    if (t.first_channel + c < b.c) a.partial.channels[k * row + to + c] = out[i];
  }
  if (b.norm != Norm::layer) return;
  __syncthreads();
  float first, second;
  weighted_totals(out, table, t.columns, min_int(t.columns, b.c - t.first_channel), &first, &second);
  const int64_t blocks = static_cast<int64_t>(a.tiling.splits) * a.tiling.channel_blocks;
  const int64_t at = t.sample * blocks + blockIdx.x * a.tiling.channel_blocks + blockIdx.y;
  if (threadIdx.x == 0) a.partial.totals[at] = first, a.partial.totals[b.n * blocks + at] = second;
}

// Writes a channel's sums, which lie in `out`, to the result.
__device__ inline void write_sums(const BackwardParams& b, int sample, int first_channel, int columns,
                                  const float* out) {
  const int64_t row = static_cast<int64_t>(b.n) * b.c, to = static_cast<int64_t>(sample) * b.c + first_channel;
  for (int i = threadIdx.x; i < 3 * columns; i += threads) {
    const int k = i / columns, c = i - k * columns;
    if (first_channel + c < b.c) b.sums[k * row + to + c] = out[i];
  }
}

// Writes the gradients of one pixel that are asked for.
template <class T, int V>
__device__ inline void write_gradients(const BackwardParams& b, const BackwardPointers<T>& s, const Channels<V>& ch,
                                       const NormGradTerms<V>& terms, const PaddedResult& r, int channel, int pixel,
                                       int row, int column, const Pack<T, V>& x_packed, const Pack<T, V>& own) {
  float g[V], x[V], gz[V];
  gather<T, V>(s.grad, r, row, column, own, g);
  const int at = pixel * b.c + channel;
  if (s.grad_residual) store_floats(s.grad_residual, at, g);
  if (!s.grad_x) return;
  x_packed.get(x);
  activation_grad(b, ch, g, x, gz, static_cast<Sums<V>*>(nullptr));
#pragma unroll
  for (int j = 0; j < V; ++j) gz[j] *= ch.gain[j];
  if (b.norm != Norm::none) {  // else the terms are 0, but 0 · ∞ is not
#pragma unroll
    for (int j = 0; j < V; ++j) gz[j] = gz[j] - terms.shift[j] - x[j] * terms.along[j];
  }
  store_floats(s.grad_x, at, gz);
}

// Grid (splits, channel_blocks, n): adds up the sums of the splits, where there are any, and writes the gradients that
// are asked for (none where tiling.pixels is 0). Reads x and the gradient once.
template <class T, int V> __device__ inline void backward(const BackwardLaunch& a) {
  DYNAMIC_SHARED(shared);
  const BackwardParams& b = a.b;
  const ThreadTile<T, V> t(b, a.tiling, blockIdx.y, blockIdx.x);
  float* table = reinterpret_cast<float*>(shared);
  float* scratch = table + table_rows * t.columns;
  float* out = scratch + scratch_floats(3, t.columns);
  fill_table(b, t.sample, t.first_channel, t.columns, b.norm != Norm::none, table);

  const Tiling& p = a.partial_tiling;
  const bool layer = b.norm == Norm::layer, writes_sums = b.sums && blockIdx.x == 0;
  if (a.partial.channels && (!layer || writes_sums)) {
    const ThreadPosition at(t.columns);
    const int channel = t.first_channel + at.lane;
    const float* from = a.partial.channels + static_cast<int64_t>(t.sample) * p.splits * b.c + channel;
    const int64_t row = static_cast<int64_t>(b.n) * p.splits * b.c;
    Sums<1> sums;
    for (int i = at.row; i < (channel < b.c ? p.splits : 0); i += at.rows)
#pragma unroll
      for (int k = 0; k < 3; ++k) sums.of[k][0] += from[k * row + static_cast<int64_t>(i) * b.c];
    block_sums(at, sums.of, scratch, out);
    if (writes_sums) write_sums(b, t.sample, t.first_channel, t.columns, out);
  }
  __syncthreads();
  float total = 0, total_along = 0;
  if (a.partial.totals) {
    const int64_t blocks = static_cast<int64_t>(p.splits) * p.channel_blocks;
    const float* from = a.partial.totals + t.sample * blocks;
    float sums[2][1] = {};
    for (int i = threadIdx.x; i < blocks; i += threads)
      sums[0][0] += from[i], sums[1][0] += from[static_cast<int64_t>(b.n) * blocks + i];
    float* totals = out + 3 * t.columns;
    block_sums(ThreadPosition(1), sums, scratch, totals);
    __syncthreads();
    total = totals[0], total_along = totals[1];
  }
  store_norm_grad_terms(b, t.sample, t.columns, out, total, total_along, t.area, table);
  if (!t.valid) return;
  const Channels<V> ch(table, t.columns, t.lane);
  const NormGradTerms<V> terms(table, t.columns, t.lane);
  const BackwardPointers<T> s(b, t);
  const PaddedResult r(b, t.channel);
  const bool needs_x = b.grad_x && (b.norm != Norm::none || b.act != Act::none);
  each_pair<T, V>(b, s, r, t, needs_x, [&](int i, int row, int column, const Pack<T, V>& x, const Pack<T, V>& own) {
    write_gradients<T, V>(b, s, ch, terms, r, t.channel, i, row, column, x, own);
  });
}

// Grid (cluster, clusters of a sample, n), in clusters of (cluster, 1, 1). Reads x and the gradient once (pixels with
// copies beyond an edge read those twice), writes the gradients once.
template <class T, int V> __device__ inline void slab_backward(const SlabBackwardLaunch& a) {
  DYNAMIC_SHARED(shared);
  const BackwardParams& b = a.b;
  const bool layer = b.norm == Norm::layer;
  const int together = a.cluster_channel_blocks, split = blockIdx.x / together, own_block = blockIdx.x % together;
  const ThreadTile<T, V> t(b, a.tiling, blockIdx.y * together + own_block, split);

  const int held = a.tiling.pixels * t.lanes;
  Pack<T, V>*xs = reinterpret_cast<Pack<T, V>*>(shared), *gs = xs + held;
  const size_t slab_bytes = (2 * sizeof(Pack<T, V>) * held + 15) / 16 * 16;
  float* table = reinterpret_cast<float*>(shared + slab_bytes);
  float* scratch = table + table_rows * t.columns;
  float* out = scratch + scratch_floats(3, t.columns);
  float* published = out + 3 * t.columns;  // the sums of this block's pixels, then the layer norm's totals
  fill_table(b, t.sample, t.first_channel, t.columns, true, table);
  __syncthreads();

  const Channels<V> ch(table, t.columns, t.lane);
  const PaddedResult r(b, t.channel);
  const BackwardPointers<T> s(b, t);
  Sums<V> sums;
  if (t.valid)
    each_pair<T, V>(b, s, r, t, true, [&](int i, int row, int column, const Pack<T, V>& x_packed, const Pack<T, V>& own) {
                      xs[(i - t.first) * t.lanes + t.lane] = x_packed;
                      gs[(i - t.first) * t.lanes + t.lane] = own;
                      float g[V], x[V], gz[V];
                      gather<T, V>(s.grad, r, row, column, own, g);
                      x_packed.get(x);
      activation_grad(b, ch, g, x, gz, &sums);
                    });
  finish_sums(t, sums, table, scratch, published);
  if (layer) {
    __syncthreads();
    float first, second;
    weighted_totals(published, table, t.columns, min_int(t.columns, b.c - t.first_channel), &first, &second);
    if (threadIdx.x == 0) published[3 * t.columns] = first, published[3 * t.columns + 1] = second;
  }
  cluster_sync();
  if (!layer || b.sums) {
    const ThreadPosition at(t.columns);
    Sums<1> all;
    for (int i = at.row; i < a.tiling.splits; i += at.rows) {
      const float* from = of_rank(published, i * together + own_block) + at.lane;
#pragma unroll
      for (int k = 0; k < 3; ++k) all.of[k][0] += from[k * t.columns];
    }
    block_sums(at, all.of, scratch, out);
    if (b.sums && split == 0) write_sums(b, t.sample, t.first_channel, t.columns, out);
    if (!layer) __syncthreads();
  }
  float total = 0, total_along = 0;
  if (layer) {
    const int rank = threadIdx.x % 32;  // a cluster has at most 16 blocks
    const float* from = rank < static_cast<int>(gridDim.x) ? of_rank(published, rank) + 3 * t.columns : nullptr;
    total = warp_sum(from ? from[0] : 0), total_along = warp_sum(from ? from[1] : 0);
  }
  cluster_has_read();
  store_norm_grad_terms(b, t.sample, t.columns, out, total, total_along, t.area, table);
  if (t.valid) {
    const NormGradTerms<V> terms(table, t.columns, t.lane);
    for (int i = t.first + t.row; i < t.last; i += t.rows) {
      const int row = i / b.w, held_at = (i - t.first) * t.lanes + t.lane;
      write_gradients<T, V>(b, s, ch, terms, r, t.channel, i, row, i - row * b.w, xs[held_at], gs[held_at]);
    }
  }
  cluster_may_end();
}

}  // namespace munit_fast::cuda
