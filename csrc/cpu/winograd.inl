// Winograd's convolutions (Lavin & Gray 2016) of channels_last tensors: 3×3 of stride 1 by F43 or F23, and 4×4 of stride 2
// as four 2×2 ones by F42. Inside, everything is float.
//
// A result is computed by tiles of m × m pixels: input transform to V [n²][channel / width][tile][width], for each of the
// n² frequencies a matrix product with the transformed weights U, giving M [n²][tile][K], output transform. A few dozen
// tiles at a time, so that V and M stay in the caches. The sums over the channels run in the channels' order, and units
// of tiles depend on the sizes alone: the bits depend neither on the threads nor on how tiles share a block.

constexpr int64_t block_tiles = 64;      // 28 … 128 measure alike; fewer read U too often
constexpr int64_t gradient_tiles = 128;  // of a block of the weight gradient
constexpr int64_t strip_entries = 98304; // of the rows that a tile row reads
constexpr int64_t skew = 5 * width<float>;  // between frequencies: powers of two would meet in the same cache sets

// ---- weights ----

inline V gather_one_by_one(const float* p, int64_t step, int64_t count) {
  V v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i * step];
  return v;
}
// The first `count` numbers that lie `step` apart; the other lanes are zero.
inline V gather(const float* p, int64_t step, int64_t count) {
  if (step == 1) return load_up_to(p, count);
#if defined(MUNIT_FAST_AVX512)
  if (step > INT32_MAX / width<float> || step < INT32_MIN / width<float>) return gather_one_by_one(p, step, count);
  const __m512i at = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                        _mm512_set1_epi32(int(step)));
  return (V)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), __mmask16((1u << count) - 1), at, p, 4);
#else
  return gather_one_by_one(p, step, count);
#endif
}

// The taps [r²] of `width` kernels -> their rows of U, and the sum of the taps.
template <class P> inline ALWAYS_INLINE void transform_weight(const V taps[P::r * P::r], V t[P::n * P::n], V& sum) {
  constexpr int n = P::n, r = P::r;
  V half[n][r];
  sum = V{};
#pragma GCC unroll 3
  for (int j = 0; j < r; ++j) {
    V column[r], o[n];
#pragma GCC unroll 3
    for (int i = 0; i < r; ++i) {
      column[i] = taps[i * r + j];
      sum += column[i];
    }
    P::weight(column, o);
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) half[i][j] = o[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i) P::weight(half[i], t + i * n);
}

inline int64_t frequency_size(const Panels& panels) { return panels.size() + skew; }

// U [n² + 1][panel][row][panel_width]: the rows are what is summed over, those of each of four phases padded to whole
// vectors, and the last "frequency" holds the sums of the taps, for the reference values.
template <class P> void weights_of(const WinogradWeights& a) {
  constexpr int n = P::n, r = P::r;
  constexpr int64_t w = width<float>;
  const int64_t phases = P::r == 2 ? 4 : 1, side = P::r == 2 ? 2 : 1;  // of the stride, and its square
  const int64_t each = phases == 1 ? a.c : whole_vectors(a.c);  // rows of a phase
  const int64_t from = a.transposed ? a.k : each * phases, to = a.transposed ? a.c * phases : a.k;
  const int64_t per_phase = a.transposed ? a.c : a.k;
  const int64_t groups = ceil_div(per_phase, w);  // vectors of columns never straddle two phases' weights
  const Panels panels{from, whole_vectors(to)};
  const int64_t column_phases = a.transposed ? phases : 1;
  parallel(column_phases * groups, [&](int64_t task) {
    const int64_t column_phase = task / groups, first = task % groups * w, lanes = min64(w, per_phase - first);
    const int64_t step = a.step[a.transposed ? 1 : 0];  // from one lane to the next
    for (int64_t row = 0; row < from; ++row) {
      V taps[r * r];
      const int64_t k = a.transposed ? row : first, c = a.transposed ? first : row % each;
      const int64_t phase = a.transposed ? column_phase : row / each;
      const float* at = a.weight + k * a.step[0] + c * a.step[1] + (phase >> 1) * a.step[2] + (phase & 1) * a.step[3];
      const bool exists = a.transposed || c < a.c;
      for (int i = 0; i < r; ++i)
        for (int j = 0; j < r; ++j) {
          const int y = a.transposed ? r - 1 - i : i, x = a.transposed ? r - 1 - j : j;  // turned by 180°
          taps[i * r + j] = exists ? gather(at + side * (y * a.step[2] + x * a.step[3]), step, lanes) : V{};
        }
      V t[n * n + 1];
      transform_weight<P>(taps, t, t[n * n]);
      const int64_t column = column_phase * per_phase + first;
      for (int64_t l = 0; l < lanes;) {  // a run of lanes inside one vector of a panel
        const int64_t at = column + l, panel = at / panel_width, inside = at - panels.begin(panel);
        const int64_t run = min64(lanes - l, w - inside % w);
        float* u = a.u + panels.offset(panel) + row * panels.vectors(panel) * w + inside;
        for (int f = 0; f <= n * n; ++f, u += frequency_size(panels)) {
          if (run == w) {
            if (a.streams) stream(t[f], u);
            else store(t[f], u);
          } else {
            float room[w];
            store(t[f], room);
            for (int64_t i = 0; i < run; ++i) u[i] = room[l + i];
          }
        }
        l += run;
      }
    }
    finish_streams();
  });
  // The columns that pad the last vector.
  const int64_t panel = panels.count() - 1, end = to - panels.begin(panel), line = panels.vectors(panel) * w;
  if (to == panels.columns) return;
  for (int64_t f = 0; f <= n * n; ++f)
    for (int64_t row = 0; row < from; ++row) {
      float* u = a.u + f * frequency_size(panels) + panels.offset(panel) + row * line;
      for (int64_t k = end; k < line; ++k) u[k] = 0;
    }
}

