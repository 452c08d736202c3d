// Runs CUDA kernels on the CPU, to be wrong where a GPU could be wrong.
//
// It finds: a missing __syncthreads or cluster barrier (threads run in the order that is worst for it, or in random
// orders, and shared memory starts as NaN and is NaN again once its block has left), barriers that not all threads reach,
// shared memory that is read or written outside what was asked for, 16-byte accesses that are not aligned, launches
// that a device would refuse (cluster sizes and shared memory beyond the limits or beyond what was set), and arithmetic
// that is wrong.
//
// It cannot find: reorderings of memory accesses inside one thread's program (each fiber sees memory in order), two
// threads that write one place at the same instant (one of them is last here), hazards between lanes of a warp that a
// shuffle hides, anything in the instructions that replace C++ under __CUDA_ARCH__ (conversions to and from half and
// bfloat16), and speed. Those are for a GPU: compute-sanitizer in tests/kernels/test_cuda_on_gpu.py.
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace simulated {

dim3 thread_index, block_index, grid_size;

// Saves the callee's registers and stack pointer, and takes up those of another fiber.
#if defined(__x86_64__)
extern "C" void simulated_switch(void** from, void* to);
asm(R"(
.text
.globl simulated_switch
.hidden simulated_switch
.type simulated_switch, @function
simulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simulated_switch, .-simulated_switch
)");
#endif

namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr int warp_size = 32;
constexpr size_t canary_bytes = 256;

struct Block {
  std::vector<uint4> memory;  // for its alignment
  size_t shared_bytes = 0;
  int alive = 0, waiting = 0;
  unsigned phase = 0;
  unsigned char* shared() { return reinterpret_cast<unsigned char*>(memory.data()); }
};

struct Warp {
  float values[warp_size];
  int alive = 0, waiting = 0;
  unsigned phase = 0;
};

struct Cluster {
  int alive = 0, arrived = 0;
  unsigned phase = 0;
};

}  // namespace

struct Fiber {
  dim3 thread, place;  // in its block, and of its block
  Block* block;
  Warp* warp;
  int lane;
  bool done;
  int barriers;  // passed so far
  unsigned cluster_phase;
  bool skipped_arrival;
  // What it waits for: *gate to differ from `closed`.
  const unsigned* gate;
  unsigned closed;
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
};

namespace {

// The whole simulated device.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  Cluster cluster;
  Fiber* running = nullptr;
  unsigned char* stacks = nullptr;
  size_t stack_count = 0;
  void (*thread)(const void*) = nullptr;
  const void* call = nullptr;
  std::string problem;
  std::mt19937 random;
#if defined(__x86_64__)
  void* scheduler = nullptr;
#else
  ucontext_t scheduler;
#endif
} machine;

// What tests choose.
struct Settings {
  int device = 0;
  int schedule = 0;  // 0: first thread first, 1: last first, others: seeds of a random order
  int skip_launch = -1, skip = -1;  // in this launch, this barrier of every thread does not wait
  int largest_cluster = 0, largest_shared = 0;
  std::vector<int> barriers;  // that a thread passed, at most, in each launch
} settings;

struct Limits {
  int multiprocessors, shared, clusters, possible_cluster;
};
// Multiprocessors, shared memory of a block, whether there are clusters, and the blocks of the largest that fits: of an
// H100, an A100, a T4, an H100 with parts switched off and an RTX 50. The multiprocessors are few: tensors small enough
// to simulate have splits then, but not many blocks.
constexpr Limits limits[] = {{8, 227 << 10, 1, 16},
                             {8, 163 << 10, 0, 1},
                             {12, 64 << 10, 0, 1},
                             {16, 227 << 10, 1, 4},
                             {20, 99 << 10, 1, 8}};
constexpr int device_count = sizeof(limits) / sizeof(limits[0]);
struct Allowed {
  int shared = 48 << 10, cluster = 8;
};
std::map<std::pair<int, const void*>, Allowed> allowed;
int current_device = 0;

void complain(const std::string& what) {
  if (machine.problem.empty()) machine.problem = what;
}

void to_scheduler() {
#if defined(__x86_64__)
  simulated_switch(&machine.running->stack_pointer, machine.scheduler);
#else
  swapcontext(&machine.running->context, &machine.scheduler);
#endif
}

