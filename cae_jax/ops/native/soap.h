// SOAP's update of a kernel: see cae_jax/training/soap.py, which computes the same by some dozen
// small products of XLA's.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "simd.h"

namespace {

// Eight neighbours, or one value.
using eight = float __attribute__((vector_size(32)));
template <int n>
using floats = std::conditional_t<n == 8, eight, float>;

template <int n>
INLINE floats<n> load(const float* x) {
  floats<n> values;
  std::memcpy(&values, x, sizeof values);
  return values;
}

// Calls f<8>(first) for `count` values in blocks of 8, and f<1>(first) for each one that is left.
template <class F>
INLINE void each_eight(int count, F f) {
  int first = 0;
  for (; first + 8 <= count; first += 8) f.template operator()<8>(first);
  for (; first < count; first++) f.template operator()<1>(first);
}

// A matrix, by the distances of neighbours in a column and in a row.
struct Matrix {
  const float* x;
  int row, column = 1;

  Matrix transposed() const { return {x, column, row}; }
};

// Calls result(i, j, sums) for the product of [rows, inner] and [inner, columns], whose neighbours
// in a row are neighbours in memory.
template <class F>
INLINE void multiply(int rows, int columns, int inner, Matrix a, Matrix b, F result) {
  each_eight(columns, [&]<int n>(int j) ALWAYS_INLINE {
    each_eight(rows, [&]<int m>(int i) ALWAYS_INLINE {
      floats<n> sums[m] = {};
      for (int k = 0; k < inner; k++) {
        const floats<n> x = load<n>(b.x + k * b.row + j);
        for (int r = 0; r < m; r++) sums[r] += a.x[(i + r) * a.row + k * a.column] * x;
      }
      for (int r = 0; r < m; r++) result(i + r, j, sums[r]);
    });
  });
}
inline void multiply(int rows, int columns, int inner, Matrix a, Matrix b, float* product) {
  multiply(rows, columns, inner, a, b, [&](int i, int j, auto sums) ALWAYS_INLINE {
    std::memcpy(product + i * columns + j, &sums, sizeof sums);
  });
}

// The orthogonal factor of a [n, n] by Householder's reflections, with LAPACK's signs (sgeqrf and
// sorgqr), in the place of a. `vectors` has n rows too, `room` 2 n values.
inline void orthogonalise(int n, float* a, float* vectors, float* room) {
  float *taus = room, *sums = room + n;
  auto reflect = [&](int k) {  // the rows from k on; before them the vector is 0
    const float* vector = vectors + k * n;
    multiply(1, n, n - k, {vector + k, n}, {a + k * n, n}, sums);
    for (int i = k; i < n; i++)
      for (int j = 0; j < n; j++) a[i * n + j] -= taus[k] * vector[i] * sums[j];
  };
  for (int k = 0; k < n; k++) {
    const double alpha = a[k * n + k];  // squares of a float32 could vanish
    double squares = 0;
    for (int i = k + 1; i < n; i++) squares += double(a[i * n + k]) * a[i * n + k];
    const double norm = std::sqrt(alpha * alpha + squares), beta = alpha < 0 ? norm : -norm;
    taus[k] = squares == 0 ? 0. : (beta - alpha) / beta;
    if (squares == 0) continue;
    vectors[k * n + k] = 1.f;
    for (int i = k + 1; i < n; i++) vectors[k * n + i] = a[i * n + k] / (alpha - beta);
    reflect(k);
  }
  std::fill_n(a, n * n, 0.f);
  for (int k = 0; k < n; k++) a[k * n + k] = 1.f;
  for (int k = n - 1; k >= 0; k--)
    if (taus[k] != 0.f) reflect(k);
}

// Numbers of a step, in this order.
struct Numbers {
  float decay, b1, new1, b2, new2, eps, unbias1, unbias2, due;
};

// The arrays of all kernels: tensors [9, in, out], and for each side n a matrix [n, n]. All are
// padded to `sides`; what is beyond a kernel is neither read nor written.
struct Arrays {
  float *gradient, *mean, *square, *factors[3], *bases[3];
  const int64_t* sides;
};

// What a thread needs for a kernel.
struct SoapRoom {
  std::vector<float> x, y, mean, square, matrices[3], basis, vectors, sums;
};

// The update of the kernel in a row of the arrays. In the place of the gradient comes the
// direction.
struct Update {
  const Numbers& number;
  const Arrays& all;
  const int64_t kernel;
  const int sides[3], size;
  SoapRoom& s;

  Update(const Numbers& number, const Arrays& all, int64_t kernel, const int64_t* sides,
         SoapRoom& room)
      : number(number),
        all(all),
        kernel(kernel),
        sides{int(sides[0]), int(sides[1]), int(sides[2])},
        size(sides[0] * sides[1] * sides[2]),
        s(room) {}

