// The sizes of blocks and splits for each way of computing an epilogue.
#include "tiling.h"

#include <algorithm>

namespace munit_fast::cuda {
namespace {

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

int power_of_two(int least) {
  int power = 1;
  while (power < least) power *= 2;
  return power;
}

}  // namespace

// 128 bytes side by side, a line of the cache, or 64 for single numbers of 16 bits. Two resident blocks and two waves of
// them fill the device; a split is never shorter than its reads in flight, and 256 are the most that have to be united.
Tiling tile_passes(const EpilogueParams& e, int channels_of_access, const Device& device) {
  Tiling t;
  const int accesses = ceil_div(e.c, channels_of_access), area = e.h * e.w;
  t.lanes = std::min(channels_of_access > 1 ? 8 : 32, power_of_two(accesses));
  t.channel_blocks = ceil_div(accesses, t.lanes);
  const int rows = threads / t.lanes;
  const int64_t columns = static_cast<int64_t>(e.n) * t.channel_blocks;
  const int64_t wanted = std::clamp<int64_t>(4 * device.multiprocessors / std::max<int64_t>(columns, 1), 1, 256);
  t.pixels = std::max(4 * rows, ceil_div(ceil_div(area, wanted), rows) * rows);
  t.splits = std::max(ceil_div(area, t.pixels), 1);
  return t;
}

// Wide rows first, then the smallest cluster that fits and gives three quarters of the multiprocessors a block; where
// none does, the one with the most blocks. A quarter of the multiprocessors at least, or a tensor so small (1 MB) that
// the launches saved are what counts: below that the passes have the better of it. Not yet measured.
SlabPlan plan_slab(const EpilogueParams& e, int itemsize, int channels_of_access, int tensors, int floats,
                   int max_cluster, const Device& device) {
  SlabPlan best{};
  int64_t best_blocks = 0;
  const int accesses = ceil_div(e.c, channels_of_access), area = e.h * e.w;
  const int64_t enough = 3 * device.multiprocessors / 4;
  for (int lanes = std::min(8, power_of_two(accesses)); lanes >= 1; lanes /= 2) {
    if (lanes == 1 && accesses > 1 && best.cluster) break;  // 16 bytes are half of what memory moves at least
    const int columns = lanes * channels_of_access, blocks = ceil_div(accesses, lanes);
    const int together = e.norm == Norm::layer ? blocks : 1;
    for (int cluster = 1; cluster <= max_cluster; cluster *= 2) {
      if (cluster % together) continue;
      SlabPlan p{};
      p.tiling = {lanes, blocks, cluster / together, ceil_div(area, cluster / together)};
      if (static_cast<int64_t>(p.tiling.splits - 1) * p.tiling.pixels >= area) continue;  // a block without pixels
      const int64_t held = (static_cast<int64_t>(tensors) * p.tiling.pixels * columns * itemsize + 15) / 16 * 16;
      const int64_t shared = held + static_cast<int64_t>(floats) * columns * 4 + 16;
      if (shared > device.shared_bytes) continue;
      p.cluster = cluster, p.cluster_channel_blocks = together, p.shared_bytes = shared;
      const int64_t all = static_cast<int64_t>(e.n) * (blocks / together) * cluster;
      p.fills = 4 * all >= device.multiprocessors || static_cast<int64_t>(e.n) * e.c * area * itemsize <= 1 << 20;
      if (all > best_blocks) best = p, best_blocks = all;
      if (all >= enough) return best;
    }
  }
  return best;
}

}  // namespace munit_fast::cuda
