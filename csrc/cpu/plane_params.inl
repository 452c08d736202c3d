// What a pass needs to know of each plane [n, c]: z = (x - mean) · scale + bias, with scale = r · weight. Folding the
// mean into the bias would save an operation, but a constant plane (an all-white image) must give its bias exactly:
// scale is 316 there, and the next layer would normalise the rounding error.

template <class A> struct PlaneParams {
  int64_t count;
  Scratch memory;

  explicit PlaneParams(const EpilogueParams& e) : count(e.n * e.c), memory(5 * count * sizeof(A)) {}

  A* mean() const { return memory.as<A>(); }
  A* r() const { return memory.as<A>() + count; }
  A* scale() const { return memory.as<A>() + 2 * count; }
  A* c1() const { return memory.as<A>() + 3 * count; }
  A* c2() const { return memory.as<A>() + 4 * count; }

  // From the statistics of plane p's row of `stats`.
  void read(const EpilogueParams& e, int64_t p) const {
    const A* stats = static_cast<const A*>(e.stats);
    double mean_of = 0, r_of = 1;
    if (e.norm == Norm::layer) {
      mean_of = stats[p / e.c], r_of = 1.0 / (double(stats[e.n + p / e.c]) + e.eps);
    } else if (normalises_planes(e)) {
      mean_of = stats[p], r_of = 1.0 / ::sqrt(double(stats[count + p]) + e.eps);
    }
    mean()[p] = A(mean_of), r()[p] = A(r_of);
    scale()[p] = A(r_of * double(static_cast<const A*>(e.weight)[p]));
  }
};

enum : int { tile_mean, tile_scale, tile_shift, tile_slope, tile_c1, tile_c2 };

template <class A, int count>
inline void fill_tile(const ParamTile<A, count>& tile, const TensorView& v, const EpilogueParams& e,
                      const PlaneParams<A>& planes, int64_t sample) {
  tile.fill(v, tile_mean, sample, planes.mean());
  tile.fill(v, tile_scale, sample, planes.scale());
  tile.fill(v, tile_shift, sample, static_cast<const A*>(e.bias));
  tile.fill(v, tile_slope, sample, static_cast<const A*>(e.slope));
  if constexpr (count > tile_c1) {
    tile.fill(v, tile_c1, sample, planes.c1());
    tile.fill(v, tile_c2, sample, planes.c2());
  }
}

// Rows of a task: enough work to pay for handing it out and for its tile, few enough to share evenly.
inline int64_t rows_per_task(const TensorView& v) {
  return max64(1, 65536 / (v.padded_columns * v.result_channels));
}

// How the images of a batch share the threads: each by one thread, which needs no meeting between the passes, or a few
// at a time by all threads, as many as stay in a cache from one pass to the next.
struct BatchPlan {
  bool by_image;
  int64_t together;

  BatchPlan(const EpilogueParams& e, int64_t bytes_per_image) {
    const int64_t threads = thread_count();
    by_image = threads > 1 && e.n >= threads && (e.n % threads == 0 || e.n >= 4 * threads);
    together = min64(e.n, max64(1, cache_bytes / bytes_per_image));
  }
  static constexpr int64_t cache_bytes = 16 << 20;
};
