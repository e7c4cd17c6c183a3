"""`fastglow synth --json-lines --resume`: what was done is left out, what was lost or changed is done again."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import soundfile

from fastglow.audio import read_audio
from fastglow.cli import main

from ..engine.conftest import ENVIRONMENT, UNSTOPPED

pytestmark = pytest.mark.filterwarnings(UNSTOPPED)
JOURNAL = ".fastglow-jobs.jsonl"
JOBS = [{"text": f"Number {word}.", "out": f"{word}.wav", "seed": 1} for word in ("one", "two", "six", "ten")]


@pytest.fixture
def run(voice_folder, tmp_path, capsys):
    """Speaks jobs into tmp_path/out -> (outputs that were made, outputs that were left out)."""

    def run(jobs, *arguments, folder="out"):
        (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        words = ["synth", "--json-lines", "-i", tmp_path / "jobs.jsonl", "-o", tmp_path / folder, "--json"]
        if "-v" not in arguments:
            words += ["-v", voice_folder]
        assert main([str(word) for word in (*words, *arguments)]) == 0
        reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sorted(report["line"] for report in reports) == list(range(1, len(jobs) + 1))
        for report in reports:
            if "skipped" not in report:
                assert soundfile.info(report["out"]).duration == pytest.approx(report["audio_seconds"], abs=1e-4)
        made = {os.path.basename(report["out"]) for report in reports if "skipped" not in report}
        return made, {os.path.basename(report["out"]) for report in reports if "skipped" in report}

    return run


EVERY = {job["out"] for job in JOBS}


def test_what_is_done_is_left_out_unless_it_is_not_asked_to(run, tmp_path):
    assert run(JOBS) == (EVERY, set())
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.wav")}
    assert run(JOBS, "--resume") == (set(), EVERY)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.wav")} == times
    assert run(JOBS[::-1], "--resume", "--device", "cpu") == (set(), EVERY)
    assert run([*JOBS, {"text": "More.", "out": "more.wav"}], "--resume") == ({"more.wav"}, EVERY)
    assert run(JOBS) == (EVERY, set())


@pytest.mark.parametrize(
    "change", [{"text": "Number 2."}, {"seed": 2}, {"volume": 0.5}, {"normalize": False}, {"format": "flac"},
               {"sentence_silence": 0}, {"voice": "{voice}/voice.json"}],
)  # fmt: skip
def test_a_changed_line_is_done_again(run, voice_folder, change):
    run(JOBS)
    changed = [*JOBS]
    changed[1] = {**JOBS[1], **{key: value if key != "voice" else f"{voice_folder}/voice.json"
                                for key, value in change.items()}}  # fmt: skip
    assert run(changed, "--resume") == ({"two.wav"}, EVERY - {"two.wav"})
    assert run(changed, "--resume") == (set(), EVERY)
    assert run(JOBS, "--resume") == ({"two.wav"}, EVERY - {"two.wav"})


@pytest.mark.parametrize("options", [["--volume", "0.5"], ["--dtype", "bfloat16"], ["--denoise", "0"],
                                     ["--cleaners", "basic_cleaners"]])  # fmt: skip
def test_other_options_of_the_command_do_every_line_again(run, options):
    jobs = [JOBS[0], {**JOBS[1], "volume": 0.5}]
    run(jobs)
    made, skipped = run(jobs, "--resume", *options)
    assert made == ({"one.wav"} if "--volume" in options else {"one.wav", "two.wav"})


@pytest.mark.parametrize("damage", ["absent", "cut short", "of another job", "a folder of links"])
def test_an_output_that_is_not_what_was_made_is_made_again(run, tmp_path, damage):
    run(JOBS)
    out = tmp_path / "out" / "two.wav"
    before = out.read_bytes()
    if damage == "absent":
        out.unlink()
    elif damage == "cut short":
        out.write_bytes(before[:-2])
    elif damage == "of another job":  # a run that was killed between the file and its line in the journal
        out.write_bytes((tmp_path / "out" / "one.wav").read_bytes())
    else:
        out.unlink()
        out.symlink_to(tmp_path / "elsewhere.wav")
    assert run(JOBS, "--resume") == ({"two.wav"}, EVERY - {"two.wav"})
    assert run(JOBS, "--resume") == (set(), EVERY)
    assert (tmp_path / "elsewhere.wav").exists() is (damage == "a folder of links")


def test_a_copied_or_moved_folder_is_resumed(run, tmp_path):
    run(JOBS)
    shutil.copytree(tmp_path / "out", tmp_path / "copied", copy_function=shutil.copyfile)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    for folder in ("copied", "moved"):
        assert run(JOBS, "--resume", folder=folder) == (set(), EVERY)


@pytest.mark.parametrize(
    "junk", [b'{"out": "ten.wav", "jo', b"\xff\x00\n", b"[1]\n3\nnull\n", b'{"out": ["x"], "job": "", "file": ""}\n']
)
def test_a_torn_or_foreign_line_of_the_journal_does_not_disturb(run, tmp_path, junk):
    run(JOBS[:2])
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + junk)
    assert run(JOBS, "--resume") == ({"six.wav", "ten.wav"}, {"one.wav", "two.wav"})
    assert run(JOBS, "--resume") == (set(), EVERY)


def test_without_a_folder_the_journal_is_in_the_working_directory(voice_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text(json.dumps({**JOBS[0], "out": str(tmp_path / "a.wav")}))
    words = ["synth", "--json-lines", "-i", "jobs.jsonl", "-v", str(voice_folder), "--resume"]
    for summary in ("1 spoken, 0 skipped", "0 spoken, 1 skipped"):
        assert main(words) == 0
        assert f"jobs.jsonl: {summary}, 0 failed; " in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir()) == [JOURNAL, "a.wav", "jobs.jsonl"]
    (tmp_path / JOURNAL).unlink()
    (tmp_path / JOURNAL).mkdir()
    assert main(words) == 2
    assert f"cannot write {JOURNAL}: Is a directory: pass another -o FOLDER" in capsys.readouterr().err


# Kills itself at the third output.
KILLED = """
import itertools, os, pathlib, signal, sys
from fastglow.cli import main
from fastglow.commands.journal import Journal

