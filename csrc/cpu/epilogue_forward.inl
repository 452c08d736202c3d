// Forward: statistics in one read of x (unless they are given), then one read of x and one write of y.

// Where the parameters of one phase of a tile are, and one vector of them. Found before a loop: the compiler does not
// know that the loop's results lie somewhere else than the tile.
template <class A> struct AffineRows {
  const A *mean, *scale, *shift, *slope;
  template <int count>
  AffineRows(const ParamTile<A, count>& tile, int64_t i)
      : mean(tile.row(tile_mean, i)), scale(tile.row(tile_scale, i)), shift(tile.row(tile_shift, i)),
        slope(tile.row(tile_slope, i)) {}
};
template <class A> struct Affine {
  Vector<A> mean, scale, shift, slope;
  ALWAYS_INLINE Affine(const AffineRows<A>& rows, int64_t lane)
      : mean(load(rows.mean + lane)), scale(load(rows.scale + lane)), shift(load(rows.shift + lane)),
        slope(load(rows.slope + lane)) {}
};

// y = act((x - mean) · scale + shift) (+ residual) over n entries, with the parameters of phase i of the tile.
template <Act act, bool add, class T, class A = Accumulator<T>>
inline void transform(const T* x, const ParamTile<A, 4>& tile, int64_t i, const T* residual, T* y, int64_t n,
                      bool streams) {
  auto body = [&](int64_t at, const Affine<A>& p, int64_t count) ALWAYS_INLINE {
    Vector<A> z = activate<act, A>((load_up_to(x + at, count) - p.mean) * p.scale + p.shift, p.slope);
    if (add) z += load_up_to(residual + at, count);
    store_up_to(z, y + at, count, streams);
  };
  const AffineRows<A> rows(tile, i);
  auto begin = [=](int64_t lane) ALWAYS_INLINE { return Affine<A>(rows, lane); };
  if (in_order_serves<A>(tile.lanes)) in_order<A>(n, tile.lanes, begin, body);
  else for_lanes<A>(n, tile.lanes, begin, body, [](int64_t, const Affine<A>&) {});
}

// Rows [from, to) of the padded result of one sample.
template <class T>
void forward_rows(const ForwardParams& f, const TensorView& v, const PlaneParams<Accumulator<T>>& planes,
                  int64_t sample, int64_t from, int64_t to) {
  using A = Accumulator<T>;
  ParamTile<A, 4> tile(v);
  fill_tile(tile, v, f, planes, sample);
  Scratch room(v.block > 1 ? 2 * tile.entries(v) * sizeof(T) : 0);
  T *x_room = room.as<T>(), *residual_room = x_room + tile.entries(v);
  const int64_t row_bytes = v.padded_columns * v.result_channels * sizeof(T);
  const int64_t pixel_bytes = v.result_channels * sizeof(T);
  const T* x = static_cast<const T*>(f.x) + v.base(sample);
  const TensorView of_residual(f, f.residual_image, f.residual_plane, f.residual_row);
  const T* residual = f.residual ? static_cast<const T*>(f.residual) + of_residual.base(sample) : nullptr;
  T* y = static_cast<T*>(f.y) + v.result_base(sample);

  const bool streams = f.streams && v.block == 1 && streamable(y, v.result_channels);
  // Pixels [w, end) of row q, to their place inside a row of the result.
  auto piece = [&]<Act act>(int64_t q, int64_t w, int64_t end, T* result, bool streams_piece) {
    const int64_t i = q % v.block, n = (end - w) * v.segment;
    const T* in = v.load_row(x, q, w, end, x_room);
    if (residual)
      transform<act, true>(in, tile, i, of_residual.load_row(residual, q, w, end, residual_room), result, n,
                           streams_piece);
    else
      transform<act, false, T>(in, tile, i, nullptr, result, n, streams_piece);
  };
  with_act(f.act, [&]<Act act>() {
    for (int64_t padded = from; padded < to; ++padded) {
      T* out = y + padded * v.padded_columns * v.result_channels;
      const int64_t q = v.source(padded, v.rows);
      if (q < 0) {
        __builtin_memset(out, 0, row_bytes);
        continue;
      }
      T* inside = out + v.pad * v.result_channels;
      for (int64_t w = 0; w < v.width; w += tile.pixels)
        piece.template operator()<act>(q, w, min64(v.width, w + tile.pixels), inside + w * v.segment, streams);
      for (int64_t k = 0; k < 2 * v.pad; ++k) {
        const int64_t column = k < v.pad ? k : v.columns + k, read = v.source(column, v.columns);
        T* to_pixel = out + column * v.result_channels;
        if (read < 0)
          __builtin_memset(to_pixel, 0, pixel_bytes);
        else if (streams)  // what was streamed is not in the cache: compute it again
          piece.template operator()<act>(q, read, read + 1, to_pixel, false);
        else if (v.result_channels == 1)
          *to_pixel = inside[read];
        else
          __builtin_memcpy(to_pixel, inside + read * v.result_channels, pixel_bytes);
      }
    }
  });
  if (streams) finish_streams();
}

