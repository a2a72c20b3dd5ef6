// What all kernels have in common. A host compiles them too, for their tests, which define what a
// GPU has of its own.

#pragma once

#include "array.h"

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#define CONSTANT extern "C" __constant__
extern __shared__ float4 shared_memory[];
inline float* shared() { return reinterpret_cast<float*>(shared_memory); }
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