point, count = sys.argv.pop(1), itertools.count(1)

def killing(function, halfway=None, first=False):
    def call(*arguments, **keywords):
        third = next(count) == 3
        if third and halfway:
            halfway(*arguments)
        result = None if third and (halfway or first) else function(*arguments, **keywords)
        if third:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if point == "half of the file":
    half = lambda path, data: open(path, "wb").write(data[: len(data) // 2])
    pathlib.Path.write_bytes = killing(pathlib.Path.write_bytes, half)
elif point == "before the file has its name":
    os.replace = killing(os.replace, first=True)
elif point == "after the file has its name":
    os.replace = killing(os.replace)
elif point == "half of the journal's line":
    torn = lambda self, job, output: self._file.write(b'{"out": "six.wav", "job": "12')
    Journal.add = killing(Journal.add, torn)
else:
    Journal.add = killing(Journal.add)
main()
"""


@pytest.mark.parametrize(
    "point, placed, noted, stale",
    [
        ("half of the file", 2, 2, 1),
        ("before the file has its name", 2, 2, 1),
        ("after the file has its name", 3, 2, 0),
        ("half of the journal's line", 3, 2, 0),
        ("after the journal's line", 3, 3, 0),
    ],
)
def test_a_killed_run_is_resumed_with_nothing_lost_or_half_written(
    run, voice_folder, tmp_path, point, placed, noted, stale
):
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in JOBS))
    words = ["synth", "--json-lines", "-i", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "-v", voice_folder]
    done = subprocess.run([sys.executable, "-c", KILLED, point, *words], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "out"
    names = [job["out"] for job in JOBS]
    assert sorted(path.name for path in folder.glob("*.wav")) == sorted(names[:placed])
    assert len(list(folder.glob(".*.tmp"))) == stale
    before = {path.name: path.read_bytes() for path in folder.glob("*.wav")}
    for name in before:
        read_audio(folder / name)  # refuses a file that is shorter than its header says
    assert run(JOBS, "--resume") == (set(names[noted:]), set(names[:noted]))
    assert sorted(path.name for path in folder.glob("*.wav")) == sorted(names)
    assert {name: (folder / name).read_bytes() for name in names[:noted]} == {n: before[n] for n in names[:noted]}
    assert run(JOBS, "--resume") == (set(), EVERY)
