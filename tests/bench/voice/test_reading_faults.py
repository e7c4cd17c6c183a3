"""Faults planted in the attention, in the transcript and in the pace of readings."""

import json

import numpy as np
import pytest
import torch

from bench.voice.command import main
from bench.voice.reading_faults import (
    HardSentence,
    pace_scores,
    read_hard,
    read_hard_sentences,
    runs,
    summarise,
)
from bench.voice.word_errors import Edit, align
from fastglow import FastglowError, Synthesizer
from tests.engine.scripted import ScriptedTacotron2, reading

from .conftest import Script

SEED = 1


class Noise:
    """A vocoder whose sound nobody needs."""

    def vocode(self, mels, lengths, seeds):
        return [0.03 * torch.randn(256 * n, generator=torch.Generator().manual_seed(0)) for n in lengths]


def reader(script, most=400):
    made = Synthesizer(
        ScriptedTacotron2(script, max_decoder_steps=most), "griffin-lim", text_cleaners=["basic_cleaners"], device="cpu"
    )
    made.vocoder = Noise()
    return made


PLANTED = {
    "skips": lambda n: [*reading(n)[:10], *reading(n)[40:]],
    "repeats": lambda n: [*reading(n)[:50], *reading(n)[20:]],
    "breaks off": lambda n: reading(n)[:20],
    "runs on": lambda n: [*reading(n), None],
    "unfinished": lambda n: [*reading(n)[:20], *[9, 10] * 200],
    "illegible": lambda n: [-1] * 60,
}
SENTENCE = HardSentence("planted", "Forty symbols are enough to plant them.")


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_of_every_attempt_is_left(fault):
    (row,) = read_hard(reader(lambda symbols, seed: PLANTED[fault](len(symbols))), [SENTENCE], SEED, None)
    assert (row["first"], row["left"]) == ([fault], [fault])
    assert row["retries"] == (0 if fault == "illegible" else 3)


@pytest.mark.parametrize("fault", [fault for fault in PLANTED if fault != "illegible"])
def test_a_fault_that_another_seed_mends_is_one_of_the_first_attempt(fault):
    voice = reader(lambda symbols, seed: (PLANTED[fault] if seed == SEED else reading)(len(symbols)))
    (row,) = read_hard(voice, [SENTENCE], SEED, None)
    assert (row["first"], row["left"], row["retries"]) == ([fault], [], 1)


def test_a_right_reading_has_no_fault():
    (row,) = read_hard(reader(lambda symbols, seed: reading(len(symbols))), [SENTENCE], SEED, None)
    assert (row["first"], row["left"], row["retries"]) == ([], [], 0)
    assert row["symbols"] == len(SENTENCE.text)
    assert row["seconds"] == len(reading(len(SENTENCE.text))) * 3 * 256 / 22050


def test_a_sentence_that_was_split_was_too_long():
    """As an endless item would be that moves on steadily until the step limit."""
    voice = reader(lambda symbols, seed: [i for i in range(len(symbols)) for _ in range(12)], most=300)
    (row,) = read_hard(voice, [SENTENCE], SEED, None)
    assert (row["first"], row["left"]) == (["too long"], [])


def test_one_faulty_sentence_of_a_text_counts():
    voice = reader(lambda symbols, seed: (PLANTED["skips"] if len(symbols) > 20 else reading)(len(symbols)))
    (row,) = read_hard(voice, [HardSentence("two", "Well now. " + SENTENCE.text)], SEED, None)
    assert (row["first"], row["left"], row["retries"]) == (["skips"], ["skips"], 3)


def test_words_lost_and_added_are_counted_beside_the_attention():
    voice = reader(lambda symbols, seed: reading(len(symbols)))
    text = "one two three four five six seven."
    heard = Script(
        "one two three four five six seven",
        "one two six seven",
        "one two three four five five four five six seven",
        "one three four five oh seven",
    )
    found = summarise(read_hard(voice, [HardSentence("words", text)] * 4, SEED, heard))
    assert [(row["lost"], row["added"]) for row in found["rows"]] == [(0, 0), (3, 0), (0, 3), (1, 0)]
    assert found["checks"] == {"leap": 0, "return": 0, "lost": 1, "added": 1, "pace": 0}
    errors = found["word_errors"]
    assert [errors[kind] for kind in ("words", "substitutions", "insertions", "deletions")] == [28, 1, 3, 4]
    assert found["faulty"] == {"first": 0, "left": 0}


