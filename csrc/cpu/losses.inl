// L1 and LSGAN over flat memory. Sums go through fixed chunks, so the bits do not depend on the threads.

constexpr int64_t loss_chunk = 16384;

// Calls body(entry, count) for each vector of [from, to).
template <class A, class Body> inline void for_vectors(int64_t from, int64_t to, const Body& body) {
  for (int64_t i = from; i < to; i += width<A>) body(i, min64(width<A>, to - i));
}

// Σ term(entry, count) over all elements; beyond `count`, a term must be zero.
template <class A, class Term> inline double chunked_sum(int64_t size, const Term& term) {
  const int64_t chunks = ceil_div(size, loss_chunk);
  const Scratch memory(chunks * sizeof(double));
  double* totals = memory.as<double>();
  parallel(chunks, [&](int64_t chunk) {
    constexpr int64_t w = width<A>;
    const int64_t end = min64(size, (chunk + 1) * loss_chunk);
    Vector<A> s0{}, s1{}, s2{}, s3{};  // four sums hide the latency of an addition
    int64_t i = chunk * loss_chunk;
    for (; i + 4 * w <= end; i += 4 * w)
      s0 += term(i, w), s1 += term(i + w, w), s2 += term(i + 2 * w, w), s3 += term(i + 3 * w, w);
    for_vectors<A>(i, end, [&](int64_t at, int64_t count) { s0 += term(at, count); });
    s0 = (s0 + s1) + (s2 + s3);
    double total = 0;
    for (int64_t k = 0; k < w; ++k) total += double(s0[k]);
    totals[chunk] = total;
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += totals[chunk];
  return total;
}

template <class A, class Body> inline void for_chunks(int64_t size, const Body& body) {
  parallel(ceil_div(size, loss_chunk), [&](int64_t chunk) {
    for_vectors<A>(chunk * loss_chunk, min64(size, (chunk + 1) * loss_chunk), body);
  });
}

template <class T> double l1_sum_of(const L1& l) {
  using A = Accumulator<T>;
  const T *a = static_cast<const T*>(l.a), *b = static_cast<const T*>(l.b);
  return chunked_sum<A>(l.size, [&](int64_t i, int64_t count) {
    Vector<A> d = load_up_to(a + i, count) - load_up_to(b + i, count);
    return d < A(0) ? -d : d;
  });
}

template <class T> void l1_backward_of(const L1& l) {
  using A = Accumulator<T>;
  const T *a = static_cast<const T*>(l.a), *b = static_cast<const T*>(l.b);
  T *grad_a = static_cast<T*>(l.grad_a), *grad_b = static_cast<T*>(l.grad_b);
  const Vector<A> up = Vector<A>{} + A(l.grad), down = -up;
  for_chunks<A>(l.size, [&](int64_t i, int64_t count) {
    Vector<A> d = load_up_to(a + i, count) - load_up_to(b + i, count);
    Vector<A> g = d < A(0) ? down : Vector<A>{};  // sign(0) = 0, and torch's sign(NaN) too
    g = d > A(0) ? up : g;
    if (grad_a) store_up_to(g, grad_a + i, count);
    if (grad_b) store_up_to(-g, grad_b + i, count);
  });
}

template <class T> double lsgan_sum_of(const Lsgan& l) {
  using A = Accumulator<T>;
  const A target = A(l.target);
  const T* x = static_cast<const T*>(l.output);
  return chunked_sum<A>(l.size, [&](int64_t i, int64_t count) {
    Vector<A> d = load_up_to(x + i, count) - target;
    for (int64_t k = count; k < width<A>; ++k) d[k] = 0;
    return d * d;
  });
}

template <class T> void lsgan_backward_of(const Lsgan& l) {
  using A = Accumulator<T>;
  const A target = A(l.target), up = A(l.grad);
  const T* x = static_cast<const T*>(l.output);
  T* grad = static_cast<T*>(l.grad_output);
  for_chunks<A>(l.size, [&](int64_t i, int64_t count) {
    store_up_to((load_up_to(x + i, count) - target) * up, grad + i, count);
  });
}
