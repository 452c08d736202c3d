// What reflection padding of the large image adds at the border of an upsampling convolution, and its backward
// (munit_fast/ops/upsample_conv.py has the same in PyTorch).
//
// A side of the image is a line of differences, the second line of the small input minus the outermost, replicated at its
// ends, convolved with one row or column of the 5×5 kernel: by phases, three taps for each pixel of the small input. The
// rows of the large image are reflected at their ends too; the corners belong to them.

constexpr int64_t border_sides = 4;  // top, bottom, left, right

struct BorderShape {
  const PhaseBorder& a;
  const int64_t c, h, w;                // of the small input, behind its epilogue
  const int64_t stored, outputs, columns;  // channels in whole vectors; two phases of a side; they in whole vectors
  const int64_t workers;

  explicit BorderShape(const PhaseBorder& a_)
      : a(a_), c(a_.c / (a_.block * a_.block)), h(a_.block * a_.h), w(a_.block * a_.w), stored(whole_vectors(c)),
        outputs(2 * a_.o), columns(whole_vectors(outputs)),
        workers(thread_count()) {}

  int64_t length(int64_t side) const { return side < 2 ? w : h; }
  // Pixels of all sides before `side` and image n, where a line has `more` pixels than the side is long.
  int64_t before(int64_t side, int64_t n, int64_t more) const {
    return a.n * (min64(side, 2) * (w + more) + max64(side - 2, 0) * (h + more)) + n * (length(side) + more);
  }
  int64_t pixels(int64_t more) const { return 2 * a.n * (w + h + 2 * more); }

  // Pixel `at` of a side's outermost line (depth 0) or the second one (depth 1), in the small input.
  int64_t pixel(int64_t side, int64_t n, int64_t at, int64_t depth) const {
    const int64_t r = side == 0 ? depth : side == 1 ? h - 1 - depth : at;
    const int64_t q = side == 2 ? depth : side == 3 ? w - 1 - depth : at;
    return (n * h + r) * w + q;
  }
  // The two phases [2][o] of a side lie in the 4·o channels of a pixel as two runs.
  int64_t run(int64_t side, int64_t phase) const {
    return (side < 2 ? 2 * side + phase : (side - 2) + 2 * phase) * a.o;
  }
  // Tap t of the kernel's line that a side reads.
  int64_t tap(int64_t side, int64_t t) const {
    const int64_t i = side < 2 ? 4 * side : t, j = side < 2 ? t : 4 * (side - 2);
    return i * a.step[2] + j * a.step[3];
  }

  int64_t product_time() const { return pixels(0) * c * a.o / 10; }  // in nanoseconds

  // body(item, worker) for all items, a run of them for each worker.
  template <class Body> void each(int64_t items, int64_t nanoseconds, const Body& body) const {
    const int64_t tasks = nanoseconds < least_shared ? 1 : min64(items, workers);
    parallel(tasks, [&](int64_t task) {
      for (int64_t i = items * task / tasks; i < items * (task + 1) / tasks; ++i) body(i, task);
    });
  }

  // The kernels [side][tap][c][columns], or [side][tap][outputs][stored], by phases.
  int64_t kernels_size() const { return 3 * border_sides * max64(c * columns, outputs * stored) + 2 * panel_width; }
  void kernels(bool transposed, float* u) const {
    const int64_t rows = transposed ? outputs : c, line = transposed ? stored : columns;
    const int64_t used = transposed ? c : outputs;
    constexpr int64_t group = width<float>;
    each(ceil_div(c, group), 30 * c * a.o, [&](int64_t item, int64_t) {
      for (int64_t k = 0; k < a.o; ++k)
        for (int64_t i = item * group; i < min64(c, (item + 1) * group); ++i) {
          const float* kernel = a.weight + k * a.step[0] + i * a.step[1];
          for (int64_t side = 0; side < border_sides; ++side) {
            float t[5];
            for (int64_t j = 0; j < 5; ++j) t[j] = kernel[tap(side, j)];
            const float phases[2][3] = {{t[0] + t[1], t[2] + t[3], t[4]}, {t[0], t[1] + t[2], t[3] + t[4]}};
            for (int64_t j = 0; j < 2; ++j)
              for (int64_t b = 0; b < 3; ++b) {
                const int64_t of_phase = j * a.o + k;
                float* at = u + (side * 3 + b) * rows * line;
                at[transposed ? of_phase * line + i : i * line + of_phase] = phases[j][b];
              }
          }
        }
    });
    if (used < line)
      for (int64_t row = 0; row < 3 * border_sides * rows; ++row)
        for (int64_t k = used; k < line; ++k) u[row * line + k] = 0;
  }

