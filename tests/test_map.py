"""The map of the source: one op, one name, in every folder; imports point one way."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyttc.dispatch import ops

ROOT = Path(__file__).parent.parent
FLAT = [path for folder in ("csrc/cpu", "csrc/cuda") for path in (ROOT / folder).glob("*.c*")]
PER_ISA = sorted(p for p in FLAT if re.search("_(generic|avx2|avx512|avx512bf16|amx)$", p.stem))


@pytest.mark.parametrize("name", sorted(ops))
def test_an_op_has_its_name_in_every_folder(name):
    for path in (
        f"pyttc/ops/{name}.py",
        f"csrc/cpu/{name}.cpp",
        f"tests/test_{name}.py",
        f"benchmarks/bench_{name}.py",
    ):
        assert (ROOT / path).is_file(), path
    impls = ops[name].impls
    assert {"reference", "native"} <= set(impls)
    for impl, path in (
        ("triton", f"triton_kernels/{name}.py"),
        ("cuda", f"csrc/cuda/{name}.cu"),
    ):
        assert (impl in impls) == (ROOT / path).is_file(), path


def test_every_op_file_is_an_op():
    found = {path.stem for path in (ROOT / "pyttc/ops").glob("*.py")} - {"__init__", "checks"}
    registers = {n for n in found if "register(" in (ROOT / f"pyttc/ops/{n}.py").read_text()}
    assert registers == set(ops)


def test_every_path_in_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    folders = r"(?:csrc|triton_kernels|pyttc|tests|benchmarks|docs|\.ci)/[\w./-]*"
    files = r"[\w.-]+\.(?:py|toml|md|cpp|cu|sh|yml)|Makefile|LICENSE"
    named = set(re.findall(rf"`({folders}|{files})`", text))
    named |= {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def imports(path):
    """Modules a file imports, absolute: what `from . import x` means depends on where the file lies."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    if package[:1] == ["triton_kernels"]:
        package = ["pyttc", *package]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "triton_kernels").rglob("*.py"):
        for module in imports(path):
            top, *rest = module.split(".")
            assert top in {"torch", "triton", "pyttc", *sys.stdlib_module_names}, (path, module)
            assert top != "pyttc" or rest[:1] in ([], ["triton_kernels"]), (path, module)
            assert module != "pyttc" or path.name == "__init__.py" or rest, (path, module)


def test_ops_import_torch_and_what_lies_below():
    below = {"pyttc._C", "pyttc._cuda", "pyttc.dispatch", "pyttc.ops", "pyttc.prefix_tree"}
    for path in (ROOT / "pyttc/ops").glob("*.py"):
        for module in imports(path):
            if module == "pyttc" or any(f"{module}.".startswith(f"{name}.") for name in below):
                continue
            assert module.split(".")[0] in {"torch", *sys.stdlib_module_names}, (path, module)


def test_csrc_knows_nothing_of_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        assert not [i for i in included if i.startswith(("torch/", "ATen/", "c10/"))], path


def test_search_is_above_the_engine_above_the_ops():
    for path in (ROOT / "pyttc").rglob("*.py"):
        parts = path.relative_to(ROOT / "pyttc").parts
        above_it = ("search", "tasks", "commands", "verify", "__init__.py", "cli.py", "__main__.py")
        if parts[0] in above_it:
            continue
        above = [
            m for m in imports(path) if re.match(r"pyttc\.(search|tasks|commands|verify|cli)\b", m)
        ]
        assert not above, (path, above)


def test_import_is_light():
    script = """
import sys, torch
before = set(sys.modules)
import pyttc
added = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not added & {"triton", "transformers", "numpy.f2py", "safetensors"}, added
assert "pyttc.triton_kernels" not in sys.modules
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def isa_flags():
    """ISA_FLAGS of setup.py, which cannot be imported: lists of strings and of other lists."""
    known = {}

    def value(node):
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.List):
            parts = [
                (value(x.value) if isinstance(x, ast.Starred) else [value(x)]) for x in node.elts
            ]
            return sum(parts, [])
        if isinstance(node, ast.Dict):
            return {value(k): value(v) for k, v in zip(node.keys, node.values, strict=True)}
        return ast.literal_eval(node)

    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if name in ("AVX2", "AVX512", "AVX512BF16", "AMX", "ISA_FLAGS"):
                known[name] = value(node.value)
    return known["ISA_FLAGS"]


def built_object(source):
    """What an earlier build left of a file, if nothing it may include has changed since."""
    headers = [*(ROOT / "csrc").rglob("*.h"), ROOT / "setup.py", source]
    newest = max(path.stat().st_mtime for path in headers)
    found = (ROOT / "build").glob(f"*/csrc/cpu/{source.stem}.o")
    return next((path for path in found if path.stat().st_mtime > newest), None)


@pytest.mark.parametrize("source", PER_ISA, ids=lambda path: path.stem)
def test_per_isa_objects_have_no_weak_symbols(source, tmp_path):
    """The linker would pick one copy for everyone: AVX-512 code for a machine without it."""
    target = built_object(source)
    if target is None:
        if source.stem != "merge_states_avx512":
            pytest.skip("not built here, and compiling every file takes minutes")
        if not shutil.which("g++"):
            pytest.skip("no g++")
        target = tmp_path / "out.o"
        flags = isa_flags()[re.search("_[a-z0-9]+$", source.stem)[0]]
        command = ["g++", "-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fopenmp", *flags]
        include = f"-I{ROOT}/csrc/include"
        subprocess.run([*command, include, "-c", str(source), "-o", str(target)], check=True)
    symbols = subprocess.check_output(["nm", str(target)], text=True)
    assert not [line for line in symbols.splitlines() if re.search(" [WVu] ", line)]


def test_every_benchmark_can_be_imported():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        if not path.with_suffix(".txt").exists():  # else it has an environment of its own
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
