// How a problem is cut into blocks. The division depends on sizes and the device alone: same shapes, same bits.
#pragma once

#include "params.h"

namespace munit_fast::cuda {

struct Device {
  int index, multiprocessors;
  int shared_bytes;  // of one block, at most
  int max_cluster;   // 1: no clusters
};

// One launch, but x fits shared memory; or as many passes as it takes. `best` decides by the sizes.
enum class Way : int { best, slab, passes };

struct SlabPlan {
  Tiling tiling;
  int cluster;  // 0: does not fit
  int cluster_channel_blocks;
  size_t shared_bytes;
  bool fills;  // enough blocks to be worth it
};

Tiling tile_passes(const EpilogueParams& e, int channels_of_access, const Device& device);

// tensors: how many like x are held; floats: of shared memory beside them, for a column.
SlabPlan plan_slab(const EpilogueParams& e, int itemsize, int channels_of_access, int tensors, int floats,
                   int max_cluster, const Device& device);

}  // namespace munit_fast::cuda