  // The differences of a side's pixels from `first` on, replicated behind its ends: [count][stored].
  void line(const ConvInput& input, const float* zeros, int64_t side, int64_t n, int64_t first, int64_t count, float* to,
            float* room) const {
    for (int64_t e = 0; e < count; ++e, to += stored) {
      const int64_t at = max64(0, min64(length(side) - 1, first + e));
      const int64_t outer = pixel(side, n, at, 0) - n * h * w, inner = pixel(side, n, at, 1) - n * h * w;
      input.row(n, outer / w, outer % w, 1, 1, zeros, room);
      input.row(n, inner / w, inner % w, 1, 1, zeros, to);
      for (int64_t k = 0; k < stored; k += width<float>) store(load(to + k) - load(room + k), to + k);
    }
  }
};

// M[rows][columns] (+)= Σ over i < count of A[i · a_step + row] · B[i][columns], a few rows.
inline void border_product(int64_t rows, const float* A, int64_t a_step, const float* B, int64_t columns, int64_t b_step,
                           float* M, int64_t m_step, int64_t count, bool add) {
  const Panels panels{0, whole_vectors(columns)};
  for (int64_t p = 0; p < panels.count(); ++p)
    column_products[panels.vectors(p) - 1][rows - 1](A, a_step, B + panels.begin(p), b_step, M + panels.begin(p), m_step,
                                                     count, add);
}

template <class T> inline void add_to(const float* from, T* to, int64_t count, float sign) {
  for (int64_t k = 0; k < count; k += width<float>) {
    const int64_t some = min64(width<float>, count - k);
    store_up_to(load_up_to(to + k, some) + sign * load_up_to(from + k, some), to + k, some);
  }
}

template <class T> void phase_border_of(const PhaseBorder& a) {
  const ConvInput input(a);
  const BorderShape s(a);
  constexpr int64_t ld = most_rows + 2;
  const int64_t own = s.stored * (ld + ld + 2) + 2 * s.columns + panel_width;
  float* kernels = scratch(s.kernels_size() + s.pixels(0) * s.columns + s.workers * own + s.stored);
  float *products = kernels + s.kernels_size(), *rooms = products + s.pixels(0) * s.columns;
  float* zeros = rooms + s.workers * own;
  for (int64_t k = 0; k < s.stored; ++k) zeros[k] = 0;
  s.kernels(false, kernels);
  const int64_t chunks[2] = {ceil_div(s.w, most_rows), ceil_div(s.h, most_rows)};
  s.each(2 * a.n * (chunks[0] + chunks[1]), s.product_time(), [&](int64_t item, int64_t worker) {
    const bool vertical = item >= 2 * a.n * chunks[0];
    if (vertical) item -= 2 * a.n * chunks[0];
    const int64_t parts = chunks[vertical], side = 2 * vertical + item / (a.n * parts), n = item / parts % a.n;
    const int64_t length = s.length(side), part = item % parts;
    const int64_t first = length * part / parts, rows = length * (part + 1) / parts - first;
    float *line = rooms + worker * own, *turned = line + s.stored * ld, *room = turned + s.stored * ld;
    float *corner = room + s.stored, *extra = corner + s.stored;
    s.line(input, zeros, side, n, first - 1, rows + 2, line, room);
    for (int64_t e = 0; e < rows + 2; ++e)
      for (int64_t k = 0; k < s.c; ++k) turned[k * ld + e] = line[e * s.stored + k];
    float* m = products + (s.before(side, n, 0) + first) * s.columns;
    const float* u = kernels + side * 3 * s.c * s.columns;
    for (int64_t b = 0; b < 3; ++b)
      border_product(rows, turned + b, ld, u + b * s.c * s.columns, s.outputs, s.columns, m, s.columns, s.c, b > 0);
    if (vertical) return;
    // Pixels -1 and 2·w of the large row mirror into pixels that replication gives too, -2 and 2·w + 1 do not.
    if (first == 0) {
      for (int64_t k = 0; k < s.c; ++k) corner[k] = line[2 * s.stored + k] - line[s.stored + k];
      border_product(1, corner, 1, u + a.o, a.o, s.columns, extra, 0, s.c, false);
      add_to(extra, m, a.o, 1);
    }
    if (first + rows == length) {
      for (int64_t k = 0; k < s.c; ++k) corner[k] = line[(rows - 1) * s.stored + k] - line[rows * s.stored + k];
      border_product(1, corner, 1, u + 2 * s.c * s.columns, a.o, s.columns, extra, 0, s.c, false);
      add_to(extra, m + (rows - 1) * s.columns + a.o, a.o, 1);
    }
  });
  T* y = static_cast<T*>(a.y);
  s.each(a.n, s.pixels(0) * s.stored, [&](int64_t n, int64_t) {
    for (int64_t side = 0; side < border_sides; ++side)
      for (int64_t at = 0; at < s.length(side); ++at)
        for (int64_t phase = 0; phase < 2; ++phase)
          add_to(products + (s.before(side, n, 0) + at) * s.columns + phase * a.o,
                 y + s.pixel(side, n, at, 0) * 4 * a.o + s.run(side, phase), a.o, 1);
  });
}

