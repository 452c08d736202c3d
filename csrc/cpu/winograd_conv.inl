// Winograd's convolutions, and the gradients of their inputs.

// One axis of a tile: the results it starts at, those that it writes, and where the others are added (a padding that is
// folded back), all counted from its own first one; or -1.
template <class P> struct TileAxis {
  int64_t origin;
  int begin, end;
  int onto[P::m];
};

struct TilePlace {
  int64_t unit, tile;  // tile: of the unit
};
struct TileRun {  // in one unit
  TilePlace from;
  int64_t count;
};

// The rows of tiles in the order they are computed, the same for any number of threads: a unit is a run of tiles of one
// row of an image.
struct TileGrid {
  int64_t images, rows, columns, chunks;  // rows and columns of tiles, and units in a row
  TileGrid(int64_t n, int64_t rows_, int64_t columns_, int64_t most)
      : images(n), rows(rows_), columns(columns_), chunks(ceil_div(columns_, most)) {}
  int64_t units() const { return images * chunks * rows; }
  int64_t tiles() const { return images * rows * columns; }
  int64_t image(int64_t unit) const { return unit / (chunks * rows); }
  int64_t chunk(int64_t unit) const { return unit / rows % chunks; }
  int64_t row(int64_t unit) const { return unit % rows; }
  int64_t begin(int64_t chunk) const { return columns * chunk / chunks; }
  int64_t length(int64_t unit) const { return begin(chunk(unit) + 1) - begin(chunk(unit)); }
  TilePlace place(int64_t tile) const {
    int64_t unit = tile / (rows * columns) * chunks * rows;
    tile %= rows * columns;
    for (; tile > 0 && tile >= length(unit); ++unit) tile -= length(unit);
    return {unit, tile};
  }
};

// The rows of pixels that one row of tiles reads, kept for the next row of tiles, which shares some.
template <class P> class Strips {
 public:
  Strips(const ConvInput& input, int64_t phases, int64_t most_tiles, float* room)
      : input_(input), phases_(phases), step_(phases == 4 ? 2 : 1),
        row_entries_((P::m * most_tiles + P::n - P::m) * input.stored_channels), room_(room) {}

  static int64_t size(const ConvInput& input, int64_t phases, int64_t most_tiles) {
    return phases * P::n * (P::m * most_tiles + P::n - P::m) * input.stored_channels;
  }
  // Rows origin … origin + n - 1 and columns from `column` on, of each phase.
  void load(int64_t n, int64_t origin, int64_t column, int64_t columns, const float* reference) {
    const bool follows = n == n_ && column == column_ && columns == columns_ && origin >= origin_;
    const int64_t from = follows ? max64(origin, origin_ + P::n) : origin;
    n_ = n, origin_ = origin, column_ = column, columns_ = columns;
    for (int64_t phase = 0; phase < phases_; ++phase)
      for (int64_t r = from; r < origin + P::n; ++r)
        input_.row(n, r * step_ + (phase >> 1), column * step_ + (phase & 1), step_, columns, reference, slot(phase, r));
  }
  const float* row(int64_t phase, int64_t r) const { return slot(phase, r); }

 private:
  float* slot(int64_t phase, int64_t r) const { return room_ + (phase * P::n + r % P::n) * row_entries_; }

  const ConvInput& input_;
  const int64_t phases_, step_, row_entries_;
  float* const room_;
  int64_t n_ = -1, origin_ = 0, column_ = 0, columns_ = 0;
};

// rows: of pixels [column][c]; v: the tile's place in V.
template <class P>
inline void input_tile(const float* const rows[P::n], int64_t c, float* v, int64_t v_step, int64_t chunk) {
  constexpr int n = P::n;
  for (int64_t k = 0; k < c; k += width<float>, v += chunk) {
    V t[n][n];
#pragma GCC unroll 6
    for (int j = 0; j < n; ++j) {
      V d[n], o[n];
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) d[i] = load(rows[i] + j * c + k);
      P::input(d, o);
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) t[i][j] = o[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      V o[n];
      P::input(t[i], o);
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) store(o[j], v + (i * n + j) * v_step);
    }
  }
}

// Mean and Σ (y - mean)² of a unit's pixels so far, one vector of channels at a time (Welford by tiles).
struct UnitMoments {
  float *mean, *squares;  // [k]
  float share, weight;    // of the next tile: pixels / (pixels + before), before · share
  float inverse;          // 1 / pixels

