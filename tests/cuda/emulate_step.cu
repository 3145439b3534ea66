// The work of the CUDA kernels, thread by thread on the host, against one plain loop over memory:
// it shows without a GPU that every element is written once, with the right sample, element and
// inputs, for all layouts, tails and alignments. Exit status 0 if all agree (tools/cuda_check.py
// runs it).
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/step/thread.h"

using namespace cmsolvers;
using namespace cmsolvers::cuda;

namespace {

template <class T>
constexpr DType type_of = std::is_same_v<T, double>  ? DType::f64
                          : std::is_same_v<T, float> ? DType::f32
                          : std::is_same_v<T, Half>  ? DType::f16
                                                     : DType::bf16;

int checks = 0;
int failures = 0;

// Memory for n elements with guards around it, `shift` elements past an aligned address.
template <class T>
struct Buffer {
  static constexpr int kGuard = 16;
  std::vector<T> storage;
  T* data;
  int64_t size;

  Buffer(int64_t n, int shift) : storage(n + shift + 2 * kGuard + 64, narrow<T>(-77.0f)), size(n) {
    auto address = reinterpret_cast<uintptr_t>(storage.data() + kGuard);
    address = (address + 63) / 64 * 64;
    data = reinterpret_cast<T*>(address) + shift;
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; ++i) data[i] = narrow<T>(normal(random));
  }
  bool guards_hold() const {
    const T guard = narrow<T>(-77.0f);
    const T* begin = storage.data();
    const T* end = begin + storage.size();
    for (const T* p = begin; p != end; ++p)
      if ((p < data || p >= data + size) && std::memcmp(p, &guard, sizeof(T)) != 0) return false;
    return true;
  }
};

struct Shape {
  const char* name;
  int64_t batch, count;
  int n_dims, batch_dim;
  std::vector<int64_t> dims, strides;  // empty: logical order is memory order
};

const std::vector<Shape> kShapes = {
    {"[4, 48]", 4, 48, 0, -1, {}, {}},
    {"[5, 7]", 5, 7, 0, -1, {}, {}},
    {"[1, 1]", 1, 1, 0, -1, {}, {}},
    {"[3, 1]", 3, 1, 0, -1, {}, {}},
    {"[1, 1027]", 1, 1027, 0, -1, {}, {}},
    {"channels_last [2, 3, 4, 8]", 2, 96, 4, 0, {2, 4, 8, 3}, {0, 8, 1, 32}},
    {"channels_last [2, 3, 5, 7]", 2, 105, 4, 0, {2, 5, 7, 3}, {0, 7, 1, 35}},
    {"channels_last [2, 1, 3, 4]", 2, 12, 4, 0, {2, 3, 4, 1}, {0, 4, 1, 12}},
    {"batch innermost [6, 3, 4]", 6, 12, 3, 2, {3, 4, 6}, {4, 1, 0}},
    {"transposed [2, 5, 4]", 2, 20, 3, 0, {2, 4, 5}, {0, 1, 4}},
    {"transposed [2, 4, 6]", 2, 24, 3, 0, {2, 6, 4}, {0, 1, 6}},
    {"one sample, no batch [3, 4]^T", 1, 12, 2, -1, {4, 3}, {1, 4}},
};

enum class Tensors { none, per_sample, one };

struct Mode {
  const char* name;
  int inputs;
  bool noise;
  Tensors tensors;  // among the arguments
  bool x0, clamp;
  Second second;
  int key;  // 0: seed, 1: a row a sample, 2: one row, 3: a row a sample with its draw
  Rule rule = Rule::weights;
  bool second_alone = false;
};

const std::vector<Mode> kModes = {
    {"plain", 1, false, Tensors::none, false, false, Second::none, 0},
    {"four inputs", 4, false, Tensors::none, false, false, Second::none, 0},
    {"noise alone", 0, true, Tensors::none, false, false, Second::none, 0},
    {"noise and two inputs", 2, true, Tensors::none, false, false, Second::none, 1},
    {"x0, clamp, scaled", 3, true, Tensors::none, true, true, Second::scaled, 2},
    {"second x0", 1, false, Tensors::none, true, false, Second::x0, 0},
    {"pair", 0, true, Tensors::none, false, false, Second::pair, 0},
    {"second alone, scaled", 1, false, Tensors::none, false, false, Second::scaled, 0,
     Rule::weights, true},
    {"second alone, pair", 0, true, Tensors::none, false, false, Second::pair, 0, Rule::weights,
     true},
    {"rows", 2, false, Tensors::per_sample, false, false, Second::none, 0},
    {"rows, second alone", 2, true, Tensors::per_sample, true, true, Second::x0, 0, Rule::weights,
     true},
    {"rows, everything", 4, true, Tensors::per_sample, true, true, Second::pair, 1},
    {"one row", 2, false, Tensors::one, false, false, Second::scaled, 0},
    {"pf_ode", 1, false, Tensors::per_sample, false, false, Second::none, 0, Rule::pf_ode},
    {"heun", 2, false, Tensors::per_sample, false, false, Second::none, 0, Rule::heun},
    {"one heun", 2, false, Tensors::one, false, false, Second::none, 0, Rule::heun},
    {"consistency", 1, false, Tensors::per_sample, false, false, Second::none, 0,
     Rule::consistency},
    {"edm_input", 0, false, Tensors::per_sample, false, false, Second::none, 0, Rule::edm_input},
    {"edm_input, second alone", 0, false, Tensors::per_sample, false, false, Second::pair, 0,
     Rule::edm_input, true},
    {"edm_output", 1, false, Tensors::per_sample, false, false, Second::none, 0, Rule::edm_output},
    {"euler_maruyama", 1, true, Tensors::per_sample, false, false, Second::none, 1,
     Rule::euler_maruyama},
    {"draws in the key", 2, true, Tensors::none, false, false, Second::none, 3},
    {"folded", 3, true, Tensors::per_sample, false, false, Second::scaled, 0, Rule::folded},
};

