"""Makes Triton's interpreter right for bfloat16. Import before any kernel runs under TRITON_INTERPRET=1.

The interpreter keeps bfloat16 as raw uint16: its float32 casts truncate instead of rounding to nearest
even, and its dot multiplies the bit patterns. These two are replaced; + - * > max on bfloat16 stay
wrong, so kernels convert to float32 right after a load (which is what a GPU wants too).
A scalar comparison of floats broadcast to a block becomes a block of floats, and the larger of a number
and a NaN is the NaN in some versions, the number on a device; some make an index of an array that numpy
2.4 no longer takes for one. These are put right too. What tl.sort reduces is reduced at once, and not an
element at a time.

Programs run one after the other; `programs.backwards` turns their order round, so that a result which
depends on it shows.
"""

from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


original_cast, original_dot = Builder.cast_impl, Builder.create_dot
original_splat, original_set_grid_idx = Builder.create_splat, Builder.set_grid_idx
original_reduce = interpreter.ReduceOps.generic_reduce
original_patch = interpreter._patch_lang_tensor
programs = SimpleNamespace(backwards=False)


def cast(self, source, to):
    kind, target = source.dtype.scalar, to.scalar
    if kind == tl.bfloat16 and target != tl.bfloat16:
        source, kind = Handle(widen(source.data), tl.float32), tl.float32
    if kind == target:
        return source
    if target == tl.bfloat16:
        return Handle(narrow(source.data.astype(np.float32)), tl.bfloat16)
    return original_cast(self, source, to)


def as_float32(tensor):
    if tensor.dtype.scalar == tl.bfloat16:
        return Handle(widen(tensor.data), tl.float32)
    return tensor


def dot(self, a, b, d, *rest):
    return original_dot(self, as_float32(a), as_float32(b), d, *rest)


def splat(self, shape, scalar):
    if scalar.data.dtype == np.bool_:
        scalar = Handle(scalar.data, tl.int1)
    return original_splat(self, shape, scalar)


def set_grid_idx(self, *index):
    if programs.backwards:
        index = [n - 1 - i for n, i in zip(self.grid_dim, index, strict=True)]
    original_set_grid_idx(self, *index)


def reduce(self, values):
    if self.combine_fn is not tl.standard._xor_combine:
        return original_reduce(self, values)
    (x,) = values
    data = np.bitwise_xor.reduce(x.handle.data, axis=self.axis, keepdims=self.keep_dims)
    return self.to_tensor(data, x.dtype)


def patch_lang_tensor(tensor, scope):
    original_patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patch_lang_tensor
interpreter.ReduceOps.generic_reduce = reduce
Builder.cast_impl, Builder.create_dot, Builder.create_splat = cast, dot, splat
Builder.set_grid_idx = set_grid_idx
Builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
