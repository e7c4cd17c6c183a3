"""From recordings to a voice, with kills between and inside the stages."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fastglow import cli
from fastglow.checkpoint import inspect_checkpoint, load_checkpoint
from fastglow.errors import FastglowError
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.command import train as train_command
from fastglow.train.manifest import PreparedDataset
from fastglow.voices import Voice
from voices import build
from voices.recipe import MODELS, RECIPES, find_recipe
from voices.running import Runner, Stopped

from .conftest import CLIPS, Commands, killed, killed_after

EVERYTHING = ["prepare", "train", "train", "bench.voice", "bench.voice", "export-voice", "bench.voice"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_of(project, model="tacotron2"):
    records = map(json.loads, (project.out / model / "log.jsonl").read_text().splitlines())
    return [record for record in records if record["group"] == "train"]


def test_a_voice_is_made_in_one_go(finished):
    assert finished.commands.names() == EVERYTHING
    voice = Voice.load(finished.out / "voice")
    assert voice.name == "tiny" and voice.lexicon == finished.out / "voice" / "lexicon.txt"
    assert (finished.out / "held_out.txt").read_text().count("\n") == 1
    choice = json.loads((finished.out / "choice.json").read_text())
    assert choice["iteration"] == 2 and choice["word_errors"] == {"2": 0.25, "3": 0.5}
    info = inspect_checkpoint(voice.tacotron2)
    assert set(info.dtypes) == {"float16"}
    assert not list(finished.out.rglob("*.new"))


def test_a_stage_goes_on_with_its_own_options_in_the_same_log(finished):
    log = log_of(finished)
    assert [record["iteration"] for record in log] == [1, 2, 3]
    assert [record["learning_rate"] for record in log] == [1e-3, 1e-3, 1e-4]
    ends = {path.stem: inspect_checkpoint(path).iteration for path in (finished.out / "ends").iterdir()}
    assert ends == {"1_align": 2, "2_read": 3, "waveglow": 2}


def test_nothing_is_repeated(finished):
    before = contents(finished.out)
    assert finished.make().called == []
    assert contents(finished.out) == before


def out_of(words):
    return Path(words[words.index("--out") + 1])


def run(words, *extra):
    assert cli.main([*words[1:], "--quiet", *extra]) == 0


def half_a_data_set(words):
    run(words)
    (out_of(words) / "dataset.json").unlink()
    (mels,) = out_of(words).glob("*.mel")
    mels.unlink()


def half_a_checkpoint(words):
    run(words, "--max-iterations", "1")
    data = (out_of(words) / "checkpoint_1.pt").read_bytes()
    for name in ("checkpoint_2.pt", ".checkpoint_2.pt.0123.tmp"):
        (out_of(words) / name).write_bytes(data[: len(data) // 2])


def half_a_folder(words):
    out_of(words).mkdir(parents=True)
    (out_of(words) / "report.jso").write_text("{")


def test_killed_between_and_inside_the_stages_it_makes_the_same_voice(finished, project):
    called = []
    for number, fault in [
        (1, killed_after(half_a_data_set)),
        (2, killed_after(half_a_checkpoint)),
        (2, killed_after(run)),  # the training ended, and its end was not kept
        (1, killed_after(half_a_folder)),  # the first report on a candidate
        (2, killed),
        (2, killed_after(half_a_folder)),  # the voice
        (2, killed_after(half_a_folder)),  # the report on it
        (2, killed),
    ]:
        commands = Commands()
        commands.faults = {number: fault}
        with pytest.raises(Stopped):
            project.make(commands=commands)
            commands.call(["", "", "", "after the end"])
        called += commands.names()[: number - 1]
    assert called == EVERYTHING[:1] + EVERYTHING[2:]  # one training had ended when it was killed
    assert contents(project.out / "voice") == contents(finished.out / "voice")
    for name in ("1_align.pt", "2_read.pt"):
        ours, theirs = (load_training_checkpoint(of.out / "ends" / name, "tacotron2") for of in (project, finished))
        for part in ("state_dict", "trained_state_dict"):
            assert all(torch.equal(ours[part][key], theirs[part][key]) for key in theirs[part])
    assert [record["iteration"] for record in log_of(project)] == [1, 2, 3]


@pytest.mark.parametrize(
    "lost, again",
    [
        (["ends/2_read.pt"], []),
        (["choice.json"], []),
        ([".voice.origin.json"], ["export-voice"]),
        (["voice/voice.json"], ["export-voice"]),
        (["report/report.json"], ["bench.voice"]),
        (["choice.json", "candidates/3-*/report.json"], ["bench.voice"]),
    ],
)
def test_what_is_lost_is_made_again(finished, lost, again):
    before = contents(finished.out).keys()
    for pattern in lost:
        (file,) = finished.out.glob(pattern)
        file.unlink()
    assert finished.make().names() == again
    assert contents(finished.out).keys() == before


def test_what_is_changed_is_made_again(finished):
    excluded, *_ = PreparedDataset.open(finished.out / "data").items["train"]
    (finished.recipe / "excluded.txt").write_text(f"{excluded.id}|misread\n")
    finished.values = finished.values | {"exclude": "excluded.txt", "description": "another voice"}
    (finished.recipe / "texts.csv").write_text("a|How old are you.\nb|Nine.\n")
    assert finished.make().names() == [*EVERYTHING[:1], *EVERYTHING[3:]]
    assert excluded.id not in [item.id for item in PreparedDataset.open(finished.out / "data").items["train"]]
    assert Voice.load(finished.out / "voice").description == "another voice"


def test_data_are_prepared_again_with_other_options_before_the_training_only(finished):
    finished.values = finished.values | {"prepare": {**finished.values.get("prepare", {}), "trim_db": 30}}
    with pytest.raises(FastglowError, match="tacotron2 was trained on data prepared with .*, not with .*'trim_db': 30"):
        finished.make()
    for run in ("tacotron2", "waveglow"):
        shutil.rmtree(finished.out / run, ignore_errors=True)
    assert finished.make("data").names() == ["prepare"]
    assert finished.make("data").names() == []


def test_data_of_other_recordings_are_refused(finished, tmp_path):
    finished.values = finished.values | {"speech": os.path.relpath(CLIPS)}
    assert finished.make().called == []  # the same folder
    finished.values = finished.values | {"speech": str(tmp_path / "others")}
    with pytest.raises(FastglowError, match="clips, not of .*others: name another folder with --out"):
        finished.make()


def test_a_training_that_was_stopped_is_not_done(project):
    """`fastglow train` exits with 0 after SIGTERM."""
    commands = Commands()
    commands.faults = {2: lambda words: run(words, "--max-iterations", "1")}
    with pytest.raises(FastglowError, match="1_align ended after 1 of 2 iterations: run this again to go on"):
        project.make("tacotron2", commands)
    assert project.make("tacotron2").names() == ["train", "train"]


def test_a_voice_that_is_too_large_does_not_replace_another(finished):
    before = contents(finished.out / "voice")
    finished.values = finished.values | {"max_megabytes": 0.01}
    with pytest.raises(FastglowError, match=r"has 0.\d MB, must have at most 0.01 MB"):
        finished.make()
    assert contents(finished.out / "voice") == before


def test_waveglow_is_trained_apart_and_taken_when_asked_for(finished):
    assert finished.make("waveglow").called == []
    assert [record["iteration"] for record in log_of(finished, "waveglow")] == [1, 2]
    assert finished.make().called == []
    finished.values = finished.values | {"speaks_by_waveglow": True}
    finished.make("voice")
    assert Voice.load(finished.out / "voice").vocoder == "waveglow"


def test_the_waveglow_is_chosen_by_a_third_of_the_held_out_clips(project, tmp_path):
    """And the voice is reported on with the others."""
    others = tmp_path / "others"
    others.mkdir()
    (others / "wavs").symlink_to((CLIPS / "wavs").resolve())
    (others / "metadata.csv").write_text("".join((CLIPS / "metadata.csv").read_text().splitlines(True)[:3]))
    waveglow = json.loads((project.recipe / "waveglow.json").read_text())
    project.write("waveglow.json", waveglow | {"iters_per_checkpoint": 1})
    project.values = project.values | {
        "speaks_by_waveglow": True,
        "prepare": {"validation_files": str(others), "workers": 1},
    }
    project.make("waveglow")
    assert project.make().names()[-4:] == ["bench.voice", "bench.voice", "export-voice", "bench.voice"]
    held_out = [item.id for item in PreparedDataset.open(project.out / "data").items["validation"]]
    assert (project.out / "choosing.txt").read_text().split() == held_out[2:]
    assert (project.out / "held_out.txt").read_text().split() == held_out[:2]
    choice = json.loads((project.out / "choice_waveglow.json").read_text())
    assert choice["iteration"] == 1 and choice["distances"] == {"1": 0.7, "2": 0.9}
    chosen = load_training_checkpoint(project.out / "waveglow" / "checkpoint_1.pt", "waveglow")["state_dict"]
    exported = load_checkpoint(Voice.load(project.out / "voice").waveglow).state_dict()
    for name, tensor in exported.items():
        assert torch.equal(tensor, chosen[name].half().float()), name


def test_a_waveglow_that_is_not_trained_is_asked_for(project):
    project.values = project.values | {"speaks_by_waveglow": True, "tacotron2": ["1_align.json"], "development": None}
    with pytest.raises(FastglowError, match="no checkpoint to choose from: make the goal waveglow first"):
        project.make("voice")


def test_what_is_done_does_not_wait_for_those_that_read_it(finished):
    runner, commands = Runner(), Commands()
    runner._stopped = signal.SIGTERM  # else it would wait for ever
    commands.locked = runner.locked
    with Runner().locked(finished.out / "waveglow", [finished.out / "data"]):  # a WaveGlow is trained for days
        assert finished.make(commands=commands).called == []
        (finished.out / "data" / "dataset.json").unlink()
        with pytest.raises(Stopped):
            finished.make(commands=commands)


def test_screening_makes_the_list_that_prepare_reads(project):
    project.values = project.values | {"screen": True}
    commands = Commands()
    (first, *_) = CLIPS.glob("wavs/*.ogg")

    def listen(words):
        assert words[:2] == ["voices.screening", str(CLIPS)]
        out_of(words).mkdir(parents=True)
        (out_of(words) / "excluded.txt").write_text(f"{first.stem}|nothing is understood\n")

    commands.faults = {1: listen}
    project.make("data", commands)
    assert commands.names() == ["voices.screening", "prepare"]
    (rejected,) = json.loads((project.out / "data" / "dataset.json").read_text())["rejected"]
    assert rejected["item"] == first.stem
    assert project.make("data").called == []


def test_without_hard_links_files_are_copied(project, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr("voices.work.os.link", refuse)
    project.values = project.values | {"tacotron2": ["1_align.json"], "development": None}
    project.make("voice")
    assert (project.out / "ends/1_align.pt").read_bytes() == (project.out / "tacotron2/checkpoint_2.pt").read_bytes()
    assert not list(project.out.rglob("*.tmp"))


def test_without_sentences_the_newest_is_taken(finished):
    finished.values = finished.values | {"development": None}
    assert finished.make("voice").names() == ["export-voice"]
    assert json.loads((finished.out / "choice.json").read_text())["iteration"] == 3


def test_the_plan_shows_commands_and_does_nothing(project, capsys):
    work = project.work
    arguments = [str(project.recipe), "waveglow", "--out", str(project.out), "--plan"]
    assert build.main(arguments) == 0
    config = project.recipe / "waveglow.json"
    assert capsys.readouterr().out.splitlines() == [
        "# data",
        f"fastglow prepare {CLIPS} --out {work.data} --validation 1 --workers 1",
        "# waveglow",
        f"fastglow train waveglow --data {work.data} --out {project.out}/waveglow --config-file {config}",
    ]
    assert not project.out.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nonsense": 1}, "sets unknown values: nonsense"),
        ({"name": "../x"}, "name='../x' must be the name of a folder"),
        ({"tacotron2": []}, "tacotron2 must name"),
        ({"waveglow": "waveglow.json"}, "waveglow='waveglow.json' must be a list"),
        ({"export": ["float16"]}, "export=['float16'] must be a dict"),
        ({"tacotron2": ["2_read.json", "1_align.json"]}, "max_iterations=2 must be an integer above 3"),
        ({"tacotron2": ["none.json"]}, "names none.json, which is not in its folder"),
        ({"development": "none.csv"}, "names none.csv, which is not in its folder"),
    ],
)
def test_a_wrong_recipe_is_refused(project, capsys, change, message):
    project.values = project.values | change
    project.write("recipe.json", project.values)
    assert build.main([str(project.recipe), "--plan"]) == 2
    assert message in capsys.readouterr().err


def test_every_recipe_is_whole(capsys):
    for recipe in RECIPES.iterdir():
        assert build.main([recipe.name, "waveglow", "--plan", "--out", "/nonexistent"]) == 0
        assert build.main([recipe.name, "--plan", "--out", "/nonexistent"]) == 0
        assert "fastglow train tacotron2" in capsys.readouterr().out


def test_recipes_set_options_that_there_are():
    for folder in RECIPES.iterdir():
        recipe = find_recipe(folder.name)
        for model in MODELS:
            known = {parameter.name for parameter in train_command.commands[model].params}
            for training in getattr(recipe, model):
                assert json.loads(training.config.read_text()).keys() <= known, training.config
            assert recipe.gpu_options(model).keys() <= known


def test_an_unknown_recipe_is_refused(capsys):
    assert build.main(["nobody"]) == 2
    assert "use one of heart" in capsys.readouterr().err
