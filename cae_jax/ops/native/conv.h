// Convolutions, pooling and upsampling of LANES images at a time, and their derivatives.
//
// Template parameters that are types of planes (X, Y, D) bring sizes and channels with them.

#pragma once

#include <algorithm>
#include <memory>

#include "simd.h"

namespace {

struct Size {
  int rows, columns;
};
constexpr Size tiles_of(Size size) { return {(size.rows + 1) / 2, (size.columns + 1) / 2}; }

// An image [rows, columns, channels] inside a border of zeros. Its memory lies outside of any
// struct so that the address sanitizer sees its ends.
template <int rows, int columns, int channels, int above = 0, int left = above, int below = above,
          int right = left, class T = vec>
struct Plane {
  static constexpr Size kSize = {rows, columns}, kTiles = tiles_of(kSize);  // of 2x2 pixels
  static constexpr int kChannels = channels;
  static constexpr int kStride = (columns + left + right) * channels;  // from row to row
  std::unique_ptr<T[]> data{new T[(rows + above + below) * kStride]()};
  INLINE T* at(int row, int column) const {
    return data.get() + (row + above) * kStride + (column + left) * channels;
  }
};

// The input of a 3x3 convolution with 'same' padding. Odd sizes have one more row or column, for
// the pooling window and the Winograd tile that reach over the end.
template <int rows, int columns, int channels>
using Padded = Plane<rows, columns, channels, 1, 1, 1 + rows % 2, 1 + columns % 2>;

// --- The loops that do the work -----------------------------------------------------------------

// sum[p][t] = output feature t of neighbouring output pixels p of a row, kept in registers. x:
// upper left pixel of the first window; w: the first tap, in a kernel [3, 3, in, out], at feature 0
// of t; of two taps in a direction the second is the next but one.
template <int kh, int kw, int step, int in, int out, int P, int T>
INLINE void convolve(const vec* x, int stride, const float* w, vec (&sum)[P][T]) {
  for (auto& row : sum)
    for (vec& value : row) value = vec{};
  for (int i = 0; i < kh; i++)
    for (int j = 0; j < kw; j++)
      for (int c = 0; c < in; c++) {
        const float* k = w + (((kh == 2 ? 2 * i : i) * 3 + (kw == 2 ? 2 * j : j)) * in + c) * out;
        vec pixel[P];
        for (int p = 0; p < P; p++) {
          pixel[p] = x[i * stride + (p * step + j) * in + c];
          if (T > 1) pixel[p] = in_register(pixel[p]);  // with one feature the weight is
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; t++)
          for (int p = 0; p < P; p++) sum[p][t] += pixel[p] * k[t];
      }
}

// A row of `n` output pixels; store(pixel, feature, value) takes the results.
template <int kh, int kw, int step, int in, int out, int n, class Store>
INLINE void convolve_row(const vec* x, int stride, const float* w, Store store) {
  constexpr int T = divisor(out, kSums / 3);
  for (int t0 = 0; t0 < out; t0 += T) {
    each_equal_block<n, kSums / T>([&]<int columns>(int q) ALWAYS_INLINE {
      vec sum[columns][T];
      convolve<kh, kw, step, in, out>(x + q * step * in, stride, w + t0, sum);
      for (int p = 0; p < columns; p++)
        for (int t = 0; t < T; t++) store(q + p, t0 + t, sum[p][t]);
    });
  }
}

// Adds to S x T sums, whose rows lie `stride` apart: add(s) gets them in registers.
template <int S, int T, class Add>
INLINE void accumulate(vec* sums, int stride, Add add) {
  vec s[S][T];
  for (int i = 0; i < S; i++)
    for (int t = 0; t < T; t++) s[i][t] = sums[i * stride + t];
  add(s);
  for (int i = 0; i < S; i++)
    for (int t = 0; t < T; t++) sums[i * stride + t] = s[i][t];
}

// --- Sums over images ---------------------------------------------------------------------------
// The derivative with respect to a kernel is summed over the images. Its sums have features in the
// lanes, not images: they are LANES times fewer, and stay in the cache.

// Vectors for the features of an image; what is left of the last one is 0.
constexpr int blocks(int features) { return (features + LANES - 1) / LANES; }

// Features of LANES images, [C] with images in the lanes, to [blocks(C), LANES], with features.
template <int C>
INLINE void features_to_lanes(const vec* x, vec* y) {
  each_block<C, LANES>([&]<int n>(int first) ALWAYS_INLINE {
    vec block[LANES] = {};
    for (int c = 0; c < n; c++) block[c] = x[first + c];
    transpose(block);
    for (int image = 0; image < LANES; image++) y[first + image] = block[image];
  });
}

// sum[i][a][b] += x[i * stride + k * step + a][image] * y[k][b][image], added over n values of k
// and all images. x: `rows` rows of A values; y: features b in the lanes, [n, blocks(B), LANES].
template <int rows, int A, int B, int n>
void add_products(const vec* x, int stride, int step, const vec* y, vec* sum) {
  constexpr int V = blocks(B), T = divisor(V, 2), most = kSums / T;
  constexpr int S = rows * A <= most ? rows * A : divisor(A, most);
  for (int a = 0; a < rows * A; a += S)
    for (int b = 0; b < V; b += T)
      accumulate<S, T>(sum + a * V + b, V, [&](vec(&s)[S][T]) ALWAYS_INLINE {
        const vec* first = x + a / A * stride + a % A;
        for (int k = 0; k < n; k++)
          for (int image = 0; image < LANES; image++) {
            const vec* features = y + (k * V + b) * LANES + image;
            vec d[T];
            for (int t = 0; t < T; t++) d[t] = features[t * LANES];
#pragma GCC unroll 24
            for (int i = 0; i < S; i++)
              for (int t = 0; t < T; t++)
                s[i][t] += first[i / A * stride + k * step + i % A][image] * d[t];
          }
      });
}

// --- Winograd's convolution ---------------------------------------------------------------------
// F(2x2, 3x3) of Lavin and Gray (2016, arXiv:1509.09308). A tile of 2x2 output pixels reads a
// window of 4x4. Sums and differences along the rows and the columns transform both, and the
// kernel, to the Winograd domain of 4x4 points, in which the convolution is a product at each
// point. Tiles are counted from 0, row after row.

// Tiles at a time: few, as many as a block of sums takes, so that what they need is still in a near
// cache.
constexpr int kTilesAtATime = 3;

// Vectors from one point to the next: odd, because at a power of two all points share few places of
// the first-level cache.
constexpr int point_stride(int tiles, int channels) { return tiles * channels | 1; }

// Calls f with four values of each row of m, then of each column: m = F m F'.
template <class F>
INLINE void rows_then_columns(vec (&m)[16], F f) {
  for (int i = 0; i < 4; i++) f(m[4 * i], m[4 * i + 1], m[4 * i + 2], m[4 * i + 3]);
  for (int j = 0; j < 4; j++) f(m[j], m[4 + j], m[8 + j], m[12 + j]);
}

// The 2x2 or 4x4 pixels of a tile, of which at(p) gives the C channels, for a transform: as they
// are, or copied with their features in the lanes.
template <int C, bool by_features, int pixels>
struct Tile {
  static constexpr int kValues = by_features ? blocks(C) * LANES : C;
  const vec* pixel[pixels];
  vec room[by_features ? pixels * kValues : 1];