// Writes the statistics of the i-th planes that are normalised together, from their moments.
template <class A>
void finish_statistics(const EpilogueParams& e, const StatisticsSplit& plan, const Moments* moments, int64_t i) {
  A* stats = static_cast<A*>(e.stats);
  const int64_t first = i * planes_together(e), end = first + planes_together(e);
  const double pixels = double(plan.pixels), count = pixels * double(planes_together(e));
  Moments all{};
  for (int64_t p = first; p < end; ++p) {
    Moments plane = sample_moments(plan, moments, p / plan.channels, p % plan.channels);
    if (p == first) all = plane; else Merge(double(p - first) * pixels, pixels)(all, plane);
  }
  if (e.norm == Norm::layer) {
    stats[i] = A(all.mean), stats[e.n + i] = A(::sqrt(all.squares / (count - 1)));
    return;
  }
  for (int64_t p = first; p < end; ++p) stats[p] = A(all.mean), stats[e.n * e.c + p] = A(all.squares / count);
}

template <class T> void forward_of(const ForwardParams& f) {
  using A = Accumulator<T>;
  const TensorView v(f);
  const StatisticsSplit plan(f);
  const PlaneParams<A> planes(f);
  const T* x = static_cast<const T*>(f.x);
  const Scratch moment_memory(plan.samples * plan.parts * plan.channels * sizeof(Moments));
  Moments* moments = moment_memory.as<Moments>();
  auto measure = [&](int64_t sample, int64_t part) {
    const Scratch scratch(plan.scratch(sizeof(A)));
    part_moments(plan, x + sample * plan.pixels * plan.channels, part,
                  moments + (sample * plan.parts + part) * plan.channels, scratch.as<A>());
  };

  const int64_t together = planes_together(f);
  // NCHW planes are normalised right after their statistics, while they are in the cache.
  if (normalises_planes(f) && !f.has_statistics && !f.channels_last && f.block == 1 &&
      plan.samples >= 2 * together * thread_count()) {
    parallel(plan.samples / together, [&](int64_t i) {
      const int64_t first = i * together, end = first + together;
      for (int64_t plane = first; plane < end; ++plane)
        for (int64_t part = 0; part < plan.parts; ++part) measure(plane, part);
      finish_statistics<A>(f, plan, moments, i);
      for (int64_t plane = end - 1; plane >= first; --plane) {
        planes.read(f, plane);
        forward_rows<T>(f, v, planes, plane, 0, v.padded_rows);
      }
    });
    return;
  }
  const int64_t step = rows_per_task(v), tasks = ceil_div(v.padded_rows, step);
  const int64_t samples = v.samples / f.n, parts = plan.samples / f.n;  // of an image
  const int64_t entries = f.n * f.c * f.h * f.w;  // each about a nanosecond
  auto rows_of = [&](int64_t sample, int64_t task) {
    forward_rows<T>(f, v, planes, sample, task * step, min64(v.padded_rows, (task + 1) * step));
  };
  if (f.norm == Norm::none || f.has_statistics) {
    for (int64_t p = 0; p < planes.count; ++p) planes.read(f, p);
    parallel(v.samples * tasks, [&](int64_t i) { rows_of(i / tasks, i % tasks); }, entries / 2);
    return;
  }
  auto finish = [&](int64_t image) {
    const int64_t of_image = f.c / together;
    for (int64_t i = image * of_image; i < (image + 1) * of_image; ++i) finish_statistics<A>(f, plan, moments, i);
    for (int64_t p = image * f.c; p < (image + 1) * f.c; ++p) planes.read(f, p);
  };
  // The second pass goes backwards: what was read last may still be in a cache.
  const BatchPlan batch(f, f.c * f.h * f.w * int64_t(sizeof(T)));
  if (batch.by_image) {
    parallel(f.n, [&](int64_t n) {
      for (int64_t i = 0; i < parts * plan.parts; ++i) measure(n * parts + i / plan.parts, i % plan.parts);
      finish(n);
      for (int64_t i = samples * tasks - 1; i >= 0; --i) rows_of(n * samples + i / tasks, i % tasks);
    }, entries);
    return;
  }
  for (int64_t first = 0; first < f.n; first += batch.together) {
    const int64_t images = min64(batch.together, f.n - first);
    parallel(images * parts * plan.parts,
             [&](int64_t i) { measure(first * parts + i / plan.parts, i % plan.parts); });
    for (int64_t n = first; n < first + images; ++n) finish(n);
    parallel(images * samples * tasks, [&](int64_t i) {
      i = images * samples * tasks - 1 - i;
      rows_of(first * samples + i / tasks, i % tasks);
    });
  }
}

// The statistics alone, of a channels_last x.
template <class T> void statistics_of(const EpilogueParams& e) {
  const StatisticsSplit plan(e);
  const T* x = static_cast<const T*>(e.x);
  const Scratch moment_memory(plan.samples * plan.parts * plan.channels * sizeof(Moments));
  Moments* moments = moment_memory.as<Moments>();
  parallel(plan.samples * plan.parts, [&](int64_t i) {
    const int64_t sample = i / plan.parts;
    const Scratch scratch(plan.scratch(sizeof(Accumulator<T>)));
    part_moments(plan, x + sample * plan.pixels * plan.channels, i % plan.parts, moments + i * plan.channels,
                  scratch.as<Accumulator<T>>());
  });
  for (int64_t i = 0; i < e.n * e.c / planes_together(e); ++i)
    finish_statistics<Accumulator<T>>(e, plan, moments, i);
}
