"""The command `python -m bench.voice`, with a recogniser that hears by the clock."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bench.voice.command import main
from bench.voice.copy_synthesis import teacher_forced
from bench.voice.page import choose_rows
from fastglow import Synthesizer, save_checkpoint
from tests.engine.conftest import make_waveglow

from .conftest import Listener

CLIPS = Path("tests/data/clips")
RECORDINGS = ["--metadata", str(CLIPS / "metadata.csv"), "--wavs", str(CLIPS / "wavs")]


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("bench.voice: ") and line.count("\n") == 1
    return line


def arguments_of(voice, out):
    return [str(voice), *RECORDINGS, "--limit", "2", "--no-hard", "--out", str(out)]


@pytest.fixture(scope="module")
def evaluated(voice_folder, tmp_path_factory):
    """The folder of a report."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.voice.command.Pocketsphinx", Listener)
        assert main([*arguments_of(voice_folder, out), "--plots", "1"]) == 0
    return out


@pytest.fixture
def voice(evaluated):
    """The results of its voice."""
    report = json.loads((evaluated / "report.json").read_text(), parse_constant=pytest.fail)
    (found,) = report["voices"]
    assert report["word_error"] == found["word_errors"]["synthesis"]["rate"]
    return found


@pytest.fixture
def text(evaluated):
    return (evaluated / "report.md").read_text()


def test_a_voice_beside_the_recordings(voice, text):
    sources = ["originals", "synthesis", "synthesis by waveglow", "copy by griffin-lim", "copy by waveglow"]
    errors = voice["word_errors"]
    assert list(errors) == sources
    for source in sources:
        assert errors[source]["words"] == 8
        assert errors[source]["edits"] == sum(row["edits"][source] for row in voice["sentences"])
        assert errors[source]["rate"] == errors[source]["edits"] / 8
        assert f"| {source} | {errors[source]['rate']:.3f} |" in text
    assert errors["synthesis"]["ratio"] == errors["synthesis"]["edits"] / errors["originals"]["edits"]
    lines = (CLIPS / "metadata.csv").read_text().splitlines()[:2]
    assert [[row["id"], row["text"]] for row in voice["sentences"]] == [line.split("|")[::2] for line in lines]
    # A listener by the clock hears the same in a recording and its copies.
    for row in voice["sentences"]:
        assert row["heard"]["copy by griffin-lim"] == row["heard"]["copy by waveglow"] == row["heard"]["originals"]


def test_what_was_heard_is_remembered(evaluated, voice, voice_folder, listener, tmp_path):
    """The same seed gives the same samples."""
    transcripts = ["--transcripts", str(evaluated / "transcripts.jsonl")]
    only = ["--vocoder", "griffin-lim", "--plots", "0"]
    assert main([*arguments_of(voice_folder, tmp_path), *transcripts, *only]) == 0
    assert listener.heard == 0
    (again,) = json.loads((tmp_path / "report.json").read_text())["voices"]
    assert again["word_errors"]["copy by griffin-lim"] == voice["word_errors"]["copy by griffin-lim"]
    assert list(again["copies"]) == ["griffin-lim"] and "page" not in again


def test_copies_mels_and_seconds_of_a_voice(voice, text):
    for vocoder, scores in voice["copies"].items():
        of_rows = [row["copies"][vocoder] for row in voice["sentences"]]
        for name in ("log_magnitude", "convergence", "log_mel"):
            assert scores[name] == pytest.approx(sum(row[name] for row in of_rows) / 2)
            assert f"{scores[name]:.3f}" in text
        assert scores["delay_ms"] == pytest.approx(sum(row["delay_ms"] for row in of_rows) / 2)  # the median of two
        assert scores["seconds_per_second"] > 0
    # Random weights do not copy; Griffin-Lim does.
    assert voice["copies"]["griffin-lim"]["log_mel"] < 0.2 < voice["copies"]["waveglow"]["log_mel"]
    assert abs(voice["copies"]["griffin-lim"]["delay_ms"]) < 1
    assert list(voice["mels"]) == ["predicted mels", "synthesis", "copy by griffin-lim", "copy by waveglow"]
    copied = voice["mels"]["copy by griffin-lim"]
    assert copied["variance"] == pytest.approx(1, abs=0.1) and abs(copied["sibilance"]) < 1
    distortions = {source: of["cepstral_distortion"] for source, of in voice["mels"].items()}
    assert min(distortions, key=distortions.__getitem__) == "copy by griffin-lim"
    assert list(voice["seconds"]) == ["griffin-lim", "waveglow"]
    for vocoder, seconds in voice["seconds"].items():
        assert seconds["total"] >= max(seconds["acoustic"], seconds["vocoder"]) > 0
        assert f"| {vocoder} | {seconds['acoustic']:.3f} |" in text


