// Launches of moving averages: one for all tensors of a dtype that the parameters of a kernel hold.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "thread.h"

namespace cmsolvers {
namespace cuda {
namespace {

template <class A, class V, int K>
__global__ void __launch_bounds__(kEmaThreads)
    ema_kernel(const __grid_constant__ EmaTable<K> table) {
  ema_thread<A, V, K>(table, blockIdx.x, static_cast<int>(threadIdx.x));
}

struct EmaLaunch {
  const EmaBatch& batch;
  cudaStream_t stream;

  template <class A, class V, int K>
  void launch(const EmaTable<K>& table) const {
    if (table.n == 0) return;
    ema_kernel<A, V, K><<<table.first[table.n], kEmaThreads, 0, stream>>>(table);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // All tensors whose averages are of `type` and values of `value_type`.
  template <class A, class V, int K>
  void run(DType type, DType value_type) const {
    const auto fits = [&](const EmaTensor& t) {
      return t.type == type && t.value_type == value_type;
    };
    if (std::none_of(batch.tensors, batch.tensors + batch.n, fits)) return;
    EmaTable<K> empty;
    empty.table = batch.table;
    for (int j = 0; j < K; ++j) empty.weights[j] = batch.weights[j];
    EmaTable<K> table = empty;
    for (int i = 0; i < batch.n; ++i) {
      const EmaTensor& t = batch.tensors[i];
      if (!fits(t) || append(table, t)) continue;
      launch<A, V, K>(table);
      table = empty;
      append(table, t);
    }
    launch<A, V, K>(table);
  }

  template <class A, int K>
  void choose_values(DType type) const {
    run<A, double, K>(type, DType::f64);
    run<A, float, K>(type, DType::f32);
    run<A, Half, K>(type, DType::f16);
    run<A, BFloat, K>(type, DType::bf16);
  }

  template <int K>
  void choose() const {
    choose_values<double, K>(DType::f64);
    choose_values<float, K>(DType::f32);
  }
};

}  // namespace
}  // namespace cuda

void launch_ema_cuda(const EmaBatch& batch, int device, void* stream) {
  if (batch.n == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cuda::EmaLaunch launch{batch, static_cast<cudaStream_t>(stream)};
  switch (batch.k) {
    case 1:
      return launch.choose<1>();
    case 2:
      return launch.choose<2>();
    case 3:
      return launch.choose<3>();
    case 4:
      return launch.choose<4>();
  }
}

}  // namespace cmsolvers
