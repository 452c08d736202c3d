// Vectors of one register: loads, stores and conversions of every data type.
// Included inside an anonymous namespace by each instruction set's file, which is compiled with that set's flags as a
// whole: nothing here may be shared between files, or the linker could keep the AVX-512 copy of a function for a machine
// that has none. Hence no templates of std (tests/packaging/test_instruction_sets.py looks for weak symbols).

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;

// For lambdas that a loop calls with vectors: left out of line, they pass 64-byte registers through the stack.
#define ALWAYS_INLINE __attribute__((always_inline))

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class T> struct AccumulatorOf { using type = float; };
template <> struct AccumulatorOf<double> { using type = double; };
template <class T> using Accumulator = typename AccumulatorOf<T>::type;

template <class T, class U> constexpr bool same = false;
template <class T> constexpr bool same<T, T> = true;

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline float float_of(uint32_t bits) { float f; __builtin_memcpy(&f, &bits, 4); return f; }
inline uint32_t bits_of(float f) { uint32_t bits; __builtin_memcpy(&bits, &f, 4); return bits; }

// Memory of one call; freed when it leaves scope. A little of it, as a small plane needs, costs nothing.
struct Scratch {
  explicit Scratch(int64_t bytes)
      : base(bytes <= little ? nullptr : static_cast<char*>(std::aligned_alloc(64, (bytes + 127) & ~int64_t{63}))) {
    if (bytes > little && base == nullptr) __builtin_trap();
  }
  ~Scratch() { std::free(base); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T> T* as() const { return reinterpret_cast<T*>(base ? base : const_cast<char*>(room)); }

 private:
  static constexpr int64_t little = 2048;
  char* base;
  alignas(64) char room[little + 64];  // vectors are read whole
};

// ---- one register's worth ----
// MUNIT_FAST_VECTOR_BYTES is the register's size: a compiler takes longer vectors apart badly (a comparison number by
// number: 20 times slower).

template <class A> struct VectorOf {
  typedef A type __attribute__((vector_size(MUNIT_FAST_VECTOR_BYTES)));
  typedef A memory __attribute__((vector_size(MUNIT_FAST_VECTOR_BYTES), aligned(alignof(A)), may_alias));
};
template <class A> using Vector = typename VectorOf<A>::type;
template <class A> constexpr int64_t width = MUNIT_FAST_VECTOR_BYTES / sizeof(A);

typedef uint32_t Words __attribute__((vector_size(MUNIT_FAST_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(MUNIT_FAST_VECTOR_BYTES / 2), aligned(2), may_alias));

inline Words widen_halves(const void* p) {
#if defined(MUNIT_FAST_AVX512)
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(MUNIT_FAST_AVX2)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(*static_cast<const Halves*>(p), Words);
#endif
}

inline void narrow_words(Words words, void* p) {  // words < 65536
#if defined(MUNIT_FAST_AVX512)
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)words));
#elif defined(MUNIT_FAST_AVX2)
  __m256i packed = _mm256_packus_epi32((__m256i)words, (__m256i)words);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  *static_cast<Halves*>(p) = __builtin_convertvector(words, Halves);
#endif
}

inline Vector<float> load(const float* p) { return *reinterpret_cast<const VectorOf<float>::memory*>(p); }
inline Vector<double> load(const double* p) { return *reinterpret_cast<const VectorOf<double>::memory*>(p); }
inline Vector<float> load(const bf16* p) { return reinterpret_cast<Vector<float>>(widen_halves(p) << 16); }
inline Vector<float> load(const f16* p) {
#if defined(MUNIT_FAST_AVX512)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(MUNIT_FAST_AVX2)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Words half = widen_halves(p), rest = (half & 0x7fffu) << 13;
  // Moving the exponent by a multiplication handles subnormal numbers too; infinities and NaN keep theirs.
  Words scaled = reinterpret_cast<Words>(reinterpret_cast<Vector<float>>(rest) * float_of(0x77800000u));  // 2^112
  Words bits = rest >= 0x0f800000u ? (rest | 0x7f800000u) : scaled;
  return reinterpret_cast<Vector<float>>(bits | ((half & 0x8000u) << 16));
#endif
}

inline void store(Vector<float> v, float* p) { *reinterpret_cast<VectorOf<float>::memory*>(p) = v; }
inline void store(Vector<double> v, double* p) { *reinterpret_cast<VectorOf<double>::memory*>(p) = v; }
inline void store(Vector<float> v, bf16* p) {
#if defined(MUNIT_FAST_AVX512_BF16)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  Words bits = reinterpret_cast<Words>(v);
  Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  narrow_words((v == v ? rounded : (bits | 0x400000u)) >> 16, p);
#endif
}
inline void store(Vector<float> v, f16* p) {
#if defined(MUNIT_FAST_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(MUNIT_FAST_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  Words bits = reinterpret_cast<Words>(v), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  // Below the smallest normal half, adding 0.5 aligns the mantissa so that the addition itself rounds.
  Words small = reinterpret_cast<Words>(reinterpret_cast<Vector<float>>(rest) + 0.5f) - bits_of(0.5f);
  Words normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  Words half = rest < 0x38800000u ? small : normal;
  half = rest >= 0x477ff000u ? Words{} + 0x7c00u : half;  // infinity
  half = rest > 0x7f800000u ? Words{} + 0x7e00u : half;   // NaN
  narrow_words(sign | half, p);
#endif
}

