"""`import fastglow` from a bare checkout, an editable install and a wheel; what an import must not do."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastglow

ROOT = Path(__file__).resolve().parent.parent
# The packages' folders in the checkout.
SOURCES = {
    "fastglow": ROOT / "fastglow",
    "fastglow.kernels": ROOT / "kernels",
    "fastglow.train": ROOT / "train",
}
SOURCE_FILES = [path for folder in SOURCES.values() for path in sorted(folder.rglob("*.py"))]
# The only files that may read environment variables: for the backend, how threads wait, Ray, and what torchrun says.
READ_ENVIRONMENT = {
    ROOT / "fastglow" / "commands" / "ray_cluster.py",
    ROOT / "kernels" / "backend.py",
    ROOT / "fastglow" / "threads.py",
    ROOT / "train" / "ranks.py",
    ROOT / "train" / "launching.py",
}
THIRD_PARTY = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


def module_name(source: Path) -> str:
    for package, folder in SOURCES.items():
        if source.is_relative_to(folder):
            parts = source.relative_to(folder).with_suffix("").parts
            return ".".join((package, *parts)).removesuffix(".__init__")
    raise AssertionError(f"{source} is in no package")


MODULES = {module_name(path) for path in SOURCE_FILES}


@dataclass(frozen=True)
class Layout:
    """How an interpreter finds fastglow."""

    home: Path  # where its modules must come from
    cwd: Path
    path: Path | None = None  # on PYTHONPATH, before the third-party packages
    obey_pth: bool = False  # run the .pth files of `path`, as the interpreter does for site-packages

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs `code` with this environment's third-party packages, but not its fastglow: `-S` skips .pth files,
        through which editable installs are found."""
        if self.obey_pth:
            code = f"import site; site.addsitedir({str(self.path)!r})\n{code}"
        first = [] if self.path is None else [str(self.path)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = os.pathsep.join([*first, *THIRD_PARTY])
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=self.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done


def build(kind: str, source: Path, out: Path) -> Path:
    """The archive that the build backend makes of `source`, unpacked as an installer would into `out/site`."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    archive = out / done.stdout.splitlines()[-1]
    if kind == "sdist":
        with tarfile.open(archive) as file:
            file.extractall(out / "site", filter="data")
    else:
        with zipfile.ZipFile(archive) as file:
            file.extractall(out / "site")
    return archive


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout to build in."""
    copy = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "data")
    for folder in ("fastglow", "kernels", "train", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip, symlinks=True)
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    for folder in ("bench", "voices"):
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_of_sdist(source, tmp_path_factory) -> Path:
    sdist = build("sdist", source, tmp_path_factory.mktemp("sdist"))
    (unpacked,) = (sdist.parent / "site").iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel_of_sdist"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A working directory with foreign `kernels` and `train` packages."""
    folder = tmp_path_factory.mktemp("elsewhere")
    plant_strangers(folder)
    return folder