  void next(int64_t pixels, int64_t before) {
    share = float(pixels) / float(pixels + before), weight = float(before) * share, inverse = 1.0f / float(pixels);
  }
};

template <class P, class T> class OutputTile {
 public:
  const WinogradConv& a;
  int64_t m_step;      // of M, between frequencies
  int64_t y_row, y_column;
  bool streams;

  // One tile of one phase: from M to y at `y`, its first pixel (which need not exist).
  void operator()(const float* m, const TileAxis<P>& rows, const TileAxis<P>& columns, const float* constant, T* y,
                  const T* add, const UnitMoments* moments) const {
    constexpr int s = P::m;
    const bool whole = rows.begin == 0 && rows.end == s && columns.begin == 0 && columns.end == s;
    for (int64_t k = 0; k < a.k; k += width<float>) {
      const int64_t count = min64(width<float>, a.k - k);
      V o[s][s];
      compute(m + k, constant ? load_up_to(constant + k, count) : V{}, o);
      if (whole && count == width<float>) {
        if (moments) measure<true>(o, rows, columns, *moments, k, count);
#pragma GCC unroll 4
        for (int i = 0; i < s; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < s; ++j) {
            T* to = y + i * y_row + j * y_column + k;
            if (add) o[i][j] += load(add + (to - y));
            if (streams) stream(o[i][j], to);
            else store(o[i][j], to);
          }
        continue;
      }
      for (int i = 0; i < s; ++i)
        if (rows.onto[i] >= 0)
          for (int j = 0; j < s; ++j) o[rows.onto[i]][j] += o[i][j];
      for (int j = 0; j < s; ++j)
        if (columns.onto[j] >= 0)
          for (int i = 0; i < s; ++i) o[i][columns.onto[j]] += o[i][j];
      if (moments) measure<false>(o, rows, columns, *moments, k, count);
      for (int i = rows.begin; i < rows.end; ++i)
        for (int j = columns.begin; j < columns.end; ++j) {
          T* to = y + i * y_row + j * y_column + k;
          if (add) o[i][j] += load_up_to(add + (to - y), count);
          store_up_to(o[i][j], to, count, streams);
        }
    }
  }

 private:
  inline ALWAYS_INLINE void compute(const float* m, V constant, V o[P::m][P::m]) const {
    constexpr int n = P::n, s = P::m;
    V t[s][n];
#pragma GCC unroll 6
    for (int j = 0; j < n; ++j) {
      V p[n], q[s];
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) p[i] = load(m + (i * n + j) * m_step);
      P::output(p, q);
#pragma GCC unroll 4
      for (int i = 0; i < s; ++i) t[i][j] = q[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < s; ++i) {
      P::output(t[i], o[i]);
#pragma GCC unroll 4
      for (int j = 0; j < s; ++j) o[i][j] += constant;
    }
  }
  // About the tile's first pixel: where that is not typical of the rest, the difference is itself part of the variance.
  template <bool whole>
  inline ALWAYS_INLINE void measure(const V o[P::m][P::m], const TileAxis<P>& rows, const TileAxis<P>& columns,
                                    const UnitMoments& moments, int64_t k, int64_t count) const {
    constexpr int s = P::m;
    const int i0 = whole ? 0 : rows.begin, i1 = whole ? s : rows.end, j0 = whole ? 0 : columns.begin,
              j1 = whole ? s : columns.end;
    const V first = o[i0][j0];
    V sum{}, squares{};
#pragma GCC unroll 4
    for (int i = i0; i < i1; ++i)
#pragma GCC unroll 4
      for (int j = j0; j < j1; ++j) {
        const V d = o[i][j] - first;
        sum += d, squares += d * d;
      }
    const V off = sum * moments.inverse, spread = squares - sum * off;
    V mean = load_up_to(moments.mean + k, count), all = load_up_to(moments.squares + k, count);
    const V delta = first + off - mean;
    mean += delta * moments.share;
    all += (spread > V{} ? spread : V{}) + delta * delta * moments.weight;
    store_up_to(mean, moments.mean + k, count), store_up_to(all, moments.squares + k, count);
  }
};

