// The activations and their gradients, on one vector. The elementary functions are polynomials in float (about 1 ulp)
// and libm's in double.

// Out of line: inlined into every loop they make the object files three times larger and gain a tenth. But none calls
// another, since one call for each vector is expensive already.

ALWAYS_INLINE inline Vector<float> inlined_exponential(Vector<float> x) {
  x = x > 88.0f ? Vector<float>{} + 88.0f : x;
  x = x < -87.0f ? Vector<float>{} - 87.0f : x;
  const float rounder = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number
  Vector<float> k = x * 1.44269504f + rounder;
  Words power = (reinterpret_cast<Words>(k) - (bits_of(rounder) - 127u)) << 23;
  k -= rounder;
  Vector<float> r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vector<float> p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * reinterpret_cast<Vector<float>>(power);
}
__attribute__((noinline)) Vector<float> exponential(Vector<float> x) { return inlined_exponential(x); }

// exp(x) - 1 for x ≤ 0
__attribute__((noinline)) Vector<float> exponential_minus_1(Vector<float> x) {
  Vector<float> series = 1.3888889e-3f + x * 1.9841270e-4f;
  series = 8.3333333e-3f + x * series;
  series = 4.1666668e-2f + x * series;
  series = 1.6666667e-1f + x * series;
  series = x * (1.0f + x * (0.5f + x * series));
  return x > -0.35f ? series : inlined_exponential(x) - 1.0f;
}

__attribute__((noinline)) Vector<float> hyperbolic_tangent(Vector<float> x) {
  Vector<float> size = x < 0.0f ? -x : x, square = x * x;
  Vector<float> p = -5.70498872745e-3f * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  Vector<float> series = x + x * square * p;
  Vector<float> t = inlined_exponential(-2.0f * size), large = (1.0f - t) / (1.0f + t);
  large = x < 0.0f ? -large : large;
  return size < 0.625f ? series : large;
}

template <double function(double)> inline Vector<double> one_by_one(Vector<double> x) {
  for (int64_t i = 0; i < width<double>; ++i) x[i] = function(x[i]);
  return x;
}
inline Vector<double> inlined_exponential(Vector<double> x) { return one_by_one<::exp>(x); }
__attribute__((noinline)) Vector<double> exponential(Vector<double> x) { return inlined_exponential(x); }
__attribute__((noinline)) Vector<double> exponential_minus_1(Vector<double> x) { return one_by_one<::expm1>(x); }
__attribute__((noinline)) Vector<double> hyperbolic_tangent(Vector<double> x) { return one_by_one<::tanh>(x); }

// exp(-|z|), zero where `exponential` would stop at its least value: z times it must vanish for any z.
template <class A, class V = Vector<A>> inline V decay_of(V z) {
  const V size = z < V{} ? -z : z;
  return size > A(same<A, float> ? 87 : 708) ? V{} : inlined_exponential(-size);
}
// z · sigmoid(z), and its derivative sigmoid(z) · (1 + z · sigmoid(-z)): no difference of two numbers close to 1.
template <class A, class V = Vector<A>> __attribute__((noinline)) V silu(V z) {
  const V decay = decay_of<A>(z), one = V{} + A(1);
  return z * (z < V{} ? decay : one) / (one + decay);
}
template <class A, class V = Vector<A>> __attribute__((noinline)) V silu_derivative(V z) {
  const V decay = decay_of<A>(z), one = V{} + A(1), share = one / (one + decay);
  const V sigmoid = (z < V{} ? decay : one) * share, rest = (z < V{} ? one : decay) * share;
  return sigmoid * (one + z * rest);
}

inline Vector<float> normal_tail(Vector<float> size, Vector<float> decay) {
  const Vector<float> t = 1.0f / (1.0f + 0.32f * size);
  // 2 Φ(-size) exp(size²/2) / t: a minimax polynomial over 0 < t ≤ 1, with a relative error of 3·10⁻⁸.
  Vector<float> p = -0.04215634519f * t + 0.1908145536f;
  p = p * t - 0.2934149956f;
  p = p * t + 0.1306561272f;
  p = p * t - 0.01875516576f;
  p = p * t + 0.1173079454f;
  p = p * t + 0.1756581942f;
  p = p * t + 0.2292447151f;
  p = p * t + 0.2553218872f;
  p = p * t + 0.2553230518f;
  return 0.5f * decay * (t * p);
}
inline Vector<double> normal_tail(Vector<double> size, Vector<double>) {
  return 0.5 * one_by_one<::erfc>(size * 0.70710678118654752440);
}
// The normal distribution function Φ(z), from exp(-z²/2): the tail is a product, so small values keep their digits.
template <class A, class V = Vector<A>> inline V normal_distribution(V z, V decay) {
  const V tail = normal_tail(z < V{} ? -z : z, decay);
  return z < V{} ? tail : A(1) - tail;
}
// z · Φ(z), and its derivative Φ(z) + z · φ(z).
template <class A, class V = Vector<A>> __attribute__((noinline)) V gelu(V z) {
  return z * normal_distribution<A>(z, same<A, float> ? decay_of<A>(A(0.5) * z * z) : V{});
}
template <class A, class V = Vector<A>> __attribute__((noinline)) V gelu_derivative(V z) {
  const V decay = decay_of<A>(A(0.5) * z * z);
  return normal_distribution<A>(z, decay) + z * (A(0.39894228040143267794) * decay);
}

