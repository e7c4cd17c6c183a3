"""Pauses and Markdown in a text of the command, whichever way it is spoken."""

import json

import numpy as np
import pytest
import soundfile

from fastglow import Synthesizer
from fastglow.cli import main

from ..engine.conftest import UNSTOPPED


@pytest.mark.filterwarnings(UNSTOPPED)
def test_pauses_are_the_same_in_a_file_a_raw_stream_and_a_job(voice_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "[pause:30ms]*Nine* ships <em>went</em> home. <break time='70ms'/> [pause:10ms]"
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"text": text, "out": "job.wav", "markdown": True}))
    common = ["--voice", str(voice_folder), "--seed", "3", "-q"]
    for arguments in (["--json-lines", "-i", "jobs.jsonl"], [text, "--markdown", "-o", "one.wav"],
                      [text, "--markdown", "--raw", "-o", "one.pcm"]):  # fmt: skip
        assert main(["synth", *arguments, *common]) == 0
    job, one = (soundfile.read(name, dtype="int16")[0] for name in ("job.wav", "one.wav"))
    np.testing.assert_array_equal(job, one)
    np.testing.assert_array_equal(np.fromfile("one.pcm", "<i2"), one)
    (sentence,) = Synthesizer.from_voice(voice_folder).synthesize("Nine ships went home.", 3).sentences
    before, after = 662, 1764  # 661.5 is rounded to even
    assert len(one) == before + len(sentence.audio) + after
    assert not one[:before].any() and not one[-after:].any()


def test_a_pause_that_is_too_long_is_one_line_and_no_file(voice_folder, tmp_path, capsys):
    for name, *raw in (["x.wav"], ["x.pcm", "--raw"]):
        arguments = ["a [pause:99s]", "--voice", str(voice_folder), "-q", "-o", str(tmp_path / name), *raw]
        assert main(["synth", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("fastglow: pause=99s must be at most 60 seconds")
    assert not list(tmp_path.iterdir())