template <class P> struct ConvPlan {
  static constexpr int frequencies = P::n * P::n;
  const WinogradConv& a;
  const ConvInput input;
  const int64_t phases_in, phases_out, from, to;  // from, to: channels that are summed over, and results
  const int64_t rows, columns;                    // of one phase of the result
  const TileGrid grid;
  const Panels panels;
  const int64_t most_unit_tiles;

  explicit ConvPlan(const WinogradConv& conv)
      : a(conv), input(conv), phases_in(P::r == 2 && !conv.transposed ? 4 : 1),
        phases_out(P::r == 2 && conv.transposed ? 4 : 1), from(phases_in == 1 ? input.channels : input.stored_channels * 4), to(conv.k * phases_out),
        rows(ceil_div(conv.rows, phases_out == 4 ? 2 : 1)), columns(ceil_div(conv.columns, phases_out == 4 ? 2 : 1)),
        grid(conv.n, ceil_div(rows, P::m), ceil_div(columns, P::m), most_tiles(input.stored_channels * phases_in)),
        panels{from, whole_vectors(to)}, most_unit_tiles(ceil_div(grid.columns, grid.chunks)) {}

  static int64_t most_tiles(int64_t channels) {
    return max64(4, min64(block_tiles, (strip_entries / (channels * P::n) - (P::n - P::m)) / P::m));
  }
  // Tile t of an axis with `size` results in a phase that is `parity`, of `all` in all phases.
  TileAxis<P> axis(int64_t t, int64_t size, int64_t all, int64_t parity) const {
    TileAxis<P> x{t * P::m, 0, P::m, {}};
    for (int i = 0; i < P::m; ++i) x.onto[i] = -1;
    const int64_t step = phases_out == 4 ? 2 : 1;
    const int64_t exist = ceil_div(all - parity, step);
    if (a.fold == 0) {
      x.end = int(max64(0, min64(P::m, exist - x.origin)));
      return x;
    }
    // A padding of one pixel is added onto the pixel that it was read from. Both lie in one tile: the last tile is moved
    // back to end with the last pixel of the phase, and the one before it stops there.
    const int64_t last = max64(0, size - P::m);
    x.origin = min64(x.origin, last);
    const int64_t next = x.origin + P::m < size ? min64(x.origin + P::m, last) : size;
    x.end = int(max64(0, min64(next, exist) - x.origin));
    const auto fold = [&](int64_t ring, int64_t target) {  // in padded coordinates
      if (ring % step != parity) return;
      const int64_t at = ring / step - x.origin;
      if (at < x.begin || at >= x.end) return;
      if (a.fold_mode != PadMode::zero) x.onto[at] = int(target / step - x.origin);
      if (at == x.begin && ring == 0) ++x.begin;
      else --x.end;
    };
    fold(all - 1, a.fold_mode == PadMode::reflect ? all - 3 : all - 2);
    fold(0, a.fold_mode == PadMode::reflect ? 2 : 1);
    return x;
  }
  // The reference values of an image [stored_channels], and what they and the bias add to its results [to].
  void measure(int64_t image, float* reference, float* constant, float* room) const {
    for (int64_t k = 0; k < input.stored_channels; ++k) reference[k] = 0;
    if (a.transposed) return;  // a gradient has none, and needs none: no norm follows
    input.reference(image, reference, room);
    const float* u = a.u + frequencies * frequency_size(panels);
    for (int64_t p = 0; p < panels.count(); ++p) {
      const int64_t vectors = panels.vectors(p), line = vectors * width<float>;
      float* sums = constant + panels.begin(p);
      for (int64_t k = 0; k < line; ++k) sums[k] = a.bias && panels.begin(p) + k < a.k ? a.bias[panels.begin(p) + k] : 0;
      for (int64_t phase = 0; phase < phases_in; ++phase) {
        float found[panel_width];
        row_products[vectors - 1][0](reference, width<float>, u + panels.offset(p) + phase * input.stored_channels * line,
                                     found, panel_width, input.channels, 0);
        for (int64_t k = 0; k < line; ++k) sums[k] += found[k];
      }
    }
  }

  // Bᵀ d B of a run of tiles; v: the run's place in V, of a block of `count` tiles.
  void input_transform(const TileRun& run, Strips<P>& strips, const float* reference, float* v, int64_t v_step,
                       int64_t count) const {
    const int64_t unit = run.from.unit, first = grid.begin(grid.chunk(unit)), length = grid.length(unit);
    const int64_t row = axis(grid.row(unit), rows, a.rows, 0).origin;
    // The last tile of an axis that is folded starts earlier than its place.
    const int64_t last = axis(first + length - 1, columns, a.columns, 0).origin, column = min64(P::m * first, last);
    strips.load(grid.image(unit), row, column, last + P::n - column, reference);
    for (int64_t t = run.from.tile; t < run.from.tile + run.count; ++t, v += width<float>) {
      const int64_t offset = axis(first + t, columns, a.columns, 0).origin - column;
      for (int64_t phase = 0; phase < phases_in; ++phase) {
        const float* lines[P::n];
        for (int i = 0; i < P::n; ++i) lines[i] = strips.row(phase, row + i) + offset * input.stored_channels;
        input_tile<P>(lines, input.stored_channels, v + phase * input.stored_channels * count, v_step,
                      count * width<float>);
      }
    }
  }

  // M = V · U for each frequency.
  void products(const float* v, int64_t v_step, int64_t count, float* m, int64_t m_step) const {
    constexpr int64_t w = width<float>;
    const int64_t groups = ceil_div(count, most_rows);
    for (int f = 0; f < frequencies; ++f)
      for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t vectors = panels.vectors(p);
        const float* u = a.u + f * frequency_size(panels) + panels.offset(p);
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t r0 = count * g / groups, r1 = count * (g + 1) / groups;
          row_products[vectors - 1][r1 - r0 - 1](v + f * v_step + r0 * w, count * w, u,
                                                 m + f * m_step + r0 * panels.columns + panels.begin(p), panels.columns,
                                                 from, from * vectors * w);
        }
      }
  }
};

