// Vectors with one value of each of LANES images, by the vector extensions of GCC and Clang.
//
// All headers use an anonymous namespace: kernels of several networks, compiled from this code with
// other sizes, are loaded into one process and must not share symbols.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Floats in a register.
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#ifndef LANES
#define LANES WIDTH
#endif
#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE inline ALWAYS_INLINE

namespace {

using vec = float __attribute__((vector_size(4 * LANES)));
using ivec = int32_t __attribute__((vector_size(4 * LANES)));
using bytes = int8_t __attribute__((vector_size(LANES)));
using ubytes = uint8_t __attribute__((vector_size(LANES)));

// Accumulators kept in registers at a time: 24 of 32, or 12 of 16; the rest is for operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif
// The largest divisor of n that is at most `most`: sizes of register blocks without a remainder.
constexpr int divisor(int n, int most) { return n % most == 0 ? most : divisor(n, most - 1); }

// Keeps x in a register, where the compiler would load it for each of its products.
INLINE vec in_register(vec x) {
#if defined(__x86_64__) && LANES <= WIDTH
  asm("" : "+v"(x));
#elif defined(__aarch64__) && LANES <= WIDTH
  asm("" : "+w"(x));
#endif
  return x;
}

// Whole numbers of 8 and of 32 bits. The compilers' own conversion takes the lanes one by one;
// the masks, of all lanes, spare a warning of g++ 12.
INLINE ivec widen(bytes x) {
#if defined(__AVX512F__) && LANES == 16
  return (ivec)_mm512_maskz_cvtepi8_epi32(-1, (__m128i)x);
#elif defined(__AVX2__) && LANES == 8
  return (ivec)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)x));
#else
  return __builtin_convertvector(x, ivec);
#endif
}
INLINE bytes narrow(ivec x) {
#if defined(__AVX512F__) && LANES == 16
  return (bytes)_mm512_maskz_cvtepi32_epi8(-1, (__m512i)x);
#elif defined(__AVX2__) && LANES == 8
  const __m256i words = _mm256_packs_epi32((__m256i)x, (__m256i)x);  // each half twice
  const __m128i all =
      _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return (bytes)_mm_cvtsi128_si64(_mm_packs_epi16(all, all));
#else
  return __builtin_convertvector(x, bytes);
#endif
}

INLINE vec to_floats(ubytes x) {
  const ivec low = widen((bytes)x);  // of -128..127
  return __builtin_convertvector(low & 255, vec);
}

// Comparisons are written so that NaN passes: it must reach the loss.
INLINE vec relu(vec x) { return x < 0.f ? vec{} : x; }
INLINE vec relu_gradient(vec activation, vec d) { return activation <= 0.f ? vec{} : d; }

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, indices_of(x){__VA_ARGS__})
#define indices_of(x) std::conditional_t<sizeof((x)[0]) == 1, bytes, ivec>
#endif

// The horizontal sums of LANES vectors, in the lanes of one: each step adds neighbours and halves
// the number of vectors.
template <int... l>
INLINE vec horizontal_sums(vec (&x)[LANES], std::integer_sequence<int, l...>) {
  for (int n = LANES / 2; n > 0; n /= 2)
    for (int i = 0; i < n; i++)
      x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 2 * l...) +
             SHUFFLE(x[2 * i], x[2 * i + 1], 2 * l + 1 ...);
  return x[0];
}

// sums[k] = horizontal sum of x[k], for n vectors.
INLINE void horizontal_sums(const vec* x, int n, float* sums) {
  for (int k = 0; k < n; k += LANES) {
    vec block[LANES] = {};
    const int count = std::min(LANES, n - k);
    for (int i = 0; i < count; i++) block[i] = x[k + i];
    const vec sum = horizontal_sums(block, std::make_integer_sequence<int, LANES>());
    std::memcpy(sums + k, &sum, 4 * count);
  }
}

// Lane l of x[k] becomes lane k of x[l]: each step interleaves the first and the second half.
template <class V, int... l>
INLINE void transpose(V (&x)[LANES], std::integer_sequence<int, l...>) {
  for (int step = 1; step < LANES; step *= 2) {
    V y[LANES];
    for (int i = 0; i < LANES / 2; i++) {
      const V a = x[i], b = x[i + LANES / 2];
      y[2 * i] = SHUFFLE(a, b, (l / 2 + l % 2 * LANES)...);
      y[2 * i + 1] = SHUFFLE(a, b, (LANES / 2 + l / 2 + l % 2 * LANES)...);
    }
    for (int i = 0; i < LANES; i++) x[i] = y[i];
  }
}
template <class V>
INLINE void transpose(V (&x)[LANES]) {
  transpose(x, std::make_integer_sequence<int, LANES>());
}

// Calls f<size>(first) for blocks of n of `count` values, the last one of what is left.
template <int count, int n, class F>
INLINE void each_block(F f) {
  for (int first = 0; first + n <= count; first += n) f.template operator()<n>(first);
  if constexpr (count % n > 0) f.template operator()<count % n>(count - count % n);
}

// The same for as few blocks of at most `most` values as there can be, of nearly equal sizes.
template <int count, int most, class F>
INLINE void each_equal_block(F f) {
  constexpr int number = (count + most - 1) / most, n = count / number, longer = count % number;
  if constexpr (longer > 0)
    for (int k = 0; k < longer; k++) f.template operator()<n + 1>(k * (n + 1));
  for (int k = longer; k < number; k++) f.template operator()<n>(longer + k * n);
}

// 0..255 as 0..1, rounded as the quotient is.
INLINE vec unit(ubytes x) {
  const vec value = to_floats(x), quotient = value * (1.f / 255.f);
  return quotient + (value - quotient * 255.f) * (1.f / 255.f);
}
INLINE vec unit(vec x) { return x; }

// exp(x) for x <= 0, to 2 units in the last place; below -87 it stays at 2e-38. x = n log(2) + f
// with log(2) in two parts, after Cody and Waite; the series of exp(f) to f^6.
INLINE vec exp_negative(vec x) {
  x = x < -87.f ? vec{} - 87.f : x;
  const ivec whole = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
  const vec n = __builtin_convertvector(whole, vec);
  const vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec r = f * 1.38888889e-3f + 8.33333333e-3f;
  r = r * f + 4.16666667e-2f, r = r * f + 0.166666667f, r = r * f + 0.5f;
  r = r * f * f + f + 1.f;
  return r * (vec)((whole + 127) << 23);  // the bits of 2^n
}

// log(1 + e) for 0 <= e <= 1: 2 artanh(e / (2 + e)).
INLINE vec log1p_unit(vec e) {
  const vec s = e / (e + 2.f), q = s * s;
  vec r = q * 0.0769230769f + 0.0909090909f;
  r = r * q + 0.111111111f, r = r * q + 0.142857143f, r = r * q + 0.2f, r = r * q + 0.333333333f;
  return 2.f * (s + s * q * r);
}

}  // namespace
