// What all kernels have in common. A host compiles them too, for their tests, which define what a
// GPU has of its own.

#pragma once

#include "array.h"

#ifdef __CUDACC__
// One block on a multiprocessor suffices: registers before occupancy.
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)
#define CONSTANT extern "C" __constant__
extern __shared__ float4 shared_memory[];
inline float* shared() { return reinterpret_cast<float*>(shared_memory); }
// Volatile: what each phase derives from it would otherwise be kept in registers over all phases.
inline int thread() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
#endif

namespace {

inline float value(const Array& array, long long i) {
  if (array.is_bytes) return static_cast<const unsigned char*>(array.data)[i] / 255.f;
  return static_cast<const float*>(array.data)[i];
}

// Those of the model that this block computes.
inline const float* floats(const Array& array) {
  return static_cast<const float*>(array.data) + blockIdx.y * array.model;
}
inline float* results(const Array& array) {
  return static_cast<float*>(array.data) + blockIdx.y * array.model;
}

}  // namespace
