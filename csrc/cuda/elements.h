// Element types: reading and writing up to four neighbours, widened to the arithmetic type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../step/params.h"
#include "plan.h"

namespace cmsolvers {
namespace cuda {

using Half = __half;
using BFloat = __nv_bfloat16;

// What a state is computed in.
template <class State>
using Wide = std::conditional_t<std::is_same_v<State, double>, double, float>;

CMS_HD double widen(double v) {
  return v;
}
CMS_HD float widen(float v) {
  return v;
}
CMS_HD float widen(Half v) {
  return __half2float(v);
}
CMS_HD float widen(BFloat v) {
  return __bfloat162float(v);
}

// Rounds to nearest even; double reaches the 16-bit types by way of float, as on the CPU.
template <class T, class A>
CMS_HD T narrow(A v) {
  if constexpr (std::is_same_v<T, Half>)
    return __float2half_rn(static_cast<float>(v));
  else if constexpr (std::is_same_v<T, BFloat>)
    return __float2bfloat16_rn(static_cast<float>(v));
  else
    return static_cast<T>(v);
}

template <class T>
struct alignas(kGroup * sizeof(T) < 16 ? kGroup * sizeof(T) : 16) Pack {
  T v[kGroup];
};

// v[j] = data[position + j * step] for j < valid; the others are 0.
template <class T, class A>
CMS_HD void read_group(const void* data, int64_t position, int64_t step, int valid, bool vector,
                       A (&v)[kGroup]) {
  const T* from = static_cast<const T*>(data) + position;
  if (vector && valid == kGroup) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) v[j] = widen(pack.v[j]);
    return;
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) v[j] = j < valid ? A(widen(from[j * step])) : A(0);
}

template <class T, class A>
CMS_HD void write_group(void* data, int64_t position, int64_t step, int valid, bool vector,
                        const A (&v)[kGroup]) {
  T* to = static_cast<T*>(data) + position;
  if (vector && valid == kGroup) {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) pack.v[j] = narrow<T>(v[j]);
    *reinterpret_cast<Pack<T>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    if (j < valid) to[j * step] = narrow<T>(v[j]);
}

template <class A>
CMS_HD void write_group(DType type, void* data, int64_t position, int64_t step, int valid,
                        bool vector, const A (&v)[kGroup]) {
  if (type == DType::f64)
    write_group<double>(data, position, step, valid, vector, v);
  else if (type == DType::f32)
    write_group<float>(data, position, step, valid, vector, v);
  else if (type == DType::f16)
    write_group<Half>(data, position, step, valid, vector, v);
  else
    write_group<BFloat>(data, position, step, valid, vector, v);
}

}  // namespace cuda
}  // namespace cmsolvers