// From the moments of the units [unit][2][k] to those of the planes, in the units' order.
template <class P> void finish_unit_moments(const WinogradConv& a, const TileGrid& grid, const float* moments) {
  const int64_t units = grid.chunks * grid.rows;
  const double pixels = double(a.rows) * double(a.columns);
  const Scratch room(a.n * a.k * int64_t(sizeof(Moments)));
  Moments* planes = room.as<Moments>();
  float* stats = static_cast<float*>(a.y_stats);
  parallel(a.n, [&](int64_t image) {
    Moments* plane = planes + image * a.k;
    double count = 0;
    for (int64_t u = image * units; u < (image + 1) * units; ++u) {
      const int64_t row = grid.row(u) * P::m, first = grid.begin(grid.chunk(u));
      const int64_t columns = min64(a.columns, P::m * (first + grid.length(u))) - P::m * first;
      const double size = double(min64(P::m, a.rows - row) * columns);
      const float* of_unit = moments + u * 2 * a.k;
      const Merge merge(count, size);
      for (int64_t k = 0; k < a.k; ++k) {
        const Moments next{of_unit[k], of_unit[a.k + k]};
        if (count == 0) plane[k] = next;
        else merge(plane[k], next);
      }
      count += size;
    }
    if (a.y_norm == Norm::instance) {
      for (int64_t k = 0; k < a.k; ++k) {
        stats[image * a.k + k] = float(plane[k].mean);
        stats[(a.n + image) * a.k + k] = float(plane[k].squares / pixels);
      }
      return;
    }
    Moments all = plane[0];
    for (int64_t k = 1; k < a.k; ++k) Merge(double(k) * pixels, pixels)(all, plane[k]);
    stats[image] = float(all.mean);
    stats[a.n + image] = float(::sqrt(all.squares / (pixels * double(a.k) - 1)));
  }, a.n * units * a.k);
}

