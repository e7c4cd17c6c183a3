"""`fastglow synth --json-lines --shard I/N`: several processes, each with its own lines of one list."""

import json
import os

import pytest

from fastglow.cli import main
from fastglow.commands.batch_report import BatchReport
from fastglow.commands.inputs import Shard
from fastglow.commands.speakers import Made, OwnSpeakers


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Speaks jobs without models -> (exit code, JSON reports, lines of standard error, sizes of the batches)."""
    monkeypatch.chdir(tmp_path)
    batches = []

    def speak(self, batch):
        batches.append(len(batch))
        return iter([(job, Made(job.text.encode(), 1.0, {"seed": 3})) for job in batch])

    monkeypatch.setattr(OwnSpeakers, "speak", speak)

    def run(*arguments, json_reports=True):
        code = main(["synth", "--json-lines", *arguments, "-o", "out", *["--json"] * json_reports])
        out, err = capsys.readouterr()
        sizes, batches[:] = [*batches], []
        return code, [json.loads(line) for line in out.splitlines()], err.splitlines(), sizes

    return run


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" if text else "\n" for text in texts))


def made(tmp_path):
    return {path.name: path.read_text() for path in (tmp_path / "out").glob("*.wav")}


def test_shards_speak_each_line_once_under_its_number_in_the_whole_list(run, tmp_path):
    write(tmp_path / "a.jsonl", ["one", "", "three", "four"])
    write(tmp_path / "b.jsonl", ["five", "six", "seven"])
    inputs = ["-i", "a.jsonl", "-i", "b.jsonl"]
    found = {}
    for index, names in enumerate([["00001", "00004", "00007"], ["00005"], ["00003", "00006"]]):
        code, reports, errors, _ = run(*inputs, "--shard", f"{index}/3")
        assert (code, errors) == (0, [])
        assert [report["out"] for report in reports] == [f"out/{name}.wav" for name in names]
        now = made(tmp_path)
        assert now.keys() - found.keys() == {f"{name}.wav" for name in names}
        found = now
    assert list(dict(sorted(found.items())).values()) == ["one", "three", "four", "five", "six", "seven"]
    # One journal for all: any run, of whatever shard, leaves out what is there.
    assert len((tmp_path / "out" / ".fastglow-jobs.jsonl").read_text().splitlines()) == 6
    for arguments, n in (["--shard", "1/2"], 2), ([], 6):
        code, reports, _, sizes = run(*inputs, *arguments, "--resume")
        assert (code, sizes) == (0, []) and [report["skipped"] for report in reports] == [True] * n


def test_a_line_is_reported_by_its_own_shard_only(run, tmp_path):
    """Also one that writes the file of a line of another shard."""
    lines = [{"text": "a", "out": "x.wav"}, {"text": "b", "out": "x.wav"}, {"text": ""}, {"text": "d", "out": "x.wav"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, reports, errors, _ = run("-i", "a.jsonl", "--shard", "0/2")
    assert code == 1 and [report["line"] for report in reports] == [3, 1]
    assert errors == ['fastglow: a.jsonl:3: "text" is missing or empty: add some words']
    code, reports, errors, _ = run("-i", "a.jsonl", "--shard", "1/2")
    assert code == 1 and [report["line"] for report in reports] == [2, 4]
    clash = "out/x.wav is also the output of a.jsonl:1: name another file"
    assert errors == [f"fastglow: a.jsonl:{number}: {clash}" for number in (2, 4)]
    assert made(tmp_path) == {"x.wav": "a"}


def test_batches_are_as_large_as_without_shards(run, tmp_path):
    write(tmp_path / "a.jsonl", ["x"] * 300)
    assert run("-i", "a.jsonl", "--shard", "2/3")[3] == [64, 36]


def test_the_summary_and_the_progress_bar_count_the_shards_lines(run, tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", ["one", "", "three", "four"])
    write(tmp_path / "b.jsonl", ["five", ""])
    _, _, errors, _ = run("-i", "a.jsonl", "-i", "b.jsonl", "--shard", "0/2", json_reports=False)
    assert errors == ["a.jsonl, b.jsonl, shard 0/2: 3 spoken, 0 skipped, 0 failed; 3.00 s of audio in 0.00 s, 0.0 x "
                      "real time"]  # fmt: skip
    monkeypatch.setattr("fastglow.commands.batch_report.draws_progress", lambda quiet: True)
    for index, n in enumerate([3, 1]):
        report = BatchReport(("a.jsonl", "b.jsonl"), Shard(index, 2), False, False)
        assert report._bar.total == n
        report.close()


@pytest.mark.parametrize("text", ["2/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "1 / 2", "٠/٢"])
def test_what_is_no_shard(run, tmp_path, text):
    write(tmp_path / "a.jsonl", ["one"])
    code, _, errors, _ = run("-i", "a.jsonl", "--shard", text)
    assert code == 2 and errors == [
        f"fastglow: --shard {text} must be I/N with I from 0 to N-1: 0/2 and 1/2 are the two halves".replace("  ", " ")
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shard", "0/2"], "--shard is for --json-lines: leave it out"),
        (["--ray"], "--ray is for --json-lines: leave it out"),
        (["--resume"], "--resume is for --json-lines: leave it out"),
        (["--ray-workers", "2"], "--ray-workers is for --json-lines: leave it out"),
        (["--json-lines", "--ray-workers", "2"], "--ray-workers 2 is for --ray: leave it out"),
    ],
)
def test_options_of_many_texts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = ["-i", os.devnull] if "--json-lines" in arguments else ["Hello."]
    assert main(["synth", *words, "-o", "x.wav", *arguments]) == 2
    assert capsys.readouterr().err == f"fastglow: {message}\n"
