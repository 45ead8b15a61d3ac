"""Builds pyttc._C (CPU, always) and pyttc._cuda (when nvcc is found). Neither needs torch.

Environment:
    PYTTC_CUDA=0|1|auto     leave CUDA out, require it, or build it when nvcc is found (auto)
    TORCH_CUDA_ARCH_LIST    CUDA targets, "8.0;9.0a;10.0+PTX" by default
    PYTTC_CFLAGS            further compiler and linker flags (sanitizers, debugging)
    PYTTC_DEV=1             recompile only what changed
    MAX_JOBS                compiler processes, one a core by default
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import setup

ISA_FLAGS = {
    "_generic": [],
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": ["-mavx2", "-mfma", "-mf16c"]
    + ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"],
    "_amx": ["-mavx2", "-mfma", "-mf16c"]
    + ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512bf16"]
    + ["-mamx-tile", "-mamx-bf16"],
}
CUDA_ARCHS = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0a;10.0+PTX")


def find_nvcc() -> str | None:
    want = os.environ.get("PYTTC_CUDA", "auto").lower()
    if want not in ("0", "1", "auto"):
        raise SystemExit(f"PYTTC_CUDA: got {want!r}, expected 0, 1 or auto")
    if want == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    for nvcc in [*candidates, shutil.which("nvcc")]:
        if nvcc and os.path.exists(nvcc):
            return nvcc
    if want == "1":
        raise SystemExit(
            "PYTTC_CUDA=1 but there is no nvcc: set CUDA_HOME, or build with PYTTC_CUDA=0"
        )
    return None


def gencode() -> list[str]:
    flags = []
    for arch in re.split(r"[;, ]+", CUDA_ARCHS.strip()):
        number = arch.replace("+PTX", "").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if arch.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def needs_recompile(obj: str, src: str) -> bool:
    """For PYTTC_DEV: is the object older than its source, than any header, or than these flags?"""
    if not os.path.exists(obj):
        return True
    return any(os.stat(path).st_mtime > os.stat(obj).st_mtime for path in [src, *DEPENDS])


class build_ext(pybind11_build_ext):
    """Adds per-ISA flags by file name, nvcc for .cu files, and one clear error without a compiler."""

    def build_extensions(self) -> None:
        self.require_compiler()
        compiler = self.compiler
        compiler.src_extensions.append(".cu")
        compile_cpp = compiler._compile

        def compile_one(obj, src, ext, cc_args, extra, pp_opts):
            if src.endswith(".cu"):
                include = [a for a in pp_opts + cc_args if a.startswith(("-I", "-D"))]
                flags = ["-std=c++17", "-O3", "-lineinfo", "--threads", "2"]
                flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode()]
                self.spawn([NVCC, *flags, *include, "-c", src, "-o", obj])
                return
            stem = os.path.splitext(src)[0]
            isa = next((flags for suffix, flags in ISA_FLAGS.items() if stem.endswith(suffix)), [])
            compile_cpp(obj, src, ext, cc_args, [*extra, *isa], pp_opts)

        compiler._compile = compile_one
        super().build_extensions()

    def require_compiler(self) -> None:
        command = self.compiler.compiler_so[0]
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text("int main() { return 0; }\n")
            try:
                subprocess.run(
                    [command, "-c", str(probe), "-o", str(probe.with_suffix(".o"))],
                    check=True,
                    capture_output=True,
                )
            except (OSError, subprocess.CalledProcessError) as error:
                raise SystemExit(
                    f"pyttc needs a C++17 compiler to build, and {command!r} does not work here: "
                    "install gcc (Debian: apt install g++), or set CC and CXX"
                ) from error

    def build_extension(self, ext) -> None:
        if ext.name == "pyttc._cuda":
            # nvcc may be a wrapper script, so where its static runtime lies has to be asked
            dry = [NVCC, "--dryrun", ext.sources[0], "-o", os.devnull]
            log = subprocess.run(dry, capture_output=True, text=True).stderr
            libraries = " ".join(line for line in log.splitlines() if "LIBRARIES=" in line)
            ext.extra_link_args += re.findall(r'"(-L[^"]+)"', libraries)
            ext.extra_link_args += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        super().build_extension(ext)


def sources(folder: str, *suffixes: str) -> list[str]:
    return sorted(str(p) for p in Path("csrc", folder).iterdir() if p.suffix in suffixes)


NVCC = find_nvcc()
DEPENDS = ["setup.py", *map(str, [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")])]
CFLAGS = shlex.split(os.environ.get("PYTTC_CFLAGS", ""))
# The compiler fuses no multiplication into an addition by itself: bits are the source's business.
FLOATS = ["-fno-math-errno", "-ffp-contract=off"]
COMPILE = ["-O3", "-g0", *FLOATS, "-Wall", "-Wextra", *CFLAGS]
LINK = ["-Wl,-s", *CFLAGS]

extensions = [
    Pybind11Extension(
        "pyttc._C",
        sources("cpu", ".cpp"),
        include_dirs=["csrc/include"],
        depends=DEPENDS,
        cxx_std=17,
        extra_compile_args=[*COMPILE, "-fopenmp"],
        extra_link_args=[*LINK, "-fopenmp"],
    )
]
if NVCC and sources("cuda", ".cu"):
    extensions.append(
        Pybind11Extension(
            "pyttc._cuda",
            sources("cuda", ".cu", ".cpp"),
            include_dirs=["csrc/include"],
            depends=DEPENDS,
            cxx_std=17,
            extra_compile_args=COMPILE,
            extra_link_args=list(LINK),
            define_macros=[("PYTTC_ARCHS", f'"{CUDA_ARCHS}"')],
        )
    )
print(f"pyttc: CUDA {f'with {NVCC} for {CUDA_ARCHS}' if NVCC else 'off'}")

ParallelCompile(
    "MAX_JOBS",
    default=os.cpu_count() or 1,
    **({"needs_recompile": needs_recompile} if os.environ.get("PYTTC_DEV") == "1" else {}),
).install()

setup(
    packages=["pyttc", "pyttc.engine", "pyttc.ops", "pyttc.triton_kernels"],
    package_dir={"pyttc": "pyttc", "pyttc.triton_kernels": "triton_kernels"},
    package_data={"pyttc": ["py.typed"]},
    ext_modules=extensions,
    cmdclass={"build_ext": build_ext},
    zip_safe=False,
)
