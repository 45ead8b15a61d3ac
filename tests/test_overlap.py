"""Sharing memory, as the in-place ops see it, against the sets of addresses; native and reference agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttc import copy_pages
from pyttc.ops import checks

from .common import EXAMPLES

checked = settings(max_examples=EXAMPLES, derandomize=True)
sizes = st.tuples(*(st.integers(1, 3) for _ in range(3)))
strides = st.tuples(*(st.sampled_from([0, 2, 3, 4, 6, 8, 12, 24]) for _ in range(3)))


def view(memory, offset, size, stride):
    return memory.as_strided((*size, 2), (*stride, 1), offset)


def addresses(tensor):
    offsets = torch.arange(tensor.untyped_storage().nbytes() // 4)
    seen = offsets.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return seen.flatten().tolist()


def refused(k_pages, v_pages, impl):
    nothing = torch.zeros(0, dtype=torch.int64)
    try:
        copy_pages(k_pages, v_pages, nothing, nothing, impl=impl)
    except ValueError as error:
        assert "shares" in str(error) or "share memory" in str(error)
        return True
    return False


@checked
@given(sizes, strides, st.integers(0, 200), st.integers(0, 200), st.booleans(), sizes, strides)
def test_as_the_addresses_say(size, stride, offset, other_offset, alike, other_size, other_stride):
    memory = torch.zeros(400)
    a = view(memory, offset, size, stride)
    b = view(memory, other_offset, size, stride if alike else other_stride)
    itself = [len(set(addresses(t))) < t.numel() for t in (a, b)]
    shared = bool(set(addresses(a)) & set(addresses(b)))
    # Never missed; and nothing is refused that the usual layouts need.
    assert not itself[0] or checks.overlaps_itself(a)
    assert not shared or checks.share_memory(a, b)
    if alike and not checks.overlaps_itself(a):
        assert checks.share_memory(a, b) == shared
    expected = checks.overlaps_itself(a) or checks.overlaps_itself(b) or checks.share_memory(a, b)
    assert refused(a, b, "native") == refused(a, b, "reference") == expected


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_a_distance_of_one_stride_less_another(impl):
    memory = torch.zeros(100)
    a, b, c = (view(memory, offset, (2, 2, 1), (10, 3, 2)) for offset in (0, 7, 5))
    assert set(addresses(a)) & set(addresses(b)) and refused(a, b, impl) and refused(b, a, impl)
    assert not set(addresses(a)) & set(addresses(c)) and not refused(a, c, impl)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_interleaved_pools_are_fine(impl):
    memory = torch.zeros(4, 2, 3, 2, 8)
    assert not refused(memory[:, 0], memory[:, 1], impl)
    assert not refused(*memory.transpose(2, 3).unbind(1), impl)
    flat = torch.zeros(4, 3, 2, 16)
    assert not refused(flat[..., :8], flat[..., 8:], impl)
    assert refused(flat[..., :9], flat[..., 7:], impl)
