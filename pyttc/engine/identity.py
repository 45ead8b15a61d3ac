"""Who a path is, so that its random draws are its own: keys of seed and prompt, ids of the fork.

A draw is a function of (key, path id, position) alone, where

- key = 63 bits mixed from the seed and the prompt's token ids: two prompts never share draws, and
  the same prompt has the same draws wherever it stands in a batch;
- the k-th fork of an untouched prompt has path id k, so that a run with 256 paths contains the run
  with 64;
- the k-th fork of a path that has written something has an id mixed from (its id, its length, k):
  63 bits that depend neither on how many are forked nor on anyone else. Any two of a million such
  ids agree with a chance of 5e-8.

`sample` counts paths in 32 bits: the low word of the id goes there and the high word into the key.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def mix(value: Words) -> Words:
    """Each word scrambled so that any change of input changes every output bit with chance 1/2.

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def prompt_word(tokens: npt.NDArray[np.int32]) -> int:
    """64 bits of a prompt's token ids."""
    digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def child_ids(
    ids: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    fresh: npt.NDArray[np.bool_],
    parents: npt.NDArray[np.int64],
    k: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Ids of forks: the k[i]-th of path parents[i], of all the paths with these ids and lengths.

    `fresh` marks paths that are prompts: they have written nothing and are no forks.
    """
    if fresh.all():
        return k
    of = mix(mix(ids.astype(np.uint64)) ^ lengths.astype(np.uint64))
    mixed = (mix(of[parents] ^ k.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
    return np.where(fresh[parents], k, mixed) if fresh.any() else mixed


def sample_keys(
    seeds: npt.NDArray[np.int64], prompts: Words, ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(keys of 63 bits, path ids of 32) for `sample`."""
    high = ids.astype(np.uint64) >> np.uint64(32)
    keys = mix(mix(mix(seeds.astype(np.uint64)) ^ prompts) ^ high)
    return (keys >> np.uint64(1)).astype(np.int64), ids & np.int64(0xFFFFFFFF)
