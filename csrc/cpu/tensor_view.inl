// How the loops see a tensor in either memory layout: samples of rows of pixels, each pixel a few entries.
//
//   channels_last          a sample is an image, a pixel is its c channels
//   NCHW                   a sample is one plane, a pixel is one number
//   NCHW, depth-to-space   a sample is one plane of the result, a pixel is the block² numbers that land there
//
// Row q = block·h + i of the result (before padding) is made of the entries i·segment … (i+1)·segment - 1 of each pixel
// of row h of x, in order: that is what the phase-major channel order buys.

struct TensorView {
  int64_t samples, channels, result_channels, height, width, block, pad;
  int64_t segment;                       // entries of one pixel of x that one row of the result takes
  int64_t step_image, step_plane, step_row, step_pixel, step_entry;
  int64_t rows, columns;                 // of the result, before padding
  int64_t padded_rows, padded_columns;
  int64_t tensor_channels, planes_apart;
  PadMode pad_mode;
  bool channels_last;

  explicit TensorView(const EpilogueParams& e)
      : TensorView(e, e.c * e.h * e.w, e.h * e.w, (e.channels_last ? e.c : 1) * e.w) {}

  // Of a window of a larger tensor, whose images, planes (in NCHW) and rows are these numbers of entries apart.
  TensorView(const EpilogueParams& e, int64_t images_apart, int64_t planes_apart_, int64_t rows_apart)
      : step_image(images_apart), step_plane(planes_apart_), step_row(rows_apart) {
    block = e.block, pad = e.pad, pad_mode = e.pad_mode, channels_last = e.channels_last;
    height = e.h, width = e.w, tensor_channels = e.c;
    planes_apart = e.c / (block * block);
    if (channels_last) {
      samples = e.n, channels = e.c, result_channels = planes_apart;
      step_entry = 1, step_pixel = e.c;
    } else {
      samples = e.n * planes_apart, channels = block * block, result_channels = 1;
      step_entry = planes_apart * step_plane, step_pixel = 1;
    }
    segment = block * result_channels;
    rows = block * height, columns = block * width;
    padded_rows = rows + 2 * pad, padded_columns = columns + 2 * pad;
  }

  int64_t base(int64_t sample) const {  // of x
    if (channels_last) return sample * step_image;
    return (sample / planes_apart) * step_image + (sample % planes_apart) * step_plane;
  }
  int64_t result_base(int64_t sample) const { return sample * padded_rows * padded_columns * result_channels; }

  // The plane of x, as an index into [n, c], that holds entry `k` of the pixels of a sample.
  int64_t plane(int64_t sample, int64_t k) const {
    if (channels_last) return sample * channels + k;
    return (sample / planes_apart) * tensor_channels + k * planes_apart + sample % planes_apart;
  }

  // Which index of 0 … size - 1 a padded index reads; -1: a zero.
  int64_t source(int64_t padded, int64_t size) const {
    int64_t i = padded - pad;
    if (i >= 0 && i < size) return i;
    if (pad_mode == PadMode::zero) return -1;
    if (pad_mode == PadMode::replicate) return i < 0 ? 0 : size - 1;
    return i < 0 ? -i : 2 * (size - 1) - i;
  }

  // One row's part of x, entry after entry: pixels [from, to) of row q. Without depth-to-space that is the tensor's own
  // memory, else `room` is filled.
  template <class T> const T* load_row(const T* sample, int64_t q, int64_t from, int64_t to, T* room) const {
    if (block == 1) return sample + q * step_row + from * step_pixel;
    const T* row = sample + (q / block) * step_row + from * step_pixel;
    if (channels_last) {
      row += (q % block) * segment;
      for (int64_t k = 0; k < to - from; ++k)
        __builtin_memcpy(room + k * segment, row + k * step_pixel, segment * sizeof(T));
    } else {
      for (int64_t j = 0; j < block; ++j) {
        const T* plane = row + ((q % block) * block + j) * step_entry;
        for (int64_t k = 0; k < to - from; ++k) room[k * block + j] = plane[k];
      }
    }
    return room;
  }

  // The inverse, for gradients.
  template <class T> void store_row(const T* room, T* sample, int64_t q, int64_t from, int64_t to) const {
    T* row = sample + (q / block) * step_row + from * step_pixel;
    if (channels_last) {
      row += (q % block) * segment;
      for (int64_t k = 0; k < to - from; ++k)
        __builtin_memcpy(row + k * step_pixel, room + k * segment, segment * sizeof(T));
    } else {
      for (int64_t j = 0; j < block; ++j) {
        T* plane = row + ((q % block) * block + j) * step_entry;
        for (int64_t k = 0; k < to - from; ++k) plane[k] = room[k * block + j];
      }
    }
  }
};

