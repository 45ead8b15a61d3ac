// pyttc._C: the native CPU kernels, bound. The only file of them that knows Python.
#include "binding.h"
#include "isa.h"
#include "ops.h"
#include "philox.h"
#include "tree_plan.h"

PYBIND11_MODULE(_C, m) {
  using namespace pyttc;
  m.def("bind_torch", &bind_torch);
  m.def("isa", [] { return isa_name(isa()); });
  m.def("isa_of_machine", [] { return isa_name(isa_of_machine()); });
  m.def("philox", [](uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    const Philox r = philox(key, c0, c1, c2, c3);
    return pybind11::make_tuple(r.word[0], r.word[1], r.word[2], r.word[3]);
  });

  const auto unlocked = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("copy_pages", &copy_pages, unlocked);
  m.def("linear", &linear, unlocked);
  m.def("llama_pass", &llama_pass, unlocked);
  using pybind11::arg;
  m.def("llama_steps", &llama_steps, unlocked, arg("model"), arg("head"), arg("tokens"),
        arg("positions"), arg("tree"), arg("steps"), arg("ends"), arg("seed"), arg("path_ids"),
        arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"), arg("mask"), arg("topk"),
        arg("hidden"), arg("drawn"), arg("threads"));
  m.def("lm_head_topk", &lm_head_topk, unlocked);
  m.def("lm_head_topk_sample", &lm_head_topk_sample, unlocked);
  m.def("merge_states", &merge_states, unlocked);
  m.def("prefix_tree_attention", &prefix_tree_attention, unlocked);
  m.def("rms_norm", &rms_norm, unlocked);
  m.def("rotary", &rotary, unlocked);
  m.def("sample", &sample, unlocked);
  m.def("select_beams", &select_beams, unlocked);
  m.def("shared_prefix_attention", &shared_prefix_attention, unlocked);
  m.def("silu_mul", &silu_mul, unlocked);
  m.def("store_kv", &store_kv, unlocked);
  m.def("topk_score", &topk_score, unlocked);

  pybind11::class_<TreePlan>(m, "TreePlan")
      .def(pybind11::init<int64_t, int64_t, int64_t>())
      .def(
          "fill",
          [](TreePlan& plan, const Tensor& parents, const Tensor& page_offsets,
             const Tensor& page_ids, const Tensor& lengths, const Tensor& leaves,
             const Output& items, const Output& steps, const Output& slots, const Output& paths) {
            require(fits(items, DType::i32, {kAny}) && fits(steps, DType::i32, {kAny}) &&
                    fits(slots, DType::i32, {kAny}) &&
                    fits(paths, DType::i32, {leaves.numel() * 3}));
            const PlanRoom room{items.data<int32_t>(), steps.data<int32_t>(), slots.data<int32_t>(),
                                paths.data<int32_t>(), items.size(0) / 5,     steps.size(0) / 4,
                                slots.size(0)};
            const PlanSizes s = plan.fill(parents, page_offsets, page_ids, lengths, leaves, room);
            return std::make_tuple(s.items, s.steps, s.states, s.granule, s.grown, s.fits);
          },
          unlocked);
}
