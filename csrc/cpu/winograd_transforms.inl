// The transforms of Winograd's convolutions in one dimension (Lavin & Gray 2016; Toom–Cook with the points below, in the
// notation y = Aᵀ[(G g) ⊙ (Bᵀ d)]). A plan F(m, r) gives m results of r taps from n = m + r - 1 inputs by n products; two
// dimensions are the same thing twice.
//
// A plan has n, m, r and, on vectors: input (Bᵀ d), weight (G g), output (Aᵀ m), and the adjoints that a weight gradient
// needs: result (A y) and taps (Gᵀ m). `input_row` says the same as `input` by numbers, for a single row of Bᵀ.

// A row of Bᵀ: the entries that are not zero.
template <int most> struct SparseRow {
  int count;
  int at[most];
  float by[most];
};

// F(4, 3) with the points 0, ±5/8, ±3/2, ∞: of ten pairs of points those with the least error (1.4e-6 by relative norm at
// 256 channels, where ±1, ±2 gives 3.2e-6 and direct summation 0.9e-6), and exact in binary.
struct F43 {
  static constexpr int n = 6, m = 4, r = 3, row_entries = 4;
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr float g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

  static inline ALWAYS_INLINE void input(const V d[6], V t[6]) {
    t[0] = a2 * b2 * d[0] + (d[4] - (a2 + b2) * d[2]);
    t[5] = a2 * b2 * d[1] + (d[5] - (a2 + b2) * d[3]);
    const V u = d[4] - b2 * d[2], v = d[3] - b2 * d[1], w = d[4] - a2 * d[2], z = d[3] - a2 * d[1];
    t[1] = u + a * v, t[2] = u - a * v, t[3] = w + b * z, t[4] = w - b * z;
  }
  static constexpr SparseRow<4> input_row(int i) {
    switch (i) {
      case 0: return {3, {0, 2, 4, 4}, {a2 * b2, -(a2 + b2), 1, 0}};
      case 1: return {4, {1, 2, 3, 4}, {-a * b2, -b2, a, 1}};
      case 2: return {4, {1, 2, 3, 4}, {a * b2, -b2, -a, 1}};
      case 3: return {4, {1, 2, 3, 4}, {-b * a2, -a2, b, 1}};
      case 4: return {4, {1, 2, 3, 4}, {b * a2, -a2, -b, 1}};
      default: return {3, {1, 3, 5, 5}, {a2 * b2, -(a2 + b2), 1, 0}};
    }
  }
  static inline ALWAYS_INLINE void weight(const V g[3], V t[6]) {
    V even = g[0] + a2 * g[2], odd = a * g[1];
    t[0] = g0 * g[0], t[1] = ga * (even + odd), t[2] = ga * (even - odd);
    even = g[0] + b2 * g[2], odd = b * g[1];
    t[3] = gb * (even + odd), t[4] = gb * (even - odd), t[5] = g[2];
  }
  static inline ALWAYS_INLINE void output(const V p[6], V y[4]) {
    const V s1 = p[1] + p[2], d1 = p[1] - p[2], s2 = p[3] + p[4], d2 = p[3] - p[4];
    y[0] = p[0] + (s1 + s2);
    y[1] = a * d1 + b * d2;
    y[2] = a2 * s1 + b2 * s2;
    y[3] = (a * a2 * d1 + p[5]) + b * b2 * d2;
  }
  static inline ALWAYS_INLINE void result(const V y[4], V t[6]) {
    t[0] = y[0], t[5] = y[3];
    V even = y[0] + a2 * y[2], odd = a * (y[1] + a2 * y[3]);
    t[1] = even + odd, t[2] = even - odd;
    even = y[0] + b2 * y[2], odd = b * (y[1] + b2 * y[3]);
    t[3] = even + odd, t[4] = even - odd;
  }
  static inline ALWAYS_INLINE void taps(const V p[6], V g[3]) {
    const V s1 = ga * (p[1] + p[2]), d1 = ga * (p[1] - p[2]), s2 = gb * (p[3] + p[4]), d2 = gb * (p[3] - p[4]);
    g[0] = g0 * p[0] + (s1 + s2), g[1] = a * d1 + b * d2, g[2] = (a2 * s1 + p[5]) + b2 * s2;
  }
};

// F(2, 3) with the points 0, ±1, ∞: fewer products saved, and no more error than direct summation.
struct F23 {
  static constexpr int n = 4, m = 2, r = 3, row_entries = 2;