  // Calls copy(padded, other, bytes) for the rows of a tensor; the other is not padded.
  template <class F>
  void each_row(float* tensor, std::vector<float>& other, F copy) const {
    const int64_t first = kernel * all.sides[0];
    for (int i = 0; i < sides[0]; i++)
      for (int j = 0; j < sides[1]; j++)
        copy(tensor + ((first + i) * all.sides[1] + j) * all.sides[2],
             other.data() + (i * sides[1] + j) * sides[2], 4 * sides[2]);
  }
  void read(float* tensor, std::vector<float>& to) const {
    to.resize(size);
    each_row(tensor, to, [](float* x, float* y, int bytes) { std::memcpy(y, x, bytes); });
  }
  void write(std::vector<float>& from, float* tensor) const {
    each_row(tensor, from, [](float* x, float* y, int bytes) { std::memcpy(x, y, bytes); });
  }
  float* matrix(float* const (&matrices)[3], int side) const {
    return matrices[side] + kernel * all.sides[side] * all.sides[side];
  }

  // factor = decay factor + (1 - decay) G G', with the rows of a side; x is the gradient G.
  void update_factor(int side) {
    const int n = sides[side], row = all.sides[side];
    int after = 1;
    for (int i = side + 1; i < 3; i++) after *= sides[i];
    for (int k = 0, i = 0; k < size; k += n * after)  // y = G'
      for (int c = 0; c < after; c++)
        for (int j = 0; j < n; j++) s.y[i++] = s.x[k + j * after + c];
    float* factor = matrix(all.factors, side);
    const Matrix y{s.y.data(), n};
    multiply(n, n, size / n, y.transposed(), y, [&](int i, int j, auto sums) ALWAYS_INLINE {
      float* old = factor + i * row + j;
      const auto mean = number.decay * load<sizeof sums / 4>(old) + (1.f - number.decay) * sums;
      std::memcpy(old, &mean, sizeof mean);
    });
  }

  // Multiplies each side of x by its matrix: the first one each time, which becomes the last one.
  void rotate(const Matrix (&matrices)[3]) {
    for (int i = 0; i < 3; i++) {
      const int n = sides[i], rest = size / n;
      multiply(rest, n, n, {s.x.data(), 1, rest}, matrices[i], s.y.data());
      std::swap(s.x, s.y);
    }
  }

  void update_moments() {
    const Numbers by = number;  // which a store cannot change
    float* __restrict x = s.x.data();
    float* __restrict m = s.mean.data();
    float* __restrict v = s.square.data();
    for (int i = 0; i < size; i++) {
      m[i] = by.b1 * m[i] + by.new1 * x[i];
      v[i] = by.b2 * v[i] + by.new2 * (x[i] * x[i]);
      x[i] = m[i] / by.unbias1 / (std::sqrt(v[i] / by.unbias2) + by.eps);
    }
  }

  // One power iteration of a side's basis, Q = QR(L Q). Returns how the side's axes turn.
  Matrix refresh(int side) {
    const int n = sides[side], row = all.sides[side];
    float *old = matrix(all.bases, side), *basis = s.basis.data(), *turn = s.matrices[side].data();
    multiply(n, n, n, {matrix(all.factors, side), row}, {old, row}, basis);
    orthogonalise(n, basis, s.vectors.data(), s.sums.data());
    multiply(n, n, n, Matrix{old, row}.transposed(), {basis, n}, turn);
    for (int i = 0; i < n; i++) std::memcpy(old + i * row, basis + i * n, 4 * n);
    return {turn, n};
  }

  void operator()() {
    const int most = std::max({sides[0], sides[1], sides[2]});
    for (auto* room : {&s.matrices[0], &s.matrices[1], &s.matrices[2], &s.basis, &s.vectors})
      room->resize(most * most);
    s.y.resize(size), s.sums.resize(2 * most);
    read(all.gradient, s.x), read(all.mean, s.mean), read(all.square, s.square);
    Matrix bases[3], inverses[3];
    for (int side = 0; side < 3; side++) {
      update_factor(side);
      const int n = sides[side], row = all.sides[side];
      bases[side] = {matrix(all.bases, side), row}, inverses[side] = {s.matrices[side].data(), n};
      for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) s.matrices[side][j * n + i] = bases[side].x[i * row + j];
    }
    rotate(bases);
    update_moments();
    rotate(inverses);
    write(s.x, all.gradient), write(s.square, all.square);
    if (number.due != 0.f) {
      const Matrix turns[] = {refresh(0), refresh(1), refresh(2)};
      std::swap(s.x, s.mean);
      rotate(turns);
      std::swap(s.x, s.mean);
    }
    write(s.mean, all.mean);
  }
};

}  // namespace