// The gradient of the weight's outermost taps, [o, c, 5, 5], from the lines and the result's gradient along them.
inline void border_weight_gradient(const BorderShape& s, const float* lines, const float* grads, float* products) {
  const PhaseBorder& a = s.a;
  const int64_t groups = ceil_div(s.c, most_rows), product = s.c * s.columns;
  s.each(3 * border_sides * groups, s.product_time(), [&](int64_t item, int64_t) {
    const int64_t side = item / (3 * groups), b = item / groups % 3, group = item % groups;
    const int64_t first = s.c * group / groups, rows = s.c * (group + 1) / groups - first;
    float* m = products + (side * 3 + b) * product + first * s.columns;
    for (int64_t k = 0; a.n == 0 && k < rows * s.columns; ++k) m[k] = 0;
    for (int64_t n = 0; n < a.n; ++n)
      border_product(rows, lines + (s.before(side, n, 2) + b) * s.stored + first, s.stored,
                     grads + s.before(side, n, 0) * s.columns, s.outputs, s.columns, m, s.columns, s.length(side),
                     n > 0);
  });
  s.each(s.c, 40 * s.c * a.o, [&](int64_t i, int64_t) {
    for (int64_t k = 0; k < a.o; ++k) {
      float g[5][5] = {};
      for (int64_t side = 0; side < border_sides; ++side) {
        const float* m = products + side * 3 * product + i * s.columns + k;
        const float w[2][3] = {{m[0], m[product], m[2 * product]},
                               {m[a.o], m[product + a.o], m[2 * product + a.o]}};
        float t[5] = {w[0][0] + w[1][0], w[0][0] + w[1][1], w[0][1] + w[1][1], w[0][1] + w[1][2], w[0][2] + w[1][2]};
        for (int64_t n = 0; n < a.n && side < 2; ++n) {
          const float* line = lines + s.before(side, n, 2) * s.stored + i;
          const float *end = line + s.w * s.stored, *grad = grads + s.before(side, n, 0) * s.columns + k;
          t[0] += (line[2 * s.stored] - line[s.stored]) * grad[0];
          t[4] += (end[-s.stored] - end[0]) * grad[(s.w - 1) * s.columns + a.o];
        }
        for (int64_t j = 0; j < 5; ++j) g[side < 2 ? 4 * side : j][side < 2 ? j : 4 * (side - 2)] += t[j];
      }
      float* to = a.grad_weight + k * a.step[0] + i * a.step[1];
      for (int64_t y = 0; y < 5; ++y)
        for (int64_t x = 0; x < 5; ++x) to[y * a.step[2] + x * a.step[3]] = g[y][x];
    }
  });
}

