// The smooth activations over vec16f, for the kernels that fuse them. Raw pointers only: see
// common/vec16f.hpp for why.
#pragma once

#include "common/vec16f.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// x / 2 * (1 + erf(x / sqrt 2)), erf by a rational function fitted to 6e-8 on [-3.95, 3.95].
struct GeluPhi {
  static CAUSALPRUNE_INLINE vec16f value(vec16f x) {
    const vec16f bound = broadcast(3.95f);
    vec16f u = mul(x, broadcast(0.70710678118f));
    u = max(min(u, bound), sub(zero(), bound));
    const vec16f t = mul(u, u);
    vec16f p = broadcast(1.960383145e-08f);
    p = fmadd(p, t, broadcast(-1.950902515e-06f));
    p = fmadd(p, t, broadcast(1.438094478e-04f));
    p = fmadd(p, t, broadcast(3.807847155e-03f));
    p = fmadd(p, t, broadcast(5.092327669e-02f));
    p = fmadd(p, t, broadcast(2.025830299e-01f));
    p = fmadd(p, t, broadcast(1.128379107e+00f));
    vec16f q = broadcast(9.798478568e-04f);
    q = fmadd(q, t, broadcast(1.457575895e-02f));
    q = fmadd(q, t, broadcast(1.160945594e-01f));
    q = fmadd(q, t, broadcast(5.128660202e-01f));
    q = fmadd(q, t, broadcast(1.0f));
    const vec16f half = mul(x, broadcast(0.5f));
    return fmadd(half, div(mul(u, p), q), half);
  }
};

struct SiluPhi {
  static CAUSALPRUNE_INLINE vec16f value(vec16f x) {
    return div(x, add(broadcast(1.0f), exp(sub(zero(), x))));
  }
};

struct HardswishPhi {
  static CAUSALPRUNE_INLINE vec16f value(vec16f x) {
    const vec16f gate = min(max(add(x, broadcast(3.0f)), zero()), broadcast(6.0f));
    return mul(mul(x, gate), broadcast(1.0f / 6.0f));
  }
};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
