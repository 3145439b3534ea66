// Launches of the sizes of residuals and of their gradients. One launch each; samples of more than
// kCudaChunk elements take a second, small one that adds up their chunks.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "thread.h"

namespace cmsolvers {
namespace cuda {
namespace {

constexpr int64_t kBackwardChunk = 4096;
constexpr int kBackwardThreads = 256;
constexpr unsigned kWarp = 32;

// Threads of a block that adds: a block has a whole chunk, so that many are needed to keep memory
// busy with a batch of a few hundred samples.
template <class A>
constexpr int kThreads = std::is_same_v<A, double> ? 512 : 1024;

__device__ double add_in_warp(double sum) {
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2)
    sum = sum + __shfl_down_sync(0xFFFFFFFFu, sum, apart);
  return sum;
}

template <class A, class T>
__global__ void __launch_bounds__(kThreads<A>)
    distance_kernel(const __grid_constant__ DistanceParams params,
                    const __grid_constant__ Cut cut) {
  __shared__ double sums[kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (cut.span == kWarp) {  // an item per warp
    const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads<A> / kWarp) + warp;
    if (item >= cut.items) return;
    const double sum = add_in_warp(distance_thread<A, T>(params, cut, item, lane));
    if (lane == 0) store_sum(params, cut, item, sum);
    return;
  }
  const int64_t item = blockIdx.x;
  double sum = add_in_warp(distance_thread<A, T>(params, cut, item, threadIdx.x));
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  sum = add_in_warp(lane < kThreads<A> / kWarp ? sums[lane] : 0.0);
  if (lane == 0) store_sum(params, cut, item, sum);
}

__global__ void __launch_bounds__(kBackwardThreads)
    finish_kernel(const __grid_constant__ DistanceParams params, const __grid_constant__ Cut cut) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kBackwardThreads + threadIdx.x;
  if (sample < params.batch) finish_thread(params, cut, sample);
}

template <class A, class T>
__global__ void __launch_bounds__(kBackwardThreads)
    distance_backward_kernel(const __grid_constant__ DistanceParams params,
                             const __grid_constant__ Cut cut) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kBackwardThreads / cut.span);
  const int64_t item = first + threadIdx.x / cut.span;
  if (item >= cut.items) return;
  distance_backward_thread<A, T>(params, cut, item, threadIdx.x % cut.span);
}

unsigned blocks_for(const Cut& cut, int threads) {
  const int64_t items = threads / cut.span;
  const int64_t blocks = (cut.items + items - 1) / items;
  TORCH_CHECK_VALUE(blocks < (int64_t{1} << 31), "inputs must hold fewer samples");
  return static_cast<unsigned>(blocks);
}

struct Forward {
  const DistanceParams& params;
  cudaStream_t stream;

  template <class A, class T>
  void run() const {
    const Cut cut = make_cut(params, kCudaChunk, kThreads<A>);
    distance_kernel<A, T><<<blocks_for(cut, kThreads<A>), kThreads<A>, 0, stream>>>(params, cut);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (cut.chunks == 1) return;
    const int64_t blocks = (params.batch + kBackwardThreads - 1) / kBackwardThreads;
    finish_kernel<<<static_cast<unsigned>(blocks), kBackwardThreads, 0, stream>>>(params, cut);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

struct Backward {
  const DistanceParams& params;
  cudaStream_t stream;

  template <class A, class T>
  void run() const {
    const Cut cut = make_cut(params, kBackwardChunk, kBackwardThreads);
    const unsigned blocks = blocks_for(cut, kBackwardThreads);
    distance_backward_kernel<A, T><<<blocks, kBackwardThreads, 0, stream>>>(params, cut);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

// Inputs of one dtype have their own kernel; whatever is mixed shares one.
template <class Launch>
void choose(const Launch& launch) {
  const DistanceParams& p = launch.params;
  const bool same =
      std::all_of(p.types, p.types + p.n, [&](DType type) { return type == p.types[0]; });
  if (p.wide)
    return same ? launch.template run<double, double>() : launch.template run<double, void>();
  if (!same) return launch.template run<float, void>();
  switch (p.types[0]) {
    case DType::f32:
      return launch.template run<float, float>();
    case DType::f16:
      return launch.template run<float, Half>();
    default:
      return launch.template run<float, BFloat>();
  }
}

}  // namespace
}  // namespace cuda

void launch_distance_cuda(const DistanceParams& params, int device, void* stream) {
  if (params.batch == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  cuda::choose(cuda::Forward{params, static_cast<cudaStream_t>(stream)});
}

void launch_distance_backward_cuda(const DistanceParams& params, int device, void* stream) {
  if (params.batch == 0 || params.count == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  cuda::choose(cuda::Backward{params, static_cast<cudaStream_t>(stream)});
}

}  // namespace cmsolvers
