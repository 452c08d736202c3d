// Queries a device once, chooses the kernels and the shape of a launch, and launches. No operation waits for the device.
#include "launch.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"
#include "prepare.h"

namespace munit_fast::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("munit_fast: ") + what + ": " + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, index), "reading a device's limits");
  return value;
}

template <class A> const void* address(void (*kernel)(A)) { return reinterpret_cast<const void*>(kernel); }

template <class A> void load(void (*kernel)(A)) {
  cudaFuncAttributes unused;
  check(cudaFuncGetAttributes(&unused, address(kernel)), "loading a kernel");
}

template <class A> void allow_shared_memory(const Device& d, void (*kernel)(A)) {
  check(cudaFuncSetAttribute(address(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, d.shared_bytes),
        "asking for shared memory");
}

// More than 8 blocks to a cluster; a device may refuse.
template <class A> void allow_large_clusters(Device& d, void (*kernel)(A)) {
  if (d.max_cluster > 8 &&
      cudaFuncSetAttribute(address(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) {
    cudaGetLastError();
    d.max_cluster = 8;
  }
}

Device query_device(int index) {
  Device d{};
  d.index = index;
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  d.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  d.max_cluster = attribute(cudaDevAttrClusterLaunch, index) ? 16 : 1;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const bool wide : {true, false}) {
      const Kernels& k = kernels(dtype, wide);
      load(k.statistics), load(k.forward), load(k.backward_sums), load(k.backward);
      if (!k.slab_forward) continue;
      allow_shared_memory(d, k.slab_forward), allow_shared_memory(d, k.slab_backward);
      allow_large_clusters(d, k.slab_forward), allow_large_clusters(d, k.slab_backward);
    }
    load(phase_border_kernels(dtype).forward), load(phase_border_kernels(dtype).backward);
    const LossKernels& l = loss_kernels(dtype);
    load(l.losses), load(l.combine);
    allow_large_clusters(d, l.losses);
  }
  load(group_kernels().statistics), load(group_kernels().terms);
  return d;
}

// A launch of blocks of `threads`, in clusters along x.
struct Configuration {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster_attribute{};
  Configuration(dim3 grid, int cluster, size_t shared, cudaStream_t stream) {
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    if (cluster > 1) {
      cluster_attribute.id = cudaLaunchAttributeClusterDimension;
      cluster_attribute.val.clusterDim.x = cluster;
      cluster_attribute.val.clusterDim.y = cluster_attribute.val.clusterDim.z = 1;
      config.attrs = &cluster_attribute;
      config.numAttrs = 1;
    }
  }
  Configuration(const Configuration&) = delete;
};

template <class A>
void launch(void (*kernel)(A), dim3 grid, int cluster, size_t shared, cudaStream_t stream, const A& argument) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("munit_fast: more than 65535 samples or channel blocks");
  Configuration c(grid, cluster, shared, stream);
  check(cudaLaunchKernelEx(&c.config, kernel, argument), "launching a kernel");
}

// The largest cluster that this device can hold with so much shared memory: part of it may be switched off.
template <class A> int possible_cluster(const Device& d, void (*kernel)(A), int wanted, size_t shared) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, size_t>, int> known;
  if (wanted <= 1) return wanted;
  const std::lock_guard<std::mutex> lock(mutex);
  int& found = known[{d.index, address(kernel), wanted, shared}];
  for (int cluster = wanted; found == 0; cluster /= 2) {
    Configuration c(dim3(cluster), cluster, shared, nullptr);
    int clusters = 0;
    if (cluster == 1 ||
        (cudaOccupancyMaxActiveClusters(&clusters, address(kernel), &c.config) == cudaSuccess && clusters > 0))
      found = cluster;
    else
      cudaGetLastError();
  }
  return found;
}

template <class A>
SlabPlan possible_slab(const Device& d, const EpilogueParams& e, const Kernels& k, void (*kernel)(A), int tensors,
                       int floats) {
  SlabPlan plan{};
  if (!kernel) return plan;
  for (int most = d.max_cluster; most >= 1;) {
    plan = plan_slab(e, k.itemsize, k.channels, tensors, floats, most, d);
    const int possible = possible_cluster(d, kernel, plan.cluster, plan.shared_bytes);
    if (possible >= plan.cluster) break;
    most = possible;
  }
  return plan;
}

bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

bool wide_fits(const EpilogueParams& e, Dtype dtype) {
  const int channels = dtype == Dtype::f32 ? 4 : 8;
  return e.result_channels % channels == 0 && aligned(e.x);
}

// Of shared memory, for each column: as the kernels lay it out.
constexpr int statistics_floats = 2 * warps_of_sums + 5;
constexpr int forward_floats = table_floats + 2 * warps_of_sums + 5;
constexpr int backward_floats = table_floats + 3 * warps_of_sums + 3 + 2;
constexpr int slab_forward_floats = forward_floats + 2;
constexpr int slab_backward_floats = backward_floats + 3;

