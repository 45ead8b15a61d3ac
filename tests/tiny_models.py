"""Small random models with a tokenizer, made offline and saved as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 5000,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LAYERS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": LAYERS},
    ),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "gemma2": (
        "Gemma2Config",
        {
            "sliding_window": 5,
            "layer_types": LAYERS,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 5, "layer_types": LAYERS}),
}

FAMILY = ("llama", "mistral", "qwen2", "qwen2_window", "qwen3")  # that of LlamaPass


def make(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
    """Saves a model and a byte-level tokenizer; returns the folder."""
    name, extra = CONFIGS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SHAPE, **extra, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the steps; then\n\nthe next; and the last step. " * 20], trainer
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"bos_token": "<s>", "eos_token": "</s>"}
    ).save_pretrained(folder)


def plain_model(folder: str) -> Any:
    """The same checkpoint as transformers runs it, eager attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@torch.inference_mode()
def plain_loop(model: Any, prompt: list[int], steps: int, choose: Any = None) -> list[int]:
    """A loop over transformers with a full cache; choose(logits [1, V], position) gives the
    token."""
    cache = transformers.DynamicCache(config=model.config)
    ids, written = torch.tensor([prompt]), []
    for step in range(steps):
        logits = model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
        token = int(logits.argmax()) if choose is None else choose(logits, len(prompt) + step)
        written.append(token)
        if token == SHAPE["eos_token_id"]:
            break
        ids = torch.tensor([[token]])
    return written
