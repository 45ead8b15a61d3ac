"""The package as a whole: what it installs, what importing it costs, its command, its README."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import pyttc
from benchmarks import countdown, table
from pyttc import _C, cli
from pyttc.commands.info import information
from pyttc.dispatch import IMPLS, ops
from tests.common import LEVELS
from tests.trust import readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that meets only the installed package."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


def test_import_adds_little_to_torch() -> None:
    code = "import torch, time; t = time.thread_time(); import pyttc; print(time.thread_time() - t)"
    # up to ten times: another run of this machine's may stand in the way
    assert any(float(python(code).stdout) <= 0.3 for _ in range(10))


def test_import_needs_neither_triton_nor_cuda_nor_a_compiler() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import pyttc
new = set(sys.modules) - before
assert not torch.cuda.is_initialized()
print(sorted(m for m in new if m.split(".")[0] in ("triton", "transformers") or "_cuda" in m))
"""
    assert python(code, PATH="").stdout == "[]\n"


def test_a_checkout_that_is_not_built_runs_with_what_an_installed_package_built(
    tmp_path: Path,
) -> None:
    skip = shutil.ignore_patterns("*.so", "__pycache__", "models")
    shutil.copytree(ROOT / "pyttc", tmp_path / "checkout/pyttc", ignore=skip)
    installed = tmp_path / "site/pyttc"
    shutil.copytree(tmp_path / "checkout/pyttc", installed)
    shutil.copy(_C.__file__, installed)
    code = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path[:0] = {[str(tmp_path / "checkout"), str(installed.parent)]}
import pyttc
print(pyttc.__file__, pyttc._C.__file__, sep="\\n")
"""
    package, native = python(code).stdout.split()
    assert Path(package).parent == tmp_path / "checkout/pyttc"
    assert Path(native).parent == installed


def test_version_is_one() -> None:
    stated = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated and stated[1] == pyttc.__version__
    assert f"## {pyttc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_native_functions_refuse_other_arguments() -> None:
    for arguments in ((1,), (-1, 0, 0, 0, 0), (0, 2**32, 0, 0, 0), (0.5, 0, 0, 0, 0)):
        with pytest.raises(TypeError):
            _C.philox(*arguments)


def test_info_covers_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == information()
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["isa"] in LEVELS
    assert set(found["ops"]) == set(ops)
    for impls in found["ops"].values():
        assert list(impls) == list(IMPLS)
        assert impls["reference"] is None and impls["native"] is None
        assert impls["cuda"] or torch.cuda.is_available()


def test_info_gives_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    for name, impls in information()["ops"].items():
        assert re.search(rf"^{name} ", said, re.M)
        for why in impls.values():
            assert why is None or why in said


@pytest.mark.parametrize(
    "arguments, named", [([], "command"), (["nope"], "nope"), (["info", "--x"], "--x")]
)
def test_bad_command_lines_end_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1 and named in error


def test_a_bad_instruction_set_ends_in_one_line() -> None:
    ran = python("from pyttc.cli import main; main(['info'])", PYTTC_CPU_ISA="sse9")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1 and "sse9" in ran.stderr


def test_readme_names_what_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|    )make ([a-z]+)", README)) <= targets
    listed = set(re.findall(r"^\| `([a-z_]+)`:", README, re.M))
    assert listed == set(ops)
    for path in re.findall(r"^    ([a-z_]+/[a-z_./]*)(?= )", README, re.M):
        assert (ROOT / path).exists(), path


def test_readme_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        ran = python(block)
        assert ran.returncode == 0, ran.stderr


def test_readme_table_is_what_the_rows_say() -> None:
    assert table.rewritten(README) == README
    assert table.page() == (ROOT / "docs" / "benchmarks.md").read_text()


def test_readme_says_of_countdown_what_the_curve_says() -> None:
    assert countdown.rewritten(README) == README


def test_readme_says_of_trust_what_was_run() -> None:
    assert readme.rewritten(README) == README


@pytest.mark.parametrize("given", [[], ["PEERS=openvino"]])
def test_a_shell_can_read_what_make_runs(given: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"test", "bench-peers"} <= {*targets}
    for target in targets:
        make = ["make", "--dry-run", "--old-file=.venv/built", target, *given]
        said = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert said.returncode == 0, said.stderr
        shell = ["sh", "-n", "-c", said.stdout]
        assert not subprocess.run(shell, capture_output=True, text=True).stderr, target


def test_ci_runs_the_readme_command() -> None:
    assert "make -C" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("tool", ["ruff check", "ruff format --check", "mypy"])
def test_lint(tool: str) -> None:
    command = [sys.executable, "-m", *tool.split(), *(["."] if "ruff" in tool else [])]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def build(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs pip on a copy of the sources in a new virtual environment."""
    copy = folder / "copy"
    if not copy.exists():
        skip = shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=skip)
        venv.create(folder / "venv", with_pip=True)
    return subprocess.run(
        [folder / "venv" / "bin" / "python", "-m", "pip", *arguments],
        cwd=copy,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.nightly
def test_wheel_without_nvcc(tmp_path: Path) -> None:
    made = build(tmp_path, "wheel", "--no-deps", "-w", str(tmp_path), ".", PYTTC_CUDA="0")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 10e6
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pyttc", f"pyttc-{pyttc.__version__}.dist-info"}
    assert "pyttc/triton_kernels/__init__.py" in names and "pyttc/py.typed" in names
    binaries = [name for name in names if name.endswith(".so")]
    assert len(binaries) == 1 and binaries[0].startswith("pyttc/_C.")


@pytest.mark.nightly
def test_wheel_from_sdist(tmp_path: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    assert build(tmp_path, "install", "--quiet", "setuptools>=77").returncode == 0
    tool = tmp_path / "venv" / "bin" / "python"
    subprocess.run([tool, "-c", code], cwd=tmp_path / "copy", check=True, capture_output=True)
    (sdist,) = (tmp_path / "copy" / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "constraints.txt", "tests/test_package.py"} <= names
    made = build(tmp_path, "wheel", "--no-deps", "-w", str(tmp_path), str(sdist), PYTTC_CUDA="0")
    assert made.returncode == 0, made.stderr


@pytest.mark.nightly
def test_editable(tmp_path: Path) -> None:
    made = build(tmp_path, "install", "--no-deps", "--editable", ".", PYTTC_CUDA="0")
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "copy" / "pyttc").glob("_C.*.so"))