def test_prosody_of_a_voice(voice, text):
    for source in ("synthesis", "originals"):
        assert f"| {source} | {voice['prosody'][source]['words_a_second']:.3f} |" in text
    prompts = (CLIPS / "metadata.csv").read_text().splitlines()[:2]
    seconds = [soundfile.info(CLIPS / "wavs" / f"{line.split('|')[0]}.ogg").duration for line in prompts]
    pace = np.mean([4 / each for each in seconds])  # with the silence at both ends, of which these have little
    assert pace < voice["prosody"]["originals"]["words_a_second"] < 1.1 * pace


def test_a_page_of_plots(evaluated, voice, text):
    assert f"({voice['page']})" in text
    page = (evaluated / voice["page"]).read_bytes()
    assert page.startswith(b"\x89PNG")
    assert not list(evaluated.glob(".*"))  # no temporary files


def test_plotted_are_the_best_and_the_worst():
    rows = [{"words": 10, "edits": {"synthesis": edits}} for edits in (3, 0, 9, 1, 5)]
    assert choose_rows(rows, 1) == [1]
    assert choose_rows(rows, 2) == [1, 2]
    assert choose_rows(rows, 3) == [1, 0, 2]
    assert choose_rows(rows, 9) == [1, 3, 0, 4, 2]


