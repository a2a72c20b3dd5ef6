// SOAP's update of all convolutions' kernels on a GPU, one block for each: see
// cae_jax/training/soap.py, which computes the same as a few dozen kernels of XLA's.
//
// SIDES are those of each kernel as a tensor, padded to the largest: 9, in, out. Besides: THREADS
// of a block, and SHARED_BYTES, the shared memory that it may have.

#include "kernel.h"

namespace {

constexpr int kSides[] = {SIDES};
constexpr int kTensor = kSides[0] * kSides[1] * kSides[2];
constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int kMost = larger(kSides[0], larger(kSides[1], kSides[2])), kMatrix = kMost * kMost;
constexpr int kShared = 3 * kTensor + 3 * kMatrix + kMost;
static_assert(4 * kShared <= SHARED_BYTES, "the shared memory of a block does not hold a kernel");

// Positions in `numbers`.
enum { kDecay, kB1, kNew1, kB2, kNew2, kEps, kUnbias1, kUnbias2, kDue };

// Neighbours along a side are this far apart.
constexpr int step_of(int side) {
  return side == 2 ? 1 : side == 1 ? kSides[2] : kSides[1] * kSides[2];
}
// Where a value of the tensor has index 0 along a side.
template <int side>
inline int origin(int i) {
  return i - i / step_of(side) % kSides[side] * step_of(side);
}
// The first value of the k-th row of numbers along a side.
template <int side>
inline int row(int k) {
  return k / step_of(side) * step_of(side) * kSides[side] + k % step_of(side);
}

inline void copy(float* to, const float* from, int size) {
  for (int i = thread(); i < size; i += THREADS) to[i] = from[i];
}

// Multiplies a side by a matrix from the right, or by its transpose.
template <int side, bool transposed>
void rotate(const float* x, const float* matrix, float* y) {
  constexpr int n = kSides[side];
  for (int i = thread(); i < kTensor; i += THREADS) {
    const float* from = x + origin<side>(i);
    const int j = i / step_of(side) % n;
    float sum = 0.f;
#pragma unroll 4
    for (int k = 0; k < n; k++)
      sum += from[k * step_of(side)] * matrix[transposed ? j * n + k : k * n + j];
    y[i] = sum;
  }
  __syncthreads();
}

// factor = decay factor + (1 - decay) G G', with the rows of a side.
template <int side>
void update_factor(const float* x, const float* numbers, const float* old, float* factor) {
  constexpr int n = kSides[side];
  for (int i = thread(); i < n * n; i += THREADS) {
    float sum = 0.f;
#pragma unroll 4
    for (int k = 0; k < kTensor / n; k++) {
      const float* first = x + row<side>(k);
      sum += first[i / n * step_of(side)] * first[i % n * step_of(side)];
    }
    factor[i] = numbers[kDecay] * old[i] + (1.f - numbers[kDecay]) * sum;
  }
}

// The product [n, n] of two matrices, the first one transposed or not.
inline void multiply(const float* a, const float* b, int n, bool transposed, float* product) {
  for (int i = thread(); i < n * n; i += THREADS) {
    float sum = 0.f;
    for (int k = 0; k < n; k++)
      sum += a[transposed ? k * n + i / n : i / n * n + k] * b[k * n + i % n];
    product[i] = sum;
  }
  __syncthreads();
}

// Takes the reflection by the vector in column k, whose first value is 1, from a column.
inline void reflect(const float* vectors, int n, int k, float tau, float* column) {
  float dot = column[k * n];
  for (int i = k + 1; i < n; i++) dot += vectors[i * n + k] * column[i * n];
  column[k * n] -= tau * dot;
  for (int i = k + 1; i < n; i++) column[i * n] -= tau * dot * vectors[i * n + k];
}

// The orthogonal factor of a [n, n] by Householder's reflections, with LAPACK's signs (sgeqrf and
// sorgqr). A thread has a column.
inline void orthogonalise(float* a, int n, float* taus, float* q) {
  for (int k = 0; k < n; k++) {
    const float alpha = a[k * n + k];
    float most = 0.f, squares = 0.f;  // those of the values themselves could vanish
    for (int i = k; i < n; i++) most = fmaxf(most, fabsf(a[i * n + k]));
    for (int i = k + 1; i < n; i++) {
      const float x = a[i * n + k] / most;
      squares += x * x;
    }
    const float norm = most * sqrtf(alpha / most * (alpha / most) + squares);
    const float beta = alpha >= 0.f ? -norm : norm;
    const float tau = most == 0.f || squares == 0.f ? 0.f : (beta - alpha) / beta;
    __syncthreads();  // all have read the column
    if (tau != 0.f)
      for (int i = k + 1 + thread(); i < n; i += THREADS) a[i * n + k] /= alpha - beta;
    __syncthreads();
    if (tau != 0.f)
      for (int j = k + 1 + thread(); j < n; j += THREADS) reflect(a, n, k, tau, a + j);
    if (thread() == 0) taus[k] = tau;
    __syncthreads();
  }
  for (int i = thread(); i < n * n; i += THREADS) q[i] = i / n == i % n;
  __syncthreads();
  for (int k = n - 1; k >= 0; k--)
    for (int j = thread(); j < n; j += THREADS) reflect(a, n, k, taus[k], q + j);
  __syncthreads();
}

struct Memory {
  float *x, *y, *mean, *basis, *other, *product, *taus;
};

// What a kernel of convolution `blockIdx.x` reads or writes of an array of all of them.
inline const float* part(const Array& array, int size) { return floats(array) + blockIdx.x * size; }
inline float* part_of(const Array& array, int size) { return results(array) + blockIdx.x * size; }

// One power iteration of a side's basis, Q = QR(L Q); the running mean turns with it.
template <int side>
void refresh(Memory& m, const float* factor, const float* old, float* basis) {
  constexpr int n = kSides[side];
  copy(m.basis, old, n * n), copy(m.other, factor, n * n);
  __syncthreads();
  multiply(m.other, m.basis, n, false, m.product);
  orthogonalise(m.product, n, m.taus, m.other);
  multiply(m.basis, m.other, n, true, m.product);
  rotate<side, false>(m.mean, m.product, m.x);
  copy(basis, m.other, n * n);
  float* turned = m.x;
  m.x = m.mean, m.mean = turned;
  __syncthreads();
}

template <int side, bool transposed>
void rotate_by(Memory& m, const Array& bases) {
  constexpr int n = kSides[side];
  copy(m.basis, part(bases, n * n), n * n);
  __syncthreads();
  rotate<side, transposed>(m.x, m.basis, m.y);
  float* rotated = m.y;
  m.y = m.x, m.x = rotated;
}

}  // namespace

