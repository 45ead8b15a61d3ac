"""copy_pages: whole pages of a paged cache to other pages, in every layer, in place."""

from __future__ import annotations

import torch

from .. import _C
from ..dispatch import Implementation, cuda, cuda_module, register, triton
from . import checks

CUDA_SHARED = 99 << 10  # bytes of shared memory, which hold an element of each page at least


def copy_pages(
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    *,
    impl: str | None = None,
) -> None:
    """Copies page src[i] to page dst[i] for every i, as if all were read before any is written::

        k_pages[..., dst, :, :, :] = k_pages[..., src, :, :, :]        (v the same)

    so that a permutation of pages is one call. A fork that copies its partial page, or a compaction,
    is a call for all layers.

    Args:
        k_pages, v_pages: [pages, page_size, Hkv, D], or [layers, pages, page_size, Hkv, D] to copy the
            same pages in every layer; float32, bfloat16 or float16 (float64 with the reference).
            Changed in place; other pages keep their bits. Any stride in all dimensions but the last,
            which is contiguous. They may be interleaved in one tensor, but share no element.
        src, dst: [M], int32 or int64. A page may be read often, but is written once: no page stands in
            dst twice. Where dst[i] is -1 nothing is copied, and src[i] is not looked at.

    Raises:
        ValueError, TypeError: for an argument of another shape, dtype, stride or device, for a page out of
            range or twice in dst, and for pages that share memory. Nothing is written then. On a GPU pages
            and memory are not looked at before the launch: a pair out of range is left out. One call
            there takes at most 65,536 pairs (triton), or 50,688 and of float32 25,344 (cuda).

    Source: the block copies behind copy-on-write in vLLM (arXiv 2309.06180).
    """
    _op(k_pages, v_pages, src, dst, impl=impl)


def check(
    k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> None:
    dtype, shape, device = k_pages.dtype, k_pages.shape, k_pages.device
    if len(shape) != 4 and len(shape) != 5:
        expected = "[pages, page_size, Hkv, D] or [layers, pages, page_size, Hkv, D]"
        checks.fail_shape("k_pages", k_pages, expected)
    if dtype not in checks.FLOATS:
        checks.fail_dtype("k_pages", k_pages, checks.FLOAT_NAMES)
    if v_pages.shape != shape:
        checks.fail_shape("v_pages", v_pages, f"{list(shape)}, as k_pages")
    if v_pages.dtype is not dtype:
        checks.fail_dtype("v_pages", v_pages, f"{dtype}, as k_pages")
    if src.dtype not in checks.INTS:
        checks.fail_dtype("src", src, "int32 or int64")
    if dst.dtype not in checks.INTS:
        checks.fail_dtype("dst", dst, "int32 or int64")
    if len(src.shape) != 1:
        checks.fail_shape("src", src, "[M]")
    if dst.shape != src.shape:
        checks.fail_shape("dst", dst, f"{list(src.shape)}, as src")
    if not device == v_pages.device == src.device == dst.device:
        checks.fail_device(device, v_pages=v_pages, src=src, dst=dst)
    if shape[-1] > 1 and (k_pages.stride(-1) != 1 or v_pages.stride(-1) != 1):
        checks.fail_stride(k_pages=k_pages, v_pages=v_pages)


def fake(
    k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> None:
    return None


def reference(
    k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> None:
    checks.check_apart({"k_pages": k_pages, "v_pages": v_pages}, {})
    pages = k_pages.shape[-4]
    checks.check_range("dst", dst, -1, pages, f"-1 or a page below {pages}")
    used = dst != -1
    checks.check_range("src", torch.where(used, src, 0), 0, max(pages, 1), f"a page below {pages}")
    to = dst[used].long()
    if bool((to.sort().values.diff() == 0).any()):
        checks.fail("dst", "a page twice", "each page once")
    for pool in (k_pages, v_pages):
        pool.index_copy_(-4, to, pool.index_select(-4, src[used]))


def native(
    k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> None:
    _C.copy_pages(k_pages, v_pages, src, dst, torch.get_num_threads())


def run_cuda(
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
) -> None:
    most = CUDA_SHARED // k_pages.element_size()
    if src.shape[0] > most:
        raise ValueError(f"src: got {src.shape[0]} pages, expected at most {most} in one call")
    cuda_module().copy_pages(k_pages, v_pages, src, dst)


_op = register(
    "copy_pages(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor src, Tensor dst, *, str? impl=None)"
    " -> ()",
    check=check,
    fake=fake,
    impls={
        "reference": Implementation(reference, device=None),
        "native": Implementation(native, device="cpu"),
        "triton": triton("copy_pages"),
        "cuda": cuda(run_cuda),
    },
).call