void wait_for(const unsigned* gate, unsigned closed) {
  machine.running->gate = gate, machine.running->closed = closed;
  to_scheduler();
}

// Everyone alive has arrived: opens the gate.
template <class Group> void open_if_all(Group& group) {
  if (group.alive > 0 && group.waiting == group.alive) group.waiting = 0, ++group.phase;
}

void cluster_open_if_all() {
  Cluster& c = machine.cluster;
  if (c.alive > 0 && c.arrived == c.alive) c.arrived = 0, ++c.phase;
}

bool counts_and_skips() {
  const int index = machine.running->barriers++;
  settings.barriers.back() = std::max(settings.barriers.back(), index + 1);
  return index == settings.skip && static_cast<int>(settings.barriers.size()) - 1 == settings.skip_launch;
}

void leave(Fiber& f) {
  f.done = true;
  Block& b = *f.block;
  --b.alive, --f.warp->alive, --machine.cluster.alive;
  // Threads that have left count as arrived, as on a device.
  open_if_all(b), open_if_all(*f.warp), cluster_open_if_all();
  if (b.alive > 0) return;
  const unsigned char* canary = b.shared() + b.shared_bytes;
  for (size_t i = 0; i < canary_bytes; ++i)
    if (canary[i] != 0xee) complain("a kernel wrote beyond its shared memory");
  std::memset(b.shared(), 0xff, b.shared_bytes);  // it is another block's now: NaN in every type
}

void run_fiber() {
  machine.thread(machine.call);
  leave(*machine.running);
  for (;;) to_scheduler();
}

void prepare(Fiber& f, unsigned char* stack) {
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;  // where run_fiber would return to; it does not, but the stack is aligned as for a call
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = stack_bytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, run_fiber, 0);
#endif
}

void resume(Fiber& f) {
  machine.running = &f;
  thread_index = f.thread, block_index = f.place;
#if defined(__x86_64__)
  simulated_switch(&machine.scheduler, f.stack_pointer);
#else
  swapcontext(&machine.scheduler, &f.context);
#endif
}

bool ready(const Fiber& f) { return !f.done && (f.gate == nullptr || *f.gate != f.closed); }

// Lets fibers [first, last) of `order` run until none of them can, group by group of `sizes` (blocks, then warps, then
// threads): a group goes as far as it can before the next one moves. Returns how many have ended.
size_t run_greedily(const std::vector<int>& order, size_t first, size_t last, const size_t* sizes) {
  size_t ended = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t i = first; i < last; i += *sizes) {
      if (*sizes > 1) {
        const auto any_ready = [&] {
          for (size_t k = i; k < i + *sizes; ++k)
            if (ready(machine.fibers[order[k]])) return true;
          return false;
        };
        if (!any_ready()) continue;
        ended += run_greedily(order, i, i + *sizes, sizes + 1);
      } else {
        Fiber& f = machine.fibers[order[i]];
        if (!ready(f)) continue;
        f.gate = nullptr;
        resume(f);
        ended += f.done;
      }
      moved = true;
    }
  }
  return ended;
}

