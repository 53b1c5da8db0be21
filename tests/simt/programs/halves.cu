// Numbers in 16 and 8 bits against a sorted table of all their values: an oracle that looks a number's two neighbours up.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

static int wrong = 0;
#define CHECK(condition, ...)                                                       \
  if (!(condition) && ++wrong < 20) printf("%d: %s: ", __LINE__, #condition), printf(__VA_ARGS__), puts("");

struct Format {  // value(code): sign, exponent, mantissa; codes above `largest` (their sign aside) are infinity or NaN
  int bits, mantissa, bias, largest;
  double value(int code) const {
    const int size = code & ((1 << (bits - 1)) - 1), exponent = size >> mantissa, part = size & ((1 << mantissa) - 1);
    const double v = exponent ? std::ldexp(part + (1 << mantissa), exponent - bias - mantissa)
                              : std::ldexp(part, 1 - bias - mantissa);
    return code >> (bits - 1) ? -v : v;
  }
  // The code of x, rounded: 'n'earest even, to 'z'ero, 'd'own or 'u'p. Beyond the largest: `beyond`.
  int code(double x, char how, int beyond) const {
    const int sign = std::signbit(x) ? 1 << (bits - 1) : 0;
    int low = 0, high = largest + 1;  // |x| lies in [value(low), value(high)), the last step as if there were a next number
    while (high - low > 1) (value((low + high) / 2) <= std::fabs(x) ? low : high) = (low + high) / 2;
    const double step = low == largest ? value(largest) - value(largest - 1) : value(low + 1) - value(low);
    const double rest = std::fabs(x) - value(low);
    const bool away = how == 'n' ? rest > step / 2 || (rest == step / 2 && low % 2) : (how == 'd') == (sign != 0) && how != 'z';
    return sign | (rest > 0 && away ? (low == largest ? beyond : low + 1) : low);
  }
  std::vector<double> samples() const {  // each number, the middle to the next, and what lies closest to both
    std::vector<double> all;
    for (int c = 0; c <= largest; c += bits == 8 ? 1 : 7)
      for (double v : {value(c), (value(c) + value(c + 1)) / 2})
        for (double near : {v, std::nextafter(v, 1e300), std::nextafter(v, -1.0), -v, -std::nextafter(v, 1e300)})
          all.push_back(near);
    for (double v : {value(largest) * 1.5, value(largest) * 1e3, -value(largest) * 1.01}) all.push_back(v);
    return all;
  }
};
const Format kHalf = {16, 10, 15, 0x7bff}, kBfloat = {16, 7, 127, 0x7f7f}, kE4m3 = {8, 3, 7, 0x7e}, kE5m2 = {8, 2, 15, 0x7b};

template <class T> static int bits(T x) { return *reinterpret_cast<unsigned short*>(&x); }

#define CHECK_CONVERSIONS(T, name, format)                                                                               \
  for (double x : format.samples()) {                                                                                    \
    const float f = float(x);                                                                                            \
    const int beyond = format.largest + 1;                                                                               \
    CHECK(bits(__double2##name(x)) == format.code(x, 'n', beyond), "%a", x)                                              \
    if (std::isinf(f)) continue;                                                                                      \
    CHECK(bits(__float2##name##_rn(f)) == format.code(f, 'n', beyond), "%a", f)                                          \
    CHECK(bits(__float2##name##_rz(f)) == format.code(f, 'z', beyond), "%a", f)                                          \
    CHECK(bits(__float2##name##_rd(f)) == format.code(f, 'd', beyond), "%a", f)                                          \
    CHECK(bits(__float2##name##_ru(f)) == format.code(f, 'u', beyond), "%a", f)                                          \
  }                                                                                                                      \
  for (long long i = -3000000; i < 3000000; i += 997) {                                                                  \
    const long long wide = i * 2147483999ll;                                                                             \
    CHECK(bits(__int2##name##_rn(int(i))) == format.code(double(i), 'n', format.largest + 1), "%lld", i)                 \
    CHECK(bits(__int2##name##_rd(int(i))) == format.code(double(i), 'd', format.largest + 1), "%lld", i)                 \
    CHECK(bits(__ll2##name##_ru(wide)) == format.code(double(wide), 'u', format.largest + 1), "%lld", wide)              \
  }                                                                                                                      \
  for (int c = 0; c <= format.largest; c += 5)                                                                           \
    for (int sign : {0, 0x8000}) {                                                                                       \
      const double v = format.value(c | sign);                                                                           \
      const T x = __ushort_as_##name((unsigned short)(c | sign));                                                        \
      auto held = [](double y, double low, double high) { return std::min(std::max(y, low), high); };                    \
      CHECK(__##name##2int_rn(x) == held(std::nearbyint(v), -2147483648.0, 2147483647.0), "%g", v)                       \
      CHECK(__##name##2uint_ru(x) == held(std::ceil(v), 0, 4294967295.0), "%g", v)                                       \
      CHECK(__##name##2short_rd(x) == held(std::floor(v), -32768, 32767), "%g", v)                                       \
      CHECK(__##name##2uchar_rz(x) == held(std::trunc(v), 0, 255), "%g", v)                                              \
    }

template <class T, class Pair> static void check_comparisons(T nan, T big, T one, T zero, T minus) {
  const T all[] = {nan, big, one, zero, minus};
  for (T a : all)
    for (T b : all) {
      const double x = float(a), y = float(b);
      const bool un = std::isnan(x) || std::isnan(y);
      const Pair p(a, one), q(b, minus);
      CHECK(__heq(a, b) == (x == y) && __hne(a, b) == (!un && x != y) && __hlt(a, b) == (x < y), "%g %g", x, y)
      CHECK(__hequ(a, b) == (un || x == y) && __hneu(a, b) == (x != y) && __hgeu(a, b) == !(x < y), "%g %g", x, y)
      CHECK(__hgt2_mask(p, q) == (0xffff0000u | (x > y ? 0xffffu : 0)) && __hbge2(p, q) == (x >= y), "%g %g", x, y)
      CHECK(float(__hle2(q, p).x) == (y <= x) && float(__hle2(q, p).y) == 1 && __hbltu2(q, p) == (un || y < x), "%g %g", x, y)
      CHECK(float(__hmax(a, b)) == std::fmax(x, y) || (std::isnan(x) && std::isnan(y)), "%g %g", x, y)
      CHECK(std::isnan(float(__hmin_nan(a, b))) == un && std::isnan(float(__hmax2_nan(p, q).x)) == un, "%g %g", x, y)
      const double sum = std::isnan(x + y) ? 0 : std::min(std::max(x + y, 0.0), 1.0);
      CHECK(float(__hadd_sat(a, b)) == sum && float(__hadd2_sat(p, q).y) == 0, "%g %g", x, y)
    }
  CHECK(bits(__hmax(__hneg(zero), zero)) == 0 && bits(__hmin(zero, __hneg(zero))) == 0x8000, "signed zeros")
  CHECK(float(__hfma_relu(one, minus, zero)) == 0 && float(__hfma_relu(minus, minus, one)) > 1, "relu")
  const Pair i(zero, one), product = __hcmadd(i, i, Pair(one, one));  // i * i + (1 + i) = i
  CHECK(float(product.x) == 0 && float(product.y) == 1, "complex")
  T counted = one;
  counted++, --counted;
  CHECK(counted == one && -Pair(one, minus) == Pair(minus, one) && float(h2exp2(Pair(one, minus)).y) == 0.5f, "operators")
  for (float x : {0.25f, 1.0f, 2.5f, 7.0f}) {
    CHECK(float(htanh(T(x))) == float(T(std::tanh(x))) && float(h2log10(Pair(T(x), one)).x) == float(T(std::log10(x))), "%g", x)
    CHECK(float(hexp10(T(x))) == float(T(float(std::pow(10.0, x)))) && float(htrunc(T(-x))) == std::trunc(-x), "%g", x)
  }
}

template <class Fp8> static void check_fp8(const Format& format, __nv_fp8_interpretation_t kind, int beyond) {
  for (double x : format.samples()) {
    const int code = format.code(x, 'n', -1), sign = std::signbit(x) ? 0x80 : 0;
    CHECK(__nv_cvt_double_to_fp8(x, __NV_SATFINITE, kind) == (code < 0 ? sign | format.largest : code), "%a", x)
    CHECK(__nv_cvt_double_to_fp8(x, __NV_NOSAT, kind) == (code < 0 ? sign | beyond : code), "%a", x)
  }
  for (int c = 0; c <= format.largest; ++c) {
    Fp8 number;
    number.__x = (unsigned char)(c | 0x80);
    CHECK(float(number) == format.value(c | 0x80) && float(__half(number)) == format.value(c | 0x80), "%d", c)
    CHECK(int(number) == int(format.value(c | 0x80)) && Fp8(float(number)).__x == number.__x, "%d", c)
  }
}

__global__ void sum_fp8(const __nv_fp8x4_e4m3* x, float* sum) {
  const float4 v(x[threadIdx.x]);
  atomicAdd(sum, v.x + v.y + v.z + v.w);
}

int main() {
  CHECK_CONVERSIONS(__half, half, kHalf)
  CHECK_CONVERSIONS(__nv_bfloat16, bfloat16, kBfloat)
  check_comparisons<__half, __half2>(__float2half(NAN), __half(60000.0f), __half(1.0f), __half(0.0f), __half(-1.0f));
  check_comparisons<__nv_bfloat16, __nv_bfloat162>(__float2bfloat16(NAN), __float2bfloat16(1e38f), __float2bfloat16(1.0f),
                                                   __float2bfloat16(0.0f), __float2bfloat16(-1.0f));
  check_fp8<__nv_fp8_e4m3>(kE4m3, __NV_E4M3, 0x7f);
  check_fp8<__nv_fp8_e5m2>(kE5m2, __NV_E5M2, 0x7c);
  __nv_fp8x4_e4m3* x;
  float* sum;
  cudaMallocManaged(&x, 32 * sizeof *x), cudaMallocManaged(&sum, sizeof *sum);
  for (int i = 0; i < 32; ++i) x[i] = __nv_fp8x4_e4m3(make_float4(i, 0.5f, -1, 0));  // up to 31: 17 and above lose a bit
  sum_fp8<<<1, 32>>>(x, sum);
  cudaDeviceSynchronize();
  float wanted = 0;
  for (int i = 0; i < 32; ++i) wanted += float(kE4m3.value(kE4m3.code(i, 'n', 0))) - 0.5f;
  CHECK(*sum == wanted, "%g %g", *sum, wanted)
  printf("%d wrong\n", wrong);
  return wrong > 0;
}
