// A kernel that writes one element past its buffer. compute-sanitizer must find it: a checker that
// stays silent here says nothing about the library either (tools/gpu_run.py).
#include <cuda_runtime.h>

#include <cstdio>

__global__ void write_past_the_end(float* data, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= size) data[i] = 1.0f;
}

int main() {
  constexpr int kSize = 1024;
  float* data = nullptr;
  if (cudaMalloc(&data, kSize * sizeof(float)) != cudaSuccess) {
    std::printf("cudaMalloc failed\n");
    return 2;
  }
  write_past_the_end<<<kSize / 256 + 1, 256>>>(data, kSize);
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("planted bug ran: %s\n", cudaGetErrorString(error));
  return 0;
}