  template <class At>
  INLINE explicit Tile(At at) {
    for (int p = 0; p < pixels; p++) {
      pixel[p] = at(p);
      if constexpr (by_features) {
        features_to_lanes<C>(pixel[p], room + p * kValues);
        pixel[p] = room + p * kValues;
      }
    }
  }
};

// The windows of n tiles, from `first` on, to the Winograd domain [16, n, C].
template <int n, bool by_features = false, class X>
void transform_windows(const X& x, int first, vec* domain) {
  using Pixels = Tile<X::kChannels, by_features, 16>;
  constexpr int C = Pixels::kValues, stride = point_stride(n, C), columns = X::kTiles.columns;
  for (int k = 0; k < n; k++) {
    const vec* window = x.at((first + k) / columns * 2 - 1, (first + k) % columns * 2 - 1);
    const Pixels tile([&](int p) { return window + p / 4 * X::kStride + p % 4 * X::kChannels; });
    for (int c = 0; c < C; c++) {
      vec m[16];
      for (int p = 0; p < 16; p++) m[p] = tile.pixel[p][c];
      rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
        const vec b0 = b;
        a -= c, b += c, c -= b0, d = b0 - d;
      });
      for (int p = 0; p < 16; p++) domain[p * stride + k * C + c] = m[p];
    }
  }
}