template <class A> constexpr A gelu_tanh_scale = A(1.5957691216057307117597842397375);  // 2 √(2/π)
template <class A> constexpr A gelu_tanh_cube = A(0.044715);
// z · (1 + tanh(w / 2)) / 2 = z · sigmoid(w) with w = 2 √(2/π) · (z + 0.044715 z³).
template <class A, class V = Vector<A>> __attribute__((noinline)) V gelu_tanh(V z) {
  const V w = gelu_tanh_scale<A> * z * (A(1) + gelu_tanh_cube<A> * z * z);
  const V decay = decay_of<A>(w), one = V{} + A(1);
  return z * ((w < V{} ? decay : one) / (one + decay));
}
template <class A, class V = Vector<A>> __attribute__((noinline)) V gelu_tanh_derivative(V z) {
  // Beyond the bound sigmoid'(w) is 0, and must not be multiplied by infinity.
  const V one = V{} + A(1), square = z * z > A(1e4) ? V{} + A(1e4) : z * z;
  const V w = gelu_tanh_scale<A> * z * (one + gelu_tanh_cube<A> * square);
  const V slope = gelu_tanh_scale<A> * (one + A(3) * gelu_tanh_cube<A> * square);
  const V decay = decay_of<A>(w), share = one / (one + decay);
  const V sigmoid = (w < V{} ? decay : one) * share, rest = (w < V{} ? one : decay) * share;
  return sigmoid + z * (slope * (sigmoid * rest));
}

template <class A> constexpr A selu_scale = A(1.0507009873554804934193349852946);
template <class A> constexpr A selu_alpha = A(1.6732632423543772848170429916717);

template <Act act, class A, class V = Vector<A>> inline V activate(V z, V slope) {
  const V zero{};
  if constexpr (act == Act::relu) return z < zero ? zero : z;  // a NaN stays a NaN
  if constexpr (act == Act::prelu) return z > zero ? z : z * slope;
  if constexpr (act == Act::selu) {
    V below = exponential_minus_1(z > zero ? zero : z) * selu_alpha<A>;
    return (z > zero ? z : below) * selu_scale<A>;
  }
  if constexpr (act == Act::tanh) return hyperbolic_tangent(z);
  if constexpr (act == Act::silu) return silu<A>(z);
  if constexpr (act == Act::gelu) return gelu<A>(z);
  if constexpr (act == Act::gelu_tanh) return gelu_tanh<A>(z);
  return z;
}

// g · act'(z)
template <Act act, class A, class V = Vector<A>> inline V activation_gradient(V z, V g, V slope) {
  const V zero{};
  if constexpr (act == Act::relu) return z > zero ? g : zero;
  if constexpr (act == Act::prelu) return z > zero ? g : g * slope;
  if constexpr (act == Act::selu) {
    V below = exponential(z > zero ? zero : z) * selu_alpha<A>;
    return g * selu_scale<A> * (z > zero ? zero + A(1) : below);
  }
  if constexpr (act == Act::tanh) {
    V t = hyperbolic_tangent(z);
    return g * (A(1) - t * t);
  }
  if constexpr (act == Act::silu) return g * silu_derivative<A>(z);
  if constexpr (act == Act::gelu) return g * gelu_derivative<A>(z);
  if constexpr (act == Act::gelu_tanh) return g * gelu_tanh_derivative<A>(z);
  return g;
}

// Calls `body` with the activation as a compile-time constant.
template <class Body> inline void with_act(Act act, const Body& body) {
  switch (act) {
    case Act::none: return body.template operator()<Act::none>();
    case Act::relu: return body.template operator()<Act::relu>();
    case Act::lrelu:  // each plane has its slope anyway
    case Act::prelu: return body.template operator()<Act::prelu>();
    case Act::selu: return body.template operator()<Act::selu>();
    case Act::tanh: return body.template operator()<Act::tanh>();
    case Act::silu: return body.template operator()<Act::silu>();
    case Act::gelu: return body.template operator()<Act::gelu>();
    case Act::gelu_tanh: return body.template operator()<Act::gelu_tanh>();
  }
}
