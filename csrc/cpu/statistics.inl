// Mean and centred sum of squares of every channel, in one read of memory. A part of the pixels is summed about the mean
// of its first pixels: Σ(x - centre)² loses nothing to a large mean, and where the first pixels are not typical of the
// rest, that difference is itself part of the variance. Parts are merged (Chan, Golub & LeVeque 1983) in double precision.
// The division into parts depends on the sizes alone, so the bits do not depend on the threads.

// Whether it is a norm of planes, alone or a few together, rather than of whole samples.
inline bool normalises_planes(const EpilogueParams& e) { return e.norm == Norm::instance || e.norm == Norm::group; }

// How many neighbouring planes one mean and one spread are of.
inline int64_t planes_together(const EpilogueParams& e) {
  return e.norm == Norm::layer ? e.c : e.norm == Norm::group ? e.c / e.groups : 1;
}

constexpr int64_t centre_entries = 4096;
constexpr int64_t part_entries = 65536;

// sums[l] = Σ over rows of d, and squares[l] of d², where d = x[row · lanes + l] - centre[l]; centre and squares may be
// null together.
template <class T, bool centred, class A = Accumulator<T>>
inline void sum_lanes(const T* x, int64_t rows, int64_t lanes, const A* centre, A* sums, A* squares) {
  using V = Vector<A>;
  constexpr int64_t w = width<A>;
  for (int64_t l = 0; l < lanes; l += 4 * w) {
    if (l + 4 * w <= lanes) {  // four independent sums hide the latency of an addition
      V a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{}, c0{}, c1{}, c2{}, c3{};
      if (centred) {
        c0 = load(centre + l), c1 = load(centre + l + w);
        c2 = load(centre + l + 2 * w), c3 = load(centre + l + 3 * w);
      }
      for (int64_t row = 0; row < rows; ++row) {
        const T* p = x + row * lanes + l;
        V x0 = load(p), x1 = load(p + w), x2 = load(p + 2 * w), x3 = load(p + 3 * w);
        if (centred) {
          x0 -= c0, x1 -= c1, x2 -= c2, x3 -= c3;
          b0 += x0 * x0, b1 += x1 * x1, b2 += x2 * x2, b3 += x3 * x3;
        }
        a0 += x0, a1 += x1, a2 += x2, a3 += x3;
      }
      store(a0, sums + l), store(a1, sums + l + w), store(a2, sums + l + 2 * w), store(a3, sums + l + 3 * w);
      if (!centred) continue;
      store(b0, squares + l), store(b1, squares + l + w);
      store(b2, squares + l + 2 * w), store(b3, squares + l + 3 * w);
      continue;
    }
    for (int64_t k = l; k < lanes; k += w) {
      const int64_t count = min64(w, lanes - k);
      V a{}, b{}, c{};
      if (centred) c = load_some(centre + k, count);
      for (int64_t row = 0; row < rows; ++row) {
        V d = load_up_to(x + row * lanes + k, count) - c;
        a += d;
        b += d * d;
      }
      store_some(a, sums + k, count);
      if (centred) store_some(b, squares + k, count);
    }
  }
}

struct Moments {
  double mean, squares;  // squares: Σ (x - mean)²
};

// Merges moments of from_count numbers into moments of into_count.
struct Merge {
  double share, weight;
  Merge(double into_count, double from_count)
      : share(from_count / (into_count + from_count)), weight(into_count * share) {}
  void operator()(Moments& into, Moments from) const {
    const double delta = from.mean - into.mean;
    into.mean += delta * share;
    into.squares += from.squares + delta * delta * weight;
  }
};

// How a tensor is read for its statistics: memory order, so depth-to-space plays no part.
struct StatisticsSplit {
  int64_t samples, channels, pixels, parts, part_pixels, lanes;

  explicit StatisticsSplit(const EpilogueParams& e) {
    samples = e.channels_last ? e.n : e.n * e.c, channels = e.channels_last ? e.c : 1, pixels = e.h * e.w;
    part_pixels = max64(1, part_entries / channels);
    parts = ceil_div(pixels, part_pixels);
    lanes = channels;  // times a power of two: a multiple of 64 where that stays short
    for (int64_t k = 1; k <= 64; k *= 2)
      if (channels * k % 64 == 0 && channels * k <= 2048) { lanes = channels * k; break; }
  }
  int64_t scratch(int64_t accumulator_bytes) const { return (3 * lanes + channels) * accumulator_bytes; }
  int64_t begin(int64_t part) const { return part * part_pixels; }
  int64_t end(int64_t part) const { return min64(pixels, (part + 1) * part_pixels); }
};

// Moments of one part of the pixels of one sample, for each channel; x is the sample.
template <class T>
inline void part_moments(const StatisticsSplit& plan, const T* x, int64_t part, Moments* out,
                          Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  const int64_t channels = plan.channels, lanes = plan.lanes;
  A *sums = scratch, *squares = sums + lanes, *centre = squares + lanes, *mean = centre + lanes;
  auto fold = [&](A* lane_sums) {  // by halves onto the first `channels` lanes
    for (int64_t half = lanes / 2; half >= channels; half /= 2)
      add(static_cast<const A*>(lane_sums + half), lane_sums, half);
  };
  const int64_t pixels = plan.end(part) - plan.begin(part), size = pixels * channels;
  const T* p = x + plan.begin(part) * channels;
  const int64_t rows = size / lanes, rest = size - rows * lanes;

  const int64_t first_rows = min64(rows, max64(1, centre_entries / lanes));
  if (rows > 0) {
    sum_lanes<T, false>(p, first_rows, lanes, static_cast<const A*>(nullptr), sums, static_cast<A*>(nullptr));
    fold(sums);
    const A first_pixels = A(first_rows * lanes / channels);
    for (int64_t c = 0; c < channels; ++c) mean[c] = sums[c] / first_pixels;
  } else {
    convert(p, mean, channels);
  }
  convert(static_cast<const A*>(mean), centre, channels);
  repeat(centre, channels, lanes);

  sum_lanes<T, true>(p, rows, lanes, static_cast<const A*>(centre), sums, squares);
  for (int64_t l = 0; l < rest; ++l) {
    const A d = number(p + rows * lanes + l) - centre[l];
    sums[l] += d, squares[l] += d * d;
  }
  fold(sums);
  fold(squares);
  for (int64_t c = 0; c < channels; ++c) {
    const double off = double(sums[c]) / double(pixels);
    out[c] = {double(mean[c]) + off, ::fmax(0, double(squares[c]) - off * off * double(pixels))};
  }
}

// Merges the parts of one channel of one sample; moments are [samples, parts, channels].
inline Moments sample_moments(const StatisticsSplit& plan, const Moments* moments, int64_t sample, int64_t channel) {
  const Moments* at = moments + sample * plan.parts * plan.channels + channel;
  Moments all = at[0];
  double count = double(plan.end(0));
  for (int64_t part = 1; part < plan.parts; ++part) {
    double pixels = double(plan.end(part) - plan.begin(part));
    Merge(count, pixels)(all, at[part * plan.channels]);
    count += pixels;
  }
  return all;
}
