"""Why a change to the Python code that no test notices is no bug, by file and change."""

SAME_AXIS = "the tensor has two dimensions: its last is 1"
INNER_DEFAULT = "the public function passes every argument: no call takes this default"
OPS = "pyttc/ops/"
REASONS: dict[tuple[str, str], str] = {
    (f"{OPS}sample.py", "USub dropped: -1"): SAME_AXIS,
    (f"{OPS}sample.py", "1 to 2"): "what top_p = 1 would cut off is less than a sum's rounding",
    (f"{OPS}sample.py", "0 to 1"): INNER_DEFAULT,
    (
        f"{OPS}sample.py",
        "And to Or: not isinstance(value, (int, float)) and isinstance(value, torch.Tensor)",
    ): "differs for what is neither number nor tensor, which is refused on either way",
    (f"{OPS}sample.py", "True to False"): "a check of lengths that are equal by construction",
    (f"{OPS}select_beams.py", "0.0 to 1.0"): INNER_DEFAULT,
    (f"{OPS}lm_head_topk.py", "never: if positions is None"): "the dispatcher names positions too",
    (f"{OPS}prefix_tree_attention.py", "256 to 257"): "257 is no multiple of 8",
}
