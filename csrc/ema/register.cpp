// The kernel of the operator ema_update, whose schema cmsolvers/ops/ema_update.py defines.
#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../python/tensors.h"
#include "params.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Doubles = c10::ArrayRef<double>;

// averages[j * n + i] follows values[i] with weight j.
struct Lists {
  at::TensorList averages;
  at::TensorList values;
  int64_t n;
  int64_t k;

  const at::Tensor& average(int64_t j, int64_t i) const { return averages[j * n + i]; }
};

void check_tensors(const Lists& lists) {
  for (int64_t i = 0; i < lists.n; ++i) {
    const at::Tensor& value = lists.values[i];
    DType type;
    TORCH_CHECK_TYPE(find_dtype(value.scalar_type(), type), "values[", i,
                     "] must be float64, float32, float16 or bfloat16; got ", value.scalar_type());
    for (int64_t j = 0; j < lists.k; ++j) {
      const at::Tensor& average = lists.average(j, i);
      TORCH_CHECK_TYPE(average.scalar_type() == at::kFloat || average.scalar_type() == at::kDouble,
                       "averages[", j, "][", i, "] must be float64 or float32; got ",
                       average.scalar_type());
      TORCH_CHECK_VALUE(average.sizes() == value.sizes(), "averages[", j, "][", i,
                        "] must have the shape of values[", i, "], ", value.sizes(), "; got ",
                        average.sizes());
      at::assert_no_internal_overlap(average);
    }
  }
}

// Whether one pass serves all averages of a value: they have one dtype and one device.
bool together(const Lists& lists) {
  for (int64_t i = 0; i < lists.n; ++i)
    for (int64_t j = 1; j < lists.k; ++j)
      if (lists.average(j, i).scalar_type() != lists.average(0, i).scalar_type() ||
          lists.average(j, i).device() != lists.average(0, i).device())
        return false;
  return true;
}

using Memory = std::pair<uintptr_t, uintptr_t>;  // first byte, and the one after the last

Memory memory_of(const at::Tensor& t) {
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return {begin, begin + static_cast<uintptr_t>((last + 1) * t.element_size())};
}

bool same_place(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() &&
         a.strides() == b.strides();
}

// Whether some average shares memory with another or with a value: the order then matters, and one
// launch for all of them would race. A value that is its own average does no harm.
bool share_memory(const Lists& lists) {
  std::vector<Memory> written;
  written.reserve(lists.averages.size());
  for (const at::Tensor& average : lists.averages)
    if (average.numel() > 0) written.push_back(memory_of(average));
  std::sort(written.begin(), written.end());
  for (size_t m = 1; m < written.size(); ++m)
    if (written[m].first < written[m - 1].second) return true;
  for (int64_t i = 0; i < lists.n; ++i) {
    if (lists.values[i].numel() == 0) continue;
    const Memory value = memory_of(lists.values[i]);
    // The ranges are disjoint, so that their ends ascend as their beginnings do.
    const auto first = std::upper_bound(
        written.begin(), written.end(), value.first,
        [](uintptr_t begin, const Memory& memory) { return begin < memory.second; });
    if (first == written.end() || first->first >= value.second) continue;
    bool own = false;
    for (int64_t j = 0; j < lists.k; ++j)
      own = own || same_place(lists.average(j, i), lists.values[i]);
    if (!own) return true;
  }
  return false;
}

struct Weights {
  Doubles numbers;
  const at::Tensor* table;  // replaces the numbers, or nullptr
};

// One pass over tensors of one device; keeps alive what the launch reads.
class Pass {
 public:
  Pass(at::Device device, int64_t k) : device_(device), k_(k) {}

  void add(const Lists& lists, int64_t first_average, int64_t i, bool infinities) {
    const at::Tensor& like = lists.average(first_average, i);
    EmaTensor t;
    t.type = dtype_of(like.scalar_type());
    t.count = like.numel();
    t.infinities = infinities;
    const at::Tensor layout = like.is_non_overlapping_and_dense() ? like : at::empty_like(like);
    const at::Tensor value = in_layout(lists.values[i], layout);
    t.value = value.const_data_ptr();
    t.value_type = dtype_of(value.scalar_type());
    for (int64_t j = 0; j < k_; ++j) {
      const at::Tensor& average = lists.average(first_average + j, i);
      const at::Tensor own = in_layout(average, layout);
      if (!own.is_same(average)) moved_.emplace_back(average, own);
      t.averages[j] = own.mutable_data_ptr();
    }
    tensors_.push_back(t);
  }

