"""`fastglow synth --json-lines --ray`: a local cluster of two workers, one of which is killed while it speaks."""

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastglow import FastglowError
from fastglow.cli import main
from fastglow.commands import ray_jobs
from fastglow.commands.inputs import Line
from fastglow.commands.jobs import Job
from fastglow.commands.options import VoiceChoice
from fastglow.commands.ray_cluster import LOCAL, Cluster, Room, last_line, room
from fastglow.commands.speakers import Made, OwnSpeakers

from ..engine.conftest import ENVIRONMENT

# In every Python process that finds it: the worker that is to speak FATAL kills itself, once.
FATAL = "Kill the speaker."
SITECUSTOMIZE = f"""
import importlib.abc, importlib.util, os, signal, sys

MARKER = {{marker!r}}

class Planter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "fastglow.commands.speakers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def planted(module):
            execute(module)
            speak = module._speak
            def killing(synthesizer, batch):
                if any(job.text == {FATAL!r} for job in batch) and not os.path.exists(MARKER):
                    open(MARKER, "x").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                return speak(synthesizer, batch)
            module._speak = killing
        spec.loader.exec_module = planted
        return spec

sys.meta_path.insert(0, Planter())
"""


def write_jobs(path):
    """Three batches, and lines that fail in every way."""
    lines = [json.dumps({"text": f"Number {number}.", "seed": number}) for number in range(17)]
    lines[9] = json.dumps({"text": FATAL, "seed": 9, "out": "deep/er/killed.flac"})
    lines += ["nonsense", json.dumps({"text": "x", "voice": "nobody"}), json.dumps({"text": "..."})]
    path.write_text("\n".join(lines))


