"""Scorers: a float for each path. Any callable on Paths is one; a LinearHead is another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from ..engine import Paths
    from .run import Run
    from .tree import SearchTree

Aggregate = Literal["last", "min", "product", "mean"]


def mean_logprob(paths: Paths) -> torch.Tensor:
    """[N]: the mean log-probability of a path's sampled tokens, -inf before the first."""
    return paths.logprobs.nanmean(1).nan_to_num(-torch.inf)


def self_certainty(paths: Paths) -> torch.Tensor:
    """[N]: the mean confidence of a path's sampled tokens, -inf before the first.

    Needs paths decoded with confidence=k, a setting of `solve`: minus the mean log-probability of the k
    best tokens, the truncated form of Kang et al. (arXiv 2502.18581) that DeepConf uses.
    """
    return paths.confidence.nanmean(1).nan_to_num(-torch.inf)


def over_steps(run: Run, paths: Paths, how: Aggregate) -> npt.NDArray[np.float64]:
    """[N]: the scores that each path's steps got, as one: the last, the least, their product or mean.

    Steps nobody scored do not count; a path without a score has -inf. Source of the four: Snell et al.
    (arXiv 2408.03314), Lightman et al. (arXiv 2305.20050).
    """
    return np.array([of_line(run.tree, node, how) for node in run.nodes(paths)], np.float64)


def of_line(tree: SearchTree, node: int, how: Aggregate) -> float:
    """over_steps, of the path to one node of a record."""
    ways: dict[str, Any] = {"last": _last, "min": min, "product": np.prod, "mean": np.mean}
    scores = [step.score for step in tree.line(node) if step.score is not None]
    return float(ways[how](scores)) if scores else -np.inf


def _last(scores: list[float]) -> float:
    return scores[-1]
