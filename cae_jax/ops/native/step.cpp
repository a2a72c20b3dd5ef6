// The convolutional autoencoder on a CPU: losses, gradients, codes and logits in one native call.
//
// The idea: the SIMD lane is the image. LANES images form a group, and a vector holds one value,
// the same pixel and channel, of all of them. Every operation of the network, forward and backward,
// then is an operation on whole vectors with a weight that is the same in all lanes: no shuffles,
// and no channel count that does not fit. A group runs through the network and back to its end,
// in the cache of one core, before the next one starts; threads take whole groups.
//
// Four identities keep the arithmetic small:
//   - Convolution + pooling: the four convolution outputs under a 2x2 pooling window are computed
//     together, in registers; stored are the maximum and which of the four it was.
//   - Nearest upsampling is zero insertion followed by a 2x2 box sum, and the box sum commutes with
//     the convolution. So the kernel runs over the zero-inserted image, in which an output pixel
//     meets 1, 2 or 4 of the 9 taps: 9 multiplications per pixel before upsampling instead of 36.
//   - The adjoint of that: box-sum the gradient, then a 3x3 convolution with step 2.
//   - Layers 2 to 4, half of the network, by Winograd's convolution: 16 multiplications for 2x2
//     output pixels instead of 36, in the forward pass and in both derivatives.
//
// Compiled at first use by cae_jax/ops/fused/build.py, with -D for F1, F2, F3 (features of the three
// encoder convolutions). Parameters and gradients are one vector: for each layer conv1..conv7 the
// bias, then the kernel [3, 3, in, out]. All else is row-major, as in JAX.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

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

using vec = float __attribute__((vector_size(4 * LANES)));
using ivec = int32_t __attribute__((vector_size(4 * LANES)));
using bytes = int8_t __attribute__((vector_size(LANES)));

constexpr int kSize = 28, kPixels = kSize * kSize;
constexpr int kIn[7] = {1, F1, F2, F3, F3, F2, F1}, kOut[7] = {F1, F2, F3, F3, F2, F1, 1};
// Where the parameters of a layer begin: its bias, then its kernel.
constexpr int offset(int layer) {
  return layer == 0 ? 0 : offset(layer - 1) + kOut[layer - 1] * (9 * kIn[layer - 1] + 1);
}
constexpr int kParameters = offset(6) + kOut[6] * (9 * kIn[6] + 1);
// Sums that are kept in registers at a time: 24 of 32, or 12 of 16; the rest is for their operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif
// The largest divisor of n that is at most `most`: sizes of register blocks without a remainder.
constexpr int divisor(int n, int most) { return n % most == 0 ? most : divisor(n, most - 1); }

// A square image of vectors, [size, size, channels], inside a border of zeros. Its memory lies
// outside of any struct so that the address sanitizer sees its ends.
template <int size, int channels, int before = 0, int after = before, int rows = size>
struct Plane {
  static constexpr int kStride = (size + before + after) * channels;  // from row to row
  std::unique_ptr<vec[]> data{new vec[(rows + before + after) * kStride]()};
  INLINE vec* at(int row, int column) const {
    return data.get() + (row + before) * kStride + (column + before) * channels;
  }
};

// --- The three loops that do the work -----------------------------------------------------------

// sum[p][t] = output feature t of `rows` x `columns` neighbouring output pixels p, kept in
// registers. x: upper left pixel of the first window; w: the first tap, in a kernel [3, 3, in,
// out], at feature 0 of t; of two taps in a direction the other one is the next but one.
template <int kh, int kw, int step, int in, int out, int rows, int columns, int T>
INLINE void convolve(const vec* x, int stride, const float* w, vec (&sum)[rows * columns][T]) {
  for (auto& row : sum)
    for (vec& value : row) value = vec{};
  for (int i = 0; i < kh; i++)
    for (int j = 0; j < kw; j++)
      for (int c = 0; c < in; c++) {
        const float* k = w + (((kh == 2 ? 2 * i : i) * 3 + (kw == 2 ? 2 * j : j)) * in + c) * out;
        vec pixel[rows * columns];
        for (int p = 0; p < rows * columns; p++)
          pixel[p] = x[(p / columns * step + i) * stride + (p % columns * step + j) * in + c];
#pragma GCC unroll 16
        for (int t = 0; t < T; t++)
          for (int p = 0; p < rows * columns; p++) sum[p][t] += pixel[p] * k[t];
      }
}