// Past the caches, for a result too large to stay in them: a plain store first reads the line that it overwrites.
// p must be aligned to what it writes; finish_streams() before another thread reads.
inline void stream(Vector<float> v, float* p) {
#if defined(MUNIT_FAST_AVX512)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(MUNIT_FAST_AVX2)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(v, p);
#endif
}
inline void stream(Vector<double> v, double* p) {
  stream(reinterpret_cast<Vector<float>>(v), reinterpret_cast<float*>(p));
}
template <class T> inline void stream(Vector<float> v, T* p) {  // 16 bits an entry
  alignas(32) T room[width<float>];
  store(v, room);
#if defined(MUNIT_FAST_AVX512)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(room)));
#elif defined(MUNIT_FAST_AVX2)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_load_si128(reinterpret_cast<const __m128i*>(room)));
#else
  __builtin_memcpy(p, room, sizeof(room));
#endif
}
inline void finish_streams() {
#if defined(MUNIT_FAST_AVX512) || defined(MUNIT_FAST_AVX2)
  _mm_sfence();
#endif
}
// Whether every vector of rows that start at p and are `step` entries apart can be streamed.
template <class T> inline bool streamable(const T* p, int64_t step) {
  constexpr int64_t bytes = width<Accumulator<T>> * sizeof(T);
  return (reinterpret_cast<std::uintptr_t>(p) | std::uintptr_t(step * sizeof(T))) % bytes == 0;
}
// The first n < width numbers; the rest are zero, and are not touched.
template <class T> inline Vector<Accumulator<T>> load_some(const T* p, int64_t n) {
  T room[width<Accumulator<T>>] = {};
  for (int64_t i = 0; i < n; ++i) room[i] = p[i];
  return load(room);
}
template <class T> inline void store_some(Vector<Accumulator<T>> v, T* p, int64_t n) {
  T room[width<Accumulator<T>>];
  store(v, room);
  for (int64_t i = 0; i < n; ++i) p[i] = room[i];
}

template <class T> inline Vector<Accumulator<T>> load_up_to(const T* p, int64_t count) {
  return count == width<Accumulator<T>> ? load(p) : load_some(p, count);
}
template <class T> inline void store_up_to(Vector<Accumulator<T>> v, T* p, int64_t count, bool streams = false) {
  if (count < width<Accumulator<T>>) store_some(v, p, count);
  else if (streams) stream(v, p);
  else store(v, p);
}

// ---- runs of memory, between the tensor's type and the accumulator's ----

// The first n numbers again and again up to `lanes`, a multiple of the width for one number.
template <class A> inline void repeat(A* to, int64_t n, int64_t lanes) {
  if (n == 1) {
    const Vector<A> value = Vector<A>{} + to[0];
    for (int64_t l = 0; l < lanes; l += width<A>) store(value, to + l);
    return;
  }
  for (int64_t done = n; done < lanes; done *= 2) __builtin_memcpy(to + done, to, min64(done, lanes - done) * sizeof(A));
}

template <class T> inline void convert(const T* from, T* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof(T)); }
template <class T> inline void convert(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + width<float> <= n; i += width<float>) store(load(from + i), to + i);
  if (i < n) store_some(load_some(from + i, n - i), to + i, n - i);
}
template <class T> inline void convert(const float* from, T* to, int64_t n) {
  int64_t i = 0;
  for (; i + width<float> <= n; i += width<float>) store(load(from + i), to + i);
  if (i < n) store_some(load_some(from + i, n - i), to + i, n - i);
}
inline void convert(const float* from, float* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof(float)); }

inline float number(const float* p) { return *p; }
inline double number(const double* p) { return *p; }
inline float number(const bf16* p) { return float_of(uint32_t{p->bits} << 16); }
inline float number(const f16* p) { return load_some(p, 1)[0]; }

// to += from
template <class T> inline void add(const T* from, Accumulator<T>* to, int64_t n) {
  constexpr int64_t w = width<Accumulator<T>>;
  int64_t i = 0;
  if (n == 1) {
    *to += number(from);  // a border pixel of an NCHW plane
    return;
  }
  for (; i + w <= n; i += w) store(load(to + i) + load(from + i), to + i);
  if (i < n) store_some(load_some(to + i, n - i) + load_some(from + i, n - i), to + i, n - i);
}

// Tasks over torch's threads, for any callable. Work of fewer nanoseconds stays on the calling thread: to wake one that
// sleeps while it waits (OMP_WAIT_POLICY=passive) takes as long.
constexpr int64_t least_shared = 20000;
template <class Body> inline void parallel(int64_t count, const Body& body, int64_t nanoseconds = least_shared) {
  if (nanoseconds < least_shared) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  run_tasks(count, [](int64_t i, void* context) { (*static_cast<const Body*>(context))(i); },
            const_cast<void*>(static_cast<const void*>(&body)));
}
