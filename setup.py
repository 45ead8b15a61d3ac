"""Builds pyttc._C (CPU, always) and pyttc._cuda (when nvcc is found). Neither needs torch, and one
build serves every torch from 2.10 on.

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
import sys
import sysconfig
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import find_packages, setup

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
AVX512BF16 = [*AVX512, "-mavx512bf16"]
AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16"]
# What files of a name ending so are compiled with, as far as the compiler knows the flags. On
# another processor it knows none of them, and simd.h then gives plain C++.
ISA_FLAGS = {
    "_avx2": AVX2,
    "_avx512": [*AVX512, "-mprefer-vector-width=512"],
    "_avx512bf16": [*AVX512BF16, "-mprefer-vector-width=512"],
    "_amx": [*AMX, "-mprefer-vector-width=512"],
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
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: got {arch!r}, expected e.g. 8.0;9.0a;10.0+PTX")
        number = arch.replace("+PTX", "").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if arch.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def works(compiler, source: str, *flags: str) -> bool:
    """Whether a C++ source compiles and links with these flags."""
    command = getattr(compiler, "compiler_so_cxx", compiler.compiler_so)[:1]
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text(source)
        command += [*flags, str(probe), "-o", str(probe.with_suffix(".out"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def known(compiler, flags: list[str]) -> list[str]:
    """The flags the compiler accepts."""
    program = "int main() { return 0; }\n"
    if works(compiler, program, *flags):
        return flags
    return [flag for flag in flags if works(compiler, program, flag)]


def require_compiler() -> None:
    """Ends the build with one sentence where nothing can be compiled."""
    from distutils import ccompiler  # setuptools' copy, which importing setuptools puts in place
    from distutils import sysconfig as distutils_sysconfig

    compiler = ccompiler.new_compiler()
    distutils_sysconfig.customize_compiler(compiler)
    command = getattr(compiler, "compiler_so_cxx", compiler.compiler_so)[0]
    if not works(compiler, "int main() { return 0; }\n", "-std=c++17"):
        raise SystemExit(
            f"pyttc needs a C++17 compiler to build, and {command!r} does not work here: "
            "install gcc (Debian: apt install g++), or set CC and CXX."
        )
    headers = sysconfig.get_path("include")
    if not works(compiler, "#include <Python.h>\n", "-c", f"-I{headers}"):
        raise SystemExit(
            f"pyttc needs Python's C headers to build, and {headers} lacks them: "
            "install them (Debian: apt install python3-dev)."
        )


class build_ext(pybind11_build_ext):
    """Adds per-ISA flags by file name and nvcc for .cu files, and compiles files side by side."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if DEV:
            self.build_temp = "build/dev"  # pip's own is gone after every build

    def build_extensions(self) -> None:
        compiler = self.compiler
        compiler.src_extensions.append(".cu")
        isa_flags = {suffix: known(compiler, flags) for suffix, flags in ISA_FLAGS.items()}
        for ext in self.extensions:
            ext.extra_compile_args = known(compiler, ext.extra_compile_args)
            ext.extra_link_args = known(compiler, ext.extra_link_args)

        def compile_one(obj, src, ext, cc_args, extra, pp_opts):
            if DEV and not outdated(obj):
                return
            if src.endswith(".cu"):
                include = [a for a in pp_opts + cc_args if a.startswith(("-I", "-D"))]
                flags = ["-std=c++17", "-O3", "-lineinfo", "--threads", "2"]
                flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode()]
                self.spawn([NVCC, *flags, *include, "-MD", "-c", src, "-o", obj])
                return
            stem = Path(src).stem
            isa = next((flags for suffix, flags in isa_flags.items() if stem.endswith(suffix)), [])
            compiler._compile(obj, src, ext, [*cc_args, "-MD"], [*extra, *isa], pp_opts)

        def compile_all(
            sources,
            output_dir=None,
            macros=None,
            include_dirs=None,
            debug=False,
            extra_preargs=None,
            extra_postargs=None,
            depends=None,
        ):
            _, objects, extra, pp_opts, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)
            with ThreadPool(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
                work = [(obj, *build[obj], cc_args, extra, pp_opts) for obj in objects]
                pool.starmap(compile_one, work, chunksize=1)
            return objects

        compiler.compile = compile_all
        super().build_extensions()


def toolkit() -> tuple[list[str], list[str]]:
    """nvcc's own -I and -L flags. It may be a wrapper script, so its path does not tell them."""
    dry = [NVCC, "--dryrun", "-x", "cu", os.devnull]
    log = subprocess.run(dry, capture_output=True, text=True).stderr
    flags = {}
    for name in ("INCLUDES", "LIBRARIES"):
        line = next((line for line in log.splitlines() if f"{name}=" in line), "")
        flags[name] = re.findall(r'"(-[IL][^"]+)"', line)
    return flags["INCLUDES"], flags["LIBRARIES"]


def sources(folder: str, *suffixes: str) -> list[str]:
    return sorted(str(p) for p in Path("csrc", folder).glob("*") if p.suffix in suffixes)


def outdated(obj: str) -> bool:
    """Whether anything an object was made of (the compiler wrote it down beside it) is newer."""
    made, listing = Path(obj), Path(obj).with_suffix(".d")
    if not made.exists() or not listing.exists():
        return True
    parts = [Path(part) for part in listing.read_text().replace("\\\n", " ").split()[1:]]
    inputs = [Path("setup.py"), *parts]
    return any(not p.exists() or p.stat().st_mtime > made.stat().st_mtime for p in inputs)


DEV = os.environ.get("PYTTC_DEV") == "1"
NVCC = find_nvcc()
DEPENDS = ["setup.py", *map(str, [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")])]
CFLAGS = shlex.split(os.environ.get("PYTTC_CFLAGS", ""))
# The compiler fuses no multiplication into an addition by itself: bits are the source's business.
FLOATS = ["-fno-math-errno", "-ffp-contract=off"]
COMPILE = ["-O3", "-g0", *FLOATS, "-Wall", "-Wextra", *CFLAGS]
LINK = CFLAGS or ["-Wl,-s"]  # reports of a sanitizer name functions
COMMON = {"include_dirs": ["csrc/include"], "depends": DEPENDS, "cxx_std": 17}

extensions = [
    Pybind11Extension(
        "pyttc._C",
        sources("cpu", ".cpp"),
        extra_compile_args=[*COMPILE, "-fopenmp"],
        extra_link_args=[*LINK, "-fopenmp"],
        **COMMON,
    )
]
if NVCC and sources("cuda", ".cu"):
    cuda_include, cuda_libraries = toolkit()
    extensions.append(
        Pybind11Extension(
            "pyttc._cuda",
            sources("cuda", ".cu", ".cpp"),
            extra_compile_args=[*COMPILE, *cuda_include],
            extra_link_args=[
                *LINK,
                *cuda_libraries,
                "-lcudart_static",
                "-ldl",
                "-lrt",
                "-lpthread",
            ],
            define_macros=[("PYTTC_ARCHS", f'"{CUDA_ARCHS}"'), ("PYTTC_MODULE", "_cuda")],
            **COMMON,
        )
    )
BESIDE = ("triton_kernels", "benchmarks")  # folders of the top level that are parts of the package
if not {"egg_info", "dist_info", "sdist"} & set(sys.argv):
    require_compiler()

setup(
    packages=["pyttc", *(f"pyttc.{p}" for p in [*find_packages("pyttc"), *BESIDE])],
    package_dir={"pyttc": "pyttc", **{f"pyttc.{folder}": folder for folder in BESIDE}},
    package_data={"pyttc": ["py.typed", "*.pyi", "models/*/*"], "pyttc.benchmarks": ["roof.cpp"]},
    ext_modules=extensions,
    cmdclass={"build_ext": build_ext},
    zip_safe=False,
)