def plant_strangers(folder: Path) -> None:
    for name in ("kernels", "train"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('not fastglow')\n")


@pytest.fixture(
    scope="module", params=["checkout as cwd", "checkout on PYTHONPATH", "editable", "wheel", "wheel of the sdist"]
)
def layout(request, elsewhere, tmp_path_factory) -> Layout:
    if request.param == "checkout as cwd":
        return Layout(home=ROOT, cwd=ROOT)
    if request.param == "checkout on PYTHONPATH":
        return Layout(home=ROOT, cwd=elsewhere, path=ROOT)
    if request.param == "editable":
        source = request.getfixturevalue("source")
        archive = build("editable", source, tmp_path_factory.mktemp("editable"))
        return Layout(home=source, cwd=elsewhere, path=archive.parent / "site", obey_pth=True)
    site = request.getfixturevalue("wheel_of_sdist" if "sdist" in request.param else "wheel").parent / "site"
    plant_strangers(site)  # PyPI has packages of these names
    return Layout(home=site, cwd=elsewhere, path=site)


IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
import fastglow, fastglow.kernels, fastglow.train

found = set()
for package in (fastglow, fastglow.kernels, fastglow.train):
    found.add(package.__name__)
    found.update(module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."))
for name in found:
    importlib.import_module(name)
for name in fastglow.__all__:
    getattr(fastglow, name)
assert fastglow.WaveGlowLoss is fastglow.train.losses.WaveGlowLoss
assert fastglow.WaveGlow is fastglow.models.WaveGlow
files = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(json.dumps({"found": sorted(found), "files": files}))
"""


def test_every_module_and_name_is_importable_once(layout):
    done = layout.run(IMPORT_EVERYTHING)
    (line,) = done.stdout.splitlines()
    seen = json.loads(line)
    assert set(seen["found"]) == MODULES
    for name in MODULES:
        assert Path(seen["files"][name]).is_relative_to(layout.home)
    ours = [Path(file) for file in seen["files"].values() if Path(file).is_relative_to(layout.home)]
    if layout.home == ROOT:  # which may hold a virtual environment
        ours = [file for file in ours if file.resolve() in SOURCE_FILES]
    assert len(ours) == len(set(ours)) == len(MODULES)


def test_import_is_cheap_and_silent(layout):
    done = layout.run(
        """
import os, sys

read = []
for method in ("__getitem__", "__iter__"):
    def spy(self, *key, _original=getattr(type(os.environ), method)):
        read.append(key)
        return _original(self, *key)
    setattr(type(os.environ), method, spy)
os.environ.get("HOME")
assert read, "the spy does not see reads"
read.clear()

import fastglow

assert not read, read
heavy = {"torch", "numpy", "soundfile", "inflect", "click"} & set(sys.modules)
assert not heavy, heavy
assert set(fastglow.__all__) <= set(dir(fastglow))
assert not {"torch", "numpy"} & set(sys.modules), "dir() imports"
try:
    fastglow.nonsense
except AttributeError as error:
    assert str(error) == "module 'fastglow' has no attribute 'nonsense'"
else:
    raise AssertionError("fastglow.nonsense exists")
"""
    )
    assert done.stdout == done.stderr == ""


def test_the_checkouts_other_folders_are_not_in_the_package(layout):
    layout.run(
        """
import importlib.util
import fastglow

for name in ("fastglow", "tests", "setup", "bench"):
    assert importlib.util.find_spec(f"fastglow.{name}") is None, name
"""
    )


def test_runs_as_a_module(layout):
    done = layout.run("import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('fastglow', run_name='__main__')")
    assert "synth" in done.stdout


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        information = metadata.removesuffix("METADATA")
        assert f"\nVersion: {fastglow.__version__}\n" in file.read(metadata).decode()
        assert "fastglow = fastglow.cli:main" in file.read(f"{information}entry_points.txt").decode()
    assert f"{information}licenses/LICENSE" in names
    contents = {name for name in names if not name.startswith(information)}
    assert {name.split("/")[0] for name in contents} == {"fastglow"}
    modules = {Path(name).with_suffix("") for name in contents if name.endswith(".py")}
    assert {".".join(module.parts).removesuffix(".__init__") for module in modules} == MODULES


def test_the_sdist_makes_the_same_wheel(wheel, wheel_of_sdist):
    def contents(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as file:
            return {entry.filename: entry.CRC for entry in file.infolist() if not entry.filename.endswith("RECORD")}

    assert contents(wheel_of_sdist) == contents(wheel)


def test_wheel_has_type_information(wheel):
    with zipfile.ZipFile(wheel) as file:
        assert "fastglow/py.typed" in file.namelist()


def test_wheel_holds_the_voices(wheel):
    voices = ROOT / "fastglow" / "voices"
    shipped = {
        path.relative_to(ROOT).as_posix() for path in voices.rglob("*") if path.suffix not in ("", ".pyc", ".py")
    }
    assert any(name.endswith("/voice.json") for name in shipped)
    assert any(name.endswith(".safetensors") for name in shipped)
    with zipfile.ZipFile(wheel) as file:
        assert shipped <= set(file.namelist())


def imports(tree: ast.AST) -> set[str]:
    """The first component of every absolute import."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_nothing_imports_the_root_folders_by_their_own_names():
    files = [
        *SOURCE_FILES,
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "bench").rglob("*.py"),
        *(ROOT / "voices").rglob("*.py"),
    ]
    assert [file for file in files if imports(ast.parse(file.read_text())) & {"kernels", "train"}] == []


def environment_readers(tree: ast.AST) -> set[str]:
    """Names in the code that read environment variables, including click's."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.keyword):
            names.add(node.arg)
    return names & {"environ", "environb", "getenv", "getenvb", "envvar", "auto_envvar_prefix"}


def test_only_these_files_read_environment_variables():
    found = {file: environment_readers(ast.parse(file.read_text())) for file in SOURCE_FILES}
    assert {file for file, names in found.items() if names} == READ_ENVIRONMENT


def test_the_folder_under_its_own_name_registers_other_operators():
    """As transformers imports it in a checkout, where it looks for Hugging Face's package `kernels`."""
    code = "import kernels, fastglow.kernels, torch; print(torch.ops.fastglow.lstm_cell, torch.ops.kernels.lstm_cell)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["fastglow.lstm_cell", "kernels.lstm_cell"], done.stderr
