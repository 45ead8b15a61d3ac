"""These tests run kernels in Triton's interpreter, which must be chosen before triton is imported:
tests/test_triton.py starts them in a process of their own, with TRITON_INTERPRET=1."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from .. import triton_interpreter  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]
