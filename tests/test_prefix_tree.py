"""PrefixTree: what it is made from, and what it refuses."""

import copy
import pickle

import numpy
import pytest
import torch

import pyttc


def test_tree_accepts_lists_tensors_and_arrays():
    lists = ([-1, 0], [[3, 1], [2]], [5, 2], [1, 0, 1])
    tree = pyttc.PrefixTree(*lists, 4)
    assert tree.page_offsets.tolist() == [0, 2, 3] and tree.page_ids.tolist() == [3, 1, 2]
    for make in (torch.tensor, numpy.array):
        other = pyttc.PrefixTree(
            make(lists[0]), [make(p) for p in lists[1]], make(lists[2]), make(lists[3]), 4
        )
        for name in ("parents", "page_offsets", "page_ids", "lengths", "leaves"):
            assert torch.equal(getattr(tree, name), getattr(other, name))
    assert "2 nodes, 3 paths" in repr(tree)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([-1, 2], [[0], [1]], [1, 1], [0], 4), "parents"),
        (([-2], [[0]], [1], [0], 4), "parents"),
        (([1, 2, 0], [[0], [1], [2]], [1, 1, 1], [0], 4), "parents"),
        (([0], [[0]], [1], [0], 4), "parents"),
        (([-1], [], [1], [0], 4), "pages"),
        (([-1], [[0]], [5], [0], 4), "pages"),
        (([-1], [[0]], [1, 1], [0], 4), "lengths"),
        (([-1], [[0]], [-1], [0], 4), "lengths"),
        (([-1], [[0]], [1], [1], 4), "leaves"),
        (([-1], [[0]], [1], [-2], 4), "leaves"),
        (([-1], [[0]], [1], [[0]], 4), "leaves"),
        (([-1], [[0]], [1.5], [0], 4), "lengths"),
        (([-1], [[0]], [1], [0], 0), "page_size"),
        (([-1], [[0]], [1], [0], 257), "page_size"),
    ],
)
def test_tree_refuses(arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        pyttc.PrefixTree(*arguments)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_tree_is_copied_without_its_plans(duplicate):
    tree = pyttc.PrefixTree([-1, 0], [[3, 1], [2]], [5, 2], [1, 0, 1], 4)
    tree.plan(torch.zeros(3, 2, 16), torch.zeros(4, 4, 2, 16))
    other = duplicate(tree)
    for name in ("parents", "page_offsets", "page_ids", "lengths", "leaves"):
        assert torch.equal(getattr(tree, name), getattr(other, name))
    assert other.page_size == 4 and tree._plans and not other._plans
    assert pickle.dumps(tree)