template <class P, class T> void conv_of(const WinogradConv& a) {
  constexpr int n = P::n, frequencies = n * n;
  constexpr int64_t w = width<float>;
  const ConvPlan<P> plan(a);
  const ConvInput& input = plan.input;
  const TileGrid& grid = plan.grid;
  const Panels& panels = plan.panels;
  const int64_t stored = input.stored_channels, tiles = grid.tiles();
  const bool measures = a.y_stats != nullptr;
  const bool streams = a.streams && streamable(static_cast<T*>(a.y), a.k);
  const int64_t out = plan.phases_out == 4 ? 2 : 1;
  const int64_t y_height = a.rows - 2 * a.fold, y_width = a.columns - 2 * a.fold;

  // Memory: of each task alone, then the moments of all units.
  const int64_t tasks = min64(thread_count(), max64(1, grid.units()));
  const int64_t v_step = block_tiles * stored * plan.phases_in + skew, m_step = block_tiles * panels.columns + skew;
  const int64_t strip = Strips<P>::size(input, plan.phases_in, plan.most_unit_tiles);
  const int64_t of_image = stored + panels.columns;  // the reference values and what they add to the results
  const int64_t own = frequencies * (v_step + m_step) + whole_vectors(strip) + 17 * stored + a.n * of_image + skew;
  float* arena = scratch(tasks * own + (measures ? grid.units() * 2 * a.k : 0));
  float* moments = arena + tasks * own;

  parallel(tasks, [&](int64_t task) {
    float* v = arena + task * own;
    float* m = v + frequencies * v_step;
    float* room = m + frequencies * m_step;
    float* images = room + 17 * stored;  // [image][of_image]
    Strips<P> strips(input, plan.phases_in, plan.most_unit_tiles, images + a.n * of_image);
    // Where the moments are wanted, a unit is one task's.
    TilePlace place = measures ? TilePlace{grid.units() * task / tasks, 0} : grid.place(tiles * task / tasks);
    const TilePlace stop = measures ? TilePlace{grid.units() * (task + 1) / tasks, 0}
                                    : grid.place(tiles * (task + 1) / tasks);
    int64_t left = 0;
    for (int64_t u = place.unit; u < stop.unit; ++u) left += grid.length(u);
    left += stop.tile - place.tile;
    if (left == 0) return;
    for (int64_t i = grid.image(place.unit); i <= grid.image(stop.tile ? stop.unit : stop.unit - 1); ++i)
      plan.measure(i, images + i * of_image, images + i * of_image + stored, room);

    TileRun runs[block_tiles];
    while (left > 0) {
      // The next tiles, about block_tiles, as many as in each of the blocks that are left.
      const int64_t count = ceil_div(left, ceil_div(left, block_tiles));
      left -= count;
      int64_t pieces = 0;
      for (int64_t taken = 0; taken < count; ++pieces) {
        const int64_t take = min64(count - taken, grid.length(place.unit) - place.tile);
        runs[pieces] = {place, take};
        taken += take, place.tile += take;
        if (place.tile == grid.length(place.unit)) place = {place.unit + 1, 0};
      }
      int64_t at = 0;
      for (int64_t i = 0; i < pieces; ++i) {
        const TileRun& run = runs[i];
        plan.input_transform(run, strips, images + grid.image(run.from.unit) * of_image, v + at * w, v_step, count);
        at += run.count;
      }
      plan.products(v, v_step, count, m, m_step);
      at = 0;
      for (int64_t i = 0; i < pieces; ++i) {
        const TileRun& run = runs[i];
        const int64_t unit = run.from.unit, image = grid.image(unit), first = grid.begin(grid.chunk(unit));
        const float* constant = a.transposed ? nullptr : images + image * of_image + stored;
        UnitMoments of_unit{moments + unit * 2 * a.k, moments + (unit * 2 + 1) * a.k, 0, 0, 0};
        if (measures && run.from.tile == 0)
          for (int64_t k = 0; k < 2 * a.k; ++k) of_unit.mean[k] = 0;
        for (int64_t t = run.from.tile; t < run.from.tile + run.count; ++t, ++at)
          for (int64_t phase = 0; phase < plan.phases_out; ++phase) {
            const TileAxis<P> rows = plan.axis(grid.row(unit), plan.rows, a.rows, phase >> 1);
            const TileAxis<P> columns = plan.axis(first + t, plan.columns, a.columns, phase & 1);
            if (measures) of_unit.next((rows.end - rows.begin) * (columns.end - columns.begin), rows.end * P::m * t);
            const int64_t y_at = ((image * y_height + rows.origin * out + (phase >> 1) - a.fold) * y_width +
                                  columns.origin * out + (phase & 1) - a.fold) * a.k;
            const OutputTile<P, T> tile{a, m_step, out * y_width * a.k, out * a.k, streams};
            tile(m + at * panels.columns + phase * a.k, rows, columns, constant, static_cast<T*>(a.y) + y_at,
                 a.add ? static_cast<const T*>(a.add) + y_at : nullptr, measures ? &of_unit : nullptr);
          }
      }
    }
    if (streams) finish_streams();
  });
  if (measures) finish_unit_moments<P>(a, grid, moments);
}