// A row of `n` output pixels; store(pixel, feature, value) takes the results.
template <int kh, int kw, int step, int in, int out, int n, class Store>
INLINE void convolve_row(const vec* x, int stride, const float* w, Store store) {
  constexpr int T = divisor(out, kSums / 3), P = std::min(n, kSums / T), rest = n % P;
  for (int t0 = 0; t0 < out; t0 += T) {
    auto block = [&]<int columns>(int q) ALWAYS_INLINE {
      vec sum[columns][T];
      convolve<kh, kw, step, in, out, 1, columns, T>(x + q * step * in, stride, w + t0, sum);
      for (int p = 0; p < columns; p++)
        for (int t = 0; t < T; t++) store(q + p, t0 + t, sum[p][t]);
    };
    for (int q = 0; q + P <= n; q += P) block.template operator()<P>(q);
    if constexpr (rest > 0) block.template operator()<rest>(n - rest);
  }
}

// sum[i][j][a][b] += window[step * row + i][step * column + j][a] * pixel[row][column][b], added
// over all pixels: what a gradient by a kernel is.
template <int step, int A, int B, int rows, int columns>
void correlate(const vec* window, int window_stride, const vec* pixel, int pixel_stride, vec* sum) {
  constexpr int T = divisor(B, kSums / 3);
  for (int i = 0; i < 3; i++)
    for (int a = 0; a < A; a++)
      for (int b = 0; b < B; b += T) {
        vec s[3][T];
        for (int j = 0; j < 3; j++)
          for (int t = 0; t < T; t++) s[j][t] = sum[((i * 3 + j) * A + a) * B + b + t];
        for (int row = 0; row < rows; row++)
          for (int q = 0; q < columns; q++) {
            const vec* x = window + (step * row + i) * window_stride + step * q * A + a;
            const vec* d = pixel + row * pixel_stride + q * B + b;
            const vec x0 = x[0], x1 = x[A], x2 = x[2 * A];
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) {
              const vec dt = d[t];
              s[0][t] += x0 * dt, s[1][t] += x1 * dt, s[2][t] += x2 * dt;
            }
          }
        for (int j = 0; j < 3; j++)
          for (int t = 0; t < T; t++) sum[((i * 3 + j) * A + a) * B + b + t] = s[j][t];
      }
}

// --- Winograd's convolution ---------------------------------------------------------------------
// F(2x2, 3x3) of Lavin and Gray (2016, arXiv:1509.09308). A tile of 2x2 output pixels reads a
// window of 4x4. Both, and the kernel, become 4x4 places, by sums and differences along the rows
// and the columns; there the convolution is one product at each place. A row of tiles at a time.

// Calls f with four values of each row of m, then of each column: m = F m F'.
template <class F>
INLINE void rows_then_columns(vec (&m)[16], F f) {
  for (int i = 0; i < 4; i++) f(m[4 * i], m[4 * i + 1], m[4 * i + 2], m[4 * i + 3]);
  for (int j = 0; j < 4; j++) f(m[j], m[4 + j], m[8 + j], m[12 + j]);
}

// Windows to places [16, tiles, C]; x: upper left pixel of the first window.
template <int C, int tiles>
void transform_windows(const vec* x, int stride, vec* places) {
  for (int q = 0; q < tiles; q++)
    for (int c = 0; c < C; c++) {
      vec m[16];
      for (int p = 0; p < 16; p++) m[p] = x[p / 4 * stride + (2 * q + p % 4) * C + c];
      rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
        const vec b0 = b;
        a -= c, b += c, c -= b0, d = b0 - d;
      });
      for (int p = 0; p < 16; p++) places[(p * tiles + q) * C + c] = m[p];
    }
}

// Derivatives by 2x2 output pixels to places [16, tiles, C].
template <int C, int tiles>
void transform_derivatives(const vec* dy, int stride, vec* places) {
  for (int q = 0; q < tiles; q++)
    for (int c = 0; c < C; c++) {
      const vec* d = dy + 2 * q * C + c;
      vec m[16] = {d[0], d[C], {}, {}, d[stride], d[stride + C]};
      rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
        c = a - b, d = -b, b += a;
      });
      for (int p = 0; p < 16; p++) places[(p * tiles + q) * C + c] = m[p];
    }
}

// Kernels [3, 3, pairs of channels] to places [16, pairs].
void transform_kernels(const float* w, int pairs, float* places) {
  auto transform = [&](const float* w, int step, float* out, int out_step) {
    const float *w1 = w + step, *w2 = w1 + step;
    float *out1 = out + out_step, *out2 = out1 + out_step, *out3 = out2 + out_step;
    for (int k = 0; k < pairs; k++) {
      const float sum = (w[k] + w2[k]) * 0.5f, middle = w1[k] * 0.5f;
      out[k] = w[k], out1[k] = sum + middle, out2[k] = sum - middle, out3[k] = w2[k];
    }
  };
  std::vector<float> rows(12 * pairs);
  for (int i = 0; i < 3; i++) transform(w + 3 * i * pairs, pairs, &rows[4 * i * pairs], pairs);
  for (int j = 0; j < 4; j++) transform(&rows[j * pairs], 4 * pairs, places + j * pairs, 4 * pairs);
}