// ---- forward and input gradient ----

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
  });
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

// ---- weight gradient ----

// One row of frequencies and some of the output channels: V, G and M of a row stay in one core's cache, where all
// frequencies together would not (2.9 … 3.4 times direct convolution instead of 2.2 … 2.5).
template <class P> class GradientRow {
 public:
  const WinogradWeightGradient& a;
  const ConvInput& input;
  const TileGrid& grid;
  const Panels& of_c;     // V's columns
  const int64_t phases;

  static int64_t v_step(const Panels& of_c) { return gradient_tiles * of_c.columns + skew; }
  static int64_t m_step(int64_t k, const Panels& of_c) { return k * of_c.columns + skew; }
  static int64_t strip(const ConvInput& input, const TileGrid& grid) {
    return (P::row_entries + 1) * (P::m * ceil_div(grid.columns, grid.chunks) + P::n) * input.stored_channels;
  }
  static int64_t size(const ConvInput& input, const TileGrid& grid, const Panels& of_c, int64_t most_k) {
    return P::n * (v_step(of_c) + gradient_tiles * most_k + skew + m_step(most_k, of_c)) + strip(input, grid) +
           input.stored_channels + skew;
  }

  // Frequencies (i, 0 … n - 1) of output channels [k0, k1): to planes [r][all K][C].
  template <class T> void run(int i, int64_t k0, int64_t k1, float* room, float* planes) const {
    const Panels of_k{gradient_tiles, whole_vectors(k1 - k0)};
    float* v = room;
    float* g = v + P::n * v_step(of_c);
    const int64_t g_step = gradient_tiles * of_k.columns + skew, of_m = m_step(of_k.columns, of_c);
    float* m = g + P::n * g_step;
    float* lines = m + P::n * of_m;
    float* reference = lines + strip(input, grid);
    for (int64_t k = 0; k < input.stored_channels; ++k) reference[k] = 0;
    const int64_t tiles = grid.tiles(), blocks = max64(1, ceil_div(tiles, gradient_tiles));  // one without tiles: zeros
    for (int64_t b = 0; b < blocks; ++b) {
      TilePlace place = grid.place(tiles * b / blocks);
      const int64_t count = tiles * (b + 1) / blocks - tiles * b / blocks;
      for (int64_t at = 0; at < count;) {
        const int64_t take = min64(count - at, grid.length(place.unit) - place.tile);
        for (int64_t phase = 0; phase < phases; ++phase) input_row(i, phase, {place, take}, at, count, lines, reference, v);
        result_row<T>(i, {place, take}, at, count, k0, k1, of_k, g, g_step);
        at += take;
        place = {place.unit + 1, 0};
      }
      for (int j = 0; j < P::n; ++j) multiply(v + j * v_step(of_c), g + j * g_step, of_k, count, m + j * of_m, b > 0);
    }
    for (int64_t k = 0; k < k1 - k0; ++k)
      for (int64_t c = 0; c < of_c.columns; c += width<float>) {
        V p[P::n], taps[P::r];
#pragma GCC unroll 6
        for (int j = 0; j < P::n; ++j) p[j] = load(m + j * of_m + k * of_c.columns + c);
        P::taps(p, taps);
        for (int j = 0; j < P::r; ++j) store(taps[j], planes + (j * a.k + k0 + k) * of_c.columns + c);
      }
  }

 private:
  // Row i of Bᵀ on the pixels of a row of tiles, once for each column, then all of it along the row.
  void input_row(int i, int64_t phase, const TileRun& run, int64_t at, int64_t count, float* lines,
                 const float* reference, float* v) const {
    const int64_t c = input.stored_channels, step = phases == 4 ? 2 : 1;
    const int64_t unit = run.from.unit, column = (grid.begin(grid.chunk(unit)) + run.from.tile) * P::m;
    const int64_t columns = P::m * run.count + P::n - P::m, size = columns * c;
    const auto row = P::input_row(i);
    for (int e = 0; e < row.count; ++e)
      input.row(grid.image(unit), (grid.row(unit) * P::m + row.at[e]) * step + (phase >> 1),
                column * step + (phase & 1), step, columns, reference, lines + (e + 1) * size);
    for (int64_t k = 0; k < size; k += width<float>) {
      V sum = row.by[0] * load(lines + size + k);
      for (int e = 1; e < row.count; ++e) sum += row.by[e] * load(lines + (e + 1) * size + k);
      store(sum, lines + k);
    }
    for (int64_t t = 0; t < run.count; ++t)
      for (int64_t k = 0; k < c; k += width<float>) {
        V d[P::n], o[P::n];
#pragma GCC unroll 6
        for (int j = 0; j < P::n; ++j) d[j] = load(lines + (t * P::m + j) * c + k);
        P::input(d, o);
        float* to = v + place(of_c, phase * c + k, at + t, count);
#pragma GCC unroll 6
        for (int j = 0; j < P::n; ++j) store(o[j], to + j * v_step(of_c));
      }
  }
  // Row i of A on the gradient's tiles, then all of it along the row.
  template <class T>
  void result_row(int i, const TileRun& run, int64_t at, int64_t count, int64_t k0, int64_t k1, const Panels& of_k,
                  float* g, int64_t g_step) const {
    constexpr int s = P::m;
    const int64_t unit = run.from.unit, y = grid.row(unit) * s, first = grid.begin(grid.chunk(unit)) + run.from.tile;
    const int64_t rows = min64(s, a.rows - y);
    float by[s];
    for (int r = 0; r < s; ++r) by[r] = result_factor(i, r);
    for (int64_t t = 0; t < run.count; ++t) {
      const int64_t x = (first + t) * s, columns = min64(s, a.columns - x);
      const T* tile = static_cast<const T*>(a.grad) + ((grid.image(unit) * a.rows + y) * a.columns + x) * a.k + k0;
      for (int64_t k = 0; k < k1 - k0; k += width<float>) {
        const int64_t lanes = min64(width<float>, k1 - k0 - k);
        V q[s], o[P::n];
        if (rows == s && columns == s && lanes == width<float>) {
#pragma GCC unroll 4
          for (int j = 0; j < s; ++j) {
            q[j] = by[0] * load(tile + j * a.k + k);
#pragma GCC unroll 4
            for (int r = 1; r < s; ++r) q[j] += by[r] * load(tile + (r * a.columns + j) * a.k + k);
          }
        } else {
          for (int j = 0; j < s; ++j) {
            q[j] = V{};
            for (int64_t r = 0; r < rows && j < columns; ++r)
              q[j] += by[r] * load_up_to(tile + (r * a.columns + j) * a.k + k, lanes);
          }
        }
        P::result(q, o);
        float* to = g + place(of_k, k, at + t, count);
#pragma GCC unroll 6
        for (int j = 0; j < P::n; ++j) store(o[j], to + j * g_step);
      }
    }
  }
  // Entry (i, r) of A, from what `result` makes of a unit vector.
  static float result_factor(int i, int r) {
    V y[P::m] = {}, t[P::n];
    y[r] += 1.0f;
    P::result(y, t);
    return t[i][0];
  }
  // Of channel k of a tile in [panel][tile][panel's columns], of a block of `count` tiles.
  static int64_t place(const Panels& panels, int64_t k, int64_t tile, int64_t count) {
    const int64_t panel = k / panel_width, begin = panels.begin(panel);
    return begin * count + tile * panels.vectors(panel) * width<float> + k - begin;
  }
  void multiply(const float* v, const float* g, const Panels& of_k, int64_t count, float* m, bool add) const {
    for (int64_t pk = 0; pk < of_k.count(); ++pk)
      for (int64_t pc = 0; pc < of_c.count(); ++pc) {
        const int64_t k = of_k.begin(pk), c = of_c.begin(pc), lanes = of_k.vectors(pk) * width<float>;
        const int64_t groups = ceil_div(lanes, most_rows);
        for (int64_t i = 0; i < groups; ++i) {
          const int64_t r0 = lanes * i / groups, r1 = lanes * (i + 1) / groups;
          const int64_t vectors = of_c.vectors(pc);
          column_products[vectors - 1][r1 - r0 - 1](g + k * count + r0, lanes, v + c * count, vectors * width<float>,
                                                    m + (k + r0) * of_c.columns + c, of_c.columns, count, add);
        }
      }
  }
};

