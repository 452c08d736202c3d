// The gradient of the weight of Winograd's convolutions.

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
  }, a.k * of_c.columns * r * r);
}