CONSTANT int shared_bytes = 4 * kShared;

// The direction of the update, and the state after it; each array has a row for each convolution.
// The arrays of the state may be those before it.
KERNEL soap(Array numbers, Array gradients, Array mean, Array square, Array factor0, Array factor1,
            Array factor2, Array basis0, Array basis1, Array basis2, Array direction,
            Array new_mean, Array new_square, Array new_factor0, Array new_factor1,
            Array new_factor2, Array new_basis0, Array new_basis1, Array new_basis2) {
  constexpr int n0 = kSides[0] * kSides[0], n1 = kSides[1] * kSides[1], n2 = kSides[2] * kSides[2];
  float *s = shared(), *matrices = s + 3 * kTensor;
  Memory m{s,
           s + kTensor,
           s + 2 * kTensor,
           matrices,
           matrices + kMatrix,
           matrices + 2 * kMatrix,
           matrices + 3 * kMatrix};
  const float* number = floats(numbers);
  copy(m.x, part(gradients, kTensor), kTensor);
  __syncthreads();
  update_factor<0>(m.x, number, part(factor0, n0), part_of(new_factor0, n0));
  update_factor<1>(m.x, number, part(factor1, n1), part_of(new_factor1, n1));
  update_factor<2>(m.x, number, part(factor2, n2), part_of(new_factor2, n2));
  rotate_by<0, false>(m, basis0);
  rotate_by<1, false>(m, basis1);
  rotate_by<2, false>(m, basis2);
  const float *old_mean = part(mean, kTensor), *old_square = part(square, kTensor);
  for (int i = thread(); i < kTensor; i += THREADS) {
    const float g = m.x[i];
    const float first = number[kB1] * old_mean[i] + number[kNew1] * g;
    const float second = number[kB2] * old_square[i] + number[kNew2] * (g * g);
    part_of(new_square, kTensor)[i] = second;
    m.mean[i] = first;
    m.x[i] = first / number[kUnbias1] / (sqrtf(second / number[kUnbias2]) + number[kEps]);
  }
  __syncthreads();
  rotate_by<0, true>(m, basis0);
  rotate_by<1, true>(m, basis1);
  rotate_by<2, true>(m, basis2);
  copy(part_of(direction, kTensor), m.x, kTensor);
  __syncthreads();
  if (number[kDue] != 0.f) {
    refresh<0>(m, part_of(new_factor0, n0), part(basis0, n0), part_of(new_basis0, n0));
    refresh<1>(m, part_of(new_factor1, n1), part(basis1, n1), part_of(new_basis1, n1));
    refresh<2>(m, part_of(new_factor2, n2), part(basis2, n2), part_of(new_basis2, n2));
  } else {
    copy(part_of(new_basis0, n0), part(basis0, n0), n0);
    copy(part_of(new_basis1, n1), part(basis1, n1), n1);
    copy(part_of(new_basis2, n2), part(basis2, n2), n2);
  }
  copy(part_of(new_mean, kTensor), m.mean, kTensor);
}
