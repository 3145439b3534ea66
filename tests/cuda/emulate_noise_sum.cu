// The work of the CUDA kernel of sums of noise, thread by thread on the host, against one plain
// loop over memory, as emulate_step.cu does it for the steps. Exit status 0 if all agree.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/noise_sum/thread.h"

using namespace cmsolvers;
using namespace cmsolvers::cuda;

namespace {

struct Shape {
  const char* name;
  int64_t batch, count;
  int batch_dim;
  std::vector<int64_t> dims, strides;  // empty: logical order is memory order
};

const std::vector<Shape> kShapes = {
    {"[4, 48]", 4, 48, -1, {}, {}},
    {"[5, 7]", 5, 7, -1, {}, {}},
    {"[3, 1]", 3, 1, -1, {}, {}},
    {"[1, 1027]", 1, 1027, -1, {}, {}},
    {"channels_last [2, 3, 4, 8]", 2, 96, 0, {2, 4, 8, 3}, {0, 8, 1, 32}},
    {"channels_last [2, 3, 5, 7]", 2, 105, 0, {2, 5, 7, 3}, {0, 7, 1, 35}},
    {"batch innermost [6, 3, 4]", 6, 12, 2, {3, 4, 6}, {4, 1, 0}},
};

int checks = 0, failures = 0;

template <class State>
void check(DType type, const Shape& shape, bool by_sample, int shift, int64_t threads) {
  const int64_t total = shape.batch * shape.count;
  constexpr int kGuard = 16;
  const State untouched = narrow<State>(-77.0f);
  std::vector<State> storage(total + 2 * kGuard + shift, untouched), expected = storage;
  NoiseSumParams p;
  p.place.out = storage.data() + kGuard + shift;
  p.place.state = type;
  p.place.total = total;
  p.place.count = shape.count;
  p.place.permuted = !shape.dims.empty();
  p.place.n_dims = static_cast<int>(shape.dims.size());
  p.place.batch_dim = shape.batch_dim;
  for (size_t d = 0; d < shape.dims.size(); ++d) {
    p.place.dims[d] = shape.dims[d];
    p.place.strides[d] = shape.strides[d];
  }
  p.place.noise = true;
  p.place.stream = 2;
  p.place.seed = 0xFEDCBA9876543210u;
  p.place.offset = (uint64_t(1) << 40) + 5;
  p.n = 3;
  std::vector<double> table;
  const uint32_t draws[] = {0, 4000000000u, 77};
  const float weights[] = {0.5f, -1.5f, 0.25f};
  for (int k = 0; k < 3; ++k) p.draws[k] = draws[k], p.weights[k] = weights[k];
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int k = 0; k < 3; ++k)
      table.insert(table.end(), {double(draws[k] + b), k == b ? 0.0 : weights[k] * double(b + 1)});
  if (by_sample) p.table = table.data();

  for (int64_t position = 0; position < total; ++position) {
    int64_t sample, element;
    locate(p.place, position, sample, element);
    float sum[4];
    noise_sum4(p, sample, static_cast<uint32_t>(element / 4), sum);
    expected[kGuard + shift + position] =
        narrow<State>(Wide<State>(pick(sum, static_cast<uint32_t>(element % 4))));
  }
  const Plan plan = make_plan(p.place);
  for (int64_t t = 0; t < threads; ++t) {
    if (plan.permuted)
      noise_sum_thread<State, true>(p, plan, t, threads);
    else
      noise_sum_thread<State, false>(p, plan, t, threads);
  }
  ++checks;
  if (std::memcmp(storage.data(), expected.data(), storage.size() * sizeof(State)) == 0) return;
  ++failures;
  std::printf("%s differs: %zu bytes, shift %d, %lld threads%s\n", shape.name, sizeof(State), shift,
              static_cast<long long>(threads), by_sample ? ", by sample" : "");
}

template <class State>
void check_all(DType type) {
  for (const Shape& shape : kShapes)
    for (const bool by_sample : {false, true})
      for (const int shift : {0, 1})
        for (const int64_t threads : {1, 64, 1024})
          check<State>(type, shape, by_sample, shift, threads);
}

}  // namespace

int main() {
  check_all<float>(DType::f32);
  check_all<double>(DType::f64);
  check_all<Half>(DType::f16);
  check_all<BFloat>(DType::bf16);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
