"""The native extension under gcc's sanitizers, through the tests::

    python -m tests.trust.sanitize address      AddressSanitizer and UndefinedBehaviorSanitizer
    python -m tests.trust.sanitize thread       ThreadSanitizer, four threads

First bugs are planted that the tool must find: a run that would find nothing fails. Then every test
runs that calls native code; LEFT_OUT says which do not, and why."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass

from .evidence import write_evidence
from .workshop import Workshop

STORE_KV, STORE_KV_TESTS = "csrc/cpu/store_kv.cpp", "tests/test_store_kv.py"


@dataclass
class Plant:
    """A bug in the native store_kv, and what the tool says of it."""

    what: str
    old: str
    new: str
    report: str


READ = Plant(
    "a slot past the last is read",
    "for (int64_t i = 0; i < n; ++i)\n    if (slot.at(i) < -1",
    "for (int64_t i = 0; i <= n; ++i)\n    if (slot.at(i) < -1",
    "AddressSanitizer: heap-buffer-overflow",
)
OVERFLOW = Plant(
    "a hash of signed numbers",
    "static_cast<uint64_t>(s) * 0x9E3779B97F4A7C15u",
    "static_cast<uint64_t>((s + 1) * 0x7E3779B97F4A7C15)",
    "runtime error: signed integer overflow",
)
RACE = Plant(
    "rows for one slot in any thread",
    "shards == 1 || hash % shards == shard",
    "shards == 1 || hash % shards != shard + shards",
    "ThreadSanitizer: data race",
)

REPORT = "ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:"
# Files whose tests run no native code, or run it in ways that a sanitizer rules out.
LEFT_OUT = {
    "test_triton": "Triton's interpreter, and compilation for GPUs",
    "test_cuda_compiled": "compilation for GPUs",
    "test_cuda_emulated": "has the emulated kernels under AddressSanitizer itself",
    "test_faults_native": "counts allocations with a library of its own in front",
    "test_attention_amx": "builds the tiles' emulation, uninstrumented",
    "test_package": "builds the package, and measures what its import costs",
    "test_map": "reads source",
    "test_examples": "runs commands in processes of their own",
    "test_bench_peers": "calls no native code, and kills processes of its own",
}
# Tests by name: their time or memory is what they assert.
LEFT_OUT_TESTS = {
    "overhead": "measures the cost of a call",
    "microseconds": "measures the cost of a plan",
    "memory": "measures memory",
    "instruction_set": "the same tests in a process with a limit on its time",
    "inductor": "the compiler that torch starts inherits the sanitizer",
    "amx": "builds the tiles' emulation, uninstrumented",
}


@dataclass
class Tool:
    flags: str
    libraries: tuple[str, ...]
    options: str
    plants: tuple[Plant, ...]
    tests: tuple[str, ...]  # all where empty


TOOLS = {
    "address": Tool(
        # Python's own flags have -fwrapv, under which no sum of integers overflows.
        "-O1 -g1 -fno-omit-frame-pointer -fno-wrapv -fsanitize=address,undefined,float-cast-overflow"
        " -fno-sanitize-recover=undefined,float-cast-overflow",
        ("libasan.so", "libubsan.so"),
        # Python keeps what it allocates until the end: leaks are not looked for.
        "detect_leaks=0:print_stacktrace=1",
        (READ, OVERFLOW),
        (),
    ),
    "thread": Tool(
        "-O1 -g1 -fno-omit-frame-pointer -fsanitize=thread",
        ("libtsan.so",),
        # A mutex of torch's own is let go by another than took it.
        "exitcode=66:report_mutex_bugs=0:suppressions=tests/trust/thread.supp",
        (RACE,),
        tuple(
            f"tests/test_{name}.py"
            for name in (
                "copy_pages",
                "linear",
                "llama",
                "lm_head_topk",
                "merge_states",
                "prefix_tree_attention",
                "sample",
                "select_beams",
                "shared_prefix_attention",
                "store_kv",
                "topk_score",
            )
        ),
    ),
}


def library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    path = found.stdout.strip()
    if "/" not in path:
        raise SystemExit(f"g++ has no {name}: install gcc's sanitizers")
    return path


def run(tool: Tool, workshop: Workshop, *arguments: str) -> tuple[bool, str]:
    """Builds and runs tests: whether they passed and the tool was silent, and what both wrote."""
    workshop.build()
    variables = ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")
    # Some tests ask for more memory than there is.
    options = f"halt_on_error=1:allocator_may_return_null=1:{tool.options}"
    code, text = workshop.test(
        "--capture=sys",  # and not of what native code writes
        *arguments,
        **dict.fromkeys(variables, options),
        LD_PRELOAD=" ".join(map(library, tool.libraries)),
        OMP_NUM_THREADS="4",
        PYTTC_EXAMPLES="20",
    )
    return code == 0 and not re.search(REPORT, text), text


def main(name: str) -> None:
    tool, began = TOOLS[name], time.time()
    workshop = Workshop(name, tool.flags)
    for plant in tool.plants:
        with workshop.changed(STORE_KV, plant.old, plant.new):
            _, text = run(tool, workshop, "-x", STORE_KV_TESTS)
        if plant.report not in text:
            raise SystemExit(f"not found: {plant.what}\n{text[-6000:]}")
        print(f"found, as planted: {plant.what}", flush=True)
    ignored = [f"--ignore=tests/{file}.py" for file in LEFT_OUT]
    names = " and ".join(f"not {part}" for part in LEFT_OUT_TESTS)
    passed, text = run(tool, workshop, *tool.tests, *ignored, "-k", names)
    if not passed:
        report = re.search(REPORT, text)
        print(text[report.start() :][:6000] if report else text[-6000:])
        raise SystemExit(f"{name}: the tests did not pass, or the tool reported something")
    count = re.search(r"(\d+) passed", text)
    write_evidence(
        f"sanitizers_{name}",
        f"the tests on an extension built with {tool.flags}",
        began,
        tests=int(count[1]) if count else 0,
        examples=20,
        reports=0,
        planted_and_found=[plant.what for plant in tool.plants],
        files_left_out=LEFT_OUT,
        tests_left_out=LEFT_OUT_TESTS,
    )


if __name__ == "__main__":
    main(sys.argv[1])
