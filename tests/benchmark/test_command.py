"""`fastglow bench` as a user calls it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fastglow import Synthesizer, save_checkpoint
from fastglow.cli import main
from fastglow.kernels import backend

from ..engine.conftest import ENVIRONMENT, make_tacotron2, voice_folder  # noqa: F401

FULL = ["--seconds", "16", "--characters", "24,9", "--batch-sizes", "3,1"]
SHORT = ["--seconds", "2", "--characters", "9", "--batch-sizes", "1"]


class Ticking:
    """A clock that each look advances, so that the plan does not depend on the machine."""

    now = 0.0

    def __call__(self):
        self.now += 0.1
        return self.now


def entry_of(report, measure):
    return next(entry for entry in report["measurements"] if entry["measure"] == measure)


@pytest.fixture
def bench(voice_folder, capsys, monkeypatch):  # noqa: F811
    """Runs `fastglow bench` with the tiny voice: (exit code, standard output, standard error)."""

    monkeypatch.setattr("fastglow.commands.bench.perf_counter", Ticking())

    def run(*arguments):
        code = main(["bench", "--voice", str(voice_folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_report_table_and_plot(bench, tmp_path):
    files = "--json", tmp_path / "r.json", "--plot", tmp_path / "p.png"
    code, out, err = bench(*FULL, "--vocoder", "waveglow", "--dtype", "float16", *files)
    assert (code, err) == (0, "")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "r.json"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["voice"], report["vocoder"], report["dtype"]) == ("tiny", "waveglow", "float16")
    assert (report["device"], report["gpu"], report["sample_rate"]) == ("cpu", None, 22050)
    assert report["implementations"] == ["fastglow"] and report["left_out"] == []
    assert report["note"] == ("without a GPU, only float32 and bfloat16 have a faster form: the reference is what ran")
    found = {(entry["measure"], entry.get("characters"), entry.get("batch_size")) for entry in report["measurements"]}
    spoken = {(measure, n, 1) for measure in ("latency", "first_sound") for n in (9, 24)}
    assert found == {*spoken, ("throughput", 128, 1), ("throughput", 128, 3), ("load", None, None)}
    for entry in report["measurements"]:
        runs = entry["runs"]["fastglow"]
        assert runs and all(run["seconds"] > 0 for run in runs)
        seconds = [run["seconds"] for run in runs]
        assert entry["metrics"]["seconds"]["fastglow"]["median"] == pytest.approx(np.median(seconds))
        if entry["measure"] == "throughput":
            rates = [run["samples"] / run["seconds"] for run in runs]
            assert entry["metrics"]["samples_per_second"]["fastglow"]["median"] == pytest.approx(np.median(rates))
        if entry["measure"] in ("latency", "throughput"):
            assert all(run["samples"] == 256 * run["mel_frames"] for run in runs)
            assert entry["attempts"]["fastglow"] >= entry["sentences"]["fastglow"] >= entry["batch_size"]
            assert entry["peak_bytes"]["fastglow"] is not None
    lines = out.splitlines()
    assert lines[0] == "tiny: waveglow, float16, on the CPU"
    for start in (
        "text to last sample, 9 characters ",
        "text to first sound, 24 characters ",
        "batch of 3, samples per second ",
        "text to mel, per mel frame ",
        "vocoder, per second of audio ",
        "load the voice ",
        "peak memory, batch of 3 ",
        report["note"],
    ):
        assert any(line.startswith(start) for line in lines), start
    assert "times faster" not in out


def test_json_instead_of_the_table(bench):
    code, out, err = bench(*SHORT, "--json", "-q", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert json.loads(out)["dtype"] == "bfloat16"


def test_quiet(bench):
    assert bench(*SHORT, "-q") == (0, "", "")


def test_what_does_not_fit_is_named(bench):
    code, out, _ = bench("--seconds", "16", "--characters", "9", "--batch-sizes", "1,1000")
    assert code == 0
    assert "left out of 16 s (--seconds):\n  batch of 1000: a round takes about " in out


def test_beside_the_reference(bench, monkeypatch):
    synthesize = Synthesizer.synthesize
    backends = []

    def recording(self, *arguments, **keywords):
        backends.append(backend.backend_name())
        return synthesize(self, *arguments, **keywords)

    monkeypatch.setattr(Synthesizer, "synthesize", recording)
    code, out, err = bench(*SHORT, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["implementations"] == ["fastglow", "reference"] and report["note"] is None
    assert backends == ["auto", *["auto", "reference"] * (len(backends) // 2)]
    for entry in report["measurements"]:
        assert set(entry["runs"]) == {"fastglow"} | ({"reference"} if entry["measure"] != "load" else set())
    assert "times_better_than_reference" in entry_of(report, "latency")["metrics"]["seconds"]
    code, out, _ = bench(*SHORT)
    assert "times faster" in out and "the reference is what ran" not in out


def test_a_forced_reference_is_said(bench):
    with backend.use_backend("reference"):
        code, out, _ = bench(*SHORT)
    assert code == 0
    assert "FASTGLOW_BACKEND" in out


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--voice", "nobody"], "unknown voice 'nobody'"),
        (["--tacotron2", "{tmp}/garbage.pt"], "garbage.pt"),
        (["--vocoder", "waveglow", "--waveglow", "{voice}/tacotron2.safetensors"], "must be a WaveGlow checkpoint"),
        (["--device", "abacus"], "'abacus' is not available"),
        (["--seconds", "0.5"], "--seconds 0.5 must be from 1 to 86400"),
        (["--seconds", "nan"], "--seconds nan must be"),
        (["--characters", "7"], "7 must be from 8 to 10000"),
        (["--characters", "16,"], "'16,' must be integers separated by commas"),
        (["--batch-sizes", "0,2"], "0 must be from 1 to 1024"),
        (["--batch-sizes", "two"], "'two' must be integers"),
        (["--json", "{tmp}"], "it is a folder"),
        (["--plot", "{tmp}/absent/p.png"], "there is no folder"),
    ],
)
def test_mistakes_are_one_line_exit_2_and_leave_nothing(bench, voice_folder, tmp_path, arguments, pattern):  # noqa: F811
    (tmp_path / "garbage.pt").write_bytes(b"no checkpoint at all")
    code, out, err = bench(*SHORT, *(argument.format(tmp=tmp_path, voice=voice_folder) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert pattern in err
    assert [path.name for path in tmp_path.iterdir()] == ["garbage.pt"]


def test_a_voice_without_sound_is_an_error(bench, tmp_path):
    model = make_tacotron2()
    model.decoder.gate_layer.linear_layer.bias.data.fill_(1e4)  # the gate fires before the first frame
    save_checkpoint(model, tmp_path / "mute.safetensors")
    code, out, err = bench(*SHORT, "--tacotron2", tmp_path / "mute.safetensors")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the voice made no sound of 'The " in err


def test_help_loads_no_torch():
    code = "import sys; from fastglow.cli import main; main(['bench', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "--batch-sizes" in done.stdout
