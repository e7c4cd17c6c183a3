"""A recipe of a tiny voice, made of eight clips by commands that run in this process."""

import json
import shutil
from pathlib import Path

import pytest

from fastglow import cli
from fastglow.checkpoint import inspect_checkpoint
from fastglow.voices import Voice
from voices.build import GOALS, make
from voices.recipe import FILE, find_recipe
from voices.running import FASTGLOW, PYTHON, Stopped
from voices.work import Work

CLIPS = Path(__file__).parents[1] / "data" / "clips"

SMALL = {
    **{"symbols_embedding_dim": 16, "encoder_embedding_dim": 16, "attention_rnn_dim": 24, "attention_dim": 8},
    **{"attention_location_n_filters": 4, "attention_location_kernel_size": 7, "decoder_rnn_dim": 24},
    **{"prenet_dim": 12, "postnet_embedding_dim": 12, "n_frames_per_step": 4, "max_decoder_steps": 20},
    **{"batch_size": 4, "device": "cpu", "num_workers": 0, "tensorboard": False, "iters_per_checkpoint": 1},
    **{"guided_attention_weight": 10, "ema": 0.9, "p_arpabet": 0.9, "epochs_per_validation": 1000},
}
SMALL_WAVEGLOW = {
    **{"n_flows": 4, "n_early_every": 2, "wn_n_channels": 8, "wn_n_layers": 2, "upsample_kernel_size": 256},
    **{"batch_size": 2, "segment_length": 1024, "device": "cpu", "num_workers": 0, "tensorboard": False},
    **{"epochs_per_validation": 1000, "iters_per_checkpoint": 2, "keep_checkpoints": 2, "ema": 0.9},
}


class Commands:
    """Instead of `Runner`: commands of `fastglow` run in this process, those of `bench.voice` are made up.

    A command whose number is in `faults` is not run: the function
    there is called with its words.
    """

    WORD_ERRORS = {"2": 0.25, "3": 0.5}
    DISTANCES = {1: 0.7, 2: 0.9}

    def __init__(self):
        self.called: list[list[str]] = []
        self.faults = {}
        self.check = lambda: None

    def locked(self, written, read=()):
        from contextlib import nullcontext

        return nullcontext()

    def call(self, command, seconds=None):
        words = command[len(PYTHON) :]
        self.called.append(words)
        fault = self.faults.pop(len(self.called), None)
        if fault is not None:
            fault(words)
        elif tuple(command[: len(FASTGLOW)]) == FASTGLOW:
            assert cli.main([*words[1:], "--quiet"] if words[1] in ("prepare", "train") else words[1:]) == 0
        else:
            assert words[0] == "bench.voice"
            out = Path(words[words.index("--out") + 1])
            report = {"word_error": self.WORD_ERRORS.get(out.name.partition("-")[0], 0.5)}
            if "--copies-only" in words:
                assert inspect_checkpoint(words[1]).model == "tacotron2"
                iteration = inspect_checkpoint(words[words.index("--waveglow") + 1]).iteration
                report = {"voices": [{"copies": {"waveglow": {"log_magnitude": self.DISTANCES[iteration]}}}]}
            elif "--metadata" in words:
                assert Voice.load(words[1]) and Path(words[words.index("--ids") + 1]).read_text()
            else:
                assert inspect_checkpoint(words[1]).iteration == int(out.name.partition("-")[0])
            out.mkdir(parents=True, exist_ok=True)
            (out / "report.json").write_text(json.dumps(report))

    def names(self):
        """What was called, in short."""
        return [" ".join(words[1:2] if words[0] == "fastglow" else words[:1]) for words in self.called]


def killed(words):
    """A command that a signal ended before it had done anything."""
    raise Stopped(15)


def killed_after(*changes):
    """A command that was killed when it had made files, or changed them."""

    def fault(words):
        for change in changes:
            change(words)
        raise Stopped(9)

    return fault


class Project:
    """A recipe, its folder, and how to make its voice."""

    def __init__(self, folder: Path):
        self.recipe, self.out = folder / "recipe", folder / "out"
        self.recipe.mkdir()
        (folder / "lexicon.txt").write_text("how HH AW1\nold OW1 L D\nare AA1 R\nyou Y UW1\n")
        self.write("1_align.json", SMALL | {"max_iterations": 2})
        self.write("2_read.json", {"guided_attention_weight": 0.5, "learning_rate": 1e-4, "max_iterations": 3})
        self.write("waveglow.json", SMALL_WAVEGLOW | {"max_iterations": 2})
        (self.recipe / "texts.csv").write_text("a|How old are you.\n")
        self.values = {
            **{"name": "tiny", "speech": str(CLIPS), "lexicon": str(folder / "lexicon.txt")},
            **{"tacotron2": ["1_align.json", "2_read.json"], "waveglow": ["waveglow.json"], "newest": 2},
            **{"prepare": {"validation": 1, "workers": 1}, "development": "texts.csv", "export": {"dtype": "float16"}},
        }

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.out.parent, folder)
        project = Project.__new__(Project)
        project.__dict__ |= self.__dict__ | {"recipe": folder / "recipe", "out": folder / "out"}
        return project

    def write(self, name, values):
        (self.recipe / name).write_text(json.dumps(values))

    @property
    def work(self) -> Work:
        self.write(FILE, self.values)
        recipe = find_recipe(str(self.recipe))
        return Work(recipe, Path(recipe.speech), self.out)

    def make(self, goal="report", commands=None) -> Commands:
        commands = commands or Commands()
        make(GOALS[goal](self.work), commands)
        return commands


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("finished"))
    project.commands = project.make()
    project.make("waveglow", Commands())
    return project


@pytest.fixture
def finished(_finished, tmp_path):
    """A voice that was made without a disturbance, with what was called, and a WaveGlow beside it."""
    return _finished.copy(tmp_path / "copy")