// The derivatives with respect to n tiles of 2x2 pixels, from `first` on, to the Winograd domain
// [16, n, C].
template <int n, bool by_features, class D>
void transform_derivatives(const D& dy, int first, vec* domain) {
  using Pixels = Tile<D::kChannels, by_features, 4>;
  constexpr int C = Pixels::kValues, stride = point_stride(n, C), columns = D::kTiles.columns;
  for (int k = 0; k < n; k++) {
    const vec* corner = dy.at((first + k) / columns * 2, (first + k) % columns * 2);
    const Pixels tile([&](int p) { return corner + p / 2 * D::kStride + p % 2 * D::kChannels; });
    for (int c = 0; c < C; c++) {
      vec m[16] = {tile.pixel[0][c], tile.pixel[1][c], {}, {}, tile.pixel[2][c], tile.pixel[3][c]};
      rows_then_columns(
          m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE { c = a - b, d = -b, b += a; });
      for (int p = 0; p < 16; p++) domain[p * stride + k * C + c] = m[p];
    }
  }
}

// Three taps to the four points of F(2, 3).
INLINE void transform_taps(vec& a, vec& b, vec& c, vec& d) {
  const vec half_sum = (a + c) * 0.5f, half_b = b * 0.5f;
  d = c, b = half_sum + half_b, c = half_sum - half_b;
}

// Kernels [3, 3, pairs of channels] to the Winograd domain [16, pairs], or the rows of their taps
// alone to [3, 4, pairs].
template <int pairs, bool rows_alone = false>
void transform_kernels(const float* w, float* domain) {
  each_block<pairs, LANES>([&]<int n>(int k) ALWAYS_INLINE {
    vec m[16] = {};
    for (int i = 0; i < 9; i++) std::memcpy(&m[i / 3 * 4 + i % 3], w + i * pairs + k, 4 * n);
    if constexpr (rows_alone)
      for (int i = 0; i < 12; i += 4) transform_taps(m[i], m[i + 1], m[i + 2], m[i + 3]);
    else
      rows_then_columns(m, transform_taps);
    for (int p = 0; p < (rows_alone ? 12 : 16); p++)
      std::memcpy(domain + p * pairs + k, &m[p], 4 * n);
  });
}

// The adjoint of transform_kernels, in place: the derivative with respect to the kernel, in the
// first 3x3 of the 4x4 points.
INLINE void transform_kernel_derivative(vec (&m)[16]) {
  rows_then_columns(m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE {
    const vec half_sum = (b + c) * 0.5f, half_difference = (b - c) * 0.5f;
    a += half_sum, b = half_difference, c = half_sum + d;
  });
}

// 'same' convolution; take(row, column, feature, y) gets the 2x2 pixels of each tile, those beyond
// an odd size too. kernel: in the Winograd domain, [16, in, out]; domain, products: room for
// kTilesAtATime.
template <int out, class X, class Take>
INLINE void winograd(const X& x, const float* kernel, vec* domain, vec* products, Take take) {
  constexpr int in = X::kChannels, columns = X::kTiles.columns;
  each_equal_block<X::kTiles.rows * columns, kTilesAtATime>(
      [&]<int count>(int first) ALWAYS_INLINE {
        constexpr int stride_in = point_stride(count, in), stride_out = point_stride(count, out);
        transform_windows<count>(x, first, domain);
        for (int p = 0; p < 16; p++)
          convolve_row<1, 1, 1, in, out, count>(domain + p * stride_in, 0, kernel + p * in * out,
                                                [&](int k, int t, vec sum) ALWAYS_INLINE {
                                                  products[p * stride_out + k * out + t] = sum;
                                                });
        for (int k = 0; k < count; k++)
          for (int t = 0; t < out; t++) {
            vec m[16];
            for (int p = 0; p < 16; p++) m[p] = products[p * stride_out + k * out + t];
            rows_then_columns(
                m, [](vec& a, vec& b, vec& c, vec& d) ALWAYS_INLINE { a += b + c, b -= c + d; });
            const vec y[4] = {m[0], m[1], m[4], m[5]};
            take((first + k) / columns, (first + k) % columns, t, y);
          }
      });
}

