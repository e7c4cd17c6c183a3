"""The command: its report, its JSON, its exit codes."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest

from fastglow._version import __version__
from fastglow.cli import main
from fastglow.diagnosis import catalogue, voices
from fastglow.diagnosis.findings import Finding
from fastglow.voices import BUNDLED, DEFAULT_VOICE, list_voices

from . import planted
from .planted import check

LINE = re.compile(r"  (ok|warning|failed|skipped) +(\S.*?)  +(\S.*)|  {41}-> (\S.*)")


@pytest.fixture
def checks(monkeypatch):
    """`checks(*environment, self_tests=...)`: the command's checks."""

    def plant(*environment, self_tests=()):
        monkeypatch.setattr(catalogue, "environment", lambda: list(environment))
        monkeypatch.setattr(catalogue, "self_tests", lambda: list(self_tests))

    return plant


def test_the_report_of_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "fastglow", "doctor", "--quick"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    sections = done.stdout.split("\n\n")
    titles = [section.split("\n")[0] for section in sections[1:-1]]
    assert (sections[0], titles) == (f"fastglow {__version__}", ["machine", "packages", "GPU", "voices", "kernels"])
    for section in sections[1:-1]:
        for line in section.split("\n")[1:]:
            assert LINE.fullmatch(line), line
    assert re.fullmatch(r"(\d+ \w+, )*\d+ \w+\n", sections[-1])


def test_one_failure_of_each_kind_leaves_the_others_intact(checks, capsys):
    faulty = [
        check(planted.raises, "it broke"),
        check(planted.refuses),
        check(planted.dies, signal.SIGKILL),
        check(planted.ends, 3),
        check(planted.hangs, seconds=0.5),
    ]
    sound = check(planted.fine)
    checks(sound, *(c for f in faulty for c in (f, sound)))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.split("\n")
    assert [line.split()[0] for line in lines[3:-3]] == ["ok", *["failed", "->", "ok"] * 5]
    assert lines[4].split() == ["failed", "raises", "RuntimeError:", "it", "broke"]
    assert lines[5].split("-> ")[1] == "pull it out"
    assert lines[-2] == "5 failed, 6 ok"


@pytest.mark.parametrize("options", [[], ["--json"], ["-q"], ["--quick", "--json"]])
def test_exit_codes_and_what_quick_leaves_out(checks, capsys, options):
    checks(check(planted.fine), self_tests=[check(planted.raises, "in a self-test")])
    quick = "-q" in options or "--quick" in options
    assert main(["doctor", *options]) == (0 if quick else 1)
    assert ("in a self-test" in capsys.readouterr().out) != quick


@pytest.mark.parametrize("arguments", [["--nonsense"], ["now"]])
def test_bad_options(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.startswith("fastglow: ")


def test_json(checks, capsys):
    checks(check(planted.fine), check(planted.nothing), check(planted.raises, "ä\nö"))
    assert main(["doctor", "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report.keys() == {"fastglow", "python", "failed", "findings"}
    assert (report["fastglow"], report["failed"]) == (__version__, 1)
    ok, failed = report["findings"]
    assert ok == {"section": "planted", "name": "fine", "status": "ok", "detail": ok["detail"], "remedy": None}
    assert failed == {
        "section": "planted",
        "name": "raises",
        "status": "failed",
        "detail": "RuntimeError: ä ö",
        "remedy": "pull it out",
    }


def test_a_failure_needs_a_remedy():
    with pytest.raises(ValueError, match="the failure of x has no remedy"):
        Finding("x", "failed", "y")
    assert all(c.remedy for c in catalogue.environment() + catalogue.self_tests())


def test_the_bundled_voices_speak():
    assert [c.name for c in catalogue.environment() if c.section == "voices"] == list_voices()
    (finding,) = voices.speaks(DEFAULT_VOICE)
    assert finding.status == "ok"
    assert float(re.search(r": ([\d.]+) s of sound", finding.detail)[1]) > 0.2


def test_a_damaged_voice_fails(tmp_path):
    shutil.copytree(BUNDLED / DEFAULT_VOICE, tmp_path / "voice")
    model = tmp_path / "voice" / "tacotron2.safetensors"
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="tacotron2.safetensors"):
        voices.speaks(str(tmp_path / "voice"))


def test_silence_fails(monkeypatch):
    from fastglow.engine import Speech, Synthesizer

    silent = type("Silent", (), {"synthesize": lambda *_, seed: Speech([], 22050, seed, 0.2, {"total": 0.1})})
    monkeypatch.setattr(Synthesizer, "from_voice", lambda name: silent())
    (finding,) = voices.speaks(DEFAULT_VOICE)
    assert (finding.status, finding.remedy) == ("failed", voices.REMEDY)


def test_no_voice_is_a_failure(monkeypatch):
    monkeypatch.setattr(catalogue, "list_voices", list)
    (found,) = [c.function() for c in catalogue.environment() if c.section == "voices"]
    assert [finding.status for finding in found] == ["failed"]
