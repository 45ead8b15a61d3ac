"""Several steps of decoding at once, where nothing but the model has a say in between.

A path's draws depend on nothing that Python does between two steps. So as long as no path can end and nobody
asks to look, the steps are one native call. What they draw, store and cost is what single steps do, to the
bit; the last draw is left to the caller, as that of a single step is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from .cache import Ints

if TYPE_CHECKING:
    from .paths import Paths

# What steps draw: tokens [steps, rows], -1 where logits are invalid, and values beside them.
Drawn = tuple[npt.NDArray[np.int32], dict[str, npt.NDArray[np.float32]]]
STEPS = 16  # at most
SECONDS = 0.05  # that steps may take together, for the sake of who waits: Ctrl-C, a bar, a budget


def possible(paths: Paths, which: Ints) -> bool:
    """Whether each of the paths at `which` has one token to run, its last."""
    if (paths._hidden_row[which] >= 0).any():
        return False
    run = paths.engine.cache.lengths(paths.leaves[which])
    return bool((paths.lengths[which] == run + 1).all())


def advance(
    paths: Paths,
    which: Ints,
    steps: int,
    run: Callable[[Ints, Ints], tuple[torch.Tensor, Drawn]],
) -> Drawn:
    """Takes the paths at `which` through `steps` steps at most; what all but the last drew is written down.

    Args:
        run: given the leaves of the paths, with room for so many tokens, and how many tokens they held:
            the hidden states of the last step, and what was drawn.

    Raises:
        OutOfPages: nothing was changed.
    """
    engine, cache, own = paths.engine, paths.engine.cache, paths.rows[which]
    engine.collect()
    first, counts = cache.lengths(paths.leaves[which]), np.full_like(which, steps)
    paths.segment.reserve(own, counts)
    with paths._room(which, counts) as leaves:
        hidden, (tokens, values) = run(leaves, first)
        done = len(tokens)
        states = paths._with_hidden(which, hidden)
        if done < steps:
            cache.take_back(leaves, leaves, counts - done)
            counts.fill(done)  # what is taken back should the rest fail
        paths.segment.push(own, tokens[:-1], **{name: each[:-1] for name, each in values.items()})
        paths.lengths[which] += done - 1
        paths.leaves[which], (paths._hidden, paths._hidden_row) = leaves, states
    under, ones = cache.tokens_under(leaves), np.ones_like(which)
    for step in range(done):
        paths.cost.passed(first + step, ones, under - (done - 1 - step) * which.size)
        paths.cost.sampled(which.size, which.size)
    paths.cost.held(engine.kv_bytes, paths.lengths)
    return tokens, values
