"""copy_pages: bound by memory. A program owns one slice of every page and reads that slice of all pages
to be copied before it writes any: pages may be read by one pair and written by another, in one launch."""

import torch
import triton
import triton.language as tl

MAX_PAIRS = 65_536
BLOCK = 8192  # elements a program moves, while there are no more pairs than that


@triton.jit
def load_pair(src_ptr, dst_ptr, src_stride, dst_stride, pairs, pages, BLOCK_N: tl.constexpr):
    n = tl.arange(0, BLOCK_N)
    src = tl.load(src_ptr + n.to(tl.int64) * src_stride, mask=n < pairs, other=-1).to(tl.int64)
    dst = tl.load(dst_ptr + n.to(tl.int64) * dst_stride, mask=n < pairs, other=-1).to(tl.int64)
    return src, dst, (src >= 0) & (src < pages) & (dst >= 0) & (dst < pages)


@triton.jit
def copy_slice(
    pages_ptr,
    src_ptr,
    dst_ptr,
    src_stride,
    dst_stride,
    pairs,
    pages,
    elements,
    page_stride,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    if HEADS == 0:  # a page is one run
        inside = e.to(tl.int64)
    else:
        token, head = (e // (HEADS * D)).to(tl.int64), (e // D % HEADS).to(tl.int64)
        inside = token * token_stride + head * head_stride + e % D
    src, _, live = load_pair(src_ptr, dst_ptr, src_stride, dst_stride, pairs, pages, BLOCK_N)
    move = live[:, None] & (e < elements)[None, :]
    values = tl.load(pages_ptr + (src * page_stride)[:, None] + inside[None, :], mask=move)
    tl.debug_barrier()
    # Loaded again rather than held: the values need the registers.
    _, dst, live = load_pair(src_ptr, dst_ptr, src_stride, dst_stride, pairs, pages, BLOCK_N)
    move = live[:, None] & (e < elements)[None, :]
    tl.store(pages_ptr + (dst * page_stride)[:, None] + inside[None, :], values, mask=move)


@triton.jit(do_not_specialize=["src_stride", "dst_stride", "pairs", "pages"])
def copy_pages_kernel(
    k_ptr,
    v_ptr,
    src_ptr,
    dst_ptr,
    src_stride,
    dst_stride,
    pairs,
    pages,
    elements,
    k_layer,
    k_page,
    k_token,
    k_head,
    v_layer,
    v_page,
    v_token,
    v_head,
    K_HEADS: tl.constexpr,
    V_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    layer = tl.program_id(1).to(tl.int64)
    if tl.program_id(2) == 0:
        copy_slice(
            k_ptr + layer * k_layer,
            src_ptr,
            dst_ptr,
            src_stride,
            dst_stride,
            pairs,
            pages,
            elements,
            k_page,
            k_token,
            k_head,
            K_HEADS,
            D,
            BLOCK_N,
            BLOCK_E,
        )
    else:
        copy_slice(
            v_ptr + layer * v_layer,
            src_ptr,
            dst_ptr,
            src_stride,
            dst_stride,
            pairs,
            pages,
            elements,
            v_page,
            v_token,
            v_head,
            V_HEADS,
            D,
            BLOCK_N,
            BLOCK_E,
        )


def strides(pages: torch.Tensor) -> tuple[int, int, int, int]:
    """Of layer, page, token and head."""
    *layer, page, token, head, _ = pages.stride()
    return layer[0] if layer else 0, page, token, head


def launch(
    k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> None:
    pages, size, heads, d = k_pages.shape[-4:]
    pairs, elements = src.shape[0], size * heads * d
    if pairs > MAX_PAIRS:
        raise ValueError(f"src: got {pairs} pages, expected at most {MAX_PAIRS} in one call")
    if k_pages.numel() == 0 or pairs == 0:
        return
    layers = k_pages.shape[0] if k_pages.ndim == 5 else 1
    k_strides, v_strides = strides(k_pages), strides(v_pages)
    run = (heads * d, d)
    block_n = triton.next_power_of_2(pairs)
    block_e = min(triton.next_power_of_2(elements), max(1, BLOCK // block_n))
    with torch.cuda.device_of(k_pages):
        copy_pages_kernel[(triton.cdiv(elements, block_e), layers, 2)](
            k_pages,
            v_pages,
            src,
            dst,
            src.stride(0),
            dst.stride(0),
            pairs,
            pages,
            elements,
            *k_strides,
            *v_strides,
            0 if k_strides[2:] == run else heads,
            0 if v_strides[2:] == run else heads,
            d,
            block_n,
            block_e,
            num_warps=4 if block_n < BLOCK else 32,
        )