// The adjoint of that, in place: the derivative by the kernel, in the first 3x3 of 4x4 places.
INLINE void transform_kernel_derivative(vec (&m)[16]) {
  rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
    const vec half_sum = (b + c) * 0.5f, half_difference = (b - c) * 0.5f;
    a += half_sum, b = half_difference, c = half_sum + d;
  });
}

// 'same' convolution; take(row, column, feature, y) gets the 2x2 pixels of each tile, those beyond
// an odd size too. kernel: places [16, in, out]; places, products: room for a row of tiles.
template <int size, int in, int out, class X, class Take>
INLINE void winograd(const X& x, const float* kernel, vec* places, vec* products, Take take) {
  constexpr int tiles = (size + 1) / 2;
  for (int r = 0; r < tiles; r++) {
    transform_windows<in, tiles>(x.at(2 * r - 1, -1), X::kStride, places);
    for (int p = 0; p < 16; p++)
      convolve_row<1, 1, 1, in, out, tiles>(
          places + p * tiles * in, 0, kernel + p * in * out, [&](int q, int t, vec sum)
              ALWAYS_INLINE { products[(p * tiles + q) * out + t] = sum; });
    for (int q = 0; q < tiles; q++)
      for (int t = 0; t < out; t++) {
        vec m[16];
        for (int p = 0; p < 16; p++) m[p] = products[(p * tiles + q) * out + t];
        rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
          a += b + c, b -= c + d;
        });
        const vec y[4] = {m[0], m[1], m[4], m[5]};
        take(r, q, t, y);
      }
  }
}

// sum[p][a][b] += places[p][q][a] * derivatives[p][q][b], added over a row of tiles.
template <int A, int B, int tiles>
void add_products(const vec* places, const vec* derivatives, vec* sum) {
  constexpr int S = divisor(A, 3), T = divisor(B, kSums / 3);
  for (int p = 0; p < 16; p++)
    for (int a = 0; a < A; a += S)
      for (int b = 0; b < B; b += T) {
        vec s[S][T];
        vec* const sums = sum + (p * A + a) * B + b;
        for (int i = 0; i < S; i++)
          for (int t = 0; t < T; t++) s[i][t] = sums[i * B + t];
        for (int q = 0; q < tiles; q++) {
          const vec* x = places + (p * tiles + q) * A + a;
          const vec* d = derivatives + (p * tiles + q) * B + b;
#pragma GCC unroll 16
          for (int t = 0; t < T; t++)
            for (int i = 0; i < S; i++) s[i][t] += x[i] * d[t];
        }
        for (int i = 0; i < S; i++)
          for (int t = 0; t < T; t++) sums[i * B + t] = s[i][t];
      }
}

// sum[i][j][t] += pixel that won window q [i][j] * d[q][t], added over a row of `n` pooling windows
// of images of a single channel; x: upper left pixel of the first window's first 3x3.
template <int out, int n>
void correlate_winners(const vec* x, int stride, const vec* d, const bytes* winner, vec* sum) {
  for (int t = 0; t < out; t++) {
    vec s[9];
    for (int i = 0; i < 9; i++) s[i] = sum[i * out + t];
    for (int q = 0; q < n; q++) {
      const ivec which = __builtin_convertvector(winner[q * out + t], ivec);
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
        const vec won = which == p ? d[q * out + t] : vec{};
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++)
          s[i] += x[(p / 2 + i / 3) * stride + 2 * q + p % 2 + i % 3] * won;
      }
    }
    for (int i = 0; i < 9; i++) sum[i * out + t] = s[i];
  }
}

// --- The layers, forward ------------------------------------------------------------------------

// Comparisons are written so that NaN passes: it must reach the loss.
INLINE vec relu(vec x) { return x < 0.f ? vec{} : x; }
INLINE vec relu_gradient(vec activation, vec d) { return activation <= 0.f ? vec{} : d; }

constexpr int kOff = 4;  // a winner for where the ReLU is off

// Whether pixel p of the 2x2 pixels at (2 r, 2 q) lies in a `size` x `size` image.
template <int size>
INLINE bool inside(int r, int q, int p) {
  return size % 2 == 0 || (2 * r + p / 2 < size && 2 * q + p % 2 < size);
}

// Of the convolution's outputs y under a 2x2 window, those inside a `size` x `size` image, the
// maximum, with bias and ReLU; winner: 0..3 or kOff.
template <int size>
INLINE vec pool(const vec* y, int r, int q, float bias, bytes& winner) {
  vec best = y[0];
  ivec which{};
  for (int p = 1; p < 4; p++)
    if (inside<size>(r, q, p)) {
      const ivec take = ~(y[p] <= best) & (best == best);
      best = take ? y[p] : best;
      which = take ? ivec{} + p : which;
    }
  best += bias;
  winner = __builtin_convertvector(best <= 0.f ? ivec{} + kOff : which, bytes);
  return relu(best);
}