// sum[p][a][b] += x[p][k][a][image] * y[p][k][image][b], in the Winograd domain, added over n tiles
// and all images; features b in the lanes.
template <int A, int B, int n>
void add_winograd_products(const vec* x, const vec* y, vec* sum) {
  constexpr int V = blocks(B), stride_x = point_stride(n, A), stride_y = point_stride(n, V * LANES);
  for (int p = 0; p < 16; p++)
    add_products<1, A, B, n>(x + p * stride_x, 0, A, y + p * stride_y, sum + p * A * V);
}

// --- Pooling ------------------------------------------------------------------------------------

// For each pooled value the pixel of its 2x2 window that has the maximum, 0..3, or kOff where the
// ReLU is off.
template <int rows, int columns, int channels>
using Argmax = Plane<rows, columns, channels, 0, 0, 0, 0, bytes>;
constexpr int kOff = 4;

// Whether pixel p of the 2x2 pixels at (2 r, 2 q) lies in an image.
INLINE bool inside(Size size, int r, int q, int p) {
  return (size.rows % 2 == 0 || 2 * r + p / 2 < size.rows) &&
         (size.columns % 2 == 0 || 2 * q + p % 2 < size.columns);
}

// The maximum of a convolution's outputs y in a 2x2 window, of those inside the image, with bias
// and ReLU.
INLINE vec pool(Size size, const vec* y, int r, int q, float bias, bytes& argmax) {
  // A pixel outside counts as the first one again: ties go to the first, so it is never chosen.
  auto pixel = [&](int p) ALWAYS_INLINE { return y[inside(size, r, q, p) ? p : 0]; };
  const vec y0 = y[0], y1 = pixel(1), y2 = pixel(2), y3 = pixel(3);
  const ivec right = y1 > y0, lower_right = y3 > y2;
  const vec upper = right ? y1 : y0, lower = lower_right ? y3 : y2;
  const ivec below = lower > upper, ordered = (right | (y1 <= y0)) & (lower_right | (y3 <= y2));
  const vec maximum = below ? lower : upper;
  const vec best = (vec)((ivec)maximum | ~ordered) + bias;  // NaN where one of them is
  const ivec off = best <= 0.f, which = below ? 2 - lower_right : -right;
  argmax = narrow(off ? ivec{} + kOff : which);
  return off ? vec{} : best;
}

// Sends the gradient of a pooled value to the pixel that had the maximum; returns what passes.
template <class D>
INLINE vec unpool(const D& dy, int r, int q, int t, bytes argmax, vec d) {
  const ivec which = widen(argmax);
  for (int p = 0; p < 4; p++)
    if (inside(D::kSize, r, q, p)) dy.at(2 * r + p / 2, 2 * q + p % 2)[t] = which == p ? d : vec{};
  return which == kOff ? vec{} : d;
}

