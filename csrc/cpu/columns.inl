// The sum of a convolution's kernel columns, each shifted by its place (munit_fast/ops/narrow_conv.py).

// A pixel takes the first entries of four: whole vectors are loaded and stored, and the next pixels overwrite the rest.
typedef float Pixel __attribute__((vector_size(16), aligned(4), may_alias));

template <int channels> void add_columns_of(const Columns& c) {
  const int64_t step = c.kernel * channels, row_size = (c.width + c.kernel - 1) * step;
  constexpr int64_t touched = (4 + channels - 1) / channels;  // pixels by a vector
  float shift[4] = {};
  if (c.bias) __builtin_memcpy(shift, c.bias, channels * sizeof(float));
  const int64_t rows_together = max64(1, 8192 / row_size);  // of a task
  parallel(ceil_div(c.rows, rows_together), [&](int64_t task) {
    const Pixel bias = *reinterpret_cast<const Pixel*>(shift);
    for (int64_t row = task * rows_together; row < min64(c.rows, (task + 1) * rows_together); ++row) {
      const float* from = c.columns + row * row_size;
      float* to = c.result + row * c.width * channels;
      int64_t w = 0;
      for (; w + touched <= c.width; ++w, from += step, to += channels) {
        Pixel sum = *reinterpret_cast<const Pixel*>(from);
        for (int64_t j = 1; j < c.kernel; ++j) sum += *reinterpret_cast<const Pixel*>(from + j * (step + channels));
        *reinterpret_cast<Pixel*>(to) = sum + bias;
      }
      for (; w < c.width; ++w, from += step, to += channels)  // a whole vector would reach into the next row
        for (int64_t o = 0; o < channels; ++o) {
          float sum = from[o];
          for (int64_t j = 1; j < c.kernel; ++j) sum += from[j * (step + channels) + o];
          to[o] = sum + shift[o];
        }
    }
  });
}