// The parameters of one sample's channels, repeated until whole vectors come out even: [parameter][i][lanes]. A row is
// worked on in pieces that fit the first-level cache; in each, a vector of parameters is loaded once for all the pixels.
template <class A, int count> struct ParamTile {
  int64_t lanes, blocks, pixels;  // pixels: of a piece
  Scratch memory;

  explicit ParamTile(const TensorView& v)
      : lanes(lanes_for(v.segment)), blocks(v.block),
        pixels(min64(v.width, max64(1, piece_entries / lanes) * (lanes / v.segment))),
        memory(count * v.block * lanes * sizeof(A)) {}

  A* row(int parameter, int64_t i) const { return memory.as<A>() + (parameter * blocks + i) * lanes; }
  int64_t entries(const TensorView& v) const { return pixels * v.segment; }

  // values: [n, c]
  void fill(const TensorView& v, int parameter, int64_t sample, const A* values) const {
    for (int64_t i = 0; i < blocks; ++i) {
      A* to = row(parameter, i);
      for (int64_t k = 0; k < v.segment; ++k) to[k] = values[v.plane(sample, i * v.segment + k)];
      repeat(to, v.segment, lanes);
    }
  }

 private:
  static constexpr int64_t piece_entries = 2048;
  static int64_t lanes_for(int64_t segment) {
    int64_t shared = 1;  // the power of two that the vector's width and the segment share
    while (shared < width<A> && segment % (2 * shared) == 0) shared *= 2;
    const int64_t least = segment * (width<A> / shared);
    return least * ceil_div(4 * width<A>, least);  // four vectors beside each other, for for_lanes
  }
};

// Calls body(entry, state, count) for every vector of n entries whose lanes repeat every `lanes`. Four vectors beside
// each other are walked over all pixels at a time: enough to keep the parameters in registers, and long enough runs of
// memory for the processor to fetch ahead (one vector at a time cost a factor of two on tensors out of the cache).
// begin(lane) makes a state, end(lane, state) takes it; count is `width` but for the last vector. lanes is a multiple
// of the width.
template <class A, class Begin, class Body, class End>
inline void for_lanes(int64_t n, int64_t lanes, const Begin& begin, const Body& body, const End& end) {
  constexpr int64_t w = width<A>;
  for (int64_t lane = 0; lane < min64(n, lanes); lane += 4 * w) {
    int64_t i = lane;
    if (lane + 4 * w <= min64(n, lanes)) {
      auto s0 = begin(lane), s1 = begin(lane + w), s2 = begin(lane + 2 * w), s3 = begin(lane + 3 * w);
      for (; i + 4 * w <= n; i += lanes) {
        body(i, s0, w), body(i + w, s1, w);
        body(i + 2 * w, s2, w), body(i + 3 * w, s3, w);
      }
      end(lane, s0), end(lane + w, s1), end(lane + 2 * w, s2), end(lane + 3 * w, s3);
    }
    for (int64_t l = lane; l < min64(lane + 4 * w, lanes) && i < n; l += w, i += w) {
      auto state = begin(l);
      int64_t k = i;
      for (; k + w <= n; k += lanes) body(k, state, w);
      if (k < n) body(k, state, n - k);
      end(l, state);
    }
  }
}

// The same without states, in the order of memory, for lanes that are more than four vectors and a multiple of these:
// such a pixel fills them by itself, so n is a multiple of them. The processor fetches ahead best in that order; its
// price, a load of each parameter for each vector, is hidden as long as nothing is summed.
template <class A> inline bool in_order_serves(int64_t lanes) {
  return lanes > 4 * width<A> && lanes % (4 * width<A>) == 0;
}
template <class A, class Begin, class Body>
inline void in_order(int64_t n, int64_t lanes, const Begin& begin, const Body& body) {
  constexpr int64_t w = width<A>;
  for (int64_t at = 0; at < n; at += lanes)
    for (int64_t lane = 0; lane < lanes; lane += 4 * w) {
      body(at + lane, begin(lane), w), body(at + lane + w, begin(lane + w), w);
      body(at + lane + 2 * w, begin(lane + 2 * w), w), body(at + lane + 3 * w, begin(lane + 3 * w), w);
    }
}
