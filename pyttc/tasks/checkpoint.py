"""Countdown models as transformers checkpoints: config, tokenizer, safetensors; and back for training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .countdown_text import EOS, PAD, VOCABULARY
from .llama import Llama, Shape


def save_model(model: Llama, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes config.json, generation_config.json, tokenizer files and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{k: v for k, v in asdict(model.shape).items() if k != "rope_theta"},
        "rope_parameters": {"rope_type": "default", "rope_theta": model.shape.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": VOCABULARY.index(EOS),
        "pad_token_id": VOCABULARY.index(PAD),
        "dtype": str(dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 1.0})
    weights = {f"model.{name}": p for name, p in model.named_parameters() if "reward" not in name}
    weights = {name: p.detach().to(dtype).contiguous() for name, p in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model of a folder that save_model wrote; matrix products will run in `dtype`."""
    config = json.loads((folder / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    names = [name for name in Shape.__dataclass_fields__ if name != "rope_theta"]
    model = Llama(Shape(**{name: config[name] for name in names}, rope_theta=theta), dtype)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({n.removeprefix("model."): w.float() for n, w in weights.items()}, strict=False)
    return model


def save_tokenizer(folder: Path) -> None:
    """A character-level tokenizer that AutoTokenizer loads; a character it does not know is an error."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: i for i, symbol in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.save_pretrained(folder)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
