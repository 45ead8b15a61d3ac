"""The AMX kernel of the matrix product: on emulated tiles, and, on a machine that has tiles, against what
they give."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pyttc import _C, lm_head_topk, topk_score

from .test_lm_head_topk import equal, inputs

KERNELS = Path(__file__).parent.parent / "csrc" / "cpu"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    compiler = shutil.which("g++")
    if not compiler or platform.machine() != "x86_64":
        pytest.skip("needs g++ for x86-64")
    folder = tmp_path_factory.mktemp("amx")
    source, library = folder / "emulated.cpp", folder / "emulated.so"
    source.write_text(
        '#include "product_amx.cpp"\n'
        'extern "C" void emulated(const void* hidden, int64_t hidden_stride, const void* weight,\n'
        "    int64_t weight_stride, int64_t rows, int64_t h, int count, void* packed,\n"
        "    float* out) {\n"
        "  pyttc::product_bf16_amx.pack(hidden, hidden_stride, rows, h, packed);\n"
        "  pyttc::product_bf16_amx.block(weight, weight_stride, count, packed, rows, h, out);\n"
        "}\n"
        'extern "C" int64_t packed_bytes(int64_t rows, int64_t h) {\n'
        "  return pyttc::product_bf16_amx.packed_bytes(rows, h);\n"
        "}\n"
    )
    include = [f"-I{KERNELS}", f"-I{KERNELS.parent / 'include'}"]
    flags = [
        "-std=c++17",
        "-O2",
        "-shared",
        "-fPIC",
        "-DPYTTC_EMULATE_AMX",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run([compiler, *flags, *include, str(source), "-o", str(library)], check=True)
    kernel = ctypes.CDLL(str(library))
    kernel.packed_bytes.restype = ctypes.c_int64
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    kernel.packed_bytes.argtypes = [long, long]
    kernel.emulated.argtypes = [
        pointer,
        long,
        pointer,
        long,
        long,
        long,
        ctypes.c_int,
        pointer,
        pointer,
    ]

    def logits(hidden, weight):
        (rows, width), columns = hidden.shape, weight.shape[0]
        packed = torch.full((kernel.packed_bytes(rows, width),), 255, dtype=torch.uint8)
        blocks = []
        for block in weight.split(256):
            out = torch.full((rows, 256), float("nan"))
            kernel.emulated(
                hidden.data_ptr(), hidden.stride(0), block.data_ptr(), weight.stride(0),
                rows, width, len(block), packed.data_ptr(), out.data_ptr(),
            )  # fmt: skip
            blocks.append(out[:, : len(block)])
        return torch.cat(blocks, 1)[:, :columns]

    return logits


AMX_SHAPES = [(1, 300, 70), (17, 40, 32), (40, 17, 33), (33, 256, 1), (5, 31, 200)]


@pytest.mark.parametrize("rows, columns, width", AMX_SHAPES)
def test_amx_kernel_on_emulated_tiles(emulated, rows, columns, width):
    hidden, weight = inputs(rows, columns, width + 5, torch.bfloat16)
    hidden[:, width:], weight[:, width:] = float("nan"), float("nan")  # not ours to read
    hidden, weight = hidden[:, :width], weight[:, :width]
    logits = emulated(hidden, weight)
    exact = hidden.double() @ weight.double().T
    magnitude = hidden.double().abs() @ weight.double().abs().T
    assert ((logits - exact).abs() <= 5e-7 * magnitude).all()
    for i in range(0, rows, 7):  # whatever the batch
        assert torch.equal(emulated(hidden[i : i + 1], weight)[0], logits[i])
    hidden[0] = float("nan")
    assert torch.equal(emulated(hidden, weight)[1:], logits[1:])


@pytest.mark.skipif(_C.isa() != "amx", reason="this machine has no AMX")
@pytest.mark.parametrize("rows, columns, width", AMX_SHAPES)
def test_tiles_do_what_the_emulated_ones_do(emulated, rows, columns, width):
    hidden, weight = inputs(rows, columns, width, torch.bfloat16)
    k = min(10, columns)
    assert equal(lm_head_topk(hidden, weight, k), topk_score(emulated(hidden, weight), k))
