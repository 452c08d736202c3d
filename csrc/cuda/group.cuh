// What the planes of a group share in a group norm, made from the partial results of a pass over planes and given to
// each of them, so that the passes know of planes only: the statistics and, backward, two means.
#pragma once

#include "epilogue_common.cuh"

namespace munit_fast::cuda {

// Grid (groups, n). Unites the moments of the splits of a group's planes.
__device__ inline void group_statistics(const GroupStatisticsLaunch& g) {
  DYNAMIC_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  float* out = scratch + scratch_floats(2, 1);
  float* of_group = out + 3;
  const EpilogueParams& e = g.e;
  const int members = e.c / e.groups, area = e.h * e.w;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * e.c + blockIdx.x * members;
  const float* from = g.partial + first + static_cast<int64_t>(blockIdx.y) * (g.tiling.splits - 1) * e.c;
  const int64_t next = static_cast<int64_t>(e.n) * g.tiling.splits * e.c;
  const float count = static_cast<float>(members) * area;
  merge<1>(ThreadPosition(1), g.tiling.splits * members, count, scratch, out, [&](int i, float* mean, float* squares) {
    const int split = i / members;
    const float* at = from + static_cast<int64_t>(split) * e.c + i - split * members;
    mean[0] = at[0], squares[0] = at[next];
    return static_cast<float>(min_int(g.tiling.pixels, area - split * g.tiling.pixels));
  }, [&](int, float mean, float squares) { of_group[0] = mean, of_group[1] = squares; });
  __syncthreads();
  for (int i = threadIdx.x; i < members; i += threads) {
    e.stats[first + i] = of_group[0];
    e.stats[static_cast<int64_t>(e.n) * e.c + first + i] = of_group[1] / count;
  }
}

// Grid (groups, n). Adds up the sums of the splits, into the result where they are asked for, and takes the means of
// weight · gz and weight · gz·x̂ over the group.
__device__ inline void group_terms(const GroupTermsLaunch& g) {
  DYNAMIC_SHARED(shared);
  const BackwardParams& b = g.b;
  const int members = b.c / b.groups, first_channel = blockIdx.x * members;
  int lanes = 1;
  while (lanes < 32 && lanes < members) lanes *= 2;
  const ThreadPosition at(lanes);
  float* scratch = reinterpret_cast<float*>(shared);
  float* out = scratch + scratch_floats(3, lanes);
  float* of_group = out + 3 * lanes;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * b.c + first_channel;
  const int64_t row = static_cast<int64_t>(b.n) * b.c, partial_row = row * g.tiling.splits;
  const float* from = g.partial + first + static_cast<int64_t>(blockIdx.y) * (g.tiling.splits - 1) * b.c;

  float total = 0, total_along = 0;  // of the first row of threads
  for (int chunk = 0; chunk < members; chunk += lanes) {
    const int i = chunk + at.lane;
    float acc[3][1] = {};
    for (int split = at.row; split < (i < members ? g.tiling.splits : 0); split += at.rows)
#pragma unroll
      for (int k = 0; k < 3; ++k) acc[k][0] += from[k * partial_row + static_cast<int64_t>(split) * b.c + i];
    block_sums(at, acc, scratch, out);
    __syncthreads();
    if (at.row == 0 && i < members) {
      const float weight = b.weight.data ? read(b.weight, blockIdx.y, first_channel + i) : 1;
      total += weight * out[at.lane];
      total_along += weight * out[lanes + at.lane];
      for (int k = 0; k < 3 && b.sums; ++k) b.sums[k * row + first + i] = out[k * lanes + at.lane];
    }
    __syncthreads();
  }
  total = warp_sum(total), total_along = warp_sum(total_along);
  if (threadIdx.x == 0) of_group[0] = total, of_group[1] = total_along;
  __syncthreads();
  const float count = static_cast<float>(members) * b.h * b.w;
  for (int i = threadIdx.x; i < members; i += threads) {
    g.terms[first + i] = of_group[0] / count;
    g.terms[row + first + i] = of_group[1] / count;
    g.terms[2 * row + first + i] = 0;
  }
}

}  // namespace munit_fast::cuda
