// How Winograd's convolutions read their input: as rows of pixels in float, channels padded to whole vectors, with what
// stands before the convolution (norm, activation, depth-to-space, padding) applied on the way. No padded tensor exists.

// One plane's reference value is subtracted from every pixel. With the plane's own value a constant plane becomes exactly
// zero, stays so through all transforms, and comes out exactly constant; else the transforms would round differently
// within a tile, and an instance norm would multiply that noise by 316. A median of 16 pixels is a constant plane's exact
// value, lies amid the values of any other, which costs least accuracy, and does not follow a few extreme pixels.
constexpr int64_t reference_side = 4;

template <Act act, class T>
void load_run(const T* x, int64_t x_step, int64_t count, const float* mean, const float* scale, const float* shift,
              const float* slope, const float* reference, int64_t c, float* to, int64_t to_step) {
  constexpr int64_t w = width<float>;
  for (int64_t i = 0; i < count; ++i, x += x_step, to += to_step) {
    int64_t k = 0;
    for (; k + w <= c; k += w)
      store(activate<act, float>((load(x + k) - load(mean + k)) * load(scale + k) + load(shift + k), load(slope + k)) -
                load(reference + k), to + k);
    if (k < c) {
      const int64_t n = c - k;
      const V z = (load_some(x + k, n) - load_some(mean + k, n)) * load_some(scale + k, n) + load_some(shift + k, n);
      // The lanes behind the last channel must be zero, whatever the activation makes of them.
      float room[width<float>] = {};
      store_some(activate<act, float>(z, load_some(slope + k, n)) - load_some(reference + k, n), room, n);
      store(load(static_cast<const float*>(room)), to + k);
    }
  }
}
// The same of x itself.
template <class T>
void copy_run(const T* x, int64_t x_step, int64_t count, const float* reference, int64_t c, float* to,
              int64_t to_step) {
  constexpr int64_t w = width<float>;
  for (int64_t i = 0; i < count; ++i, x += x_step, to += to_step) {
    int64_t k = 0;
    for (; k + w <= c; k += w) store(load(x + k) - load(reference + k), to + k);
    if (k < c) store(load_some(x + k, c - k) - load_some(reference + k, c - k), to + k);
  }
}

class ConvInput {
 public:
  const int64_t channels, stored_channels;  // of the result of the epilogue; padded to whole vectors
  const int64_t height, width_;             // of that result, without its padding

  explicit ConvInput(const WinogradInput& e)
      : channels(e.c / (e.block * e.block)), stored_channels(whole_vectors(channels)), height(e.block * e.h),
        width_(e.block * e.w), e_(e), view_(e), planes_(e),
        plain_(e.plain) {
    for (int64_t p = 0; p < planes_.count; ++p) planes_.read(e, p);
  }

  // Pixels of one row of image n, in padded coordinates, `step` columns apart from `column` on: [count][stored_channels].
  // What lies behind the padding, where the last tiles reach, is like the reference: a constant plane has no edge there.
  void row(int64_t n, int64_t padded_row, int64_t column, int64_t step, int64_t count, const float* reference,
           float* to) const {
    const int64_t r = source(padded_row, height);
    const int64_t first = column - e_.pad;
    if (r < 0) return outside(r, 0, count, reference, to);
    // Entries [begin, end) lie inside the image.
    const int64_t begin = min64(count, first < 0 ? ceil_div(-first, step) : 0);
    const int64_t end = max64(begin, min64(count, first < width_ ? (width_ - 1 - first) / step + 1 : 0));
    const auto border = [&](int64_t i) {
      const int64_t q = source(column + i * step, width_);
      if (q < 0) outside(q, i, i + 1, reference, to);
      else pixels(n, r, q, 0, 1, reference, to + i * stored_channels, 0);
    };
    for (int64_t i = 0; i < begin; ++i) border(i);
    for (int64_t j = 0; j < min64(e_.block, end - begin); ++j)  // each column of a block lies in channels of its own
      pixels(n, r, first + (begin + j) * step, step, ceil_div(end - begin - j, e_.block), reference,
             to + (begin + j) * stored_channels, e_.block * stored_channels);
    for (int64_t i = end; i < count; ++i) border(i);
  }