// Values of an argument for `count` samples, in one of the types and some apart from each other.
struct Levels {
  static constexpr int64_t kApart = 3;
  std::vector<double> f64;
  std::vector<float> f32;
  std::vector<Half> f16;
  std::vector<BFloat> bf16;

  Levels(double value, int64_t count) {
    for (int64_t i = 0; i < count * kApart; ++i) {
      const double v = i % kApart == 0 ? value * (1.0 + 0.1 * double(i / kApart)) : -77.0;
      f64.push_back(v);
      f32.push_back(static_cast<float>(v));
      f16.push_back(narrow<Half>(v));
      bf16.push_back(narrow<BFloat>(v));
    }
  }
  Argument argument(int kind, bool one) const {
    const int64_t stride = one ? 0 : kApart;
    if (kind == 0) return {f64.data(), stride, DType::f64};
    if (kind == 1) return {f32.data(), stride, DType::f32};
    if (kind == 2) return {f16.data(), stride, DType::f16};
    return {bf16.data(), stride, DType::bf16};
  }
};

template <class State, class Model, int kInputs>
void run_thread(const StepParams& p, const Plan& plan, int64_t first, int64_t stride) {
  const bool full = p.use_x0 || p.second != Second::none || p.has_tensors;
  if (plan.permuted)
    step_thread<State, Model, kInputs, true, true, true>(p, plan, first, stride);
  else if (full)
    step_thread<State, Model, kInputs, true, true, false>(p, plan, first, stride);
  else if (p.noise)
    step_thread<State, Model, kInputs, true, false, false>(p, plan, first, stride);
  else
    step_thread<State, Model, kInputs, false, false, false>(p, plan, first, stride);
}

// One element after the other, in memory order, as step/params.h defines the step.
template <class State, class Model, class Other>
void run_plainly(const StepParams& p, State* out, Other* second_out) {
  using A = Wide<State>;
  for (int64_t position = 0; position < p.total; ++position) {
    int64_t sample, element;
    locate(p, position, sample, element);
    const Row<A> row = load_row<A>(p, sample);
    A m[kMaxInputs] = {};
    for (int k = 0; k < p.n_inputs; ++k)
      m[k] = A(widen(static_cast<const Model*>(p.inputs[k])[position]));
    float z[kGroup] = {};
    const uint32_t draw = draw_of(p, sample);
    if (p.noise) normal4(key_of(p, sample), draw, static_cast<uint32_t>(element / kGroup), z);
    const A x = A(widen(static_cast<const State*>(p.x)[position]));
    const Outputs<A> result = combine<A>(p, row, x, m, A(pick(z, element % kGroup)));
    if (p.out != nullptr) out[position] = narrow<State>(result.first);
    if (p.second != Second::none) second_out[position] = narrow<Other>(result.second);
  }
}

struct CpuKernel {
  const char* name;
  const CpuKernels* of;
};

// Those that this processor can run.
std::vector<CpuKernel> cpu_kernels() {
  std::vector<CpuKernel> kernels = {{"portable", portable_kernels()}};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2) kernels.push_back({"avx2", avx2_kernels()});
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    kernels.push_back({"avx512", avx512_kernels()});
#endif
  return kernels;
}

