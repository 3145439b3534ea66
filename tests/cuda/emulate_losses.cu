// The work of the losses' CUDA kernels, thread by thread on the host, against plain loops, and the
// CPU kernels of every instruction set beside them (as emulate_step.cu does it for the steps). Exit
// status 0 if all agree.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/loss/thread.h"

using namespace cmsolvers;
using namespace cmsolvers::cuda;

namespace {

int checks = 0, failures = 0;

void expect(bool holds, const char* what, const char* shape, int detail) {
  ++checks;
  if (holds) return;
  ++failures;
  std::printf("%s differs: %s, %d\n", what, shape, detail);
}

struct Shape {
  const char* name;
  int64_t batch, count;
  int batch_dim;
  std::vector<int64_t> dims, strides;  // empty: logical order is memory order
};

const std::vector<Shape> kShapes = {
    {"[4, 48]", 4, 48, -1, {}, {}},
    {"[5, 7]", 5, 7, -1, {}, {}},
    {"[64, 2]", 64, 2, -1, {}, {}},
    {"[3, 1]", 3, 1, -1, {}, {}},
    {"[1, 1027]", 1, 1027, -1, {}, {}},
    {"[2, 20000]", 2, 20000, -1, {}, {}},
    {"channels_last [2, 3, 4, 8]", 2, 96, 0, {2, 4, 8, 3}, {0, 8, 1, 32}},
    {"channels_last [2, 3, 5, 7]", 2, 105, 0, {2, 5, 7, 3}, {0, 7, 1, 35}},
    {"batch innermost [6, 3, 4]", 6, 12, 2, {3, 4, 6}, {4, 1, 0}},
};

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

// Memory of n elements of a type that is known when it runs, with guards around it, `shift` bytes
// past an aligned address (a multiple of the element).
struct Memory {
  static constexpr int64_t kGuard = 64;
  std::vector<unsigned char> storage;
  DType type;
  int64_t n;
  unsigned char* data;

  Memory(DType kind, int64_t size, int shift)
      : storage(size * size_of(kind) + 2 * kGuard + 64 + shift * size_of(kind), 0xAB),
        type(kind),
        n(size) {
    auto address = reinterpret_cast<uintptr_t>(storage.data()) + kGuard;
    address = (address + 63) / 64 * 64;
    data = reinterpret_cast<unsigned char*>(address) + shift * size_of(kind);
  }
  Memory(const Memory&) = delete;

  void set(int64_t i, double v) {
    if (type == DType::f64) reinterpret_cast<double*>(data)[i] = v;
    if (type == DType::f32) reinterpret_cast<float*>(data)[i] = static_cast<float>(v);
    if (type == DType::f16) reinterpret_cast<Half*>(data)[i] = narrow<Half>(v);
    if (type == DType::bf16) reinterpret_cast<BFloat*>(data)[i] = narrow<BFloat>(v);
  }
  double get(int64_t i) const {
    if (type == DType::f64) return reinterpret_cast<const double*>(data)[i];
    if (type == DType::f32) return reinterpret_cast<const float*>(data)[i];
    if (type == DType::f16) return widen(reinterpret_cast<const Half*>(data)[i]);
    return widen(reinterpret_cast<const BFloat*>(data)[i]);
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) set(i, normal(random));
  }
  bool same(const Memory& other) const {
    return std::memcmp(data, other.data, n * size_of(type)) == 0 && guards_hold();
  }
  bool guards_hold() const {
    for (const unsigned char& byte : storage)
      if ((&byte < data || &byte >= data + n * size_of(type)) && byte != 0xAB) return false;
    return true;
  }
};

constexpr DType kTypes[] = {DType::f64, DType::f32, DType::f16, DType::bf16};