// Runs all fibers of a cluster to the end; false if they wait for each other for ever. Odd seeds shuffle at every turn,
// which keeps the blocks abreast; all other schedules let one block, and in it one warp, run ahead.
bool run_all(size_t block) {
  std::vector<int> order(machine.fibers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  const bool shuffled = settings.schedule > 1;
  if (settings.schedule == 1) std::reverse(order.begin(), order.end());
  if (shuffled && settings.schedule % 2 == 1) {
    for (size_t left = order.size(), before = 0; left > 0; before = left) {
      std::shuffle(order.begin(), order.end(), machine.random);
      bool moved = false;
      for (int i : order) {
        Fiber& f = machine.fibers[i];
        if (!ready(f)) continue;
        f.gate = nullptr;
        resume(f);
        moved = true;
        left -= f.done;
      }
      if (!moved && before == left) return false;
    }
    return true;
  }
  if (shuffled) {  // whole warps, and whole blocks
    const auto shuffle_groups = [&](size_t first, size_t count, size_t size) {
      std::vector<size_t> groups(count);
      for (size_t i = 0; i < count; ++i) groups[i] = i;
      std::shuffle(groups.begin(), groups.end(), machine.random);
      std::vector<int> moved;
      for (size_t g : groups) moved.insert(moved.end(), order.begin() + first + g * size, order.begin() + first + (g + 1) * size);
      std::copy(moved.begin(), moved.end(), order.begin() + first);
    };
    for (size_t b = 0; b < order.size(); b += block) shuffle_groups(b, block / warp_size, warp_size);
    shuffle_groups(0, order.size() / block, block);
  }
  const size_t sizes[] = {block, warp_size, 1};
  return run_greedily(order, 0, order.size(), sizes) == order.size();
}

void reserve_stacks(size_t count) {
  if (count <= machine.stack_count) return;
  if (machine.stacks) munmap(machine.stacks, machine.stack_count * stack_bytes);
  void* room = mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  machine.stacks = static_cast<unsigned char*>(room), machine.stack_count = count;
}

// Blocks [first, first + size) along x of row y and layer z, which can reach into each other's shared memory.
bool run_cluster(const cudaLaunchConfig_t& config, unsigned first, unsigned size, unsigned y, unsigned z) {
  const int threads = static_cast<int>(config.blockDim.x);
  const size_t words = (config.dynamicSmemBytes + canary_bytes + 15) / 16 + 1;
  machine.blocks.assign(size, Block{});
  machine.warps.assign(size * (threads / warp_size), Warp{});
  machine.cluster = Cluster{};
  machine.cluster.alive = static_cast<int>(size) * threads;
  machine.fibers.assign(size * threads, Fiber{});
  reserve_stacks(machine.fibers.size());
  for (unsigned b = 0; b < size; ++b) {
    Block& block = machine.blocks[b];
    block.memory.resize(words);
    block.shared_bytes = config.dynamicSmemBytes, block.alive = threads;
    std::memset(block.shared(), 0xff, block.shared_bytes);
    std::memset(block.shared() + block.shared_bytes, 0xee, canary_bytes);
    for (int t = 0; t < threads; ++t) {
      const int index = static_cast<int>(b) * threads + t;
      Fiber& f = machine.fibers[index];
      f.thread = dim3(t, 0, 0), f.place = dim3(first + b, y, z);
      f.block = &block, f.warp = &machine.warps[index / warp_size], f.lane = t % warp_size;
      ++f.warp->alive;
      prepare(f, machine.stacks + index * stack_bytes);
    }
  }
  return run_all(threads);
}

}  // namespace

unsigned char* shared_memory() { return machine.running->block->shared(); }

void block_barrier() {
  if (counts_and_skips()) return;
  Block& b = *machine.running->block;
  const unsigned phase = b.phase;
  ++b.waiting;
  open_if_all(b);
  wait_for(&b.phase, phase);
}

void cluster_arrive() {
  Fiber& f = *machine.running;
  f.skipped_arrival = counts_and_skips();
  if (f.skipped_arrival) return;
  f.cluster_phase = machine.cluster.phase;
  ++machine.cluster.arrived;
  cluster_open_if_all();
}

void cluster_wait() {
  Fiber& f = *machine.running;
  if (!f.skipped_arrival) wait_for(&machine.cluster.phase, f.cluster_phase);
}

void* of_rank(const void* shared, unsigned rank) {
  Block& own = *machine.running->block;
  const ptrdiff_t offset = static_cast<const unsigned char*>(shared) - own.shared();
  if (rank >= machine.blocks.size() || offset < 0 || offset >= static_cast<ptrdiff_t>(own.shared_bytes)) {
    complain("a kernel reached for shared memory that is not its cluster's");
    return own.shared();
  }
  return machine.blocks[rank].shared() + offset;
}

float exchange(float value, int offset) {
  Fiber& f = *machine.running;
  Warp& w = *f.warp;
  const auto meet = [&] {
    const unsigned phase = w.phase;
    ++w.waiting;
    open_if_all(w);
    wait_for(&w.phase, phase);
  };
  w.values[f.lane] = value;
  meet();
  const float other = w.values[f.lane ^ offset];
  meet();
  return other;
}

float half_to_float(unsigned short bits) {
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return exponent ? sign * std::ldexp(1024.0f + fraction, exponent - 25) : sign * std::ldexp(float(fraction), -24);
}

