// With one row of x each block is used once, and what counts is how many loads and instructions stand between memory and
// the sum. Four parts of q4_0, 72 bytes of W, are taken at a time: two loads that overlap and one permutation leave 64
// bytes whose low halves are the parts' first 16 columns and whose high halves are the second 16. Each part has four
// lanes, so one conversion and one scale serve all four. A load across the end of a cache line costs two: W's cannot
// lie better, but x is laid out once for all rows of W, in whole lines, in this order.

#include "gguf_row.h"

#include <algorithm>
#include <cstring>

#include "gguf_codes.h"
#include "vectors.h"

namespace minillama {

bool gguf_has_row(Block block, int64_t M) { return block == Block::q4_0 && M == 1 && vectors_have_vnni(); }

#if MINILLAMA_X86
constexpr int64_t kFour = 4 * kPart, kWords = 9;  // columns; 16-bit words of a part: its scale, then its codes
constexpr int64_t kAhead = 2048;                  // bytes from what is read to what is fetched

namespace {
struct alignas(64) FourParts {  // of x
  int8_t first[64], second[64];
  int32_t taken[16];  // what codes of W, being 8 more than they mean, add to a sum
  float scale[16];
};
}  // namespace

static std::vector<FourParts> lay_out(const GGUFRows& x) {
  std::vector<FourParts> fours((x.columns + kFour - 1) / kFour);
  std::memset(fours.data(), 0, fours.size() * sizeof(FourParts));
  for (int64_t p = 0; p < x.columns / kPart; ++p) {
    FourParts& to = fours[p / 4];
    const int64_t at = p % 4;
    std::copy_n(&x.codes[p * kPart], 16, to.first + 16 * at);
    std::copy_n(&x.codes[p * kPart + 16], 16, to.second + 16 * at);
    for (int64_t i = 0; i < 4; ++i) {
      to.taken[4 * at + i] = 8 * (x.fours[8 * p + i] + x.fours[8 * p + 4 + i]);
      to.scale[4 * at + i] = x.scales[p];
    }
  }
  return fours;
}

// Numbers of words in a vector that begins with word 0, and, from 32 on, in one that begins with word 4.
struct alignas(64) Places {
  int16_t codes[32], scales[32];
};

static constexpr Places places_of() {
  Places places{};
  for (int i = 0; i < 32; ++i) {
    const int word = static_cast<int>(i / 8 * kWords) + 1 + i % 8;
    places.codes[i] = static_cast<int16_t>(word < 32 ? word : 32 + word - 4);
    places.scales[i] = static_cast<int16_t>(i / 4 % 4 * kWords);
  }
  return places;
}
static constexpr Places kPlaces = places_of();

// sum += four parts, of which `words` are there
AVX512_VNNI static INLINE __m512 add_four(const uint8_t* w, const FourParts& x, int64_t words, __m512 sum) {
  const auto first = static_cast<__mmask32>(words < 32 ? (1u << words) - 1 : ~0u);
  const auto second = static_cast<__mmask32>(words < 36 ? 0 : ~0u);  // the last part's codes
  const __m512i head = _mm512_maskz_loadu_epi16(first, w), tail = _mm512_maskz_loadu_epi16(second, w + 8);
  const __m512i codes = _mm512_permutex2var_epi16(head, _mm512_load_si512(kPlaces.codes), tail);
  const __m512i halves = _mm512_permutexvar_epi16(_mm512_load_si512(kPlaces.scales), head);
  const __m512i low = _mm512_set1_epi8(15), upper = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
  const __m512i of_first = _mm512_dpbusd_epi32(_mm512_load_si512(x.taken), _mm512_and_si512(codes, low),
                                               _mm512_load_si512(x.first));
  const __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(of_first, upper, _mm512_load_si512(x.second)));
  const __m512 scaled = _mm512_mul_ps(dot, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
  return _mm512_fmadd_ps(scaled, _mm512_load_ps(x.scale), sum);
}

AVX512_VNNI static void multiply(const uint8_t* w, const std::vector<FourParts>& x, int64_t columns, int64_t rows,
                                 float* y) {
  const int64_t whole = columns / kFour, left = columns % kFour / kPart * kWords;
  for (int64_t r = 0; r < rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < whole; ++i, w += 2 * 4 * kWords) {
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + 64), _MM_HINT_T0);
      sum = add_four(w, x[i], 4 * kWords, sum);
    }
    if (left) sum = add_four(w, x[whole], left, sum);
    w += 2 * left;
    y[r] = _mm512_reduce_add_ps(sum);
  }
}

void gguf_row(const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y) {
  multiply(w + begin * (x.columns / kPart) * 2 * kWords, lay_out(x), x.columns, end - begin, y);
}
#else
void gguf_row(const uint8_t*, const GGUFRows&, int64_t, int64_t, float*) {}
#endif

}  // namespace minillama