// Convolution and pooling of the images themselves, whose single channel Winograd does not help.
template <int size, int out, class X, class Y>
void conv_pool(const X& x, const float* b, const float* w, const Y& y, bytes* winner) {
  constexpr int half = size / 2, T = divisor(out, kSums / 4);
  for (int r = 0; r < half; r++)
    for (int q = 0; q < half; q++)
      for (int t0 = 0; t0 < out; t0 += T) {
        vec sum[4][T];
        convolve<3, 3, 1, 1, out, 2, 2, T>(x.at(2 * r - 1, 2 * q - 1), X::kStride, w + t0, sum);
        for (int t = 0; t < T; t++) {
          const vec window[4] = {sum[0][t], sum[1][t], sum[2][t], sum[3][t]};
          y.at(r, q)[t0 + t] =
              pool<size>(window, r, q, b[t0 + t], winner[(r * half + q) * out + t0 + t]);
        }
      }
}

// Upsampling, convolution, bias, and a ReLU unless `last`. z is the convolution of the
// zero-inserted image, whose even rows and columns are those of x and whose odd ones are 0. It is
// one row and column larger than the result and begins at -1 ('same') or 0 ('valid'); two of its
// rows are kept.
template <int size, int in, int out, bool same, bool last, class X, class Y>
void upsample_conv(const X& x, const float* b, const float* w, const Y& y, vec* rows) {
  constexpr int n = same ? 2 * size : 2 * size - 2, odd_columns = same ? size + 1 : size - 1;
  for (int m = 0; m <= n; m++) {
    vec *z = rows + m % 2 * (n + 1) * out, *above = rows + (1 - m % 2) * (n + 1) * out;
    const int r = same ? (m + 1) / 2 - 1 : m / 2;
    auto even = [&](int q, int t, vec sum) ALWAYS_INLINE { z[(2 * q + same) * out + t] = sum; };
    auto odd = [&](int q, int t, vec sum) ALWAYS_INLINE { z[(2 * q + !same) * out + t] = sum; };
    const float* middle = w + in * out;  // of a row of taps
    if (m % 2 == same) {
      convolve_row<1, 1, 1, in, out, size>(x.at(r, 0), X::kStride, middle + 3 * in * out, even);
      convolve_row<1, 2, 1, in, out, odd_columns>(x.at(r, -same), X::kStride, w + 3 * in * out,
                                                  odd);
    } else {
      convolve_row<2, 1, 1, in, out, size>(x.at(r, 0), X::kStride, middle, even);
      convolve_row<2, 2, 1, in, out, odd_columns>(x.at(r, -same), X::kStride, w, odd);
    }
    if (m > 0)
      for (int q = 0; q < n; q++)
        for (int t = 0; t < out; t++) {
          const int k = q * out + t;
          const vec sum = above[k] + above[k + out] + (z[k] + z[k + out]) + b[t];
          y.at(m - 1, q)[t] = last ? sum : relu(sum);
        }
  }
}

// --- The layers, backward -----------------------------------------------------------------------

// The adjoint of the box sum: dz has one row and column more than dy.
template <int n, int channels, class D, class Z>
void box_sum(const D& dy, const Z& dz) {
  for (int r = 0; r <= n; r++)
    for (int q = 0; q <= n; q++)
      for (int t = 0; t < channels; t++)
        dz.at(r, q)[t] =
            dy.at(r - 1, q - 1)[t] + dy.at(r - 1, q)[t] + (dy.at(r, q - 1)[t] + dy.at(r, q)[t]);
}

// Sends the gradient of a pooled value to the pixel that won.
template <int size, class D>
INLINE vec unpool(const D& dy, int r, int q, int t, bytes winner, vec d) {
  const ivec which = __builtin_convertvector(winner, ivec);
  for (int p = 0; p < 4; p++)
    if (inside<size>(r, q, p))
      dy.at(2 * r + p / 2, 2 * q + p % 2)[t] = which == p ? d : vec{};
  return which == kOff ? vec{} : d;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, ivec{__VA_ARGS__})
#endif

// The sums of the lanes of LANES vectors, in the lanes of one: each step adds neighbours and halves
// the number of vectors.
template <int... l>
INLINE vec lane_sums(vec (&x)[LANES], std::integer_sequence<int, l...>) {
  for (int n = LANES / 2; n > 0; n /= 2)
    for (int i = 0; i < n; i++)
      x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 2 * l...) +
             SHUFFLE(x[2 * i], x[2 * i + 1], 2 * l + 1 ...);
  return x[0];
}