// Convolution and pooling of the images themselves. Pairs of pixels of a row by Winograd's F(2, 3),
// with taps [3, 4, in, out], of which each row has been transformed.
template <class X, class Y, class A>
void conv_pool(const X& x, const float* b, const float* taps, const Y& y, const A& argmax) {
  constexpr int in = X::kChannels, out = Y::kChannels, T = divisor(out, kSums / 6);
  for (int r = 0; r < Y::kSize.rows; r++)
    for (int q = 0; q < Y::kSize.columns; q++) {
      vec points[4][4][in];  // of each row of the window
      for (int i = 0; i < 4; i++)
        for (int c = 0; c < in; c++) {
          const vec* row = x.at(2 * r - 1 + i, 2 * q - 1) + c;
          const vec x0 = row[0], x1 = row[in], x2 = row[2 * in], x3 = row[3 * in];
          points[0][i][c] = x0 - x2, points[1][i][c] = x1 + x2;
          points[2][i][c] = x2 - x1, points[3][i][c] = x3 - x1;
        }
      for (int t0 = 0; t0 < out; t0 += T) {
        // Adds the products at a point to the sums of the upper and of the lower row.
        auto add = [&](int point, vec(&sums)[2][T]) ALWAYS_INLINE {
          for (int i = 0; i < 3; i++)
            for (int c = 0; c < in; c++) {
              const float* k = taps + ((4 * i + point) * in + c) * out + t0;
              for (int t = 0; t < T; t++) {
                sums[0][t] += points[point][i][c] * k[t];
                sums[1][t] += points[point][i + 1][c] * k[t];
              }
            }
        };
        vec sum[2][T] = {}, difference[2][T] = {}, left[2][T], right[2][T];
        add(1, sum), add(2, difference);
        for (int i = 0; i < 2; i++)
          for (int t = 0; t < T; t++) {
            left[i][t] = sum[i][t] + difference[i][t];
            right[i][t] = sum[i][t] - difference[i][t];
          }
        add(0, left), add(3, right);
        for (int t = 0; t < T; t++) {
          const vec window[4] = {left[0][t], right[0][t], left[1][t], right[1][t]};
          y.at(r, q)[t0 + t] = pool(X::kSize, window, r, q, b[t0 + t], argmax.at(r, q)[t0 + t]);
        }
      }
    }
}

// The derivative with respect to the kernel of conv_pool, for row r of pooling windows with their
// gradients d and argmaxes, in the Winograd domain: sum[c][t][p], p of 16 points. A tile has one
// pixel that is not 0, so that the sums and differences of its transform are masks and signs.
template <int out, class X>
void correlate_argmax(const X& x, int r, const vec* d, const bytes* argmax, vec* domain, vec* sum) {
  constexpr int in = X::kChannels, n = X::kTiles.columns, stride = point_stride(n, in);
  constexpr int S = kSums >= 16 ? 16 : 8;  // points whose sums are in registers
  transform_windows<n>(x, r * n, domain);
  auto add = [&]<int first>(const vec* x, const vec* d, const bytes* argmax,
                            vec* sum) ALWAYS_INLINE {
    accumulate<S, 1>(sum, 1, [&](vec(&s)[S][1]) ALWAYS_INLINE {
      for (int q = 0; q < n; q++) {
        const ivec which = widen(argmax[q * out]), value = (ivec)d[q * out];
        const ivec right = which << 31, below = which << 30 & 1 << 31;  // as signs
        const ivec columns[] = {value & ~(right >> 31), value, value ^ right, value & right >> 31};
#pragma GCC unroll 16
        for (int p = first; p < first + S; p++) {
          const ivec y = columns[p % 4],
                     rows[] = {y & ~(below >> 31), y, y ^ below, y & below >> 31};
          const vec product = x[p * stride + q * in] * (vec)rows[p / 4];
          s[p - first][0] += (p / 4 == 3) == (p % 4 == 3) ? product : -product;
        }
      }
    });
  };
  for (int c = 0; c < in; c++)
    for (int t = 0; t < out; t++) {
      vec* sums = sum + 16 * (c * out + t);
      add.template operator()<0>(domain + c, d + t, argmax + t, sums);
      if constexpr (S == 8) add.template operator()<8>(domain + c, d + t, argmax + t, sums + 8);
    }
}

// --- Upsampling ---------------------------------------------------------------------------------

// Whether an upsampled size is kept, by 'same' padding; 'valid' padding takes 2 off.
constexpr bool same_rows(Size x, Size y) { return y.rows == 2 * x.rows; }
constexpr bool same_columns(Size x, Size y) { return y.columns == 2 * x.columns; }

