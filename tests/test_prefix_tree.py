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


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_tree_refuses_a_tensor_without_values(place):
    arguments = [[-1], [[0]], [4], [0]]
    arguments[place] = torch.tensor(arguments[place], device="meta")
    name = ("parents", "pages", "lengths", "leaves")[place]
    with pytest.raises(ValueError, match=f"^{name}: got a tensor on meta, expected one that holds"):
        pyttc.PrefixTree(*arguments, 4)


def test_tree_is_made_on_the_cpu_whatever_the_default_device():
    arguments = ([-1, 0], [torch.tensor([3, 1]), torch.tensor([2])], [5, 2], [1, 0, 1], 4)
    q, pages = torch.randn(3, 2, 16), torch.randn(4, 4, 2, 16)
    expected = pyttc.prefix_tree_attention(q, pages, pages, pyttc.PrefixTree(*arguments))
    with torch.device("meta"):
        tree = pyttc.PrefixTree(*arguments)
        plan = tree.plan(q, pages)
        out, lse = pyttc.prefix_tree_attention(q, pages, pages, tree)
    assert all(part.is_cpu for part in (tree.parents, tree.page_offsets, *plan[:4]))
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