// The same of x[0..n).
INLINE void write_lane_sums(const vec* x, int n, float* sums) {
  for (int k = 0; k < n; k += LANES) {
    vec block[LANES] = {};
    const int count = std::min(LANES, n - k);
    for (int i = 0; i < count; i++) block[i] = x[k + i];
    const vec sum = lane_sums(block, std::make_integer_sequence<int, LANES>());
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

// --- A group of images through the network ------------------------------------------------------

// What one thread needs for a group; the borders stay zero from its construction on.
struct Workspace {
  Plane<28, 1, 1> x;
  Plane<28, 1> target, logits;
  Plane<14, F1, 1> pool1;
  Plane<7, F2, 1, 2> pool2;  // one more, for the window over the end of an odd size
  Plane<4, F3, 1> pool3, conv4;
  Plane<8, F2> conv5;
  Plane<14, F1, 1> conv6;
  std::vector<bytes> winner1{196 * F1}, winner2{49 * F2}, winner3{16 * F3};  // of the poolings
  // d: gradient by what a layer gives before its ReLU; z: its box sum; d1 holds two rows, before
  // the pooling.
  Plane<28, 1, 1> d7;
  Plane<29, 1> z7;
  Plane<14, F1, 1> d6;
  Plane<15, F1, 1> z6;
  Plane<8, F2, 1> d5;
  Plane<9, F2> z5;
  Plane<4, F3, 1> d4;
  Plane<7, F3, 1, 2> d3;
  Plane<14, F2, 1> d2;
  Plane<14, F1, 0, 0, 2> d1;
  std::vector<vec> rows{2 * std::max({9 * F2, 15 * F1, 29})};  // of upsample_conv
  // For a row of Winograd's tiles: 7 in layer 2, 4 in layer 3, 2 in layer 4.
  std::vector<vec> places{16 * std::max({7 * F1, 7 * F2, 4 * F3})}, products{places};
  std::vector<vec> kernel_sums{16 * std::max({F1, F1 * F2, F2 * F3, F3 * F3})};
};

// The parameters, and each kernel once more for the way back: turned by 180 degrees and with its
// channels exchanged, [3, 3, out, in]. Of layers 2 to 4 both also at Winograd's places.
struct Weights {
  const float* parameters;
  std::vector<float> turned{std::vector<float>(kParameters)}, places[2][7];
  explicit Weights(const float* parameters) : parameters(parameters) {
    for (int l = 1; l < 7; l++)
      for (int k = 0; k < 9; k++)
        for (int c = 0; c < kIn[l]; c++)
          for (int f = 0; f < kOut[l]; f++)
            turned[offset(l) + (k * kOut[l] + f) * kIn[l] + c] =
                kernel(l + 1)[((8 - k) * kIn[l] + c) * kOut[l] + f];
    for (int layer = 2; layer <= 4; layer++) {
      const int pairs = kIn[layer - 1] * kOut[layer - 1];
      for (auto& side : places) side[layer].resize(16 * pairs);
      transform_kernels(kernel(layer), pairs, places[0][layer].data());
      transform_kernels(back(layer), pairs, places[1][layer].data());
    }
  }
  const float* bias(int layer) const { return parameters + offset(layer - 1); }
  const float* kernel(int layer) const { return bias(layer) + kOut[layer - 1]; }
  const float* back(int layer) const { return turned.data() + offset(layer - 1); }
  const float* kernel_places(int layer) const { return places[0][layer].data(); }
  const float* back_places(int layer) const { return places[1][layer].data(); }
};

template <int layer, int size, class X, class Y>
void winograd_pool(Workspace& s, const Weights& w, const X& x, const Y& y, bytes* winner) {
  constexpr int in = kIn[layer - 1], out = kOut[layer - 1], half = (size + 1) / 2;
  const float* bias = w.bias(layer);
  winograd<size, in, out>(x, w.kernel_places(layer), s.places.data(), s.products.data(),
                          [&](int r, int q, int t, const vec* window) ALWAYS_INLINE {
                            y.at(r, q)[t] = pool<size>(window, r, q, bias[t],
                                                       winner[(r * half + q) * out + t]);
                          });
}

void encode(Workspace& s, const Weights& w) {
  conv_pool<28, F1>(s.x, w.bias(1), w.kernel(1), s.pool1, s.winner1.data());
  winograd_pool<2, 14>(s, w, s.pool1, s.pool2, s.winner2.data());
  winograd_pool<3, 7>(s, w, s.pool2, s.pool3, s.winner3.data());
}

void decode(Workspace& s, const Weights& w) {
  winograd<4, F3, F3>(s.pool3, w.kernel_places(4), s.places.data(), s.products.data(),
                      [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
                        for (int p = 0; p < 4; p++)
                          s.conv4.at(2 * r + p / 2, 2 * q + p % 2)[t] = relu(y[p] + w.bias(4)[t]);
                      });
  upsample_conv<4, F3, F2, true, false>(s.conv4, w.bias(5), w.kernel(5), s.conv5, s.rows.data());
  upsample_conv<8, F2, F1, false, false>(s.conv5, w.bias(6), w.kernel(6), s.conv6, s.rows.data());
  upsample_conv<14, F1, 1, true, true>(s.conv6, w.bias(7), w.kernel(7), s.logits, s.rows.data());
}

// The binary cross-entropy of each lane, mean over the pixels. `pixel` gets the number of each pixel
// and by how much its sigmoid is above the target.
template <class Pixel>
vec loss(const Workspace& s, Pixel pixel) {
  vec total{};
  for (int k = 0; k < kPixels; k++) {
    const vec z = s.logits.data[k], t = s.target.data[k], e = exp_negative(z > 0.f ? -z : z);
    total += (z > 0.f ? z : vec{}) - z * t + log1p_unit(e);
    pixel(k, (z > 0.f ? vec{} + 1.f : e) / (e + 1.f) - t);
  }
  return total / float(kPixels);
}

// The same with its gradient, times a weight a lane: by the logits in s.d7, and by the last bias.
vec loss_and_gradient(Workspace& s, vec weight, float* bias_gradient) {
  vec d_total{};
  const vec losses = loss(s, [&](int k, vec error) ALWAYS_INLINE {
    d_total += *s.d7.at(k / kSize, k % kSize) = error * weight;
  });
  write_lane_sums(&d_total, 1, bias_gradient);
  return losses;
}

// The derivative by the kernel of layer 5, 6 or 7. Its windows are taken from the box sum z, which
// gives the kernel turned and its channels exchanged.
template <int out, int in, int size, class Z, class X>
void decoder_kernel_gradient(Workspace& s, const Z& z, int begin, const X& x, float* gradient) {
  std::fill_n(s.kernel_sums.begin(), 9 * out * in, vec{});
  correlate<2, out, in, size, size>(z.at(begin, begin), Z::kStride, x.at(0, 0), X::kStride,
                                    s.kernel_sums.data());
  std::vector<float> turned(9 * out * in);
  write_lane_sums(s.kernel_sums.data(), 9 * out * in, turned.data());
  for (int k = 0; k < 9; k++)
    for (int f = 0; f < out; f++)
      for (int c = 0; c < in; c++)
        gradient[((8 - k) * in + c) * out + f] = turned[(k * out + f) * in + c];
}

// The derivative by the input of layer 5, 6 or 7, as far as it passes the ReLU below: into d, and
// by the bias of the layer below.
template <int out, int in, int size, class Z, class X, class D>
void decoder_input_gradient(const Z& z, int begin, const float* back, const X& x, const D& d,
                            float* bias_gradient) {
  vec bias[in] = {};
  for (int r = 0; r < size; r++)
    convolve_row<3, 3, 2, out, in, size>(
        z.at(2 * r + begin, begin), Z::kStride, back, [&](int q, int t, vec sum) ALWAYS_INLINE {
          bias[t] += d.at(r, q)[t] = relu_gradient(x.at(r, q)[t], sum);
        });
  write_lane_sums(bias, in, bias_gradient);
}

// The derivative by the kernel of layer 2, 3 or 4.
template <int in, int out, int size, class X, class D>
void winograd_kernel_gradient(Workspace& s, const X& x, const D& d, float* gradient) {
  constexpr int tiles = (size + 1) / 2;
  std::fill_n(s.kernel_sums.begin(), 16 * in * out, vec{});
  for (int r = 0; r < tiles; r++) {
    transform_windows<in, tiles>(x.at(2 * r - 1, -1), X::kStride, s.places.data());
    transform_derivatives<out, tiles>(d.at(2 * r, 0), D::kStride, s.products.data());
    add_products<in, out, tiles>(s.places.data(), s.products.data(), s.kernel_sums.data());
  }
  for (int k = 0; k < in * out; k++) {
    vec m[16];
    for (int p = 0; p < 16; p++) m[p] = s.kernel_sums[p * in * out + k];
    transform_kernel_derivative(m);
    for (int i = 0; i < 9; i++) s.kernel_sums[i * in * out + k] = m[i / 3 * 4 + i % 3];
  }
  write_lane_sums(s.kernel_sums.data(), 9 * in * out, gradient);
}

// The derivative by the input of layer 2, 3 or 4, handed to the pooling below, and by the bias
// there. unpool(row, column, feature, d) gives what passes; row_done(r) is called after rows 2 r
// and 2 r + 1.
template <int layer, int size, class D, class Unpool, class RowDone>
void winograd_input_gradient(Workspace& s, const Weights& w, const D& d, float* bias_gradient,
                             Unpool unpool, RowDone row_done) {
  constexpr int in = kIn[layer - 1], out = kOut[layer - 1], tiles = (size + 1) / 2;
  vec bias[in] = {};
  winograd<size, out, in>(d, w.back_places(layer), s.places.data(), s.products.data(),
                          [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
                            for (int p = 0; p < 4; p++)
                              if (inside<size>(r, q, p))
                                bias[t] += unpool(2 * r + p / 2, 2 * q + p % 2, t, y[p]);
                            if (q == tiles - 1 && t == in - 1) row_done(r);
                          });
  write_lane_sums(bias, in, bias_gradient);
}

void backward(Workspace& s, const Weights& w, float* gradient) {
  float *b[8], *k[8];
  for (int l = 1; l <= 7; l++) b[l] = gradient + offset(l - 1), k[l] = b[l] + kOut[l - 1];
  box_sum<28, 1>(s.d7, s.z7);
  decoder_kernel_gradient<1, F1, 14>(s, s.z7, 0, s.conv6, k[7]);
  decoder_input_gradient<1, F1, 14>(s.z7, 0, w.back(7), s.conv6, s.d6, b[6]);
  box_sum<14, F1>(s.d6, s.z6);
  decoder_kernel_gradient<F1, F2, 8>(s, s.z6, -1, s.conv5, k[6]);
  decoder_input_gradient<F1, F2, 8>(s.z6, -1, w.back(6), s.conv5, s.d5, b[5]);
  box_sum<8, F2>(s.d5, s.z5);
  decoder_kernel_gradient<F2, F3, 4>(s, s.z5, 0, s.conv4, k[5]);
  decoder_input_gradient<F2, F3, 4>(s.z5, 0, w.back(5), s.conv4, s.d4, b[4]);
  auto nothing = [](int) {};
  winograd_kernel_gradient<F3, F3, 4>(s, s.pool3, s.d4, k[4]);
  winograd_input_gradient<4, 4>(
      s, w, s.d4, b[3],
      [&](int r, int q, int t, vec g)
          ALWAYS_INLINE { return unpool<7>(s.d3, r, q, t, s.winner3[(r * 4 + q) * F3 + t], g); },
      nothing);
  winograd_kernel_gradient<F2, F3, 7>(s, s.pool2, s.d3, k[3]);
  winograd_input_gradient<3, 7>(
      s, w, s.d3, b[2],
      [&](int r, int q, int t, vec g)
          ALWAYS_INLINE { return unpool<14>(s.d2, r, q, t, s.winner2[(r * 7 + q) * F2 + t], g); },
      nothing);
  winograd_kernel_gradient<F1, F2, 14>(s, s.pool1, s.d2, k[2]);
  std::fill_n(s.kernel_sums.begin(), 9 * F1, vec{});
  winograd_input_gradient<2, 14>(
      s, w, s.d2, b[1],
      [&](int r, int q, int t, vec g)
          ALWAYS_INLINE { return s.d1.at(r % 2, q)[t] = relu_gradient(s.pool1.at(r, q)[t], g); },
      [&](int r) {
        for (int i = 0; i < 2; i++)
          correlate_winners<F1, 14>(s.x.at(4 * r + 2 * i - 1, -1), s.x.kStride, s.d1.at(i, 0),
                                    &s.winner1[(2 * r + i) * 14 * F1], s.kernel_sums.data());
      });
  write_lane_sums(s.kernel_sums.data(), 9 * F1, k[1]);
}

// --- Batches and threads ------------------------------------------------------------------------

// Images [N, n] of float32 or uint8 (0..255 for 0..1), by groups.
struct Images {
  const void* data;
  bool bytes;
  int64_t count;
  // Past the last image a group repeats it, with weight 0.
  int64_t image(int64_t group, int lane) const { return std::min(group * LANES + lane, count - 1); }
  template <int size, int channels, class P>
  void load(int64_t group, const P& plane) const {
    constexpr int row = size * channels;
    const float* floats[LANES];
    const uint8_t* ints[LANES];
    for (int l = 0; l < LANES; l++) {
      floats[l] = static_cast<const float*>(data) + image(group, l) * size * row;
      ints[l] = static_cast<const uint8_t*>(data) + image(group, l) * size * row;
    }
    for (int r = 0; r < size; r++)
      for (int k = 0; k < row; k++) {
        vec v;
        if (bytes)
          for (int l = 0; l < LANES; l++) v[l] = ints[l][r * row + k] / 255.f;
        else
          for (int l = 0; l < LANES; l++) v[l] = floats[l][r * row + k];
        plane.at(r, 0)[k] = v;
      }
  }
};

template <int size, int channels, class P>
void store(const P& plane, int64_t group, int64_t count, float* images) {
  constexpr int row = size * channels;
  for (int l = 0; l < LANES && group * LANES + l < count; l++)
    for (int r = 0; r < size; r++)
      for (int k = 0; k < row; k++)
        images[((group * LANES + l) * size + r) * row + k] = plane.at(r, 0)[k][l];
}

namespace ffi = xla::ffi;

// Calls work(group, workspace) for all groups, in XLA's threads and this one. Only the groups are
// waited for, not the threads: where all of them are busy, this one does everything.
void for_groups(ffi::ThreadPool& pool, int64_t images,
                const std::function<void(int64_t, Workspace&)>& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  const int64_t groups = (images + LANES - 1) / LANES;
  auto shared = std::make_shared<Shared>();
  auto take_groups = [shared, groups, &work] {
    thread_local Workspace workspace;
    for (int64_t group; (group = shared->next++) < groups;) {
      work(group, workspace);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == groups) shared->all_done.notify_one();
    }
  };
  for (int64_t t = 1; t < std::min<int64_t>(pool.num_threads(), groups); t++)
    pool.Schedule([take_groups] { take_groups(); });
  take_groups();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == groups; });
}

