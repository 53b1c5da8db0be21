// The exponential of every number of a vector, and what else the softmax needs beside lanes.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace minillama {

#if defined(__GNUC__)
template <int lanes>
struct IntegerLanes {
  typedef int32_t type __attribute__((vector_size(4 * lanes)));
};
#else
template <int lanes>
struct IntegerLanes {
  typedef int32_t type;
};
#endif
template <int lanes>
using Floats = typename Lanes<lanes>::type;
template <int lanes>
using Integers = typename IntegerLanes<lanes>::type;

template <int lanes>
static INLINE Integers<lanes> load_integers(const int32_t* from) {
  Integers<lanes> x;
  std::memcpy(&x, from, sizeof x);  // one instruction, wherever they lie
  return x;
}

template <int lanes>
static INLINE Floats<lanes> larger(const Floats<lanes>& a, const Floats<lanes>& b) {  // b where one is NaN
  return a > b ? a : b;
}

// 2^x, to two units in the last place; 0 below the smallest normal number, NaN for NaN. x is at most 127.
//
// x = n + f with n whole and |f| <= 1/2: 2^n is n in a float's exponent, and 2^f a polynomial of degree 6 with
// p(0) = 1, nearest to it in relative error, which is 2.0e-9 = 0.03 * 2^-24 (a weighted least squares fit; Remez'
// algorithm would find the same). Its own roundings, most of all the last sum's, make 1.7 * 2^-24 of it, measured on
// 2 million f, without fused operations and 1.4 with them.
template <int lanes>
static INLINE Floats<lanes> power_of_2(const Floats<lanes>& x) {
  const float to_whole = 12582912.0f;  // 1.5 * 2^23: a sum with it has no place for a fraction, n is its lowest bits
  const Floats<lanes> shifted = x + to_whole, f = x - (shifted - to_whole);
  Floats<lanes> p = f * 0.00015353344497270882f + 0.0013398873852565885f;
  p = p * f + 0.009618437848985195f;
  p = p * f + 0.055503323674201965f;
  p = p * f + 0.24022647738456726f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  Integers<lanes> n;
  std::memcpy(&n, &shifted, sizeof n);
  n = (n << 23) + 0x3f800000;  // only n is left of the sum; 127 is the exponent of 1
  Floats<lanes> power;
  std::memcpy(&power, &n, sizeof n);
  const Floats<lanes> zero = {};
  return x < -126.0f ? zero : p * power;
}

}  // namespace minillama
