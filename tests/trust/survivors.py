"""Why a change to the Python code that no test notices is no bug, by file, function and change."""

INNER_DEFAULT = "the public function passes every argument: no call takes this default"
UNUSED_ROOM = "arrays of nodes become larger than they have to be, and no result shows it"
SAMPLE, SAMPLING = "pyttc/ops/sample.py", "pyttc/ops/sampling.py"
CACHE = "pyttc/engine/cache.py"
NEITHER = "And to Or: not isinstance(value, (int, float)) and isinstance(value, torch.Tensor)"
REASONS: dict[tuple[str, str, str], str] = {
    (SAMPLE, "reference", "USub dropped: -1"): "the tensor has two dimensions: its last is 1",
    (SAMPLE, "reference", "0 to 1"): "what this fills with 1 is then cut to at most 0",
    (SAMPLE, "keep", "1 to 2"): "what top_p = 1 would cut off is less than a sum's rounding",
    (SAMPLING, "check_numbers", "0 to 1"): INNER_DEFAULT,
    (SAMPLING, "any_tensor", NEITHER): "differs for what is neither, which is refused either way",
    (SAMPLING, "row_values", "True to False"): "a check of lengths equal by construction",
    ("pyttc/ops/select_beams.py", "fake", "0.0 to 1.0"): INNER_DEFAULT,
    ("pyttc/ops/lm_head_topk.py", "lm_head_topk", "1.0 to 2.0"): "an overload, for type checkers",
    (
        "pyttc/ops/lm_head_topk.py",
        "lm_head_topk",
        "never: if positions is None",
    ): "the dispatcher names positions too",
    (CACHE, "", "1 to 2"): "any negative number marks a node that is none",
    (CACHE, "PathCache.__init__", "64 to 65"): UNUSED_ROOM,
    (CACHE, "PathCache._grow", "Sub to Add: 2 * size - free.size"): UNUSED_ROOM,
    (CACHE, "PathCache._grow", "Gt to GtE: nodes > self._nodes_left"): UNUSED_ROOM,
    (CACHE, "PathCache._widen", "Sub to Add: max(pages, 2 * width) - width"): UNUSED_ROOM,
    (
        "pyttc/engine/tree.py",
        "TreeBuilder._tree",
        "Eq to NotEq: self.device.type == 'cpu'",
    ): "on a CPU the host's tensors are the tree's own",
    ("pyttc/ops/checks.py", "_dims", "True to False"): "a check of lengths equal by construction",
    ("pyttc/ops/checks.py", "overlaps_itself", "0 to 1"): "of one element no stride counts",
    (CACHE, "PathCache.sweep", "Gt to GtE: nodes.size > 1"): "a single node is unique",
    (
        "pyttc/ops/prefix_tree_attention.py",
        "prefix_tree_attention",
        "Or to And: impl in ON_GPU or (impl is None and getattr(q, 'is_cuda', False))",
    ): "tests/interpreted notice, in a process of their own",
    ("pyttc/ops/prefix_tree_attention.py", "check", "256 to 257"): "257 is no multiple of 8",
}