unsigned short float_to_half(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | static_cast<unsigned short>(std::nearbyint(size * 0x1p24f));
  int exponent;
  const float significand = std::frexp(size, &exponent);  // in [0.5, 1)
  return sign | static_cast<unsigned short>(std::nearbyint(significand * 2048) - 1024 + ((exponent + 14) << 10));
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(const void*), const void* call) {
  const unsigned cluster = config.numAttrs ? config.attrs[0].val.clusterDim.x : 1;
  const Limits& device = limits[current_device];
  const Allowed& may = allowed[{current_device, kernel}];
  const dim3 grid = config.gridDim;
  if (cluster == 0 || grid.x % cluster || config.blockDim.x % warp_size || config.blockDim.x > 1024 || grid.y > 65535 ||
      grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0)
    return cudaErrorInvalidConfiguration;
  if (static_cast<int>(cluster) > may.cluster || (cluster > 1 && !device.clusters) ||
      static_cast<int>(cluster) > device.possible_cluster ||
      static_cast<int>(config.dynamicSmemBytes) > may.shared)
    return cudaErrorInvalidConfiguration;
  settings.barriers.push_back(0);
  settings.largest_cluster = std::max(settings.largest_cluster, static_cast<int>(cluster));
  settings.largest_shared = std::max(settings.largest_shared, static_cast<int>(config.dynamicSmemBytes));
  machine.thread = thread, machine.call = call;
  grid_size = grid;
  machine.random.seed(settings.schedule);
  std::vector<dim3> clusters;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster) clusters.push_back(dim3(x, y, z));
  if (settings.schedule == 1) std::reverse(clusters.begin(), clusters.end());
  if (settings.schedule > 1) std::shuffle(clusters.begin(), clusters.end(), machine.random);
  for (const dim3& c : clusters)
    if (!run_cluster(config, c.x, cluster, c.y, c.z)) {
      complain("threads wait for each other for ever");
      return cudaErrorLaunchFailure;
    }
  return cudaSuccess;
}

}  // namespace simulated

using namespace simulated;

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "launch failure" : "invalid configuration or value";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= device_count) return cudaErrorInvalidValue;
  current_device = index;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index) {
  const Limits& d = limits[index];
  *value = name == cudaDevAttrMultiProcessorCount            ? d.multiprocessors
           : name == cudaDevAttrMaxSharedMemoryPerBlockOptin ? d.shared
                                                             : d.clusters;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel) {
  return kernel ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute name, int value) {
  const Limits& d = limits[current_device];
  if (!kernel) return cudaErrorInvalidValue;
  if (name == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (!d.clusters || d.possible_cluster == 8) return cudaErrorInvalidValue;  // the RTX 50 refuses
    allowed[{current_device, kernel}].cluster = 16;
    return cudaSuccess;
  }
  if (value > d.shared) return cudaErrorInvalidValue;
  allowed[{current_device, kernel}].shared = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  const int cluster = config->numAttrs ? static_cast<int>(config->attrs[0].val.clusterDim.x) : 1;
  *clusters = cluster <= limits[current_device].possible_cluster;
  return cudaSuccess;
}

// What tests call through ctypes.
extern "C" {
__attribute__((visibility("default"))) void simulated_set(int device, int schedule, int launch, int barrier) {
  settings = Settings{};
  settings.device = device, settings.schedule = schedule, settings.skip_launch = launch, settings.skip = barrier;
  machine.problem.clear();
}
__attribute__((visibility("default"))) int simulated_device() { return settings.device; }
__attribute__((visibility("default"))) const char* simulated_problem() { return machine.problem.c_str(); }
__attribute__((visibility("default"))) int simulated_launches() { return static_cast<int>(settings.barriers.size()); }
__attribute__((visibility("default"))) int simulated_barriers(int launch) { return settings.barriers[launch]; }
__attribute__((visibility("default"))) int simulated_cluster() { return settings.largest_cluster; }
__attribute__((visibility("default"))) int simulated_shared() { return settings.largest_shared; }
// -fsanitize=alignment calls this.
__attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1(void*, void*) {
  complain("an access is not aligned");
}
}