  void run(const Weights& weights, int64_t first_average) {
    std::vector<int64_t> first{0};
    for (const EmaTensor& t : tensors_) first.push_back(first.back() + t.count);
    EmaBatch batch;
    batch.tensors = tensors_.data();
    batch.first = first.data();
    batch.n = static_cast<int>(tensors_.size());
    batch.k = static_cast<int>(k_);
    at::Tensor table;
    if (weights.table != nullptr) {
      table = weights.table->to(device_).contiguous();
      batch.table = table.const_data_ptr<double>() + first_average;
    } else {
      for (int64_t j = 0; j < k_; ++j) batch.weights[j] = weights.numbers[first_average + j];
    }
    launch(batch);
    for (auto& [average, own] : moved_) average.copy_(own);
  }

 private:
  // The tensor, or a copy on the device of `layout` with its order in memory.
  at::Tensor in_layout(const at::Tensor& t, const at::Tensor& layout) {
    const bool dense = (t.is_contiguous() && layout.is_contiguous()) ||
                       (t.strides() == layout.strides() && t.is_non_overlapping_and_dense());
    if (dense && t.device() == device_ && !t.is_neg()) return t;
    at::Tensor copy = at::empty_like(layout, layout.options().dtype(t.scalar_type()));
    copy.copy_(t);
    kept_.push_back(copy);
    return copy;
  }

  void launch(const EmaBatch& batch) const {
    if (!device_.is_cuda()) return launch_ema_cpu(batch);
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = device_.index();
    launch_ema_cuda(batch, device, c10::cuda::getCurrentCUDAStream(device_.index()).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  }

  at::Device device_;
  int64_t k_;
  std::vector<EmaTensor> tensors_;
  std::vector<at::Tensor> kept_;
  std::vector<std::pair<at::Tensor, at::Tensor>> moved_;  // average, and the copy that was written
};

// k averages from number `j` on follow the values begin .. end - 1.
void update(const Lists& lists, int64_t j, int64_t k, int64_t begin, int64_t end,
            const Weights& weights, const std::vector<bool>& infinities) {
  std::vector<at::Device> devices;
  std::vector<Pass> passes;
  for (int64_t i = begin; i < end; ++i) {
    if (lists.values[i].numel() == 0) continue;
    const at::Device device = lists.average(j, i).device();
    const auto found = std::find(devices.begin(), devices.end(), device);
    const auto place = static_cast<size_t>(found - devices.begin());
    if (found == devices.end()) {
      devices.push_back(device);
      passes.emplace_back(device, k);
    }
    passes[place].add(lists, j, i, infinities[i]);
  }
  for (Pass& pass : passes) pass.run(weights, j);
}

void ema_update(at::TensorList averages, at::TensorList values, Doubles numbers,
                const OptionalTensor& table, at::IntArrayRef infinite) {
  const auto n = static_cast<int64_t>(values.size());
  if (table.has_value()) {
    TORCH_CHECK_TYPE(table->scalar_type() == at::kDouble, "weights must be float64; got ",
                     table->scalar_type());
    TORCH_CHECK_VALUE(table->dim() == 1 && numbers.empty(), "weights must have shape [k]; got ",
                      table->sizes());
  }
  const int64_t k = table.has_value() ? table->size(0) : static_cast<int64_t>(numbers.size());
  TORCH_CHECK_VALUE(static_cast<int64_t>(averages.size()) == k * n, "averages must hold ", k,
                    " lists (one per weight) of ", n, " tensors (one per value); got ",
                    averages.size(), " tensors");
  std::vector<bool> infinities(n, false);
  for (const int64_t i : infinite) {
    TORCH_CHECK_VALUE(i >= 0 && i < n, "infinite must hold places in values, 0 to ", n - 1,
                      "; got ", i);
    infinities[i] = true;
  }
  const Lists lists{averages, values, n, k};
  check_tensors(lists);
  const Weights weights{numbers, table.has_value() ? &*table : nullptr};
  if (share_memory(lists)) {  // one after the other, as they would be in a loop
    for (int64_t j = 0; j < k; ++j)
      for (int64_t i = 0; i < n; ++i) {
        const bool own = same_place(lists.average(j, i), values[i]);
        const at::Tensor value =
            own || disjoint(lists.average(j, i), values[i]) ? values[i] : values[i].clone();
        const Lists one{lists.average(j, i), value, 1, 1};
        const double number = numbers.empty() ? 0.0 : numbers[j];
        const at::Tensor entry = table.has_value() ? table->narrow(0, j, 1) : at::Tensor();
        update(one, 0, 1, 0, 1, {number, table.has_value() ? &entry : nullptr},
               {static_cast<bool>(infinities[i])});
      }
  } else {
    const int64_t most = together(lists) ? kMaxAverages : 1;
    for (int64_t j = 0; j < k; j += most)
      update(lists, j, std::min(most, k - j), 0, n, weights, infinities);
  }
  for (const at::Tensor& average : averages) mark_written(average);
}

}  // namespace

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("ema_update", &ema_update);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("ema_update", &ema_update);
}
#endif

}  // namespace cmsolvers