  static inline ALWAYS_INLINE void input(const V d[4], V t[4]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
  }
  static constexpr SparseRow<2> input_row(int i) {
    switch (i) {
      case 0: return {2, {0, 2}, {1, -1}};
      case 1: return {2, {1, 2}, {1, 1}};
      case 2: return {2, {1, 2}, {-1, 1}};
      default: return {2, {1, 3}, {1, -1}};
    }
  }
  static inline ALWAYS_INLINE void weight(const V g[3], V t[4]) {
    const V even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    t[0] = g[0], t[1] = even + odd, t[2] = even - odd, t[3] = g[2];
  }
  static inline ALWAYS_INLINE void output(const V p[4], V y[2]) {
    y[0] = p[0] + (p[1] + p[2]), y[1] = (p[1] - p[2]) - p[3];
  }
  static inline ALWAYS_INLINE void result(const V y[2], V t[4]) {
    t[0] = y[0], t[1] = y[0] + y[1], t[2] = y[0] - y[1], t[3] = -y[1];
  }
  static inline ALWAYS_INLINE void taps(const V p[4], V g[3]) {
    const V s = 0.5f * (p[1] + p[2]), d = 0.5f * (p[1] - p[2]);
    g[0] = p[0] + s, g[1] = d, g[2] = s + p[3];
  }
};

// F(4, 2) with the points 0, -1, 1/2, 3/2, ∞: a 4×4 convolution of stride 2 is the sum of four 2×2 ones, each of one
// phase of the input (its rows and columns of one parity).
struct F42 {
  static constexpr int n = 5, m = 4, r = 2, row_entries = 4;

  static inline ALWAYS_INLINE void input(const V d[5], V t[5]) {
    t[0] = (d[3] - d[2]) + (0.75f * d[0] - 1.25f * d[1]);
    t[1] = (d[3] - 2.0f * d[2]) + 0.75f * d[1];
    t[2] = (d[3] - 0.5f * d[2]) - 1.5f * d[1];
    t[3] = d[3] + 0.5f * (d[2] - d[1]);
    t[4] = (d[4] - d[3]) + (0.75f * d[1] - 1.25f * d[2]);
  }
  static constexpr SparseRow<4> input_row(int i) {
    switch (i) {
      case 0: return {4, {0, 1, 2, 3}, {0.75f, -1.25f, -1, 1}};
      case 1: return {3, {1, 2, 3, 3}, {0.75f, -2, 1, 0}};
      case 2: return {3, {1, 2, 3, 3}, {-1.5f, -0.5f, 1, 0}};
      case 3: return {3, {1, 2, 3, 3}, {-0.5f, 0.5f, 1, 0}};
      default: return {4, {1, 2, 3, 4}, {0.75f, -1.25f, -1, 1}};
    }
  }
  static constexpr float w0 = 4.0f / 3, w1 = -4.0f / 15, w2 = -4.0f / 3, w3 = 4.0f / 15;
  static inline ALWAYS_INLINE void weight(const V g[2], V t[5]) {
    t[0] = w0 * g[0], t[1] = w1 * (g[0] - g[1]), t[2] = w2 * (g[0] + 0.5f * g[1]), t[3] = w3 * (g[0] + 1.5f * g[1]);
    t[4] = g[1];
  }
  static inline ALWAYS_INLINE void output(const V p[5], V y[4]) {
    y[0] = (p[0] + p[1]) + (p[2] + p[3]);
    y[1] = (0.5f * p[2] - p[1]) + 1.5f * p[3];
    y[2] = (0.25f * p[2] + p[1]) + 2.25f * p[3];
    y[3] = (0.125f * p[2] - p[1]) + (3.375f * p[3] + p[4]);
  }
  static inline ALWAYS_INLINE void result(const V y[4], V t[5]) {
    t[0] = y[0], t[4] = y[3];
    t[1] = (y[0] - y[1]) + (y[2] - y[3]);
    t[2] = y[0] + 0.5f * (y[1] + 0.5f * (y[2] + 0.5f * y[3]));
    t[3] = y[0] + 1.5f * (y[1] + 1.5f * (y[2] + 1.5f * y[3]));
  }
  static inline ALWAYS_INLINE void taps(const V p[5], V g[2]) {
    const V s1 = w1 * p[1], s2 = w2 * p[2], s3 = w3 * p[3];
    g[0] = (w0 * p[0] + s1) + (s2 + s3), g[1] = (0.5f * s2 - s1) + (1.5f * s3 + p[4]);
  }
};