template <class State>
void check_forms(DType type, const Shape& shape, int key_kind, bool one_column, int shift) {
  std::mt19937 random(7);
  const int64_t total = shape.batch * shape.count;
  Memory x(type, total, shift);
  x.fill(random);
  NoiseFormsParams p;
  StepParams& place = p.place;
  place.x = x.data;
  place.state = type;
  place.total = total;
  place.count = shape.count;
  place.permuted = !shape.dims.empty();
  place.n_dims = static_cast<int>(shape.dims.size());
  place.batch_dim = shape.batch_dim;
  for (size_t d = 0; d < shape.dims.size(); ++d) {
    place.dims[d] = shape.dims[d];
    place.strides[d] = shape.strides[d];
  }
  place.noise = true;
  place.stream = 3;
  place.draw = key_kind == 3 ? 0 : 9;
  place.seed = 0xFEDCBA9876543210u;
  place.offset = (uint64_t(1) << 40) + 5;
  std::vector<int64_t> key;
  for (int64_t b = 0; b < shape.batch; ++b) {
    key.insert(key.end(), {17 * b - 3, (int64_t(1) << 33) + b});
    if (key_kind == 3) key.push_back(4000000000 + b);
  }
  if (key_kind != 0) place.key = key.data();
  place.key_per_sample = key_kind != 2;
  place.key_width = key_kind == 3 ? 3 : 2;
  p.n = kMaxForms;
  p.columns = one_column ? 1 : shape.batch;
  std::vector<double> weights;
  for (int64_t i = 0; i < 2 * p.n * p.columns; ++i)
    weights.push_back(i % 5 == 4 ? 0.0 : 0.3 * double(i % 7) - 1.0);
  p.weights = weights.data();

  std::vector<std::unique_ptr<Memory>> expected;
  const auto fresh = [&](std::vector<std::unique_ptr<Memory>>& outs, int by) {
    for (int j = 0; j < p.n; ++j) {
      p.types[j] = kTypes[j % 4];
      outs.push_back(std::make_unique<Memory>(p.types[j], total, by));
      p.outs[j] = outs[j]->data;
    }
  };
  fresh(expected, 0);
  using A = Wide<State>;
  for (int64_t position = 0; position < total; ++position) {
    int64_t sample, element;
    locate(place, position, sample, element);
    float z[4];
    normal4(key_of(place, sample), draw_of(place, sample), static_cast<uint32_t>(element / 4), z);
    for (int j = 0; j < p.n; ++j) {
      const A a = form_weight<A>(p, j, 0, sample), b = form_weight<A>(p, j, 1, sample);
      expected[j]->set(position, form(a, A(x.get(position)), b, A(pick(z, uint32_t(element % 4)))));
    }
  }
  for (const int64_t threads : {1, 64}) {
    std::vector<std::unique_ptr<Memory>> outs;
    fresh(outs, shift);
    const Plan plan = make_forms_plan(p);
    for (int64_t t = 0; t < threads; ++t) {
      if (plan.permuted)
        noise_forms_thread<State, true>(p, plan, t, threads);
      else
        noise_forms_thread<State, false>(p, plan, t, threads);
    }
    for (int j = 0; j < p.n; ++j) expect(outs[j]->same(*expected[j]), "form", shape.name, j);
  }
  if (place.permuted) return;
  for (const CpuKernel& kernel : cpu_kernels()) {
    std::vector<std::unique_ptr<Memory>> outs;
    fresh(outs, shift);
    kernel.of->noise_forms(p, 0, total / 2);
    kernel.of->noise_forms(p, total / 2, total);
    for (int j = 0; j < p.n; ++j) expect(outs[j]->same(*expected[j]), kernel.name, shape.name, j);
  }
}

template <class A, class T>
void run_threads(const DistanceParams& p, int block, bool backward) {
  const Cut cut = make_cut(p, backward ? 4096 : kCudaChunk, block);
  for (int64_t item = 0; item < cut.items; ++item) {
    double sum = 0.0;
    for (int t = 0; t < cut.span; ++t) {
      if (backward)
        distance_backward_thread<A, T>(p, cut, item, t);
      else
        sum += distance_thread<A, T>(p, cut, item, t);
    }
    if (!backward) store_sum(p, cut, item, sum);
  }
  if (backward || cut.chunks == 1) return;
  for (int64_t b = 0; b < p.batch; ++b) finish_thread(p, cut, b);
}