def test_voices_are_compared_on_texts(listener, checkpoint, tmp_path, capsys):
    texts = tmp_path / "development.csv"
    texts.write_text("a|How are you?\nb|Who|Who is it?\n\n")
    assert main([str(checkpoint), str(checkpoint), "--texts", str(texts)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "| synthesis |" in line]
    assert len(rows) == 2 and rows[0] == rows[1]
    assert rows[0].split(" | ")[4] == "6"


def test_sentences_are_chosen_by_id(listener, checkpoint, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("d\n\nb|ignored\nd\n")
    texts = tmp_path / "texts.csv"
    texts.write_text("".join(f"{name}|So says {name}.\n" for name in "abcd") + "e|...\n")
    arguments = [str(checkpoint), "--texts", str(texts), "--ids", str(ids), "--out", str(tmp_path)]
    assert main(arguments) == 0
    (voice,) = json.loads((tmp_path / "report.json").read_text())["voices"]
    assert [row["text"] for row in voice["sentences"]] == ["So says d.", "So says b."]
    assert "page" not in voice and "hard" not in voice


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no lines"),
        ("a|one\na|two", "line 2 names a a second time"),
        ("a|...", "a has no words"),
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
    assert "the vocoder waveglow needs" in error_of(capsys, checkpoint, *RECORDINGS, "--vocoder", "waveglow")
    assert "VOICE" in error_of(capsys, "--texts", texts)


def _file(folder, text):
    path = folder / "ids.txt"
    path.write_text(text)
    return path


def test_copies_of_predicted_mels(voice, text):
    """Random weights predict nothing: their copies are farther from the recordings than those of the recorded mels."""
    assert list(voice["teacher_forced"]) == ["griffin-lim", "waveglow"]
    copied, predicted = (voice[kind]["griffin-lim"] for kind in ("copies", "teacher_forced"))
    assert list(copied) == list(predicted)
    assert copied["log_mel"] < 0.2 < predicted["log_mel"] and copied["log_magnitude"] < predicted["log_magnitude"]
    assert "## Teacher-forced mels" in text and f"| griffin-lim | {predicted['log_magnitude']:.3f} |" in text


def test_teacher_forced_mels_are_those_of_the_model(voice_folder):
    """Frame by frame, whatever the number of frames per step; the same seed, the same mel."""
    synthesizer = Synthesizer.from_voice(str(voice_folder), "cpu", torch.float32)
    assert synthesizer.tacotron2.config.n_frames_per_step == 2
    mel = np.random.default_rng(1).standard_normal((80, 9)).astype(np.float32)
    predicted = teacher_forced(synthesizer, "How old are you?", mel, seed=3)
    assert predicted.shape == mel.shape
    assert np.array_equal(predicted, teacher_forced(synthesizer, "How old are you?", mel, seed=3))
    assert not np.array_equal(predicted, teacher_forced(synthesizer, "How old are you?", mel, seed=4))
    ids = torch.tensor([synthesizer.frontend.encode("How old are you?").symbols])
    torch.manual_seed(3)
    padded = torch.from_numpy(np.pad(mel, ((0, 0), (0, 1))))[None]
    with torch.no_grad():
        output = synthesizer.tacotron2((ids, torch.tensor([ids.shape[1]]), padded, ids.shape[1], torch.tensor([9])))
    assert np.array_equal(predicted, output[1][0, :, :9].numpy())


def test_artefacts_of_each_vocoder(voice, text, evaluated):
    measured = voice["artefacts"]
    assert list(measured) == ["computed", "griffin-lim", "waveglow"]
    for source, sounds in measured.items():
        assert list(sounds) == ["silence", "a", "i", "u"]
        assert f"| {source} | a | {sounds['a']['level']:.3f} |" in text
    assert measured["computed"]["silence"]["level"] < measured["griffin-lim"]["silence"]["level"] < -80
    # Random weights hiss in silence, and do not hold a vowel.
    assert measured["waveglow"]["silence"]["level"] > -60
    assert measured["griffin-lim"]["a"]["noise"] < -20 < measured["waveglow"]["a"]["noise"]
    assert (evaluated / voice["sounds"]).read_bytes().startswith(b"\x89PNG") and f"({voice['sounds']})" in text


def test_settings_of_waveglow_are_compared(voice_folder, monkeypatch, tmp_path):
    """Without a recogniser. Each row is what the voice gives with these settings."""
    monkeypatch.setattr("bench.voice.command.Pocketsphinx", None)
    common = [str(voice_folder), *RECORDINGS, "--limit", "1", "--copies-only", "--vocoder", "waveglow"]
    assert main([*common, "--sigma", "0.2", "--sigma", "0.9", "--denoise", "0.1", "--out", str(tmp_path / "a")]) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    (found,) = report["voices"]
    assert "word_error" not in report and "word_errors" not in found and "seconds" not in found
    assert [(row["sigma"], row["denoise"]) for row in found["settings"]] == [(0.2, 0.1), (0.9, 0.1)]
    text = (tmp_path / "a" / "report.md").read_text()
    for row in found["settings"]:
        description = json.loads((voice_folder / "voice.json").read_text())
        folder = tmp_path / f"voice{row['sigma']}"
        shutil.copytree(voice_folder, folder)
        settings = {"sigma": row["sigma"], "denoise": row["denoise"]}
        (folder / "voice.json").write_text(json.dumps(description | settings))
        assert main([str(folder), *common[1:], "--out", str(folder / "report")]) == 0
        (alone,) = json.loads((folder / "report" / "report.json").read_text())["voices"]
        for kind in ("copies", "teacher_forced"):
            ours, theirs = row[kind], alone[kind]["waveglow"]
            for name in ours.keys() - {"seconds_per_second"}:
                assert ours[name] == pytest.approx(theirs[name])
        assert row["silence"] == alone["artefacts"]["waveglow"]["silence"]["level"]
        assert f"| {row['sigma']:g} | 0.1 |" in text
    first, second = found["settings"]
    assert first["silence"] < second["silence"]


def test_another_waveglow(voice_folder, listener, tmp_path):
    other = tmp_path / "other.safetensors"
    model = make_waveglow()
    with torch.no_grad():
        model.convinv[0].conv.weight.mul_(2)  # half as loud
    save_checkpoint(model, other)
    common = [str(voice_folder), *RECORDINGS, "--limit", "1", "--copies-only", "--vocoder", "waveglow"]
    assert main([*common, "--out", str(tmp_path / "own")]) == 0
    assert main([*common, "--waveglow", str(other), "--out", str(tmp_path / "other")]) == 0
    own, theirs = (
        json.loads((tmp_path / name / "report.json").read_text())["voices"][0]["copies"]["waveglow"]["log_magnitude"]
        for name in ("own", "other")
    )
    assert abs(own - theirs) > 0.1 and listener.heard == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--hard", "--copies-only"], "need recordings"),
        (["--hard", "--sigma", "0.5"], "need recordings"),
        ([*RECORDINGS, "--copies-only", "--hard"], "leaves out what --hard"),
        ([*RECORDINGS, "--copies-only", "--plots", "1"], "leaves out what --hard and --plots"),
        ([*RECORDINGS, "--limit", "1", "--no-hard", "--sigma", "0.5"], "has no WaveGlow, or not in --vocoder"),
        ([*RECORDINGS, "--waveglow", "none.pt", "--vocoder", "waveglow"], "none.pt"),
    ],
)
def test_bad_settings(listener, checkpoint, capsys, arguments, message):
    assert message in error_of(capsys, checkpoint, *arguments)
