"""llama.cpp through llama-cpp-python's bindings, built for the machine it runs on: the cells of the prompt
are kept and shared by N sequences (seq_cp in a unified cache, no copies), a step is one batch of N tokens
and a draw by each path's own chain of samplers. bfloat16 weights, since they beat float16 where the processor
has bfloat16, and no flash attention, whose kernel for CPUs is slower at N>1 and long prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as llama
import numpy as np

from . import child

TYPES = {
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "float16": gguf.GGMLQuantizationType.F16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}
MOST = 64  # paths


def tensors(model: Path) -> Any:
    """Name and float32 array of each tensor of a checkpoint in bfloat16."""
    data = np.memmap(model / "model.safetensors", np.uint8, "r")
    size = int(data[:8].view(np.uint64)[0])
    header = json.loads(data[8 : 8 + size].tobytes())
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = (8 + size + at for at in entry["data_offsets"])
            words = data[first:last].view(np.uint16).astype(np.uint32)
            yield name, (words << 16).view(np.float32).reshape(entry["shape"])


def converted(model: Path, dtype: str) -> Path:
    path = model.with_name(f"{model.name}-{dtype}.gguf")
    if path.exists():
        return path
    config = json.loads((model / "config.json").read_text())
    kind = config["model_type"]  # llama or qwen2
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    layers, made = config["num_hidden_layers"], path.with_suffix(".part")
    writer = gguf.GGUFWriter(made, kind)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, layers)
    for name, array in tensors(model):
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            n = heads if "q_proj" in name else groups  # pairs that turn together lie side by side
            array = array.reshape(n, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        held = TYPES[dtype] if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        quantized = gguf.quants.quantize(np.ascontiguousarray(array), held)
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(called, quantized, raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made.rename(path)


class Llama:
    package = "llama-cpp-python"

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        llama.llama_backend_init()
        path = str(converted(model, dtype)).encode()
        self.model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = 8192, 4096, 1 + MOST
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(self.model, params)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(4096, 0, 1)
        self.prompt: list[int] = []
        self.chains = [self.chain(seed) for seed in range(MOST)]

    @staticmethod
    def chain(seed: int) -> Any:
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_k(child.TOP_K))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(child.TEMPERATURE))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
        return chain

    def run(self, tokens: list[int], positions: Any, sequences: Any, wanted: Any) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, at, sequence) in enumerate(zip(tokens, positions, sequences)):  # noqa: B905
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i in wanted
        if code := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code}")

    def draw(self, paths: int, rows: list[int]) -> list[int]:
        sample = llama.llama_sampler_sample
        return [sample(self.chains[n], self.context, rows[n]) for n in range(paths)]

    def decode(
        self, prompt: list[int], paths: int, steps: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        length = len(prompt)
        if prompt != self.prompt:
            llama.llama_memory_clear(self.memory, True)
            self.prompt = prompt
            self.run(prompt[:-1], range(length - 1), [0] * length, ())
        llama.llama_memory_seq_keep(self.memory, 0)
        llama.llama_memory_seq_rm(self.memory, 0, length - 1, -1)
        self.run(prompt[-1:], [length - 1], [0], (0,))
        for path in range(paths):
            llama.llama_memory_seq_cp(self.memory, 0, 1 + path, 0, -1)
        drawn = [self.draw(paths, [0] * paths)]
        mark()
        rows = list(range(paths))
        for at in range(length, length + steps):
            self.run(drawn[-1], [at] * paths, range(1, 1 + paths), range(paths))
            drawn.append(self.draw(paths, rows))
            mark()
        return [list(path) for path in zip(*drawn)]  # noqa: B905


if __name__ == "__main__":
    child.serve(Llama)