template <class A>
void check_distance(const Shape& shape, const std::vector<DType>& types, Size size, double c,
                    bool one_column, int shift) {
  std::mt19937 random(11);
  const int64_t total = shape.batch * shape.count;
  DistanceParams p;
  p.n = static_cast<int>(types.size());
  p.wide = std::is_same_v<A, double>;
  p.batch = shape.batch;
  p.count = shape.count;
  p.size = size;
  p.c = c;
  p.columns = one_column ? 1 : shape.batch;
  std::vector<std::unique_ptr<Memory>> inputs;
  for (int k = 0; k < p.n; ++k) {
    inputs.push_back(std::make_unique<Memory>(types[k], total, k == 0 ? shift : 0));
    inputs[k]->fill(random);
    p.types[k] = types[k];
    p.inputs[k] = inputs[k]->data;
  }
  std::vector<double> weights, grad;
  for (int64_t i = 0; i < p.n * p.columns; ++i)
    weights.push_back(i % 5 == 4 ? 0.0 : 0.3 * double(i % 7) - 1.0);
  for (int64_t b = 0; b < p.batch; ++b) grad.push_back(0.5 - 0.25 * double(b));
  p.weights = weights.data();
  p.grad = grad.data();
  p.grad_stride = 1;

  std::vector<double> expected(p.batch), found(p.batch), partials(p.batch * 64);
  const auto residual_at = [&](const TermWeights<A>& row, int64_t position) {
    A r = 0;
    for (int k = 0; k < p.n; ++k)
      if (row.w[k] != A(0)) r = multiply_add(row.w[k], A(inputs[k]->get(position)), r);
    return r;
  };
  const Size summed = summed_as(p);
  for (int64_t b = 0; b < p.batch; ++b) {
    const TermWeights<A> row = term_weights<A>(p, b);
    double sum = 0.0;
    for (int64_t e = 0; e < p.count; ++e)
      sum += element_size(summed, residual_at(row, b * p.count + e), A(c));
    expected[b] = value_of(p, sum);
  }
  const auto near = [&](const char* what) {
    for (int64_t b = 0; b < p.batch; ++b)
      expect(std::fabs(found[b] - expected[b]) <= 1e-12 * std::fabs(expected[b]), what, shape.name,
             int(size));
  };
  p.values = found.data();
  p.partials = partials.data();
  const bool same = p.n == 1;
  for (const int block : {64, 1024}) {
    if (same && !p.wide && types[0] == DType::bf16)
      run_threads<A, BFloat>(p, block, false);
    else if (same && !p.wide && types[0] == DType::f32)
      run_threads<A, float>(p, block, false);
    else
      run_threads<A, void>(p, block, false);
    near("sum");
  }
  std::vector<double> first;
  for (const CpuKernel& kernel : cpu_kernels()) {
    const int64_t chunks = chunks_of(p.count, kCpuChunk);
    kernel.of->distance(p, 0, p.batch * chunks);
    if (chunks > 1)
      for (int64_t b = 0; b < p.batch; ++b) {
        double sum = 0.0;
        for (int64_t i = 0; i < chunks; ++i) sum += partials[b * chunks + i];
        found[b] = value_of(p, sum);
      }
    near(kernel.name);
    if (first.empty()) first = found;
    expect(std::memcmp(first.data(), found.data(), 8 * first.size()) == 0, kernel.name, shape.name,
           -1);
  }

  // The gradient of sample 2 is 0: what is not finite there reaches no gradient.
  if (p.batch > 2) {
    for (int64_t at = 2 * p.count; at < 3 * p.count; ++at)
      inputs[0]->set(at, A(std::numeric_limits<float>::quiet_NaN()));
    expected[2] = std::numeric_limits<double>::quiet_NaN();
  }
  p.given_values = expected.data();
  std::vector<std::unique_ptr<Memory>> wanted;
  const auto fresh = [&](std::vector<std::unique_ptr<Memory>>& grads, int by) {
    for (int k = 0; k < p.n; ++k) {
      grads.push_back(std::make_unique<Memory>(types[k], total, by));
      p.grads[k] = k == 1 ? nullptr : grads[k]->data;
    }
  };
  fresh(wanted, 0);
  for (int64_t b = 0; b < p.batch; ++b) {
    const TermWeights<A> row = term_weights<A>(p, b);
    for (int64_t e = 0; e < p.count; ++e) {
      const int64_t at = b * p.count + e;
      const A slope = element_slope(summed, residual_at(row, at), A(c));
      for (int k = 0; k < p.n; ++k) {
        const double w = p.weights[k * p.columns + (p.columns == 1 ? 0 : b)];
        const A scale = static_cast<A>(w * element_factor(p, b));
        const bool zero = row.w[k] == A(0) || grad[b] == 0.0;
        if (k != 1) wanted[k]->set(at, zero ? A(0) : scale * slope);
      }
    }
  }
  const auto judge = [&](std::vector<std::unique_ptr<Memory>>& grads, const char* what) {
    for (int k = 0; k < p.n; ++k)
      expect(k == 1 ? grads[k]->guards_hold() : grads[k]->same(*wanted[k]), what, shape.name, k);
  };
  {
    std::vector<std::unique_ptr<Memory>> grads;
    fresh(grads, shift);
    run_threads<A, void>(p, 256, true);
    judge(grads, "gradient");
  }
  for (const CpuKernel& kernel : cpu_kernels()) {
    std::vector<std::unique_ptr<Memory>> grads;
    fresh(grads, shift);
    kernel.of->distance_backward(p, 0, p.batch * chunks_of(p.count, kCpuChunk));
    judge(grads, kernel.name);
  }
}

}  // namespace

int main() {
  for (const Shape& shape : kShapes)
    for (const int key_kind : {0, 1, 2, 3})
      for (const bool one_column : {false, true})
        for (const int shift : {0, 1}) {
          check_forms<float>(DType::f32, shape, key_kind, one_column, shift);
          check_forms<double>(DType::f64, shape, key_kind, one_column, shift);
          check_forms<Half>(DType::f16, shape, key_kind, one_column, shift);
          check_forms<BFloat>(DType::bf16, shape, key_kind, one_column, shift);
        }
  for (const Shape& shape : kShapes) {
    if (!shape.dims.empty()) continue;
    for (const bool one_column : {false, true})
      for (const int shift : {0, 1})
        for (const Size size : {Size::square, Size::abs, Size::huber, Size::pseudo_huber})
          for (const double c : {0.0, 0.3}) {
            check_distance<float>(shape, {DType::f32}, size, c, one_column, shift);
            check_distance<float>(shape, {DType::bf16}, size, c, one_column, shift);
            check_distance<float>(shape, {DType::f32, DType::bf16, DType::f32, DType::f16}, size, c,
                                  one_column, shift);
            check_distance<double>(
                shape, {DType::f64, DType::f32, DType::f16, DType::bf16, DType::f64, DType::f64},
                size, c, one_column, shift);
          }
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
