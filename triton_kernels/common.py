"""Pieces that kernels of several ops share."""

import triton
import triton.language as tl


@triton.jit
def order_key(x):
    """An int32 that orders as the float32 x does; -0 and +0 are one key."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
