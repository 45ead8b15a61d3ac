"""What several tests share."""

import contextlib
import os
from collections.abc import Iterator

import torch

# Hypothesis examples an axis: 200 on every push, more in the nightly script.
EXAMPLES = int(os.environ.get("PYTTC_EXAMPLES", 200))


def spread(tensor: torch.Tensor, last: int = 1) -> torch.Tensor:
    """The same values with gaps between rows and the first two dimensions swapped in memory. The gaps
    hold NaN (integers: a huge value). `last` is the stride of the last dimension.
    """
    poison = float("nan") if tensor.is_floating_point() else 2**30
    shape = list(tensor.shape)
    swap = len(shape) >= 3
    if swap:
        shape[0], shape[1] = shape[1], shape[0]
    shape[-1] = (shape[-1] + 3) * last
    memory = torch.full([n + 1 for n in shape[:-1]] + shape[-1:], poison, dtype=tensor.dtype)
    if swap:
        memory = memory.transpose(0, 1)
    view = memory[tuple(slice(n) for n in tensor.shape[:-1])][..., :: last][..., : tensor.shape[-1]]
    return view.copy_(tensor)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaNs too."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_floating_point():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, b = a.contiguous().view(bits), b.contiguous().view(bits)
    return torch.equal(a, b)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
