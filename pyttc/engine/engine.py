"""Engine: a model, its pool of keys and values, and the paths that live in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .arguments import whole_number, whole_numbers
from .attention import Step
from .cache import Ints, OutOfPages, PathCache, pages_for, ragged
from .cost import Cost, Prices, Rates
from .decode import held_interrupts
from .model import RowModel, chosen_device, load, load_tokenizer, row_model
from .ownership import NotCopied, synchronized
from .paths import Paths
from .pool import KVPool
from .support import check_answers
from .tree import TreeBuilder
from .weights import check_state

CHUNK = 256  # rows a pass over a prompt
LONGEST_TOKEN = 256  # characters; texts are bounded before they are split into tokens
Prompt = str | Sequence[int] | torch.Tensor | npt.NDArray[np.integer[Any]]


class Engine(NotCopied):
    """Serves a transformers causal language model to any number of paths over one paged cache.

    Threads may share an engine: its verbs and those of its paths run one at a time, each as a whole,
    with the scorer or `stop_if` it calls; these must not wait for another thread's verb. What paths
    wrote is read at any time, but not while another thread changes the same Paths.

    A process made by fork() cannot use its parent's engine: it hangs, as torch does, for want of
    OpenMP's threads. Start processes with "spawn", and make an engine in each.

    Attributes:
        tokenizer: of the checkpoint, or None; only text needs one.
        eos: token ids that end a path, from the checkpoint's generation config.
        model: the `RowModel`; model.model is the transformers model.
        lock: re-entrant, held by every verb; hold it to make several calls one.
    """

    instead = "its paths hold pages of its cache. Make another with Engine.from_pretrained()"

    def __init__(
        self,
        model: RowModel,
        tokenizer: Any = None,
        *,
        memory: int | str | None = None,
        page_size: int = 16,
        max_paths: int = 2**20,
    ) -> None:
        if not isinstance(model, RowModel):
            raise TypeError(f"model: got {type(model).__name__}, expected Engine.from_model(model)")
        self.model, self.tokenizer = model, tokenizer
        self.lock = threading.RLock()
        self.max_paths = whole_number("max_paths", max_paths, 1)
        self.device = model.device
        self.pool = KVPool(
            model.layers,
            model.kv_heads,
            model.head_dim,
            page_size,
            memory,
            model.dtype,
            model.device,
        )
        self.cache = PathCache(self.pool.pages, page_size)
        self._trees = TreeBuilder(self.cache, self.device)
        self._dropped: list[Ints] = []  # leaves of paths the garbage collector found
        eos = getattr(model.model.generation_config, "eos_token_id", None)
        if eos is None:
            eos = model.config.eos_token_id
        self.eos: list[int] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.max_length: int = getattr(model.config, "max_position_embeddings", 2**31 - 1)
        self.prices = Prices(
            body=2.0 * model.parameters,
            head=2.0 * model.head_parameters,
            attention=4.0 * model.layers * model.heads * model.head_dim,
            kv_bytes=self.pool.token_bytes,
            weight_bytes=(model.parameters + model.head_parameters) * model.dtype.itemsize,
            page_size=page_size,
        )
        self.rates = Rates()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        memory: int | str | None = None,
        page_size: int = 16,
        max_paths: int = 2**20,
        batch_invariant: bool = True,
    ) -> Engine:
        """Loads a checkpoint: its weights from safetensors only, its code from transformers only.

        Args:
            source: a directory or a hub id.
            device: "cuda" where there is one, else "cpu".
            dtype: of weights, keys and values; None: as in the checkpoint.
            memory, page_size, max_paths, batch_invariant: as for `from_model`.

        Raises:
            Unsupported: for a model that cannot be served exactly, with the reason.
        """
        loaded = load(str(source), chosen_device(device), dtype), load_tokenizer(str(source))
        options: dict[str, Any] = {"memory": memory, "page_size": page_size, "max_paths": max_paths}
        return cls.from_model(*loaded, batch_invariant=batch_invariant, **options)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        memory: int | str | None = None,
        page_size: int = 16,
        max_paths: int = 2**20,
        batch_invariant: bool = True,
    ) -> Engine:
        """Serves a transformers model that is in memory, on its device and in its dtype.

        Its Parameters stay what they are, and what an optimizer does to them is seen (see
        `load_weights`); on the CPU their data may move to other memory, once. The model gets the
        engine's attention and eval mode. To train it, give it others: set_attn_implementation("sdpa")
        and train(); the engine takes back what it needs when it is called.

        Args:
            model: a causal language model. tokenizer: None: token ids only.
            memory: for keys and values, bytes or "4GiB"; None: a quarter of the machine's memory,
                on a GPU 60 % of what is free. It is taken as paths need it (on a GPU, at once).
            page_size, max_paths: tokens a page, 1 to 256; the most paths of one Paths object.
            batch_invariant: a row of a matrix product has the same bits whatever the number of rows.
                Off, results of a path may depend on how many run beside it.

        Raises:
            Unsupported: for a model that cannot be served exactly, with the reason.
        """
        options: dict[str, Any] = {"memory": memory, "page_size": page_size, "max_paths": max_paths}
        engine = cls(row_model(model, batch_invariant), tokenizer, **options)
        check_answers(engine)
        return engine

    # --- weights

    @synchronized
    def load_weights(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Copies new weights over the model's; later prompts share nothing with earlier ones.

        Paths that are alive keep the keys, values and last hidden states that the weights of their
        time gave, and go on from them under the new ones: prefill again for paths of these alone.

        Optimizer steps, in-place changes and replaced parameters are taken up by themselves, with
        the next prefill, decode or hidden. What is written through `.data`, numpy or raw memory (as
        by torch.distributed) is used too, but cannot be seen: call `weights_changed` after it.

        Args:
            state_dict: all names of the model's own, with tensors of the same shapes and dtypes, on
                any device. Of weights that are tied, one is enough.

        Raises:
            ValueError, TypeError: for anything else; nothing was changed.
        """
        self.model.follow()
        held = self.model.model.state_dict()
        check_state(held, state_dict)
        with held_interrupts(), torch.inference_mode():
            for name, tensor in state_dict.items():
                held[name].copy_(tensor)
            self.model.renew()

    @synchronized
    def weights_changed(self) -> None:
        """Says that weights were written where torch does not count it, see `load_weights`."""
        self.model.renew()

    # --- memory

    @property
    @synchronized
    def free_pages(self) -> int:
        self.collect()
        return self.cache.free_pages

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that paths hold now."""
        return (self.pool.pages - self.free_pages) * self.pool.page_bytes

    @synchronized
    def required_pages(self, prompts: Any, paths: int = 1, new_tokens: int = 0) -> int:
        """Pages a run needs at most: each prompt prefilled, forked into `paths`, `new_tokens`
        decoded each.

        `prompts` as for `prefill`, or numbers of tokens. What prompts share with each other is not
        counted. Compare with `free_pages`; a page is `pool.page_bytes` bytes.
        """
        ps = self.cache.page_size
        paths, new_tokens = (
            whole_number("paths", paths, 1),
            whole_number("new_tokens", new_tokens, 0),
        )
        if isinstance(prompts, int):
            prompts = [prompts]
        if not isinstance(prompts, str) and all(isinstance(p, int) for p in prompts):
            lengths = whole_numbers("prompts", prompts, 1).tolist()
        else:
            lengths = [p.size for p in self.encode_all(prompts)]
        if paths == 1:
            return int(sum(pages_for(n + new_tokens, ps) for n in lengths))
        return int(
            sum(pages_for(n, ps) + paths * pages_for(n % ps + new_tokens, ps) for n in lengths)
        )

    @synchronized
    def collect(self) -> None:
        """Gives back the pages of paths nobody refers to any more."""
        while self._dropped:
            self.cache.release(self._dropped.pop())
        self.cache.sweep()

    # --- text

    def encode_all(self, prompts: Any) -> list[npt.NDArray[np.int32]]:
        """One prompt or many, text or token ids, as arrays of ids."""
        single = self.is_single("prompts", prompts)
        if not single:
            self.check_paths("prompts", len(prompts))
        return [self.encode(p) for p in ([prompts] if single else prompts)]

    def check_paths(self, name: str, count: int) -> None:
        if count > self.max_paths:
            raise ValueError(f"{name}: got {count}, expected at most {self.max_paths}, max_paths")

    @staticmethod
    def is_single(name: str, texts: Any) -> bool:
        """Whether `texts` is one text or list of ids, and not several."""
        if isinstance(texts, str):
            return True
        if not isinstance(texts, (Sequence, np.ndarray, torch.Tensor)):
            kind = type(texts).__name__
            raise TypeError(f"{name}: got {kind}, expected a text, token ids, or a list of either")
        if isinstance(texts, (np.ndarray, torch.Tensor)):
            return texts.ndim < 2
        several = (str, list, tuple, np.ndarray, torch.Tensor)
        return len(texts) > 0 and not isinstance(texts[0], several)

    def encode(
        self, text: Prompt, special: bool = True, name: str = "prompts"
    ) -> npt.NDArray[np.int32]:
        """Text or ids as an array of ids; `special`: with what the tokenizer puts around a text."""
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError(
                    f"{name}: got text, but this engine has no tokenizer: give token ids"
                )
            if len(text) > LONGEST_TOKEN * self.max_length:
                raise ValueError(
                    f"{name}: got a text of {len(text)} characters, expected at most "
                    f"{LONGEST_TOKEN} times {self.max_length}, the model's length"
                )
            ids = np.array(self.tokenizer(text, add_special_tokens=special)["input_ids"], np.int64)
        else:
            ids = whole_numbers(name, text).reshape(-1)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.model.vocab:
            raise ValueError(
                f"{name}: got tokens {int(ids.min())} to {int(ids.max())}, expected ids from 0 to "
                f"{self.model.vocab - 1}"
            )
        return ids.astype(np.int32)

    # --- running

    @synchronized
    def prefill(self, prompts: Any, *, seed: int = 0, salt: str | bytes | None = "") -> Paths:
        """Runs prompts through the model: Paths, one a prompt.

        Equal prompts become equal paths, which draw the same tokens. For n different continuations of
        each prompt write `prefill(prompts).fork(n)`, which also computes a prompt once, and not
        `prefill(prompts * n)`.

        Args:
            prompts: a text, a list of token ids, or a list of either. A text gets the special
                tokens its tokenizer puts around one, and no chat template.
            seed: of the draws of what is made of these paths, if fork names no other.
            salt: whole pages of keys and values that a prompt has in common with one already held
                are used again if both were given the same salt and the weights did not change (see
                `load_weights`); salts and token ids are compared, never hashes of them. Give each
                tenant a secret one of its own. None shares with nobody. The results are the same
                bits whatever is shared.

        Raises:
            OutOfPages, KeyboardInterrupt: nothing was changed.
        """
        start = time.perf_counter()
        encoded, seed = self.encode_all(prompts), whole_number("seed", seed)
        if salt is not None and not isinstance(salt, (str, bytes)):
            raise TypeError(f"salt: got {type(salt).__name__}, expected str, bytes or None")
        secret = salt.encode("utf-8", "surrogatepass") if isinstance(salt, str) else salt
        if not encoded:
            raise ValueError("prompts: got none, expected at least one")
        self.model.follow()
        secret = None if secret is None else b"%d:%s" % (self.model.version, secret)
        self.collect()
        for ids in encoded:
            if not 1 <= ids.size <= self.max_length:
                raise ValueError(
                    f"prompts: got one of {ids.size} tokens, expected 1 to {self.max_length}"
                )
        leaves: list[int] = []
        known: list[int] = []
        cost = Cost(self.prices, self.rates)
        try:
            for ids in encoded:
                leaf, matched = self.cache.new(ids, secret)
                leaves.append(leaf)
                known.append(matched)
                self.cache.write(np.array([leaf]), np.array([ids.size - matched]))
                self.cache.remember(leaf, ids[matched:], secret)
            before = np.array(known, np.int64)
            counts: Ints = np.array([ids.size for ids in encoded], np.int64) - before
            tokens = np.concatenate([ids[n:] for ids, n in zip(encoded, known, strict=True)])
            with held_interrupts() as check:
                ends = np.array(leaves, np.int64)
                hidden = self.run(ends, before, counts, tokens, check)
        except OutOfPages as error:
            self.cache.release(np.array(leaves, np.int64))
            needed = self.required_pages([ids.size for ids in encoded])
            raise OutOfPages(needed, self.cache.free_pages, self.cache.pages) from error
        except BaseException:
            self.cache.release(np.array(leaves, np.int64))
            raise
        paths = Paths(self, ends, encoded, hidden, seed, cost)
        lengths = before + counts
        cost.prompted(int(counts.sum()), int(lengths.sum()))
        cost.passed(before, counts, self.cache.tokens_under(paths.leaves))
        cost.matched(before)
        cost.held(self.kv_bytes, lengths)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        cost.took(time.perf_counter() - start)
        return paths

    @synchronized
    def run(
        self,
        leaves: Ints,
        first: Ints,
        counts: Ints,
        tokens: npt.NDArray[np.int32],
        check: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """The model over counts[i] >= 1 tokens of path i from first[i] on; room was made. Calls
        `check` between chunks.

        Returns:
            The hidden state [paths, H] of each path's last token.
        """
        if tokens.size == leaves.size:
            hidden = self._pass(tokens, first, leaves, self.cache.slots(leaves, first))
            return hidden[: leaves.size]
        rows, columns = ragged(counts)
        positions = first[rows] + columns
        last = np.cumsum(counts) - 1
        parts = []
        for at in range(0, rows.size, CHUNK):
            check()
            chunk = slice(at, at + CHUNK)
            hidden = self._pass(tokens[chunk], positions[chunk], leaves[rows[chunk]], None)
            wanted = last[(last >= at) & (last < at + CHUNK)] - at
            parts.append(hidden[torch.from_numpy(wanted).to(self.device)])
        return torch.cat(parts)

    def _pass(
        self, tokens: npt.NDArray[np.int32], positions: Ints, leaves: Ints, slots: Ints | None
    ) -> torch.Tensor:
        """One forward pass; slots are given when every row stands at the end of its path."""
        rows = tokens.size
        padding = self.model.padded(rows) - rows
        if slots is None:
            tree, slots = self._trees.runs(leaves, positions, padding)
        else:
            tree = self._trees.steps(leaves, padding)
        packed = np.zeros((3, rows + padding), np.int64)
        packed[0, :rows], packed[1, :rows], packed[2, :rows] = tokens, positions, slots
        packed[2, rows:] = -1
        ids, at, to = torch.from_numpy(packed).to(self.device)
        return self.model.hidden(ids, at, Step(self.pool.k, self.pool.v, to, tree))
