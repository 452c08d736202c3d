// Small matrix products whose accumulators fill the registers, for the convolutions.

using V = Vector<float>;

#if defined(MUNIT_FAST_AVX512)
constexpr int most_rows = 14;  // 14 × 2 accumulators, 2 vectors of B and 1 of A: 31 of 32 registers
#else
constexpr int most_rows = 6;   // 6 × 2 + 2 + 1: 15 of 16
#endif
constexpr int64_t panel_width = 2 * width<float>;

// One number in all lanes. In assembly: GCC would fold the load into every product that reads it, and memory would be
// read once for each instead of once.
inline ALWAYS_INLINE V broadcast(const float* p) {
  V v;
#if defined(MUNIT_FAST_AVX512) || defined(MUNIT_FAST_AVX2)
  asm("vbroadcastss %1, %0" : "=v"(v) : "m"(*p));
#else
  v = V{} + *p;
#endif
  return v;
}

// M[row][columns] = Σ over i < count of A(row, i) · B[i][columns], for `rows` rows and `vectors` vectors of columns, where
// A(row, i) = A[(i / width) · chunk + row · width + i % width]. `ahead` entries behind B lies what the next call reads:
// fetched into the second-level cache meanwhile, without which cold weights cost a quarter more.
template <int rows, int vectors>
void multiply_rows(const float* A, int64_t chunk, const float* B, float* M, int64_t m_step, int64_t count,
                   int64_t ahead) {
  constexpr int w = width<float>;
  V sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[r][v] = V{};
  const auto step = [&](int64_t i) ALWAYS_INLINE {
    V b[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) b[v] = load(B + v * w);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(B + ahead + v * w, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const V a = broadcast(A + r * w + i);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] += a * b[v];
    }
    B += vectors * w;
  };
  for (; count >= w; count -= w, A += chunk)
#pragma GCC unroll 4
    for (int i = 0; i < w; ++i) step(i);
  for (int64_t i = 0; i < count; ++i) step(i);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(sums[r][v], M + r * m_step + v * w);
}

// M[row][columns] (+)= Σ over i < count of A[i · a_step + row] · B[i · b_step + columns].
template <int rows, int vectors>
void multiply_columns(const float* A, int64_t a_step, const float* B, int64_t b_step, float* M, int64_t m_step,
                      int64_t count, bool add) {
  constexpr int w = width<float>;
  V sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[r][v] = add ? load(M + r * m_step + v * w) : V{};
  for (int64_t i = 0; i < count; ++i, A += a_step, B += b_step) {
    V b[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) b[v] = load(B + v * w);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const V a = broadcast(A + r);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(sums[r][v], M + r * m_step + v * w);
}

using MultiplyRows = void (*)(const float*, int64_t, const float*, float*, int64_t, int64_t, int64_t);
using MultiplyColumns = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, int64_t, bool);

#if defined(MUNIT_FAST_AVX512)
#define MUNIT_FAST_BY_ROWS(f, v)                                                                                       \
  {f<1, v>, f<2, v>, f<3, v>, f<4, v>, f<5, v>, f<6, v>, f<7, v>, f<8, v>, f<9, v>, f<10, v>, f<11, v>, f<12, v>,      \
   f<13, v>, f<14, v>}
#else
#define MUNIT_FAST_BY_ROWS(f, v) {f<1, v>, f<2, v>, f<3, v>, f<4, v>, f<5, v>, f<6, v>}
#endif
// [vectors - 1][rows - 1]
constexpr MultiplyRows row_products[2][most_rows] = {MUNIT_FAST_BY_ROWS(multiply_rows, 1),
                                                     MUNIT_FAST_BY_ROWS(multiply_rows, 2)};
constexpr MultiplyColumns column_products[2][most_rows] = {MUNIT_FAST_BY_ROWS(multiply_columns, 1),
                                                           MUNIT_FAST_BY_ROWS(multiply_columns, 2)};

// A matrix [rows][columns] in panels of two vectors of columns, the last of one vector where that is enough. The columns
// are padded to a whole vector.
struct Panels {
  int64_t rows, columns;  // columns: a multiple of the width
  int64_t count() const { return ceil_div(columns, panel_width); }
  int64_t begin(int64_t panel) const { return panel * panel_width; }
  int64_t vectors(int64_t panel) const { return min64(panel_width, columns - begin(panel)) / width<float>; }
  int64_t offset(int64_t panel) const { return begin(panel) * rows; }
  int64_t size() const { return columns * rows; }
};

inline int64_t whole_vectors(int64_t entries) { return ceil_div(entries, width<float>) * width<float>; }
