// Backward: one read of grad and x for the sums over each plane, then one more read and one write of dx. An
// expensive derivative is computed once.

// How often the running sums of a piece are added to the totals in double precision, in entries.
constexpr int64_t flush_entries = 65536;

// The gradient of the result before padding, row by row: each border pixel is added to the pixel it was read from.
template <class T> struct PaddedGradient {
  using A = Accumulator<T>;
  const TensorView& v;
  const T* grad;  // of one sample
  Scratch sources;
  int64_t *row_list, row_count = 0, q = -1;
  int64_t* column_source;

  PaddedGradient(const TensorView& view, const T* sample)
      : v(view), grad(sample), sources((4 * view.pad + 1) * sizeof(int64_t)), row_list(sources.as<int64_t>()),
        column_source(row_list + 2 * view.pad + 1) {
    for (int64_t k = 0; k < 2 * v.pad; ++k) column_source[k] = v.source(border(k, v.columns), v.columns);
  }

  // The k-th padded index outside of 0 … size - 1.
  int64_t border(int64_t k, int64_t size) const { return k < v.pad ? k : size + k; }

  void select(int64_t row) {
    q = row, row_count = 0;
    row_list[row_count++] = row + v.pad;
    for (int64_t k = 0; k < 2 * v.pad; ++k)
      if (v.source(border(k, v.rows), v.rows) == row) row_list[row_count++] = border(k, v.rows);
  }

  // Calls use(pointer) with pixels [from, to) of the selected row: the gradient's own memory where it holds just that,
  // else `room`, filled, in the accumulator's type.
  template <class Use> void with_row(int64_t from, int64_t to, A* room, const Use& use) const {
    const int64_t entries = v.result_channels, first = from * v.block, last = to * v.block;
    const int64_t n = (last - first) * entries;
    bool inner = row_count == 1;
    for (int64_t k = 0; k < 2 * v.pad; ++k) inner &= !(column_source[k] >= first && column_source[k] < last);
    const T* main = at(row_list[0], v.pad + first);
    if (inner) return use(main);
    convert(main, room, n);
    for (int64_t r = 1; r < row_count; ++r) add(at(row_list[r], v.pad + first), room, n);
    for (int64_t k = 0; k < 2 * v.pad; ++k) {
      if (column_source[k] < first || column_source[k] >= last) continue;
      for (int64_t r = 0; r < row_count; ++r)
        add(at(row_list[r], border(k, v.columns)), room + (column_source[k] - first) * entries, entries);
    }
    use(static_cast<const A*>(room));
  }

 private:
  const T* at(int64_t row, int64_t column) const {
    return grad + (row * v.padded_columns + column) * v.result_channels;
  }
};

// Running sums of one phase of a tile: of gz, gz · (x - mean), and g · z where z ≤ 0, lane by lane.
template <class A> struct Sums { A *bias, *weight, *slope; };

// Whether a derivative is expensive enough to be kept from one pass to the next: in the memory of dx, where that has the
// accumulator's type.
constexpr bool is_expensive(Act act) { return act >= Act::selu; }

// kept: takes gz; or null.
template <Act act, class T, class G, class A = Accumulator<T>>
inline void accumulate(const G* g, const T* x, const ParamTile<A, 4>& tile, int64_t i, Sums<A> sums, T* kept,
                       int64_t n) {
  using V = Vector<A>;
  struct State : Affine<A> { V bias, weight, slopes; };
  const V zero{};
  const AffineRows<A> rows(tile, i);
  for_lanes<A>(
      n, tile.lanes,
      [=](int64_t lane) ALWAYS_INLINE {
        return State{Affine<A>(rows, lane), load(sums.bias + lane), load(sums.weight + lane),
                     load(sums.slope + lane)};
      },
      [&](int64_t at, State& p, int64_t count) ALWAYS_INLINE {
        const V up = load_up_to(g + at, count), centred = load_up_to(x + at, count) - p.mean;
        const V z = centred * p.scale + p.shift, gz = activation_gradient<act, A>(z, up, p.slope);
        if constexpr (same<T, A> && is_expensive(act))
          if (kept) store_up_to(gz, kept + at, count);
        if (count == width<A>) {
          p.bias += gz, p.weight += gz * centred;
          if (act == Act::prelu) p.slopes += z > zero ? zero : up * z;
        } else {  // what lies beyond the end must not count, not even as 0 · ∞
          for (int64_t k = 0; k < count; ++k) {
            p.bias[k] += gz[k], p.weight[k] += gz[k] * centred[k];
            if (act == Act::prelu) p.slopes[k] += z[k] > 0 ? A(0) : up[k] * z[k];
          }
        }
      },
      [&](int64_t lane, const State& p) ALWAYS_INLINE {
        store(p.bias, sums.bias + lane), store(p.weight, sums.weight + lane);
        if (act == Act::prelu) store(p.slopes, sums.slope + lane);
      });
}