@pytest.mark.nightly
def test_no_compiler_is_one_sentence(tmp_path: Path) -> None:
    made = build(tmp_path, "wheel", "--no-deps", ".", CC="no-such-cc", CXX="no-such-cc")
    assert made.returncode != 0
    said = made.stdout + made.stderr
    assert said.count("pyttc needs a C++17 compiler to build, and 'no-such-cc' does not work") == 1
    assert "Traceback" not in said


@pytest.mark.nightly
def test_cuda_demanded_without_nvcc_is_one_sentence(tmp_path: Path) -> None:
    homes = {
        "PYTTC_CUDA": "1",
        "CUDA_HOME": "/nonexistent",
        "CUDA_PATH": "",
        "PATH": "/usr/bin:/bin",
    }
    if shutil.which("nvcc", path=homes["PATH"]) or Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is where it is always found")
    made = build(tmp_path, "wheel", "--no-deps", ".", **homes)
    assert made.returncode != 0
    assert "PYTTC_CUDA=1 but there is no nvcc" in made.stdout + made.stderr


FORBIDDEN = {
    "eval",
    "exec",
    "pickle",
    "cloudpickle",
    "marshal",
    "shelve",
    "torch.load",
    "os.system",
}


def names_in(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        if isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code"):
            found.add(node.arg)
    return found


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    sources = [p for d in ("pyttc", "triton_kernels") for p in (ROOT / d).rglob("*.py")]
    assert len(sources) > 50
    for source in sources:
        assert not names_in(ast.parse(source.read_text())) & (FORBIDDEN | {"shell"}), source
    planted = "import pickle\ntorch.load(x)\neval(y)\nrun(z, shell=True)"
    assert names_in(ast.parse(planted)) >= {"pickle", "torch.load", "eval", "shell"}


def test_the_table_of_known_bugs_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "known_bugs.md").read_text()
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+[a-z])`", table))
    assert len(named) > 20
    for name in named:
        assert f"def {name}(" in tests, name
