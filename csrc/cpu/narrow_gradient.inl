// The weight gradient of a convolution from or to very few channels (munit_fast/ops/narrow_conv.py).
//
// The tensor with few channels is read by windows: the kernel's pixels of one row are side by side in memory, and make
// the rows of a product with the pixels of the wide tensor. A row of the wide tensor is read once, for all kernel rows.

constexpr int64_t narrow_parts = 16;  // of the pixels; added up in order, so the bits do not depend on the threads

void narrow_gradient(const NarrowGradient& a) {
  constexpr int64_t w = width<float>;
  const int64_t entries = a.kernel * a.narrow_channels;  // of a window
  const Panels panels{0, whole_vectors(a.wide_channels)};
  const int64_t groups = ceil_div(entries, most_rows);
  const bool whole = panels.columns == a.wide_channels;
  // Behind a gradient the windows reach over its border: its rows are copied between zeros.
  const int64_t border = a.of_input ? 0 : a.kernel - 1;
  const int64_t row_entries = (a.narrow_columns + 2 * border) * a.narrow_channels;
  const int64_t product = entries * panels.columns, products_size = a.kernel * product;
  const int64_t own = whole_vectors(row_entries) + (whole ? 0 : a.wide_columns * panels.columns);
  const int64_t tasks = min64(narrow_parts, thread_count()), rows = a.n * a.wide_rows;
  float* arena = scratch(tasks * own + narrow_parts * products_size);
  float* products = arena + tasks * own;
  parallel(tasks, [&](int64_t task) {
    float *line = arena + task * own, *pixels = line + whole_vectors(row_entries);
    for (int64_t k = 0; k < row_entries; ++k) line[k] = 0;
    for (int64_t part = narrow_parts * task / tasks; part < narrow_parts * (task + 1) / tasks; ++part) {
      float* sums = products + part * products_size;
      for (int64_t k = 0; k < products_size; ++k) sums[k] = 0;
      for (int64_t row = rows * part / narrow_parts; row < rows * (part + 1) / narrow_parts; ++row) {
        const int64_t n = row / a.wide_rows, y = row % a.wide_rows;
        const float* wide = a.wide + row * a.wide_columns * a.wide_channels;
        if (!whole) {
          for (int64_t x = 0; x < a.wide_columns; ++x)
            for (int64_t k = 0; k < panels.columns; k += w)
              store(load_up_to(wide + x * a.wide_channels + k, min64(w, a.wide_channels - k)),
                    pixels + x * panels.columns + k);
          wide = pixels;
        }
        for (int64_t i = 0; i < a.kernel; ++i) {
          const int64_t read = a.of_input ? y * a.stride + i : y - i;
          if (read < 0 || read >= a.narrow_rows) continue;
          const float* narrow = a.narrow + (n * a.narrow_rows + read) * a.narrow_columns * a.narrow_channels;
          if (border) {
            __builtin_memcpy(line + border * a.narrow_channels, narrow,
                             a.narrow_columns * a.narrow_channels * sizeof(float));
            narrow = line;
          }
          float* m = sums + i * product;
          for (int64_t p = 0; p < panels.count(); ++p)
            for (int64_t g = 0; g < groups; ++g) {
              const int64_t r0 = entries * g / groups, r1 = entries * (g + 1) / groups;
              column_products[panels.vectors(p) - 1][r1 - r0 - 1](
                  narrow + r0, a.stride * a.narrow_channels, wide + panels.begin(p), panels.columns,
                  m + r0 * panels.columns + panels.begin(p), panels.columns, a.wide_columns, true);
            }
        }
      }
    }
  });
  for (int64_t i = 0; i < a.kernel; ++i)
    for (int64_t e = 0; e < entries; ++e) {
      // A window of the gradient begins with the last of the kernel's columns.
      const int64_t s = e % a.narrow_channels, at = e / a.narrow_channels, j = a.of_input ? at : a.kernel - 1 - at;
      const float* m = products + i * product + e * panels.columns;
      for (int64_t c = 0; c < a.wide_channels; ++c) {
        float sum = m[c];
        for (int64_t part = 1; part < narrow_parts; ++part) sum += m[part * products_size + c];
        const int64_t out = a.of_input ? c : s, in = a.of_input ? s : c;
        a.grad_weight[out * a.step[0] + in * a.step[1] + i * a.step[2] + j * a.step[3]] = sum;
      }
    }
}