// dx = gz · scale - c1 - (x - mean) · c2; without a norm (whose coefficients are 0, but 0 · ∞ is not), gz · scale.
template <Act act, class T, class G, class A = Accumulator<T>>
inline void differentiate(const G* g, const T* x, const ParamTile<A, 6>& tile, int64_t i, T* dx, int64_t n, bool norm,
                          bool streams) {
  using V = Vector<A>;
  struct Parameters : Affine<A> { V c1, c2; };
  const AffineRows<A> rows(tile, i);
  const A *c1 = tile.row(tile_c1, i), *c2 = tile.row(tile_c2, i);
  auto begin = [=](int64_t lane) ALWAYS_INLINE {
    return Parameters{Affine<A>(rows, lane), load(c1 + lane), load(c2 + lane)};
  };
  auto body = [&](int64_t at, const Parameters& p, int64_t count) ALWAYS_INLINE {
    const V centred = load_up_to(x + at, count) - p.mean;
    const V gz = activation_gradient<act, A>(centred * p.scale + p.shift, load_up_to(g + at, count), p.slope);
    V result = gz * p.scale;
    if (norm) result = result - p.c1 - centred * p.c2;
    store_up_to(result, dx + at, count, streams);
  };
  if (in_order_serves<A>(tile.lanes)) in_order<A>(n, tile.lanes, begin, body);
  else for_lanes<A>(n, tile.lanes, begin, body, [](int64_t, const Parameters&) {});
}

// Of a gathered gradient, where there is a border, and of pieces of tensors, where depth-to-space scatters them.
template <class A, class T> int64_t room_bytes(const TensorView& v, int64_t entries, int64_t pieces) {
  if (v.pad == 0 && v.block == 1) return 0;
  return entries * (sizeof(A) + pieces * sizeof(T));
}

// totals [3, channels of a pixel] += the sums over rows [from, to) of one sample. `keeps`: dx takes gz.
template <class T>
void backward_sums(const BackwardParams& b, const TensorView& v, const PlaneParams<Accumulator<T>>& planes,
                   int64_t sample, int64_t from, int64_t to, double* totals, bool keeps) {
  using A = Accumulator<T>;
  ParamTile<A, 4> tile(v);
  fill_tile(tile, v, b, planes, sample);
  const int64_t sums_size = 3 * v.block * tile.lanes;
  Scratch room(room_bytes<A, T>(v, tile.entries(v), 1) + sums_size * sizeof(A));
  A *sums = room.as<A>(), *g_room = sums + sums_size;
  T* x_room = reinterpret_cast<T*>(g_room + tile.entries(v));
  auto flush = [&] {
    for (int parameter = 0; parameter < 3; ++parameter)
      for (int64_t i = 0; i < v.block; ++i) {
        const A* row = sums + (parameter * v.block + i) * tile.lanes;
        double* to_channels = totals + parameter * v.channels + i * v.segment;
        for (int64_t l = 0; l < tile.lanes; l += v.segment)
          for (int64_t k = 0; k < v.segment; ++k) to_channels[k] += double(row[l + k]);
      }
    __builtin_memset(sums, 0, sums_size * sizeof(A));
  };
  __builtin_memset(sums, 0, sums_size * sizeof(A));
  const T* x = static_cast<const T*>(b.x) + v.base(sample);
  T* dx = keeps ? static_cast<T*>(b.grad_x) + v.base(sample) : nullptr;
  PaddedGradient<T> grad(v, static_cast<const T*>(b.grad) + v.result_base(sample));
  int64_t pending = 0;
  with_act(b.act, [&]<Act act>() {
    for (int64_t q = from; q < to; ++q) {
      grad.select(q);
      const int64_t i = q % v.block;
      const int64_t apart = v.block * tile.lanes;
      const Sums<A> mine{sums + i * tile.lanes, sums + i * tile.lanes + apart, sums + i * tile.lanes + 2 * apart};
      for (int64_t w = 0; w < v.width; w += tile.pixels) {
        const int64_t end = min64(v.width, w + tile.pixels), n = (end - w) * v.segment;
        const T* in = v.load_row(x, q, w, end, x_room);
        grad.with_row(w, end, g_room, [&](auto* g) {
          accumulate<act>(g, in, tile, i, mine, dx ? dx + q * v.step_row + w * v.step_pixel : nullptr, n);
        });
        pending += n;
      }
      if (pending >= flush_entries) flush(), pending = 0;
    }
  });
  flush();
}

