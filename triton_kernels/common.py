"""Pieces that kernels of several ops share."""

import triton
import triton.language as tl


@triton.jit
def order_key(x):
    """An int32 that orders as the float32 x does; -0 and +0 are one key."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def uniform(seed, path, position):
    """Uniform on [0, 1) with 53 bits: Philox4x32-10, counter (path, position, draw 0, purpose 0)."""
    zero = tl.full((), 0, tl.uint32)
    low, high, _, _ = tl.philox(
        seed.to(tl.uint64), path.to(tl.uint32), position.to(tl.uint32), zero, zero
    )
    bits = (high.to(tl.int64) << 21) | (low.to(tl.int64) >> 11)
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def value_of(key):
    """The float32 whose order_key this is."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def halfway(low, high):
    """The mean of two integers, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)