@pytest.fixture
def run(voice_folder, tmp_path, monkeypatch, capsys):
    """Speaks the jobs into a folder, in a process of its own if `path` is where it finds Python modules -> (exit code,
    reports by line, sorted lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(out, *arguments, path=None):
        words = ["synth", "--json-lines", "-i", "jobs.jsonl", "-o", out, "--json", "-v", str(voice_folder), *arguments]
        if path is None:
            code, (output, errors) = main(words), capsys.readouterr()
        else:
            done = subprocess.run([sys.executable, "-m", "fastglow", *words], env={**ENVIRONMENT, "PYTHONPATH": path},
                                  capture_output=True, text=True)  # fmt: skip
            code, output, errors = done.returncode, done.stdout, done.stderr
        reports = {report["line"]: report for report in map(json.loads, output.splitlines())}
        assert len(reports) == len(output.splitlines()) == 20
        for report in reports.values():
            report["out"] = report["out"] and os.path.relpath(report["out"], out)
        return code, reports, sorted(line for line in errors.splitlines() if "the stop gate did not fire" not in line)

    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".jsonl"}


def journal(folder):
    return Counter((folder / ".fastglow-jobs.jsonl").read_text().splitlines())


def test_a_killed_workers_jobs_are_spoken_again_and_all_is_as_without_ray(run, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'fastglow[ray]'")
    write_jobs(tmp_path / "jobs.jsonl")
    code, alone, errors = run("alone")
    assert code == 1 and len(errors) == 3

    (tmp_path / "site").mkdir()
    marker = tmp_path / "killed"
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE.format(marker=str(marker)))
    path = f"{tmp_path / 'site'}:{ENVIRONMENT['PYTHONPATH']}"
    code, reports, found = run("ray", "--ray", "--ray-workers", "2", path=path)
    assert marker.exists()
    # Nothing of Ray's own on either stream, and the reports and errors of a run without it.
    assert (code, reports) == (1, alone)
    lost = "fastglow: warning: a worker was lost: its texts are spoken again, attempt 2"
    assert found == sorted([*errors, lost])
    # The batches are the same, and so are the bits.
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert journal(tmp_path / "ray") == journal(tmp_path / "alone") and max(journal(tmp_path / "ray").values()) == 1

    # What a cluster has made is left out without one, and the other way round, for which none is called.
    lines = (tmp_path / "jobs.jsonl").read_text().splitlines()
    (tmp_path / "jobs.jsonl").write_text("\n".join([*lines[:17], "bad", "bad", "bad"]))
    for name, arguments in (("ray", []), ("alone", ["--ray", "127.0.0.1:9"])):
        code, reports, _ = run(name, "--resume", *arguments)
        assert code == 1 and [line for line in sorted(reports) if "skipped" in reports[line]] == [*range(1, 18)]


def test_without_ray_it_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text('{"text": "Hello."}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else name)
    assert main(["synth", "--json-lines", "-i", "jobs.jsonl", "-o", "out", "--ray"]) == 2
    assert capsys.readouterr().err == "fastglow: --ray needs the package ray: pip install 'fastglow[ray]'\n"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, address):
    pytest.importorskip("ray", reason="needs Ray: pip install 'fastglow[ray]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text('{"text": "Hello."}')
    assert main(["synth", "--json-lines", "-i", "jobs.jsonl", "-o", "out", "--ray", address]) == 2
    assert capsys.readouterr().err == f"fastglow: cannot reach a Ray cluster at {address}: Connection refused\n"


GIB = 2.0**30


@pytest.mark.parametrize(
    "workers, device, nodes, expected",
    [
        (None, None, [{"CPU": 8.0, "memory": 64 * GIB}, {"CPU": 2.0, "memory": 9 * GIB}], Room(10, 1, 0)),
        (None, None, [{"CPU": 64.0, "memory": 8.5 * GIB}, {}], Room(8, 1, 0)),
        (None, None, [{"CPU": 2.0}], Room(1, 1, 0)),
        (None, None, [{"CPU": 8.0, "GPU": 2.0, "memory": GIB}, {"CPU": 8.0, "GPU": 1.0}], Room(3, 1, 1)),
        (None, "cuda:0", [{"GPU": 2.0}], Room(2, 1, 1)),
        (1, "cuda", [{"GPU": 2.0}], Room(1, 1, 1)),
        (None, "cpu", [{"CPU": 4.0, "GPU": 2.0, "memory": 9 * GIB}], Room(4, 1, 0)),
        (2, "cpu", [{"CPU": 3.0}, {"CPU": 3.0}], Room(2, 3, 0)),
        (3, "cpu", [{"CPU": 3.0}, {"CPU": 3.0}], Room(3, 1, 0)),
        (9, "cpu", [{"CPU": 3.0}], Room(9, 1, 0)),
    ],
)
def test_workers_fit_the_cluster(workers, device, nodes, expected):
    assert room(Cluster(LOCAL, workers), device, nodes) == expected


@pytest.mark.parametrize(
    "device, message",
    [("cuda", "device=cuda, and the Ray cluster has no GPU: use --device cpu"),
     ("cuda:1", "device=cuda:1: each worker has one GPU, and calls it cuda:0: use --device cuda")],
)  # fmt: skip
def test_a_device_that_no_worker_has(device, message):
    with pytest.raises(FastglowError, match=f"^{message}$"):
        room(Cluster(LOCAL, None), device, [{"CPU": 2.0}])


def test_an_error_of_ray_is_its_last_line():
    assert last_line(ValueError("ray::run() (pid=1)\n  File x\nValueError: too small.\n")) == "ValueError: too small"
    assert last_line(TimeoutError()) == "TimeoutError"


VOICE = VoiceChoice("v", None, None, None, (), (), None, None, None, None, None)


def a_job(number):
    return Job(Line("x", number, number, b""), f"text {number}", Path("x.wav"), "wav", VOICE, {})


def answers_of(worker, batch, attempt):
    return [*worker._answers(pickle.dumps(batch), attempt)]


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(OwnSpeakers, "speak", lambda self, jobs: iter([(job, Made(b"x", 1.0, {})) for job in jobs]))
    return ray_jobs._Worker(None, VOICE, False, ray_jobs.__version__)


def test_a_batch_that_loses_every_worker_fails(worker):
    batch = [a_job(1), a_job(2)]
    assert [answer.outcome.data for answer in answers_of(worker, batch, ray_jobs.ATTEMPTS)] == [b"x", b"x"]
    given_up = answers_of(worker, batch, ray_jobs.ATTEMPTS + 1)
    assert [answer.outcome for answer in given_up] == 2 * [
        "4 workers were lost while they spoke it or a line beside it: try it without --ray"
    ]
    assert not any(answer.is_fatal for answer in given_up)


def test_a_worker_with_another_fastglow_or_without_the_voice_ends_the_run(worker, monkeypatch):
    def no_voice(self, jobs):
        raise FastglowError("unknown voice 'v'")
        yield

    monkeypatch.setattr(OwnSpeakers, "speak", no_voice)
    assert answers_of(worker, [a_job(1)], 1) == [ray_jobs._Answer("unknown voice 'v'", [], True)]
    worker._version = "0.1"
    (answer,) = answers_of(worker, [a_job(1)], 1)
    assert answer.is_fatal and "here it is 0.1: install the same everywhere" in answer.outcome


def test_the_foreman_passes_each_answer_on_once():
    """A batch of a lost worker is spoken again from its beginning, and its source may start again, too."""
    foreman = ray_jobs._Foreman(VOICE, False, Room(2, 1, 0))
    foreman.put(b"zero", 2)
    foreman.put(b"one", 1)
    assert foreman.has(1) and foreman.take(0) == []
    assert [foreman.begin(0), foreman.begin(1)] == [(b"zero", 1), (b"one", 1)]
    for index, answer in ((0, b"a"), (0, b"again"), (1, b"b"), (1, b"late")):
        foreman._keep(0, index, answer)
    assert foreman.take(0) == [(0, 0, b"a"), (0, 1, b"b")] and foreman.take(0) == []
    assert [foreman.begin(0), foreman.begin(1)] == [None, (b"one", 2)]
    foreman.end()
    assert [foreman.has(number) for number in range(3)] == [True, True, False]
    foreman._has_stopped = True
    assert foreman.take(1.0) is None


def test_paths_are_whole_on_their_way_to_a_worker(voice_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(voice_folder.parent)
    files = {"tacotron2": "a.pt", "waveglow": None, "lexicons": ("b.txt", "/c.txt")}
    for given, expected in (("tiny", str(voice_folder)), ("tiny/voice.json", f"{voice_folder}/voice.json"),
                            ("heart", "heart"), (None, None)):  # fmt: skip
        sent = ray_jobs._absolute(VoiceChoice(**{**vars(VOICE), **files, "voice": given}))
        assert sent.voice == expected
        assert (sent.tacotron2, sent.waveglow) == (f"{voice_folder.parent}/a.pt", None)
        assert sent.lexicons == (f"{voice_folder.parent}/b.txt", "/c.txt")


def test_a_clusters_failure_is_one_line():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'fastglow[ray]'")
    with pytest.raises(FastglowError, match="^the Ray cluster fails: .*gone: the same command with --resume goes on"):
        with ray_jobs._ray_errors():
            raise ray.exceptions.RaySystemError("all\nis gone.")