// kept: dx holds gz.
template <class T>
void backward_rows(const BackwardParams& b, const TensorView& v, const PlaneParams<Accumulator<T>>& planes,
                   int64_t sample, int64_t from, int64_t to, bool kept) {
  using A = Accumulator<T>;
  ParamTile<A, 6> tile(v);
  fill_tile(tile, v, b, planes, sample);
  Scratch room(room_bytes<A, T>(v, tile.entries(v), 2));
  A* g_room = room.as<A>();
  T *x_room = reinterpret_cast<T*>(g_room + tile.entries(v)), *out_room = x_room + tile.entries(v);
  const T* x = static_cast<const T*>(b.x) + v.base(sample);
  T* dx = b.grad_x ? static_cast<T*>(b.grad_x) + v.base(sample) : nullptr;
  T* residual = b.grad_residual ? static_cast<T*>(b.grad_residual) + v.base(sample) : nullptr;
  PaddedGradient<T> grad(v, static_cast<const T*>(b.grad) + v.result_base(sample));
  const bool streams = b.streams && dx && v.block == 1 && streamable(dx, v.segment);
  // Where a piece of a result goes: the tensor's own memory, but for depth-to-space.
  auto target = [&](T* tensor, int64_t q, int64_t w) {
    return v.block == 1 ? tensor + q * v.step_row + w * v.step_pixel : out_room;
  };
  with_act(b.act, [&]<Act act>() {
    for (int64_t q = from; q < to; ++q) {
      grad.select(q);
      const int64_t i = q % v.block;
      for (int64_t w = 0; w < v.width; w += tile.pixels) {
        const int64_t end = min64(v.width, w + tile.pixels), n = (end - w) * v.segment;
        if (kept) {
          T* gz = target(dx, q, w);
          differentiate<Act::none>(static_cast<const T*>(gz), v.load_row(x, q, w, end, x_room), tile, i, gz, n,
                                   b.norm != Norm::none, streams);
          if (!residual) continue;
        }
        grad.with_row(w, end, g_room, [&](auto* g) {
          if (residual) {
            convert(g, target(residual, q, w), n);
            if (v.block > 1) v.store_row(out_room, residual, q, w, end);
          }
          if (dx && !kept) {
            differentiate<act>(g, v.load_row(x, q, w, end, x_room), tile, i, target(dx, q, w), n,
                               b.norm != Norm::none, streams);
            if (v.block > 1) v.store_row(out_room, dx, q, w, end);
          }
        });
      }
    }
  });
  if (streams) finish_streams();
}

// Adds the row groups' totals [groups, 3, channels] of one sample (into the first), writes its planes' sums, and leaves
// Σgz and Σgz·(x - mean) of each plane in plane_sums …
template <class A>
void collect_sums(const BackwardParams& b, const TensorView& v, const PlaneParams<A>& planes, double* totals,
                  int64_t groups, int64_t sample, double* plane_sums) {
  for (int64_t g = 1; g < groups; ++g)
    for (int64_t k = 0; k < 3 * v.channels; ++k) totals[k] += totals[g * 3 * v.channels + k];
  for (int64_t k = 0; k < v.channels; ++k) {
    const int64_t p = v.plane(sample, k);
    const double sums[3] = {totals[k], totals[v.channels + k] * double(planes.r()[p]), totals[2 * v.channels + k]};
    if (b.sums)
      for (int parameter = 0; parameter < 3; ++parameter)
        static_cast<A*>(b.sums)[parameter * planes.count + p] = A(sums[parameter]);
    plane_sums[2 * p] = sums[0], plane_sums[2 * p + 1] = sums[1];
  }
}

// … which become the two coefficients of dx = gz · scale - c1 - (x - mean) · c2, the same for all planes that are
// normalised together; of planes [first, last).
template <class A>
void coefficients(const BackwardParams& b, const PlaneParams<A>& planes, const double* plane_sums, int64_t first,
                  int64_t last) {
  const int64_t together = planes_together(b);
  const double count = double(b.h * b.w) * double(together);
  const A* weight = static_cast<const A*>(b.weight);
  for (int64_t p = first; p < last; p += together) {
    double along_1 = 0, along_x = 0;
    for (int64_t k = p; k < p + together; ++k) {
      along_1 += double(weight[k]) * plane_sums[2 * k];
      along_x += double(weight[k]) * plane_sums[2 * k + 1];
    }
    const double r = double(planes.r()[p]);
    double c1 = 0, c2 = 0;
    if (b.norm == Norm::layer) {
      const double std = double(static_cast<const A*>(b.stats)[b.n + p / b.c]);
      c1 = r * along_1 / count;
      c2 = std > 0 ? r * along_x / ((count - 1) * std) : 0;
    } else if (normalises_planes(b)) {
      c1 = r * along_1 / count;
      c2 = r * r * along_x / count;
    }
    for (int64_t k = p; k < p + together; ++k) planes.c1()[k] = A(c1), planes.c2()[k] = A(c2);
  }
}

