// The transformed weights of Winograd's convolutions.

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
  }, a.k * a.c * phases * n * n / 4);
  // The columns that pad the last vector.
  const int64_t panel = panels.count() - 1, end = to - panels.begin(panel), line = panels.vectors(panel) * w;
  if (to == panels.columns) return;
  for (int64_t f = 0; f <= n * n; ++f)
    for (int64_t row = 0; row < from; ++row) {
      float* u = a.u + f * frequency_size(panels) + panels.offset(panel) + row * line;
      for (int64_t k = end; k < line; ++k) u[k] = 0;
    }
}
