// Vectors with one value of each of LANES images, by the vector extensions of GCC and Clang.
//
// All headers use an anonymous namespace: kernels of several networks, compiled from this code with
// other sizes, are loaded into one process and must not share symbols.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE inline ALWAYS_INLINE

namespace {

using vec = float __attribute__((vector_size(4 * LANES)));
using ivec = int32_t __attribute__((vector_size(4 * LANES)));
using bytes = int8_t __attribute__((vector_size(LANES)));

// Accumulators kept in registers at a time: 24 of 32, or 12 of 16; the rest is for operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif
// The largest divisor of n that is at most `most`: sizes of register blocks without a remainder.
constexpr int divisor(int n, int most) { return n % most == 0 ? most : divisor(n, most - 1); }

// Comparisons are written so that NaN passes: it must reach the loss.
INLINE vec relu(vec x) { return x < 0.f ? vec{} : x; }
INLINE vec relu_gradient(vec activation, vec d) { return activation <= 0.f ? vec{} : d; }

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, ivec{__VA_ARGS__})
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