template <class P, class T> void weight_gradient_of(const WinogradWeightGradient& a) {
  constexpr int n = P::n, r = P::r;
  constexpr int64_t w = width<float>;
  const ConvInput input(a);
  const int64_t phases = P::r == 2 ? 4 : 1, c = input.stored_channels;
  const TileGrid grid(a.n, ceil_div(a.rows, P::m), ceil_div(a.columns, P::m),
                      max64(4, min64(gradient_tiles, strip_entries / (c * (P::row_entries + 1)) / P::m)));
  const Panels of_c{gradient_tiles, c * phases};
  // The parts of K even out the threads' work; they change no sum.
  const int64_t panels = ceil_div(a.k, panel_width), threads = thread_count();
  int64_t parts = 1;
  while (parts < panels && parts < 8 && n * parts % threads != 0) ++parts;
  if (n * parts % threads != 0) parts = min64(panels, ceil_div(threads, n));
  const int64_t most_k = whole_vectors(min64(a.k, ceil_div(panels, parts) * panel_width));
  const int64_t own = GradientRow<P>::size(input, grid, of_c, most_k), jobs = n * parts, tasks = min64(jobs, threads);
  float* arena = scratch(tasks * own + n * r * a.k * of_c.columns);
  float* planes = arena + tasks * own;
  const GradientRow<P> row{a, input, grid, of_c, phases};
  parallel(tasks, [&](int64_t task) {
    for (int64_t job = jobs * task / tasks; job < jobs * (task + 1) / tasks; ++job) {
      const int64_t i = job / parts, part = job % parts;
      row.template run<T>(int(i), panels * part / parts * panel_width,
                          min64(a.k, panels * (part + 1) / parts * panel_width), arena + task * own,
                          planes + i * r * a.k * of_c.columns);
    }
  });
  parallel(a.k, [&](int64_t k) {
    for (int64_t at = 0; at < of_c.columns; at += w) {
      const int64_t phase = at / c, first = at % c, lanes = min64(w, input.channels - first);
      float room[r * r][w];
      for (int j = 0; j < r; ++j) {
        V p[n], taps[r];
        for (int i = 0; i < n; ++i) p[i] = load(planes + ((i * r + j) * a.k + k) * of_c.columns + at);
        P::taps(p, taps);
        for (int i = 0; i < r; ++i) store(taps[i], room[i * r + j]);
      }
      const int64_t side = phases == 4 ? 2 : 1;
      for (int i = 0; i < r; ++i)
        for (int j = 0; j < r; ++j) {
          float* to = a.grad_weight + k * a.step[0] + first * a.step[1] + (side * i + (phase >> 1)) * a.step[2] +
                      (side * j + (phase & 1)) * a.step[3];
          for (int64_t l = 0; l < lanes; ++l) to[l * a.step[1]] = room[i * r + j][l];
        }
    }
  });
}