bool wanted(Way way, const SlabPlan& plan) { return plan.cluster > 0 && (way == Way::slab || plan.fills); }

const Kernels& kernels_for(const ForwardParams& f, Dtype dtype) {
  const int channels = dtype == Dtype::f32 ? 4 : 8;
  const bool window = f.residual && (f.residual_row % channels || f.residual_image % channels || !aligned(f.residual));
  return kernels(dtype, wide_fits(f, dtype) && aligned(f.y) && !window);
}

const Kernels& kernels_for(const BackwardParams& b, Dtype dtype) {
  return kernels(dtype, wide_fits(b, dtype) && aligned(b.grad) && aligned(b.grad_x) && aligned(b.grad_residual));
}

size_t bytes(int floats, const Tiling& t, const Kernels& k) {
  return static_cast<size_t>(floats) * t.lanes * k.channels * sizeof(float) + 16;
}

// Of the kernels of the group norm: at most three sums of 32 columns.
constexpr size_t group_bytes = ((warps_of_sums + 1) * 3 * 32 + 2) * sizeof(float) + 16;

// Of the border of a phase convolution: two factors.
constexpr size_t border_bytes = 2 * border_tile * (border_tile + 1) * sizeof(float);

int border_tiles(int size) { return (size + border_tile - 1) / border_tile; }

dim3 grid_of(const Tiling& t, const EpilogueParams& e) { return dim3(t.splits, t.channel_blocks, e.n); }

int64_t totals_size(const Tiling& t, const EpilogueParams& e) {
  return 2LL * e.n * t.splits * t.channel_blocks;
}

}  // namespace

const Device& device(int index) {
  constexpr int most = 64;
  static std::once_flag once[most];
  static Device devices[most];
  if (index < 0 || index >= most) throw std::runtime_error("munit_fast: no such device");
  check(cudaSetDevice(index), "choosing the device");
  std::call_once(once[index], [&] { devices[index] = query_device(index); });
  return devices[index];
}

CurrentStream current_stream() {
  constexpr const char* name = "aoti_torch_get_current_cuda_stream";
  static const auto found = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<CurrentStream>(dlsym(library ? library : RTLD_DEFAULT, name));
  }();
  if (!found) throw std::runtime_error(std::string("munit_fast: this torch has no ") + name);
  return found;
}

void prepare(int index) {
  current_stream();
  device(index);
}

void epilogue_forward(const Device& d, cudaStream_t stream, Dtype dtype, const ForwardParams& f, bool has_statistics,
                      Way way, const Allocate& allocate) {
  const Kernels& k = kernels_for(f, dtype);
  const bool needs_statistics = f.norm != Norm::none && !has_statistics;
  const bool group = f.norm == Norm::group;  // whose planes do not meet in a cluster
  if (needs_statistics && !group && way != Way::passes) {
    const SlabPlan plan = possible_slab(d, f, k, k.slab_forward, 1, slab_forward_floats);
    if (wanted(way, plan)) {
      const SlabForwardLaunch a{f, plan.tiling, plan.cluster_channel_blocks};
      const dim3 grid(plan.cluster, plan.tiling.channel_blocks / plan.cluster_channel_blocks, f.n);
      return launch(k.slab_forward, grid, plan.cluster, plan.shared_bytes, stream, a);
    }
  }
  const Tiling t = tile_passes(f, k.channels, d);
  PartialResults partial{};
  if (needs_statistics) {
    if (f.norm == Norm::layer) partial.totals = allocate(totals_size(t, f));
    else partial.channels = allocate(2LL * f.n * t.splits * f.c);
    launch(k.statistics, grid_of(t, f), 1, bytes(statistics_floats, t, k), stream, StatisticsLaunch{f, t, partial});
    if (group) {
      const GroupStatisticsLaunch a{f, t, partial.channels};
      launch(group_kernels().statistics, dim3(f.groups, f.n), 1, group_bytes, stream, a);
      partial = {};
    }
  }
  launch(k.forward, grid_of(t, f), 1, bytes(forward_floats, t, k), stream, ForwardLaunch{f, t, t, partial});
}