// Upsampling, convolution, bias, and a ReLU unless `last`; 'same' or 'valid' padding of rows and of
// columns, as the sizes of x and y say. z is the convolution of the zero-inserted image, whose even
// rows and columns are those of x and whose odd ones are 0. It is one row and column larger than
// the result and begins at -1 ('same') or 0 ('valid'); `rows` holds two of its rows.
template <bool last, class X, class Y>
void upsample_conv(const X& x, const float* b, const float* w, const Y& y, vec* rows) {
  constexpr int size = X::kSize.columns, n = Y::kSize.columns;
  constexpr int in = X::kChannels, out = Y::kChannels;
  constexpr bool tall = same_rows(X::kSize, Y::kSize), same = same_columns(X::kSize, Y::kSize);
  static_assert(tall || Y::kSize.rows == 2 * X::kSize.rows - 2);
  static_assert(same || n == 2 * size - 2);
  constexpr int odd_columns = same ? size + 1 : size - 1;
  for (int m = 0; m <= Y::kSize.rows; m++) {
    vec *z = rows + m % 2 * (n + 1) * out, *above = rows + (1 - m % 2) * (n + 1) * out;
    const int r = tall ? (m + 1) / 2 - 1 : m / 2;
    auto even = [&](int q, int t, vec sum) ALWAYS_INLINE { z[(2 * q + same) * out + t] = sum; };
    auto odd = [&](int q, int t, vec sum) ALWAYS_INLINE { z[(2 * q + !same) * out + t] = sum; };
    const float* middle = w + in * out;  // of a row of taps
    if (m % 2 == tall) {
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

// The adjoint of the box sum: dz has one row and column more than dy.
template <class D, class Z>
void box_sum(const D& dy, const Z& dz) {
  for (int r = 0; r < Z::kSize.rows; r++)
    for (int q = 0; q < Z::kSize.columns; q++)
      for (int t = 0; t < Z::kChannels; t++)
        dz.at(r, q)[t] =
            dy.at(r - 1, q - 1)[t] + dy.at(r - 1, q)[t] + (dy.at(r, q - 1)[t] + dy.at(r, q)[t]);
}

// The box sum of the gradient of upsample_conv<X, Y>, with a border where that has 'valid' padding.
constexpr Size box_border(Size x, Size y) { return {!same_rows(x, y), !same_columns(x, y)}; }
template <class X, class Y>
struct BoxSum : Plane<Y::kSize.rows + 1, Y::kSize.columns + 1, Y::kChannels,
                      box_border(X::kSize, Y::kSize).rows, box_border(X::kSize, Y::kSize).columns> {
  // From the first row and column that counts.
  INLINE vec* from(int row, int column) const {
    constexpr Size border = box_border(X::kSize, Y::kSize);
    return this->at(row - border.rows, column - border.columns);
  }
};

// The derivative with respect to the kernel of upsample_conv, with its box sum z: sum[i][j][a][b]
// += z[2 * row + i][2 * column + j][a] * x[row][column][b], added over all pixels of x and all
// images; features b in the lanes. row: room for the features of a row of x.
template <class Z, class X>
void correlate_features(const Z& z, const X& x, vec* row, vec* sum) {
  constexpr int A = Z::kChannels, B = X::kChannels, columns = X::kSize.columns;
  for (int r = 0; r < X::kSize.rows; r++) {
    for (int q = 0; q < columns; q++) features_to_lanes<B>(x.at(r, q), row + q * blocks(B) * LANES);
    add_products<3, 3 * A, B, columns>(z.from(2 * r, 0), z.kStride, 2 * A, row, sum);
  }
}

// The same with images in the lanes of the sums.
template <class Z, class X>
void correlate(const Z& z, const X& x, vec* sum) {
  constexpr int A = Z::kChannels, B = X::kChannels, T = divisor(B, kSums / 3);
  for (int i = 0; i < 3; i++)
    for (int a = 0; a < A; a++)
      for (int b = 0; b < B; b += T)
        accumulate<3, T>(sum + (3 * i * A + a) * B + b, A * B, [&](vec(&s)[3][T]) ALWAYS_INLINE {
          for (int r = 0; r < X::kSize.rows; r++)
            for (int q = 0; q < X::kSize.columns; q++) {
              const vec* window = z.from(2 * r + i, 2 * q) + a;
              const vec z0 = window[0], z1 = window[A], z2 = window[2 * A];
#pragma GCC unroll 16
              for (int t = 0; t < T; t++) {
                const vec xt = in_register(x.at(r, q)[b + t]);
                s[0][t] += z0 * xt, s[1][t] += z1 * xt, s[2][t] += z2 * xt;
              }
            }
        });
}

}  // namespace