  // The reference values of image n: [stored_channels].
  void reference(int64_t n, float* to, float* room) const {  // room: 17 · stored_channels
    const int64_t c = stored_channels;
    float* zero = room + 16 * c;
    for (int64_t k = 0; k < c; ++k) zero[k] = 0;
    for (int64_t i = 0; i < 16; ++i)
      pixels(n, (2 * (i / reference_side) + 1) * height / (2 * reference_side),
             (2 * (i % reference_side) + 1) * width_ / (2 * reference_side), 0, 1, zero, room + i * c, 0);
    for (int64_t k = 0; k < c; k += width<float>) {
      V v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = load(room + i * c + k);
      // Batcher's odd-even merge sort.
#pragma GCC unroll 4
      for (int p = 1; p < 16; p *= 2)
#pragma GCC unroll 4
        for (int q = p; q > 0; q /= 2)
#pragma GCC unroll 16
          for (int j = q % p; j + q < 16; j += 2 * q)
#pragma GCC unroll 8
            for (int i = 0; i < q; ++i)
              if (i + j + q < 16 && (i + j) / (2 * p) == (i + j + q) / (2 * p)) {
                const V low = v[i + j], high = v[i + j + q];
                v[i + j] = low < high ? low : high, v[i + j + q] = low < high ? high : low;
              }
      const V median = v[7];
      store(median - median == V{} ? median : V{}, to + k);  // a NaN or an infinity would spread over the plane
    }
  }

 private:
  const WinogradInput& e_;
  const TensorView view_;
  const PlaneParams<float> planes_;
  const bool plain_;

  static constexpr int64_t behind = -2;  // the padding; zero padding is -1

  int64_t source(int64_t padded, int64_t size) const {
    if (padded >= size + 2 * e_.pad) return behind;
    return view_.source(padded, size);
  }
  void outside(int64_t where, int64_t from, int64_t to_, const float* reference, float* to) const {
    for (int64_t i = from; i < to_; ++i)
      for (int64_t k = 0; k < stored_channels; k += width<float>)
        store(where == behind ? V{} : -load(reference + k), to + i * stored_channels + k);
  }
  // `count` pixels from (r, q) on, `block · step` columns apart.
  void pixels(int64_t n, int64_t r, int64_t q, int64_t step, int64_t count, const float* reference, float* to,
              int64_t to_step) const {
    const int64_t place = ((r % e_.block) * e_.block + q % e_.block) * channels;  // of the pixel in its block
    const int64_t at = ((n * e_.h + r / e_.block) * e_.w + q / e_.block) * e_.c + place;
    switch (e_.dtype) {
      case Dtype::bf16: return run(static_cast<const bf16*>(e_.x) + at, n * e_.c + place, step, count, reference, to, to_step);
      case Dtype::f16: return run(static_cast<const f16*>(e_.x) + at, n * e_.c + place, step, count, reference, to, to_step);
      default: return run(static_cast<const float*>(e_.x) + at, n * e_.c + place, step, count, reference, to, to_step);
    }
  }
  template <class T>
  void run(const T* x, int64_t plane, int64_t step, int64_t count, const float* reference, float* to,
           int64_t to_step) const {
    if (plain_) return copy_run(x, step * e_.c, count, reference, channels, to, to_step);
    with_act(e_.act, [&]<Act act>() {
      load_run<act>(x, step * e_.c, count, planes_.mean() + plane, planes_.scale() + plane,
                    static_cast<const float*>(e_.bias) + plane, static_cast<const float*>(e_.slope) + plane, reference,
                    channels, to, to_step);
    });
  }
};
