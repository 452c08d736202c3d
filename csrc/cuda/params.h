// The CUDA kernels' contract: what a launch is told. Everything here is passed to a kernel by value.
// x [n, c, h, w] and y [n, c / block², block·h + 2·pad, block·w + 2·pad] are dense and channels_last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/enums.h"

namespace munit_fast::cuda {

// weight, bias or prelu's slopes: channel c of sample n reads entry n · per_sample + c % entries. Null: there is none.
struct ChannelParam {
  const void* data;
  Dtype dtype;
  int entries, per_sample;
};

struct EpilogueParams {
  const void* x;
  float* stats;  // [2, R]: mean and spread; R = n·c (instance, group), n (layer), 0 (none)
  ChannelParam weight, bias, slopes;
  float slope, eps;
  Norm norm;
  Act act;
  PadMode pad_mode;
  int n, c, h, w, block, pad, groups;
  int result_channels, result_width;  // c / block², block·w + 2·pad
  int rows, columns;                  // block·h, block·w: the result before padding
};

struct ForwardParams : EpilogueParams {
  const void* residual;  // like x, or a window of a larger tensor whose rows are dense; null: none
  int64_t residual_image;
  int residual_row;
  void* y;
};

struct BackwardParams : EpilogueParams {
  const void* grad;     // like y
  void* grad_x;         // like x, or null
  void* grad_residual;  // like x, or null
  float* sums;          // [3, n, c]: of gz, gz·x̂ and g·z where z ≤ 0; or null
};

// How a sample is cut: into blocks of lanes · (channels of an access) channels, and splits of `pixels` pixels.
struct Tiling {
  int lanes;  // a power of two, at most 32
  int channel_blocks, splits, pixels;
};

// Partial results of the splits of one pass, for the next: [3][n][splits][c], and for the layer norm one number for
// each block of threads, [2][n][splits · channel_blocks]. Null where one is not used.
struct PartialResults {
  float* channels;
  float* totals;
};

struct StatisticsLaunch {
  EpilogueParams e;
  Tiling tiling;
  PartialResults out;
};

struct GroupStatisticsLaunch {
  EpilogueParams e;
  Tiling tiling;
  const float* partial;  // PartialResults::channels of the statistics
};

struct GroupTermsLaunch {
  BackwardParams b;
  Tiling tiling;
  const float* partial;  // PartialResults::channels of the sums
  float* terms;          // the like of one split: what the next pass takes for them
};

struct ForwardLaunch {
  ForwardParams f;
  Tiling tiling;
  Tiling partial_tiling;
  PartialResults partial;  // of the statistics; null: f.stats holds them
};

struct BackwardLaunch {
  BackwardParams b;
  Tiling tiling;
  Tiling partial_tiling;
  PartialResults partial;  // written by the pass for the sums, read by the one behind it
};

// A cluster of `cluster` blocks holds all pixels of cluster_channel_blocks blocks of channels.
struct SlabForwardLaunch {
  ForwardParams f;
  Tiling tiling;  // splits · cluster_channel_blocks = the cluster
  int cluster_channel_blocks;
};

struct SlabBackwardLaunch {
  BackwardParams b;
  Tiling tiling;
  int cluster_channel_blocks;
};

constexpr int max_tensors = 8;  // of one launch of the losses

// mean(|first - second|) of each pair, or mean((first - target)²); their gradients where they are asked for.
struct LossLaunch {
  const void* first[max_tensors];
  const void* second[max_tensors];  // null: least squares about `target`
  void* grad_first[max_tensors];    // null: not wanted
  void* grad_second[max_tensors];
  int64_t size[max_tensors];
  int count;           // of tensors
  int per_group;       // tensors whose means are added: 1, or all of them
  float target;
  const float* grad;   // the upstream gradient of each group; null: no gradients
  float* value;        // [groups], or null
  float* partial;      // [groups, gridDim.x] where no cluster adds them up; or null
};

struct CombineLaunch {
  const float* partial;  // [groups, splits]
  float* value;          // [groups]
  int splits;
};

// The border of a phase convolution: a [n, h + 2, w + 2, c], the result [n, h, w, 4·o], the kernel [o, c, 5, 5].
struct PhaseBorderParams {
  const void* a;
  const void* weight;
  int64_t weight_strides[4];
  Dtype weight_dtype;  // f32, or that of the tensors
  int n, h, w, c, o;
};

struct PhaseBorderLaunch {
  PhaseBorderParams p;
  void* y;        // added to
  int row_tiles;  // of a row of the large image
};

struct PhaseBorderBackwardLaunch {
  PhaseBorderParams p;
  const void* grad;
  void* grad_a;       // added to; or null
  void* grad_weight;  // of the dtype of the weight, written; or null
  int64_t grad_weight_strides[4];
  int row_tiles, tiles;  // of a row of the padded input; the same and those of a column
  int input_blocks;      // for grad_a
};

constexpr int threads = 256;        // of every block
constexpr int blocks_resident = 2;  // on a multiprocessor, at least: 128 registers a thread
constexpr int loss_blocks_resident = 4;

// Rows and columns of a product for the border of a phase convolution; rows between two of a thread.
constexpr int border_tile = 32, border_rows = threads / border_tile;

// Floats of shared memory for each column of channels: of the table of parameters, and of one sum over the block.
constexpr int table_floats = 7, warps_of_sums = threads / 32;

}  // namespace munit_fast::cuda