// ---- the table's entries ----

#define MUNIT_FAST_BY_FLOAT(function, plan, arguments, dtype)           switch (dtype) {                                                        case Dtype::bf16: return function<plan, bf16>(arguments);             case Dtype::f16: return function<plan, f16>(arguments);               default: return function<plan, float>(arguments);                   }
#define MUNIT_FAST_BY_PLAN(function, arguments, dtype)                               switch (arguments.plan) {                                                            case WinogradPlan::f43: MUNIT_FAST_BY_FLOAT(function, F43, arguments, dtype)       case WinogradPlan::f23: MUNIT_FAST_BY_FLOAT(function, F23, arguments, dtype)       default: MUNIT_FAST_BY_FLOAT(function, F42, arguments, dtype)                    }

void winograd_conv(const WinogradConv& a) { MUNIT_FAST_BY_PLAN(conv_of, a, a.dtype) }
void winograd_weight_gradient(const WinogradWeightGradient& a) { MUNIT_FAST_BY_PLAN(weight_gradient_of, a, a.dtype) }
void winograd_weights(const WinogradWeights& a) {
  switch (a.plan) {
    case WinogradPlan::f43: return weights_of<F43>(a);
    case WinogradPlan::f23: return weights_of<F23>(a);
    default: return weights_of<F42>(a);
  }
}