void epilogue_backward(const Device& d, cudaStream_t stream, Dtype dtype, const BackwardParams& b, Way way,
                       const Allocate& allocate) {
  if (!b.grad_x && !b.grad_residual && !b.sums) return;
  const Kernels& k = kernels_for(b, dtype);
  const bool has_norm_grad = b.norm != Norm::none && b.grad_x;
  const bool group = b.norm == Norm::group;
  if (has_norm_grad && !group && way != Way::passes) {
    const SlabPlan plan = possible_slab(d, b, k, k.slab_backward, 2, slab_backward_floats);
    if (wanted(way, plan)) {
      const SlabBackwardLaunch a{b, plan.tiling, plan.cluster_channel_blocks};
      const dim3 grid(plan.cluster, plan.tiling.channel_blocks / plan.cluster_channel_blocks, b.n);
      return launch(k.slab_backward, grid, plan.cluster, plan.shared_bytes, stream, a);
    }
  }
  const Tiling t = tile_passes(b, k.channels, d);
  const size_t shared = bytes(backward_floats, t, k);
  BackwardLaunch a{b, t, t, {}};
  if (!has_norm_grad && !b.sums) return launch(k.backward, grid_of(t, b), 1, shared, stream, a);
  a.partial.channels = allocate(3LL * b.n * t.splits * b.c);
  if (b.norm == Norm::layer) a.partial.totals = allocate(totals_size(t, b));
  launch(k.backward_sums, grid_of(t, b), 1, shared, stream, a);
  if (group) {
    const GroupTermsLaunch terms{b, t, a.partial.channels, allocate(3LL * b.n * b.c)};
    launch(group_kernels().terms, dim3(b.groups, b.n), 1, group_bytes, stream, terms);
    if (!b.grad_x && !b.grad_residual) return;
    a.b.sums = nullptr, a.partial.channels = terms.terms, a.partial_tiling.splits = 1;
    return launch(k.backward, grid_of(t, b), 1, shared, stream, a);
  }
  const bool written = b.norm == Norm::none || (!b.grad_x && !b.grad_residual);
  if (written) {  // only the sums are left to add up
    if (!b.sums) return;
    a.b.grad_x = a.b.grad_residual = nullptr;
    a.tiling.splits = 1, a.tiling.pixels = 0;
  }
  launch(k.backward, grid_of(a.tiling, b), 1, shared, stream, a);
}

void phase_border(cudaStream_t stream, Dtype dtype, PhaseBorderLaunch l) {
  l.row_tiles = border_tiles(2 * l.p.w);
  const dim3 grid(2 * (l.row_tiles + border_tiles(2 * l.p.h)), border_tiles(l.p.o), l.p.n);
  launch(phase_border_kernels(dtype).forward, grid, 1, border_bytes, stream, l);
}

void phase_border_backward(cudaStream_t stream, Dtype dtype, PhaseBorderBackwardLaunch l) {
  l.row_tiles = border_tiles(l.p.w + 2);
  l.tiles = l.row_tiles + border_tiles(l.p.h + 2);
  l.input_blocks = l.grad_a ? 4 * l.tiles * l.p.n : 0;
  const int weight_blocks = l.grad_weight ? 25 * border_tiles(l.p.o) : 0;
  const dim3 grid(l.input_blocks + weight_blocks, border_tiles(l.p.c));
  launch(phase_border_kernels(dtype).backward, grid, 1, border_bytes, stream, l);
}

void losses(const Device& d, cudaStream_t stream, Dtype dtype, LossLaunch l, const Allocate& allocate) {
  const LossKernels& k = loss_kernels(dtype);
  const int groups = l.count / l.per_group;
  int64_t largest = 0;
  for (int i = 0; i < l.count; ++i) largest = std::max(largest, l.size[i]);
  const int itemsize = dtype == Dtype::f32 ? 4 : 2;
  // Each thread does four accesses of 16 bytes, until the device is full four times.
  const int64_t blocks = (largest * itemsize + threads * 64 - 1) / (threads * 64);
  const int64_t full = std::max(4 * d.multiprocessors / groups, 1);
  const size_t shared = (warps_of_sums + 1) * sizeof(float) + 16;
  if (!l.value) {
    const int splits = static_cast<int>(std::clamp<int64_t>(blocks, 1, full));
    return launch(k.losses, dim3(splits, groups), 1, shared, stream, l);
  }
  // A cluster for each group adds up without a second launch; 16 blocks are too few for more than 8 MB.
  int cluster = 1;
  while (cluster < 16 && cluster < blocks) cluster *= 2;
  cluster = possible_cluster(d, k.losses, std::min(cluster, d.max_cluster), shared);
  if (cluster >= std::min<int64_t>(blocks, 16) && largest * itemsize <= 8 << 20)
    return launch(k.losses, dim3(cluster, groups), cluster, shared, stream, l);
  const int splits = static_cast<int>(std::clamp<int64_t>(blocks, 1, std::min<int64_t>(full, 256)));
  float* value = l.value;
  l.value = nullptr;
  l.partial = allocate(static_cast<int64_t>(groups) * splits);
  launch(k.losses, dim3(splits, groups), 1, shared, stream, l);
  launch(k.combine, dim3(groups), 1, shared, stream, CombineLaunch{l.partial, value, splits});
}

}  // namespace munit_fast::cuda