// Adds the gradient of the lines to that of the small input.
template <class T>
void border_input_gradient(const BorderShape& s, const float* kernels, const float* grads, float* found, float* rooms) {
  const PhaseBorder& a = s.a;
  constexpr int64_t ld = most_rows + 2, more = 4;  // pixels behind both ends, then what the corners give
  const int64_t own = s.outputs * ld;
  const int64_t chunks[2] = {ceil_div(s.w + 2, most_rows), ceil_div(s.h + 2, most_rows)};
  s.each(2 * a.n * (chunks[0] + chunks[1]), s.product_time(), [&](int64_t item, int64_t worker) {
    const bool vertical = item >= 2 * a.n * chunks[0];
    if (vertical) item -= 2 * a.n * chunks[0];
    const int64_t parts = chunks[vertical], side = 2 * vertical + item / (a.n * parts), n = item / parts % a.n;
    const int64_t length = s.length(side), part = item % parts;
    const int64_t first = (length + 2) * part / parts, rows = (length + 2) * (part + 1) / parts - first;
    float* turned = rooms + worker * own;
    const float* grad = grads + s.before(side, n, 0) * s.columns;
    for (int64_t e = 0; e < rows + 2; ++e) {
      const int64_t at = first + e - 2;
      const bool exists = at >= 0 && at < length;
      for (int64_t k = 0; k < s.outputs; ++k) turned[k * ld + e] = exists ? grad[at * s.columns + k] : 0;
    }
    float* m = found + s.before(side, n, more) * s.stored;
    const float* u = kernels + side * 3 * s.outputs * s.stored;
    for (int64_t b = 0; b < 3; ++b)
      border_product(rows, turned + 2 - b, ld, u + b * s.outputs * s.stored, s.c, s.stored, m + first * s.stored,
                     s.stored, s.outputs, b > 0);
    if (vertical || part > 0) return;
    border_product(1, grad, 1, u + a.o * s.stored, s.c, s.stored, m + (length + 2) * s.stored, 0, a.o, false);
    border_product(1, grad + (length - 1) * s.columns + a.o, 1, u + 2 * s.outputs * s.stored, s.c, s.stored,
                   m + (length + 3) * s.stored, 0, a.o, false);
  });
  T* grad_x = static_cast<T*>(a.grad_x);
  s.each(a.n, s.pixels(0) * s.stored, [&](int64_t n, int64_t) {
    for (int64_t side = 0; side < border_sides; ++side) {
      const int64_t length = s.length(side);
      float* m = found + s.before(side, n, more) * s.stored;
      const auto row = [&](int64_t i) { return m + i * s.stored; };  // 0 and length + 1: behind the ends
      add_to(row(0), row(1), s.stored, 1);
      add_to(row(length + 1), row(length), s.stored, 1);
      if (side < 2) {
        add_to(row(length + 2), row(2), s.stored, 1), add_to(row(length + 2), row(1), s.stored, -1);
        add_to(row(length + 3), row(length - 1), s.stored, 1), add_to(row(length + 3), row(length), s.stored, -1);
      }
      for (int64_t at = 0; at < length; ++at) {
        add_to(row(at + 1), grad_x + s.pixel(side, n, at, 1) * s.c, s.c, 1);
        add_to(row(at + 1), grad_x + s.pixel(side, n, at, 0) * s.c, s.c, -1);
      }
    }
  });
}

template <class T> void phase_border_backward_of(const PhaseBorder& a) {
  const BorderShape s(a);
  const int64_t kernels_size = a.grad_x ? s.kernels_size() : 0, grads_size = s.pixels(0) * s.columns;
  const int64_t found_size = a.grad_x ? s.pixels(4) * s.stored + s.workers * s.outputs * (most_rows + 2) : 0;
  const int64_t lines_size = a.grad_weight ? s.pixels(2) * s.stored + (s.workers + 1) * s.stored : 0;
  const int64_t products_size = a.grad_weight ? 3 * border_sides * s.c * s.columns : 0;
  float* kernels = scratch(kernels_size + grads_size + found_size + lines_size + products_size);
  float *grads = kernels + kernels_size, *found = grads + grads_size, *lines = found + found_size;
  float* products = lines + lines_size;
  const T* grad = static_cast<const T*>(a.grad);
  s.each(border_sides * a.n, s.pixels(0) * s.outputs, [&](int64_t item, int64_t) {
    const int64_t side = item / a.n, n = item % a.n;
    for (int64_t at = 0; at < s.length(side); ++at) {
      float* to = grads + (s.before(side, n, 0) + at) * s.columns;
      for (int64_t phase = 0; phase < 2; ++phase)
        convert(grad + s.pixel(side, n, at, 0) * 4 * a.o + s.run(side, phase), to + phase * a.o, a.o);
      for (int64_t k = s.outputs; k < s.columns; ++k) to[k] = 0;
    }
  });
  if (a.grad_weight) {
    const ConvInput input(a);
    float *zeros = lines + s.pixels(2) * s.stored, *rooms = zeros + s.stored;
    for (int64_t k = 0; k < s.stored; ++k) zeros[k] = 0;
    s.each(border_sides * a.n, s.pixels(0) * s.stored, [&](int64_t item, int64_t worker) {
      const int64_t side = item / a.n, n = item % a.n;
      s.line(input, zeros, side, n, -1, s.length(side) + 2, lines + s.before(side, n, 2) * s.stored,
             rooms + worker * s.stored);
    });
    border_weight_gradient(s, lines, grads, products);
  }
  if (a.grad_x) {
    s.kernels(true, kernels);
    border_input_gradient<T>(s, kernels, grads, found, found + s.pixels(4) * s.stored);
  }
}

void phase_border(const PhaseBorder& a) {
  switch (a.dtype) {
    case Dtype::bf16: return phase_border_of<bf16>(a);
    case Dtype::f16: return phase_border_of<f16>(a);
    default: return phase_border_of<float>(a);
  }
}
void phase_border_backward(const PhaseBorder& a) {
  switch (a.dtype) {
    case Dtype::bf16: return phase_border_backward_of<bf16>(a);
    case Dtype::f16: return phase_border_backward_of<f16>(a);
    default: return phase_border_backward_of<float>(a);
  }
}