@pytest.mark.parametrize(
    "path, leap, back",
    [
        (reading(40), 1, 0),
        ([*reading(40)[:20], *reading(40)[32:]], 7, 0),  # six symbols left out, which the engine lets pass
        ([*reading(40)[:40], *reading(40)[26:]], 1, 6),  # seven symbols twice
        ([*reading(40)[:40], 3, *reading(40)[40:]], 1, 0),  # a glance aside
    ],
)
def test_a_short_word_left_out_or_said_twice_is_suspicious(path, leap, back):
    (row,) = read_hard(reader(lambda symbols, seed: path), [HardSentence("planted", "x" * 39)], SEED, None)
    assert (row["first"], row["leap"], row["return"]) == ([], leap, back)
    checks = summarise([row])["checks"]
    assert (checks["leap"], checks["return"]) == (leap >= 5, back >= 5)


def test_runs_of_edits():
    edits = align("a b c d e f g h".split(), "a x d e f".split())
    assert (runs(edits, Edit.DELETED), runs(edits, Edit.KEPT), runs(edits, Edit.INSERTED)) == (2, 3, 0)


def test_faults_are_counted_by_kind_and_category():
    def script(symbols, seed):
        n = len(symbols)
        if n == len("Long enough to skip a part of it."):
            return PLANTED["skips"](n)
        return PLANTED["repeats"](n) if seed == SEED and n > 35 else reading(n)

    rows = [
        HardSentence("first", "Long enough to skip a part of it."),
        HardSentence("first", "Long enough too to repeat a part of it once."),
        HardSentence("second", "Short and right."),
    ]
    found = summarise(read_hard(reader(script), rows, SEED, None))
    assert found["faulty"] == {"first": 2, "left": 1}
    assert found["faults"] == {"first": {"repeats": 1, "skips": 1}, "left": {"skips": 1}}
    assert found["retries"] == 3 + 1
    assert found["categories"] == {
        "first": {"sentences": 2, "first": 2, "left": 1, "word_errors": None},
        "second": {"sentences": 1, "first": 0, "left": 0, "word_errors": None},
    }


def test_word_errors_are_counted_by_category():
    voice = reader(lambda symbols, seed: reading(len(symbols)))
    rows = [HardSentence("one", "What is it?"), HardSentence("two", "A long way."), HardSentence("one", "Who is it?")]
    found = summarise(read_hard(voice, rows, SEED, Script("what is it", "a way", "who was it")))
    rates = {name: of["word_errors"]["rate"] for name, of in found["categories"].items()}
    assert rates == {"one": 1 / 6, "two": 1 / 3}
    assert found["word_errors"]["rate"] == 2 / 9


def test_a_slow_and_a_fast_sentence_stand_out():
    random = np.random.default_rng(3)
    symbols = random.integers(5, 120, size=40)
    seconds = 0.3 + 0.06 * symbols + 0.02 * np.sqrt(symbols) * random.permutation(np.linspace(-1, 1, 40))
    assert np.abs(pace_scores(symbols, seconds)).max() < 3.5
    seconds[7] += 0.03 * symbols[7]
    seconds[11] *= 0.6
    scores = pace_scores(symbols, seconds)
    assert scores[7] > 3.5 and scores[11] < -3.5
    assert np.abs(np.delete(scores, [7, 11])).max() < 3.5
    assert pace_scores([4], [1.0]) == [0]


def test_there_are_a_hundred_hard_sentences():
    sentences = read_hard_sentences()
    assert len({sentence.text for sentence in sentences}) == 100
    assert len({sentence.category for sentence in sentences}) > 10
    assert max(len(sentence.text) for sentence in sentences) < 200  # one sentence for the engine


@pytest.mark.parametrize("line", ["no category", "|text", "name|", "name|..."])
def test_bad_hard_sentences(tmp_path, line):
    path = tmp_path / "hard.txt"
    path.write_text(f"name|Some text.\n{line}\n")
    with pytest.raises(FastglowError, match="line 2 is .* must be category|text"):
        read_hard_sentences(path)
    path.write_text("")
    with pytest.raises(FastglowError, match="holds no lines"):
        read_hard_sentences(path)


def test_the_command_reports_them(listener, checkpoint, tmp_path, capsys):
    hard = tmp_path / "hard.txt"
    hard.write_text("one|How are you?\ntwo|Who is it, and why?\n")
    assert main([str(checkpoint), "--hard-sentences", str(hard), "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "report.json").read_text())["voices"]
    assert [row["text"] for row in found["hard"]["rows"]] == ["How are you?", "Who is it, and why?"]
    assert found["hard"]["faults"]["first"]
    assert f"{found['hard']['faulty']['first']} of 2 sentences" in capsys.readouterr().out