Images images_of(ffi::AnyBuffer buffer) {
  return {buffer.untyped_data(), buffer.element_type() == ffi::DataType::U8,
          buffer.dimensions()[0]};
}

using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

// Loss: mean over the images, weighted by weights [N]. Each group has its own partial sums, which
// are added in the order of the groups: the result does not depend on the number of threads.
ffi::Error ValueAndGrad(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs,
                        ffi::AnyBuffer targets, Floats weights, FloatsOut value,
                        FloatsOut gradient) {
  const Images x = images_of(inputs), y = images_of(targets);
  const Weights w(parameters.typed_data());
  const float* image_weights = weights.typed_data();
  double total_weight = 0;
  for (int64_t i = 0; i < x.count; i++) total_weight += image_weights[i];
  const int64_t groups = (x.count + LANES - 1) / LANES;
  std::vector<float> gradients(groups * kParameters);
  std::vector<double> values(groups);
  for_groups(pool, x.count, [&](int64_t group, Workspace& s) {
    vec weight{};
    for (int l = 0; l < LANES && group * LANES + l < x.count; l++)
      weight[l] = image_weights[group * LANES + l] / total_weight;
    x.load<28, 1>(group, s.x);
    y.load<28, 1>(group, s.target);
    encode(s, w);
    decode(s, w);
    float* partial = gradients.data() + group * kParameters;
    const vec losses =
        loss_and_gradient(s, weight / float(kPixels), partial + offset(6)) * weight;
    for (int l = 0; l < LANES; l++) values[group] += losses[l];
    backward(s, w, partial);
  });
  float* sums = gradient->typed_data();
  std::fill_n(sums, kParameters, 0.f);
  double sum = 0;
  for (int64_t group = 0; group < groups; group++) {
    for (int i = 0; i < kParameters; i++) sums[i] += gradients[group * kParameters + i];
    sum += values[group];
  }
  *value->typed_data() = sum;
  return ffi::Error::Success();
}

