"""Garbage collection while a command loads the engine, in processes of their own."""

import subprocess
import sys

import pytest

from ..engine.conftest import ENVIRONMENT

FROZEN = """
import fastglow.engine, torch
assert not any(x is torch.nn.Module or x is fastglow.engine.Synthesizer for x in gc.get_objects())
"""
ALIVE = """
class Cycle:
    def __init__(self):
        self.own = self
made = weakref.ref(Cycle())
gc.collect()
assert made() is None
"""


def run(code):
    code = "import gc, sys, weakref\nfrom fastglow.commands.loading import load_engine\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_what_is_loaded_is_never_looked_at_again():
    run("collections = []\ngc.callbacks.append(lambda *_: collections.append('torch' in sys.modules))\n"
        "load_engine()\nassert not any(collections) and gc.isenabled()\n" + FROZEN + ALIVE)  # fmt: skip


def test_a_caller_without_collections_gets_none():
    run("gc.disable()\nload_engine()\nassert not gc.isenabled()\n" + FROZEN)


SPEAK = """
import fastglow.cli
before = gc.get_freeze_count()
arguments = ["synth", "Hi.", "-o", {out!r}, "--voice", {voice!r}, "-q", "--seed", "1"]
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_a_callers_process_keeps_its_objects(voice_folder, tmp_path, enabled):
    run(
        f"gc.enable() if {enabled} else gc.disable()\n"
        "switched = []\n"
        "gc.disable = gc.enable = gc.freeze = lambda: switched.append(1)\n"
        + SPEAK.format(out=str(tmp_path / "x.wav"), voice=str(voice_folder))
        + "assert fastglow.cli.main(arguments) == 0 and 'torch' in sys.modules\n"
        f"assert not switched and gc.get_freeze_count() == before and gc.isenabled() is {enabled}\n" + ALIVE
    )
    assert (tmp_path / "x.wav").stat().st_size > 44


def test_the_command_in_a_process_of_its_own_leaves_the_engine_out(voice_folder, tmp_path):
    run(
        SPEAK.format(out=str(tmp_path / "x.wav"), voice=str(voice_folder))
        + "sys.argv[1:] = arguments\n"
        + "assert fastglow.cli.main() == 0 and gc.isenabled()\n" + FROZEN + ALIVE
    )  # fmt: skip
    assert (tmp_path / "x.wav").stat().st_size > 44


def test_collections_go_on_when_the_engine_cannot_be_loaded():
    run(
        "sys.modules['fastglow.engine.synthesizer'] = None\n"
        "before = gc.get_freeze_count()\n"
        "try:\n    load_engine()\n"
        "except ImportError:\n    assert gc.isenabled() and gc.get_freeze_count() == before\n"
        "else:\n    raise AssertionError('loaded')\n"
    )