template <class T> void backward_of(const BackwardParams& b) {
  using A = Accumulator<T>;
  const TensorView v(b);
  const PlaneParams<A> planes(b);
  const bool need_sums = b.sums != nullptr || (b.norm != Norm::none && b.grad_x != nullptr);
  const bool need_rows = b.grad_x != nullptr || b.grad_residual != nullptr;
  const bool keeps = same<T, A> && is_expensive(b.act) && b.grad_x && need_sums && b.block == 1;
  const int64_t step = rows_per_task(v), tasks = ceil_div(v.rows, step);
  const Scratch totals_memory(v.samples * tasks * 3 * v.channels * sizeof(double));
  const Scratch plane_memory(2 * planes.count * sizeof(double));
  double *totals = totals_memory.as<double>(), *plane_sums = plane_memory.as<double>();
  auto sum_task = [&](int64_t sample, int64_t task) {
    double* mine = totals + (sample * tasks + task) * 3 * v.channels;
    for (int64_t k = 0; k < 3 * v.channels; ++k) mine[k] = 0;
    backward_sums<T>(b, v, planes, sample, task * step, min64(v.rows, (task + 1) * step), mine, keeps);
  };
  auto collect = [&](int64_t sample) {
    collect_sums(b, v, planes, totals + sample * tasks * 3 * v.channels, tasks, sample, plane_sums);
  };
  for (int64_t p = 0; p < 2 * planes.count; ++p) plane_sums[p] = 0;

  const int64_t together = planes_together(b);
  if (normalises_planes(b) && !b.channels_last && b.block == 1 && need_sums &&
      v.samples >= 2 * together * thread_count()) {
    parallel(v.samples / together, [&](int64_t i) {
      const int64_t first = i * together, end = first + together;
      for (int64_t plane = first; plane < end; ++plane) {
        planes.read(b, plane);
        for (int64_t task = 0; task < tasks; ++task) sum_task(plane, task);
        collect(plane);
      }
      coefficients(b, planes, plane_sums, first, end);
      for (int64_t plane = end - 1; need_rows && plane >= first; --plane)
        backward_rows<T>(b, v, planes, plane, 0, v.rows, keeps);
    });
    return;
  }
  for (int64_t p = 0; p < planes.count; ++p) planes.read(b, p);
  auto rows_of = [&](int64_t sample, int64_t task) {
    backward_rows<T>(b, v, planes, sample, task * step, min64(v.rows, (task + 1) * step), keeps);
  };
  const int64_t samples = v.samples / b.n;  // of an image
  auto finish = [&](int64_t image) {
    if (need_sums)
      for (int64_t sample = image * samples; sample < (image + 1) * samples; ++sample) collect(sample);
    coefficients(b, planes, plane_sums, image * b.c, (image + 1) * b.c);
  };
  // The second pass goes backwards: what was read last may still be in a cache.
  const BatchPlan batch(b, 2 * b.c * b.h * b.w * int64_t(sizeof(T)));
  if (batch.by_image) {
    parallel(b.n, [&](int64_t n) {
      for (int64_t i = 0; need_sums && i < samples * tasks; ++i) sum_task(n * samples + i / tasks, i % tasks);
      finish(n);
      for (int64_t i = samples * tasks - 1; need_rows && i >= 0; --i) rows_of(n * samples + i / tasks, i % tasks);
    }, b.n * b.c * b.h * b.w);
    return;
  }
  for (int64_t first = 0; first < b.n; first += batch.together) {
    const int64_t images = min64(batch.together, b.n - first), count = images * samples * tasks;
    if (need_sums) parallel(count, [&](int64_t i) { sum_task(first * samples + i / tasks, i % tasks); });
    for (int64_t n = first; n < first + images; ++n) finish(n);
    if (!need_rows) continue;
    parallel(count, [&](int64_t i) {
      i = count - 1 - i;
      rows_of(first * samples + i / tasks, i % tasks);
    });
  }
}