// The binary cross-entropy and the mean squared error of each image.
ffi::Error Losses(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs,
                  ffi::AnyBuffer targets, FloatsOut bce, FloatsOut mse) {
  const Images x = images_of(inputs), y = images_of(targets);
  const Weights w(parameters.typed_data());
  for_groups(pool, x.count, [&](int64_t group, Workspace& s) {
    x.load<28, 1>(group, s.x);
    y.load<28, 1>(group, s.target);
    encode(s, w);
    decode(s, w);
    vec squares{};
    const vec losses = loss(s, [&](int, vec error) ALWAYS_INLINE { squares += error * error; });
    for (int64_t l = 0, i = group * LANES; l < LANES && i < x.count; l++, i++) {
      bce->typed_data()[i] = losses[l];
      mse->typed_data()[i] = squares[l] / float(kPixels);
    }
  });
  return ffi::Error::Success();
}

ffi::Error Encode(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs, FloatsOut codes) {
  const Images x = images_of(inputs);
  const Weights w(parameters.typed_data());
  for_groups(pool, x.count, [&](int64_t group, Workspace& s) {
    x.load<28, 1>(group, s.x);
    encode(s, w);
    store<4, F3>(s.pool3, group, x.count, codes->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer codes, FloatsOut logits) {
  const Images code = images_of(codes);
  const Weights w(parameters.typed_data());
  for_groups(pool, code.count, [&](int64_t group, Workspace& s) {
    code.load<4, F3>(group, s.pool3);
    decode(s, w);
    store<28, 1>(s.logits, group, code.count, logits->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_value_and_grad, ValueAndGrad,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_losses, Losses,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cae_encode, Encode,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<ffi::AnyBuffer>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cae_decode, Decode,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<ffi::AnyBuffer>().Ret<Floats>());
