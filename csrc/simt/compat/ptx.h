// What inline PTX becomes: registers are variables of their width, and these functions read and write them as the type that
// an instruction names. minillama/simt/inline_ptx.py writes the calls.
#pragma once

#include "more_intrinsics.h"

namespace simt::ptx {

// The lower bytes of a register as another type; what is wider is filled with zeros.
template <class To, class From>
SIMT_INLINE To as(From from) {
  if constexpr (std::is_same_v<To, From>) return from;
  else if constexpr (std::is_floating_point_v<To> && std::is_same_v<From, double> && sizeof(To) != sizeof(From))
    return To(from);  // a number written in the text
  else {
    To to{};
    std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return to;
  }
}
template <class To, class From>
SIMT_INLINE void set(To& to, const From& from) { to = as<To>(from); }
template <class Register, class From>
SIMT_INLINE Register in(const From& from) {
  if constexpr (std::is_pointer_v<From> || std::is_array_v<From>) 
    return Register(reinterpret_cast<uintptr_t>(static_cast<const volatile void*>(from)));
  else if constexpr (std::is_arithmetic_v<From> || std::is_enum_v<From>) return Register(from);
  else return as<Register>(from);
}
template <class To, class Register>
SIMT_INLINE void out(To& to, const Register& from) {
  if constexpr (std::is_integral_v<To> && std::is_integral_v<Register>) to = To(from);
  else if constexpr (std::is_pointer_v<To>) to = reinterpret_cast<To>(uintptr_t(from));
  else to = as<To>(from);
}

inline unsigned rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// ---- arithmetic

template <class T> T least(T a, T b) { return std::is_floating_point_v<T> ? T(std::fmin(a, b)) : b < a ? b : a; }
template <class T> T most(T a, T b) { return std::is_floating_point_v<T> ? T(std::fmax(a, b)) : a < b ? b : a; }
inline __half2 least(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline __half2 most(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __nv_bfloat162 least(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline __nv_bfloat162 most(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
inline __half fused(__half a, __half b, __half c) { return __hfma(a, b, c); }
inline __nv_bfloat16 fused(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) { return __hfma(a, b, c); }
inline __half2 fused(__half2 a, __half2 b, __half2 c) { return __hfma2(a, b, c); }
inline __nv_bfloat162 fused(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) { return __hfma2(a, b, c); }
template <class T> T low(T a, T b) { return T(std::make_unsigned_t<T>(a) * uint64_t(std::make_unsigned_t<T>(b))); }
template <class T> struct Twice;
template <> struct Twice<int16_t> { using type = int32_t; };
template <> struct Twice<uint16_t> { using type = uint32_t; };
template <> struct Twice<int32_t> { using type = int64_t; };
template <> struct Twice<uint32_t> { using type = uint64_t; };
template <> struct Twice<int64_t> { using type = __int128; };
template <> struct Twice<uint64_t> { using type = unsigned __int128; };
template <class T> auto wide(T a, T b) { return typename Twice<T>::type(a) * typename Twice<T>::type(b); }
template <class T> T hi(T a, T b) { return T(wide(a, b) >> 8 * sizeof(T)); }
template <class T> int count(T a) { return __builtin_popcountll(std::make_unsigned_t<T>(a)); }
template <class T> int leading_zeros(T a) {
  return a ? __builtin_clzll(std::make_unsigned_t<T>(a)) - 64 + 8 * int(sizeof(T)) : 8 * int(sizeof(T));
}
template <class T> T reversed(T a) { return T(__brevll(uint64_t(std::make_unsigned_t<T>(a))) >> (64 - 8 * sizeof(T))); }
template <class T> T shl(T a, uint32_t by) { return by < 8 * sizeof(T) ? T(std::make_unsigned_t<T>(a) << by) : T(0); }
template <class T> T shr(T a, uint32_t by) {
  if (by < 8 * sizeof(T)) return T(a >> by);
  return a < 0 ? T(-1) : T(0);
}
template <class T> T bfe(T a, uint32_t from, uint32_t bits) {
  const int width = 8 * int(sizeof(T)), start = int(from & 0xff), length = int(bits & 0xff);
  if (length == 0) return 0;
  const auto u = std::make_unsigned_t<T>(a);
  const bool negative = std::is_signed_v<T> && (u >> std::min(start + length - 1, width - 1) & 1);
  auto result = start < width ? std::make_unsigned_t<T>(u >> start) : std::make_unsigned_t<T>(0);
  if (length < width) result &= (std::make_unsigned_t<T>(1) << length) - 1;
  for (int bit = std::min(length, width - start); negative && bit < width; ++bit)
    if (bit >= 0) result |= std::make_unsigned_t<T>(1) << bit;
  return T(result);
}
template <class T> T bfi(T a, T b, uint32_t from, uint32_t bits) {
  const uint32_t width = 8 * sizeof(T), start = from & 0xff, length = bits & 0xff;
  if (length == 0 || start >= width) return b;
  const T ones = length < width ? T((T(1) << length) - 1) : T(~T(0)), mask = T(ones << start);
  return T((b & ~mask) | (T(a << start) & mask));
}
template <class T> uint32_t bfind(T a) {
  const auto u = std::make_unsigned_t<T>(a < 0 ? ~a : a);
  return u ? uint32_t(63 - __builtin_clzll(u)) : ~0u;
}
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
template <class T> T sad(T a, T b, T c) { return T(c + (a < b ? b - a : a - b)); }
template <class T> T sign_of(T sign, T value) { return std::copysign(value, sign); }
inline uint32_t vabsdiff4_add(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 32; i += 8) c += uint32_t(std::abs(int(a >> i & 0xff) - int(b >> i & 0xff)));
  return c;
}
inline uint32_t to_tf32(float x) {  // 10 bits of mantissa, ties away from zero
  const uint32_t bits = bits_of(x);
  return (bits & 0x7fffffff) > 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}

// ---- memory

SIMT_INLINE char* generic(uint64_t address) { return reinterpret_cast<char*>(address); }
inline char* shared(uint64_t address) { return static_cast<char*>(from_shared_address(unsigned(address))); }
inline bool is_shared(uint64_t address) { return is_shared_memory(generic(address)); }
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T part[N]; };
template <class T, int N> SIMT_INLINE Pack<T, N> load(const Pack<T, N>* from) { return *from; }
template <class T, int N> SIMT_INLINE void store(Pack<T, N>* to, Pack<T, N> value) { *to = value; }
template <class T> SIMT_INLINE auto extend(T value) {
  return std::conditional_t<sizeof(T) == 8, T, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>(value);
}
inline void copy_async(void* to, const void* from, int bytes, int wanted, int least, SIMT_HERE) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || bytes < least)
    fail("cp.async of " + std::to_string(bytes) + " bytes: .ca copies 4, 8 or 16, .cg copies 16", where);
  copy_later(to, from, bytes, wanted, where);
}

// ---- a warp together

inline uint32_t shfl(char how, bool& inside, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, SIMT_HERE) {
  const int lane = lane_id(), segment = int(c >> 8 & 31), clamp = int(c & 31), by = int(b & 31);
  const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  int source = how == 'u' ? lane - by : how == 'd' ? lane + by : how == 'b' ? lane ^ by : first | (by & ~segment);
  inside = how == 'u' ? source >= last : source <= last;
  return shuffle(mask, value, inside ? source : lane, "shfl.sync", where);
}

template <int Count>
void ldmatrix(unsigned (&r)[Count], const void* row, bool transposed, SIMT_HERE) {
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  if (lane < 8 * Count) matrix_row(row, "ldmatrix", where);
  const Gathered<const uint16_t*> rows(~0u, static_cast<const uint16_t*>(row), "ldmatrix", where);
  for (int j = 0; j < Count; ++j) {
    const uint16_t low = transposed ? half_of(rows[8 * j + 2 * t], g) : half_of(rows[8 * j + g], 2 * t);
    const uint16_t high = transposed ? half_of(rows[8 * j + 2 * t + 1], g) : half_of(rows[8 * j + g], 2 * t + 1);
    r[j] = unsigned{low} | unsigned{high} << 16;
  }
  exchange(~0u, &row, sizeof row, "end of ldmatrix", where);  // nobody overwrites rows that others still read
}

inline float from_tf32(uint32_t bits) { return float_of(bits & ~0x1fffu); }
inline int from_s8(uint32_t bits) { return int8_t(bits); }
inline int from_u8(uint32_t bits) { return int(bits); }

// c (16 x 8) += a (16 x K) b (K x 8), elements of Bits bits, 32 / Bits to a register. A register of a holds a piece of row
// g or g + 8, one of b a piece of column g; lane t of the four has piece t; K beyond four pieces: in further registers.
template <int Bits, class Sum, class C, int SizeC, int SizeA, int SizeB, class Decode>
void mma(C (&c)[SizeC], const unsigned (&a)[SizeA], const unsigned (&b)[SizeB], Decode decode, SIMT_HERE) {
  struct { unsigned a[SizeA], b[SizeB]; } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const Gathered<decltype(mine)> all(~0u, mine, "mma.sync", where);
  constexpr int each = 32 / Bits, depth = SizeB * 4 * each;
  constexpr uint32_t ones = Bits == 32 ? ~0u : (1u << Bits % 32) - 1;
  const int g = lane_id() / 4, t = lane_id() % 4;
  using Result = std::conditional_t<std::is_same_v<Sum, int>, int, float>;
  Result sum[4];
  for (int i = 0; i < 4; ++i)
    if constexpr (std::is_same_v<Sum, __half>) sum[i] = from_half(uint16_t(c[i / 2] >> i % 2 * 16));
    else sum[i] = c[i];
  for (int k = 0; k < depth; ++k) {
    const int chunk = k / (4 * each), owner = k % (4 * each) / each, at = k % each * Bits;
    const auto rows = all[4 * g + owner];
    for (int n = 0; n < 2; ++n) {
      const Result column = Result(decode(all[4 * (2 * t + n) + owner].b[chunk] >> at & ones));
      for (int half = 0; half < 2; ++half)
        sum[2 * half + n] += Result(decode(rows.a[2 * chunk + half] >> at & ones)) * column;
    }
  }
  for (int i = 0; i < SizeC; ++i)
    if constexpr (std::is_same_v<Sum, __half>)
      c[i] = C(to_half(float(sum[2 * i])) | unsigned(to_half(float(sum[2 * i + 1]))) << 16);
    else c[i] = sum[i];
}

}  // namespace simt::ptx
