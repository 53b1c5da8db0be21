// Complex numbers as CUDA's cuComplex.h has them: a pair whose x is the real and y the imaginary part.
#pragma once
#include "cuda_runtime.h"

using cuFloatComplex = float2;
using cuDoubleComplex = double2;
using cuComplex = cuFloatComplex;

// `f` ends the names of the float functions: cuCaddf of cuFloatComplex, cuCadd of cuDoubleComplex.
#define SIMT_COMPLEX(Complex, Real, name, f)                                                                      \
  inline Complex make_##name(Real re, Real im) { return {re, im}; }                                               \
  inline Real cuCreal##f(Complex a) { return a.x; }                                                               \
  inline Real cuCimag##f(Complex a) { return a.y; }                                                               \
  inline Complex cuConj##f(Complex a) { return {a.x, -a.y}; }                                                     \
  inline Complex cuCadd##f(Complex a, Complex b) { return {a.x + b.x, a.y + b.y}; }                               \
  inline Complex cuCsub##f(Complex a, Complex b) { return {a.x - b.x, a.y - b.y}; }                               \
  inline Complex cuCmul##f(Complex a, Complex b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }       \
  inline Complex cuCdiv##f(Complex a, Complex b) { /* scaled by |re| + |im| of b, so that squares stay in range */ \
    const Real scale = 1 / (std::fabs(b.x) + std::fabs(b.y));                                                     \
    const Real ax = a.x * scale, ay = a.y * scale, bx = b.x * scale, by = b.y * scale;                            \
    const Real size = 1 / (bx * bx + by * by);                                                                    \
    return {(ax * bx + ay * by) * size, (ay * bx - ax * by) * size};                                              \
  }                                                                                                               \
  inline Real cuCabs##f(Complex a) { return std::hypot(a.x, a.y); }                                               \
  inline Complex cuCfma##f(Complex a, Complex b, Complex c) {                                                     \
    return {a.x * b.x + c.x - a.y * b.y, a.x * b.y + c.y + a.y * b.x};                                            \
  }
SIMT_COMPLEX(cuFloatComplex, float, cuFloatComplex, f)
SIMT_COMPLEX(cuDoubleComplex, double, cuDoubleComplex, )
#undef SIMT_COMPLEX
inline cuComplex make_cuComplex(float re, float im) { return {re, im}; }
inline cuDoubleComplex cuComplexFloatToDouble(cuFloatComplex a) { return {a.x, a.y}; }
inline cuFloatComplex cuComplexDoubleToFloat(cuDoubleComplex a) { return {float(a.x), float(a.y)}; }
