"""Every shell, Python and JSON block of the README and docs/ runs, in order, in a folder of its own.

Two things differ from a user's machine. The recordings are the eight clips of tests/data, under the names that the
pages use. And `fastglow train` reads options for a tiny run from a file in `small/`; the command line overrides them.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastglow import Tacotron2, WaveGlow
from fastglow.checkpoint import save_nvidia_checkpoint
from fastglow.models import Tacotron2Config

from .markdown import GUIDES, ROOT, Block, blocks, name_of

SMALL = Path(__file__).parent / "small"
CLIPS = ROOT / "tests" / "data" / "clips"

# Why a block may be marked as not run: <!-- not run: needs a GPU -->
REASONS = {
    "installs packages",
    "creates an environment",
    "needs a GPU",
    "needs another package",
    "starts a server",
    "takes minutes",
    "takes hours",
}
LANGUAGES = {"sh", "python", "json"}

FASTGLOW = f"""\
#!/bin/sh
case "$1 $*" in
*--config-file*) ;;
"train "*) small="--config-file {SMALL}/$2.json" ;;
esac
exec {sys.executable} -m fastglow "$@" $small
"""


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Small models in NVIDIA's layout, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("checkpoints")
    options = {name: json.loads((SMALL / f"{name}.json").read_text()) for name in ("tacotron2", "waveglow")}
    fields = {field.name for field in dataclasses.fields(Tacotron2Config)}
    tacotron2 = Tacotron2(**{key: value for key, value in options["tacotron2"].items() if key in fields})
    save_nvidia_checkpoint(tacotron2, folder / "tacotron2_statedict.pt")
    wn = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
    save_nvidia_checkpoint(WaveGlow(n_flows=4, n_early_every=2, WN_config=wn), folder / "waveglow_256channels.pt")
    return folder


@pytest.fixture
def folder(tmp_path, checkpoints):
    """The files that the pages name, the programs that they call, and no others."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script(programs / "fastglow", FASTGLOW)
    script(programs / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script(
        programs / "aplay", '#!/bin/sh\ncase "$*" in *raw*) ;; *) head -c 4 | grep -q RIFF ;; esac && cat > /dev/null\n'
    )  # plays nothing, in either format
    work = tmp_path / "work"
    shutil.copytree(checkpoints, work)
    shutil.copytree(CLIPS, work / "LJSpeech-1.1")
    for name, text in (("chapter", "Chapter 1. It was late. So it was."), ("one", "One."), ("two", "Number two.")):
        (work / f"{name}.txt").write_text(f"{text}\n")
    (work / "own.txt").write_text("SIOBHAN SH IH0 V AO1 N\n")
    return work


def run_shell(block: Block, folder: Path) -> None:
    path = os.pathsep.join([str(folder.parent / "programs"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # a user's machine has PyTorch's operations or a GPU
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, f"{block.text}\n{done.stderr}"


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_blocks_run(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}  # a page's Python blocks build on each other
    for block in blocks(path):
        print(f"{name_of(path)}:{block.line}")
        if block.not_run is not None:
            continue
        if block.language == "sh":
            run_shell(block, folder)
        elif block.language == "python":
            exec(compile(block.text, f"{name_of(path)}:{block.line}", "exec"), names)
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_every_block_is_run_or_says_why_not(path):
    found = blocks(path)
    assert {block.language for block in found} <= LANGUAGES
    assert {block.not_run for block in found} - {None} <= REASONS


def test_the_pages_are_found():
    assert {"README.md", "docs/cli.md", "docs/training.md"} <= {name_of(path) for path in GUIDES}
    assert sum(block.not_run is None for path in GUIDES for block in blocks(path)) >= 12
