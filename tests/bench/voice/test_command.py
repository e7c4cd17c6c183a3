"""The command `python -m bench.voice`, with a recogniser that hears by the clock."""

import json
from pathlib import Path

import pytest

from bench.voice.command import main

CLIPS = Path("tests/data/clips")
RECORDINGS = ["--metadata", str(CLIPS / "metadata.csv"), "--wavs", str(CLIPS / "wavs")]


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("bench.voice: ") and line.count("\n") == 1
    return line


def test_synthesis_beside_the_recordings(listener, checkpoint, tmp_path, capsys):
    arguments = [str(checkpoint), *RECORDINGS, "--limit", "3", "--no-hard", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (voice,) = report["voices"]
    errors = voice["word_errors"]
    assert errors["originals"]["words"] == errors["synthesis"]["words"] == 12
    for source in ("originals", "synthesis"):
        assert errors[source]["edits"] == sum(row["edits"][source] for row in voice["sentences"])
        assert errors[source]["rate"] == errors[source]["edits"] / 12
    assert errors["synthesis"]["ratio"] == errors["synthesis"]["edits"] / errors["originals"]["edits"]
    assert report["word_error"] == errors["synthesis"]["rate"]
    assert [row["text"] for row in voice["sentences"]] == [
        line.split("|")[2] for line in (CLIPS / "metadata.csv").read_text().splitlines()[:3]
    ]
    assert f"| originals | {errors['originals']['rate']:.3f} |" in capsys.readouterr().out
    heard = listener.heard
    assert main(arguments) == 0
    assert listener.heard == heard  # both remembered: the same seed gives the same samples


def test_voices_are_compared_on_texts(listener, checkpoint, tmp_path, capsys):
    texts = tmp_path / "development.csv"
    texts.write_text("a|How are you?\nb|Who|Who is it?\n\n")
    assert main([str(checkpoint), str(checkpoint), "--texts", str(texts)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if str(checkpoint) in line]
    assert len(rows) == 2 and rows[0] == rows[1]
    assert rows[0].split(" | ")[4] == "6"


def test_sentences_are_chosen_by_id(listener, checkpoint, tmp_path):
    ids = tmp_path / "ids.txt"
    names = [line.split("|")[0] for line in (CLIPS / "metadata.csv").read_text().splitlines()]
    ids.write_text(f"{names[4]}\n\n{names[1]}|ignored\n")
    assert main([str(checkpoint), *RECORDINGS, "--ids", str(ids), "--no-hard", "--out", str(tmp_path)]) == 0
    (voice,) = json.loads((tmp_path / "report.json").read_text())["voices"]
    rows = voice["sentences"]
    assert [row["id"] for row in rows] == [names[4], names[1]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no lines"),
        ("a|one\na|two", "line 2 names a a second time"),
        ("a|...", "line 1 has no words"),
    ],
)
def test_bad_texts(checkpoint, tmp_path, capsys, text, message):
    path = tmp_path / "texts.csv"
    path.write_text(text)
    assert message in error_of(capsys, checkpoint, "--texts", path)


def test_bad_arguments(listener, checkpoint, tmp_path, capsys):
    texts = tmp_path / "texts.csv"
    texts.write_text("lost|Where is it?")
    assert "nothing to measure" in error_of(capsys, checkpoint, "--no-hard")
    assert "pass one of them" in error_of(capsys, checkpoint, "--texts", texts, *RECORDINGS)
    assert "belong together" in error_of(capsys, checkpoint, "--metadata", texts)
    assert "no recording of lost" in error_of(capsys, checkpoint, "--metadata", texts, "--wavs", tmp_path)
    assert "names found, which" in error_of(capsys, checkpoint, "--texts", texts, "--ids", _file(tmp_path, "found"))
    assert "names no sentence" in error_of(capsys, checkpoint, "--texts", texts, "--ids", _file(tmp_path, "\n"))
    assert "unknown voice 'nobody'" in error_of(capsys, "nobody", "--texts", texts)
    assert "cannot be read" in error_of(capsys, checkpoint, "--texts", tmp_path / "none.csv")
    assert "VOICE" in error_of(capsys, "--texts", texts)


def _file(folder, text):
    path = folder / "ids.txt"
    path.write_text(text)
    return path
