"""Replay: paths whose draws are known go on without the model, until something asks it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from . import history, multi_step
from .cache import Ints, ragged
from .multi_step import Drawn

if TYPE_CHECKING:
    from .paths import Paths

CHUNK = 256  # rows a pass


def skip(paths: Paths, which: Ints, drawn: Drawn) -> None:
    """Leaves the paths at `which` as what was drawn for them did, pages and cost included, and runs nothing.

    The paths are hollow then: their keys, values and hidden states are missing, which the next pass
    of the model makes up for.

    Raises:
        ValueError: for several steps of paths that cannot take so many.
    """
    steps = len(drawn[0])
    if steps == 1:
        paths.forward(which, skip=True)
        paths.cost.sampled(which.size, np.unique(paths._hidden_row[which]).size)
    elif multi_step.possible(paths, which):
        multi_step.advance(paths, which, steps, lambda *_: (paths._no_hidden(which.size), drawn))
        paths.hollow = True
    else:
        raise ValueError(f"drawn: got {steps} steps, expected 1")
    paths.cost.counted()


@torch.inference_mode()
def refill(paths: Paths) -> None:
    """Runs what hollow paths only counted as run, each shared token once. No cost is counted.

    A token has the same keys and values whatever runs beside it, so these are the bits that were
    there when the draws were made.
    """
    engine, cache = paths.engine, paths.engine.cache
    if not len(paths):
        paths.hollow = False
        return
    ends = cache.lengths(paths.leaves)
    sizes = np.array([ids.size for ids in paths.prompts], np.int64)[paths.prompt]
    starts = np.minimum(sizes, ends - 1)  # a hidden state is wanted of each path
    rows, columns = ragged(ends - starts)
    positions = starts[rows] + columns
    leaves = paths.leaves[rows]
    slots = cache.slots(engine._trees._nodes_at(leaves, positions), positions)
    _, first, same = np.unique(slots, return_index=True, return_inverse=True)
    order = np.argsort(positions[first], kind="stable")  # what a token attends to comes before it
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    chosen = first[order]
    written = history.read(paths.segment, paths.rows, "tokens")
    texts = [
        np.concatenate([paths.prompts[prompt][-1:], wrote])[start - size + 1 :][:count]
        for prompt, wrote, start, size, count in zip(
            paths.prompt, written, starts, sizes, ends - starts, strict=True
        )
    ]
    tokens = np.concatenate(texts).astype(np.int32)[chosen]
    hidden = []
    for at in range(0, chosen.size, CHUNK):
        part = chosen[at : at + CHUNK]
        out = engine._pass(tokens[at : at + CHUNK], positions[part], leaves[part], None)
        hidden.append(out[: part.size])
    last = place[same.reshape(-1)[np.cumsum(ends - starts) - 1]]
    known = np.flatnonzero(paths._hidden_row >= 0)
    distinct, row = np.unique(paths._hidden_row[known], return_inverse=True)
    of = np.empty(distinct.size, np.int64)
    of[row] = last[known]
    # row numbers keep their order, and forks that share one go on sharing it
    paths._hidden = torch.cat(hidden)[torch.from_numpy(of).to(engine.device)]
    paths._hidden_row[known] = row
    paths.hollow = False
