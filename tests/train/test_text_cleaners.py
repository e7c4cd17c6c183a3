"""The text cleaners of a run of Tacotron 2: the data set's, unless others are given."""

import logging
from dataclasses import replace

import pytest

from fastglow.cli import main
from fastglow.text import sequence_to_text
from fastglow.text.cleaners import find_cleaner
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.loop import Trainer
from fastglow.train.manifest import PreparedDataset

from .conftest import command_line, configs, rewritten


@pytest.fixture
def prepared_with(prepared, tmp_path):
    """A copy of the prepared clips, as if prepared with the given cleaners; None: before they were recorded."""

    def make(cleaners):
        def edit(items):
            for split, members in items.items():  # each cleaner reads this text differently
                items[split] = [replace(item, text="Dr. Caf\xe9 at Mt. Oslo") for item in members]

        return rewritten(prepared, tmp_path / "data", edit, text_cleaners=cleaners)

    return make


def clean(names, text):
    for name in names:
        text = find_cleaner(name)(text)
    return text


CHOICES = [
    (["english_speech_cleaners"], [], ["english_speech_cleaners"]),
    (["transliteration_cleaners"], [], ["transliteration_cleaners"]),
    (["transliteration_cleaners", "english_cleaners"], [], ["transliteration_cleaners", "english_cleaners"]),
    (["english_cleaners"], [], ["english_cleaners"]),
    (None, [], ["english_cleaners"]),
    (None, ["transliteration_cleaners"], ["transliteration_cleaners"]),
    (["english_speech_cleaners"], ["english_cleaners"], ["english_cleaners"]),
    (["english_cleaners"], ["english_speech_cleaners"], ["english_speech_cleaners"]),
    (["english_cleaners"], ["english_cleaners"], ["english_cleaners"]),
]


@pytest.mark.parametrize(("recorded", "asked_for", "used"), CHOICES)
def test_the_data_sets_cleaners_unless_others_are_given(prepared_with, tmp_path, recorded, asked_for, used, caplog):
    config, model_config = configs("tacotron2", prepared_with(recorded), tmp_path / "run", text_cleaners=asked_for)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer("tacotron2", config, model_config, progress=False)
    for dataset in (trainer.trainset, trainer.valset):
        assert sequence_to_text(dataset.sequence(0)) == clean(used, "Dr. Caf\xe9 at Mt. Oslo")
    assert load_training_checkpoint(trainer.save(), "tacotron2")["training"]["text_cleaners"] == used
    lines = [record.getMessage() for record in caplog.records]
    if asked_for and recorded and asked_for != recorded:
        (line,) = lines
        assert line == (
            f"text cleaners: {asked_for[0]}, as given, not {recorded[0]}, with which {config.data} was prepared"
        )
    else:
        assert not lines


@pytest.mark.parametrize("asked_for", [[], ["english_cleaners"], ["basic_cleaners"]])
def test_the_command_line(prepared_with, tmp_path, asked_for, capsys):
    """Without --text-cleaners, the default must not count as given."""
    folder = prepared_with(["transliteration_cleaners"])
    arguments = command_line("tacotron2", folder, tmp_path / "run")
    for flag, value in {"--max-iterations": 1, "--epochs-per-validation": 1000}.items():
        arguments[arguments.index(flag) + 1] = str(value)
    arguments += [argument for name in asked_for for argument in ("--text-cleaners", name)]
    assert main(arguments) == 0
    training = load_training_checkpoint(tmp_path / "run" / "checkpoint_1.pt", "tacotron2")["training"]
    assert training["text_cleaners"] == (asked_for or ["transliteration_cleaners"])


def test_a_resumed_run_of_an_older_data_set_keeps_its_cleaners(prepared_with, tmp_path, caplog):
    folder = prepared_with(None)
    for resume, n in ((False, 1), (True, 2)):
        config, model_config = configs("tacotron2", folder, tmp_path / "run", max_iterations=n, resume=resume)
        with caplog.at_level(logging.WARNING):
            trainer = Trainer("tacotron2", config, model_config, progress=False)
            trainer.run()
    assert trainer.config.text_cleaners == ["english_cleaners"]
    assert not caplog.records


def test_waveglow_has_no_cleaners(prepared_with, tmp_path, caplog):
    config, model_config = configs("waveglow", prepared_with(["basic_cleaners"]), tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        trainer = Trainer("waveglow", config, model_config, progress=False)
    assert trainer.config == config
    assert not caplog.records
    assert PreparedDataset.open(config.data).text_cleaners == ["basic_cleaners"]