template <class State, class Model, class Other>
void check(const Shape& shape, const Mode& mode, int shift, int64_t threads) {
  std::mt19937 random(1234);
  const int64_t total = shape.batch * shape.count;
  Buffer<State> x(total, shift), out(total, shift), expected(total, 0);
  Buffer<Other> second(total, shift), second_expected(total, 0);
  std::vector<Buffer<Model>> inputs;
  x.fill(random);
  for (int k = 0; k < mode.inputs; ++k) {
    inputs.emplace_back(total, k == 0 ? shift : 0);
    inputs.back().fill(random);
  }
  StepParams p;
  p.x = x.data;
  p.out = mode.second_alone ? nullptr : out.data;
  p.second_out = mode.second == Second::none ? nullptr : second.data;
  p.n_inputs = mode.inputs;
  for (int k = 0; k < mode.inputs; ++k) p.inputs[k] = inputs[k].data;
  p.state = type_of<State>;
  p.model = type_of<Model>;
  p.second_type = type_of<Other>;
  p.total = total;
  p.count = shape.count;
  p.permuted = !shape.dims.empty();
  p.n_dims = shape.n_dims;
  p.batch_dim = shape.batch_dim;
  for (size_t d = 0; d < shape.dims.size(); ++d) {
    p.dims[d] = shape.dims[d];
    p.strides[d] = shape.strides[d];
  }
  const double weights[kWeights] = {0.7, 0.3, 0.0, -0.2, 0.5, 0.4, 0.6, 0.8, 1.3, -0.7};
  for (int j = 0; j < kWeights; ++j) p.numbers[j] = j > mode.inputs && j < kZ ? 0.0 : weights[j];
  p.rule = mode.rule;
  if (mode.rule != Rule::weights && mode.rule != Rule::folded) {
    const double arguments[3] = {1.9, 0.5, 0.002};  // sigma; sigma', sigma_data or dt; sigma_min
    for (int j = 0; j < 3; ++j) p.numbers[j] = arguments[j];
  }
  std::vector<Levels> levels;
  for (int j = 0; j < kWeights; ++j) levels.emplace_back(p.numbers[j], shape.batch);
  if (mode.tensors != Tensors::none) {
    const bool one = mode.tensors == Tensors::one;
    p.has_tensors = true;
    p.per_sample = !one;
    int count = kWeights;
    if (mode.rule == Rule::consistency || mode.rule == Rule::edm_input ||
        mode.rule == Rule::edm_output)
      count = 1;
    else if (mode.rule != Rule::weights && mode.rule != Rule::folded)
      count = 2;
    for (int j = 0; j < count; ++j)
      if (p.numbers[j] != 0.0 && j != kS1)
        p.arguments[j] = levels[j].argument((j + shift) % 4, one);
  }
  p.use_x0 = mode.x0;
  p.clamp = mode.clamp;
  p.low = -0.5;
  p.high = 0.75;
  p.second = mode.second;
  p.noise = mode.noise;
  p.stream = 3;
  p.draw = 9;
  p.seed = 0xFEDCBA9876543210u;
  p.offset = (uint64_t(1) << 40) + 5;
  std::vector<int64_t> key;
  for (int64_t b = 0; b < shape.batch; ++b) {
    key.push_back(17 * b - 3);
    key.push_back((int64_t(1) << 33) + b);
    if (mode.key == 3) key.push_back(4000000000 + b);
  }
  if (mode.key != 0) p.key = key.data();
  p.key_per_sample = mode.key == 1 || mode.key == 3;
  p.key_width = mode.key == 3 ? 3 : 2;

  run_plainly<State, Model, Other>(p, expected.data, second_expected.data);
  const Plan plan = make_plan(p);
  for (int64_t t = 0; t < threads; ++t) {
    if (mode.inputs <= 1)
      run_thread<State, Model, 1>(p, plan, t, threads);
    else
      run_thread<State, Model, kMaxInputs>(p, plan, t, threads);
  }
  const auto judge = [&](const char* kernel) {
    bool same =
        mode.second_alone || std::memcmp(out.data, expected.data, total * sizeof(State)) == 0;
    if (mode.second != Second::none)
      same = same && std::memcmp(second.data, second_expected.data, total * sizeof(Other)) == 0;
    ++checks;
    if (same && out.guards_hold() && second.guards_hold()) return;
    ++failures;
    std::printf("%s differs: %s, %s, state %zu bytes, shift %d, %lld threads, %s\n", kernel,
                shape.name, mode.name, sizeof(State), shift, static_cast<long long>(threads),
                plan.vector ? "vectors" : "scalars");
  };
  judge("cuda");
  if (threads > 1) return;
  for (const CpuKernel& kernel : cpu_kernels()) {
    std::memset(static_cast<void*>(out.data), 0x55, total * sizeof(State));
    std::memset(static_cast<void*>(second.data), 0x55, total * sizeof(Other));
    kernel.of->step(p, 0, total, false);
    judge(kernel.name);
  }
}

template <class State, class Model, class Other>
void check_all() {
  for (const Shape& shape : kShapes)
    for (const Mode& mode : kModes)
      for (const int shift : {0, 1})
        for (const int64_t threads : {1, 64, 1024})
          check<State, Model, Other>(shape, mode, shift, threads);
}

}  // namespace

int main() {
  check_all<float, float, Half>();
  check_all<float, BFloat, float>();
  check_all<double, float, double>();
  check_all<Half, Half, float>();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
