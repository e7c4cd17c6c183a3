"""Packs, training on another machine (here: on the CPU), and what comes back."""

import json
import lzma
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastglow import load_checkpoint
from fastglow.errors import FastglowError
from fastglow.train.checkpointing import find_newest_checkpoint, load_training_checkpoint
from fastglow.train.curves import read_curves
from fastglow.train.data import TextMelDataset
from fastglow.train.manifest import Item, PreparedDataset
from fastglow.train.resuming import CALL_OPTIONS
from voices.gpu import __main__ as command
from voices.gpu import coding, packing, training
from voices.gpu.packing import PACKS, WEIGHTS, Manifest, by_coverage, pack, size_of
from voices.gpu.results import FILE, Result
from voices.gpu.training import train
from voices.gpu.unpacking import unpack
from voices.recipe import MODELS
from voices.running import Stopped

from .conftest import Commands, killed

ROOT = Path(__file__).parents[2]


def speech(seed, samples):
    """Noise whose level and tilt change, at int16's full scale in places."""
    random = np.random.default_rng(seed)
    noise = np.convolve(random.normal(size=samples), random.normal(size=9) * 0.5 ** np.arange(9), "same")[:samples]
    loud = 10 ** random.uniform(-3, 1.5, size=samples // 700 + 1).repeat(700)[:samples]
    return np.clip(noise * loud * 3000, -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("lengths", [[1], [255, 256, 257], [2000, 1, 5000]])
def test_recordings_come_back_within_half_a_step(lengths):
    recordings = [speech(i, n) for i, n in enumerate(lengths)]
    decoded = coding.decode_recordings(coding.encode_recordings(recordings), lengths)
    for before, after in zip(recordings, decoded, strict=True):
        assert after.dtype == np.int16 and after.shape == before.shape
        coefficients = coding.transform(before)
        assert np.sum(coefficients**2) == pytest.approx(np.sum(before.astype(float) ** 2))  # orthonormal
        steps = coding.steps_of(coding.levels_of(coefficients))
        # Rounding to int16 adds half a unit; overlapping frames cannot enlarge a sum of squares.
        bound = np.sqrt(np.sum(steps**2) / 4) + np.sqrt(len(before)) / 2
        assert np.linalg.norm(after.astype(float) - before) <= bound


def test_the_extremes_of_recordings():
    square = np.where(np.arange(3000) // 50 % 2, 32767, -32768).astype(np.int16)
    silence = np.zeros(700, np.int16)
    decoded = coding.decode_recordings(coding.encode_recordings([silence, square, silence]), [700, 3000, 700])
    assert not decoded[0].any() and not decoded[2].any()
    error = np.abs(decoded[1].astype(int) - square)
    assert error.max() < 0.02 * 65535


def test_mels_come_back_within_half_a_step():
    random = np.random.default_rng(0)
    mels = [random.uniform(-11.5129, 2.5, (80, n)).astype(np.float32) for n in (1, 7, 30)]
    decoded = coding.decode_mels(coding.encode_mels(mels), [1, 7, 30])
    for before, after in zip(mels, decoded, strict=True):
        assert after.dtype == np.float32 and after.shape == before.shape
        assert np.abs(after - before).max() <= coding.MEL_STEP / 2 + 1e-5
    with pytest.raises(FastglowError, match="log-mels range over 30"):
        coding.encode_mels([np.array([[0.0, 30.0]])])


class Machines:
    """Packs of both models, made here, and what became of them on a machine that has few packages."""

    def __init__(self, project, there: Path):
        self.project, self.there = project, there
        project.write("gpu.json", {"max_iterations": 3, "iters_per_checkpoint": 1, "batch_size": 3})
        project.values = project.values | {"gpu": dict.fromkeys(MODELS, "gpu.json")}
        project.write("recipe.json", project.values)
        for model in MODELS:
            assert call("pack", *run_of(project, model), "--out", there / model / "pack") == 0
        code = FEW_PACKAGES.format(missing=NOT_NEEDED, folder=str(there), models=MODELS)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def manifest(self, model):
        return Manifest.read(self.there / model / "pack")

    def run(self, model):
        return self.there / model / "work" / self.manifest(model).id / "run"


NOT_NEEDED = ("inflect", "matplotlib", "soundfile", "soxr", "unidecode", "tensorboard", "pytest", "bench")
FEW_PACKAGES = """
import sys
from dataclasses import replace
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from fastglow import cli
from voices.gpu.training import train

class Here:
    def call(self, command, seconds):
        assert 200 < seconds < 300, seconds
        assert cli.main([*command[3:], "--quiet"]) == 0

for model in {models}:
    folder = Path({folder!r}, model)
    train(folder / "pack", folder / "work", folder / "result", 5, "cpu", Here())
"""


def call(*arguments):
    return command.main([str(argument) for argument in arguments])


def run_of(project, model):
    return "--voice", project.recipe, "--model", model, "--runs", project.out


@pytest.fixture(scope="module")
def machines(_finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    return Machines(_finished.copy(folder / "here"), folder / "there")


@pytest.fixture
def here(machines, tmp_path):
    return machines.project.copy(tmp_path / "copy")


def newest(run, model):
    return find_newest_checkpoint(run, model).checkpoint


@pytest.mark.parametrize("model", MODELS)
def test_the_other_machine_begins_with_the_weights_and_the_clips(machines, model):
    manifest, packed = machines.manifest(model), load_checkpoint(machines.there / model / "pack/weights.safetensors")
    ours = newest(machines.project.out / model, model)
    for name, tensor in packed.state_dict().items():
        assert torch.equal(tensor, ours["trained_state_dict"][name].half().to(tensor.dtype))
    original = PreparedDataset.open(machines.project.out / "data")
    data = PreparedDataset.open(machines.run(model).with_name("data"))
    assert list(data.items["train"]) == manifest.items
    assert {item.id for item in manifest.items} == {item.id for item in original.items["train"]}
    for clip in manifest.items:
        if model == "tacotron2":
            assert np.abs(data.mel(clip) - original.mel(clip)).max() <= coding.MEL_STEP / 2 + 1e-5
        else:
            before, after = original.samples(clip).astype(float), data.samples(clip)
            assert 10 * np.log10(np.sum(before**2) / np.sum((after - before) ** 2)) > 25
    theirs = newest(machines.run(model), model)
    assert theirs["config"] == ours["config"]
    changed = {name for name, value in theirs["training"].items() if value != ours["training"][name]}
    assert changed - CALL_OPTIONS <= {
        *("text_cleaners", "lexicon", "batch_size", "keep_best", "iters_per_checkpoint"),
        "epochs",  # a few clips would soon reach it
    }
    assert theirs["training"]["batch_size"] == 3


def test_the_other_machine_reads_the_same_symbols(machines):
    """It lacks what english_cleaners needs, and gets cleaned texts."""
    found = []
    for project_data, run in (
        (machines.project.out / "data", machines.project.out / "tacotron2"),
        (machines.run("tacotron2").with_name("data"), machines.run("tacotron2")),
    ):
        options = newest(run, "tacotron2")["training"]
        dataset = TextMelDataset(PreparedDataset.open(project_data), "train", options["text_cleaners"])
        found.append({item.id: dataset.sequence(i).tolist() for i, item in enumerate(dataset.items)})
    assert found[0] == found[1]


@pytest.mark.parametrize("model", MODELS)
def test_the_run_goes_on_with_what_comes_back(machines, here, model):
    run = here.out / model
    before, theirs = newest(run, model), newest(machines.run(model), model)
    assert call("unpack", machines.there / model / "result", *run_of(here, model)) == 0
    after = newest(run, model)
    assert after["iteration"] == before["iteration"] + 3
    for name, tensor in theirs["state_dict"].items():
        returned = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(after["state_dict"][name], returned)
        assert torch.equal(after["trained_state_dict"][name], returned)
    assert theirs["optimizer"]["state"]
    for index, state in theirs["optimizer"]["state"].items():
        ours, square = after["optimizer"]["state"][index], state["exp_avg_sq"]
        assert torch.equal(ours["exp_avg_sq"] > 0, square > 0)
        ratio = (ours["exp_avg_sq"] / square)[square > 2.0**-69]
        assert ((ratio.log2() * 6).abs() <= 1.001).all()  # a sixth of an octave
        assert not ours["exp_avg"].any() and ours["step"] == after["iteration"]
    assert after["training"] == before["training"] and after["done"] == before["done"]
    kept = load_training_checkpoint(run / f"before_gpu_{before['iteration']}.pt", model)
    assert all(torch.equal(kept["state_dict"][name], tensor) for name, tensor in before["state_dict"].items())
    curves = read_curves(run, model).train["loss"]
    assert curves.iterations.tolist() == list(range(1, after["iteration"] + 1))

    stage = {"tacotron2": "2_read.json", "waveglow": "waveglow.json"}[model]
    options = json.loads((here.recipe / stage).read_text())
    here.write(stage, options | {"max_iterations": after["iteration"] + 1})
    assert here.make(model).names() == ["train"]
    assert newest(run, model)["iteration"] == after["iteration"] + 1


def refused(capsys, message, *arguments):
    capsys.readouterr()
    assert call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_does_not_continue_the_run_is_refused(machines, here, tmp_path, capsys):
    result = machines.there / "waveglow" / "result"
    unpack = ("unpack", result, *run_of(here, "waveglow"))
    files = {path: path.read_bytes() for path in here.out.rglob("*") if path.is_file()}
    refused(
        capsys,
        "is a training checkpoint of waveglow, not of tacotron2",
        "unpack",
        machines.there / "tacotron2/result",
        *unpack[2:],
    )
    (tmp_path / "half").mkdir()
    data = (result / FILE).read_bytes()
    (tmp_path / "half" / FILE).write_bytes(data[: len(data) // 2])
    refused(capsys, "is no result", "unpack", tmp_path / "half", *unpack[2:])
    refused(capsys, "is no result", "unpack", tmp_path, *unpack[2:])
    assert {path: path.read_bytes() for path in here.out.rglob("*") if path.is_file()} == files
    assert call(*unpack) == 0
    refused(capsys, "is older than the run: 5 iterations", *unpack)
    (here.out / "waveglow" / PACKS).unlink()
    refused(capsys, "was not trained from a pack of", *unpack)


@pytest.mark.parametrize("part", ["weights", "squares"])
def test_another_model_is_refused(machines, here, part):
    """Of the same pack, so that nothing but the shapes tells."""
    run, folder = here.out / "waveglow", here.out / "result"
    result = Result.read(machines.there / "waveglow" / "result")
    tensors = getattr(result, part)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 3)
    tensors[name] = tensors[name][:-1]
    result.write(folder)
    with pytest.raises(FastglowError, match="is of another model"):
        unpack(folder, run)


def test_weights_that_are_not_finite_are_refused(machines, here):
    result = Result.read(machines.there / "waveglow" / "result")
    name = next(iter(result.weights))
    result.weights[name].view(-1)[0] = 1e6  # infinite in float16
    result.write(here.out / "result")
    with pytest.raises(FastglowError, match=f"not finite: {name}"):
        unpack(here.out / "result", here.out / "waveglow")


def test_a_pack_keeps_to_its_limit(machines, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CLIPS", 2)
    data, run = machines.project.out / "data", machines.project.out / "waveglow"
    monkeypatch.setattr(packing, "write_json", lambda path, values: None)
    whole = pack(data, run, "waveglow", tmp_path / "whole", {})
    assert whole.files == [2, 2, 2, 1]
    limit = size_of(tmp_path / "whole") - 1000
    part = pack(data, run, "waveglow", tmp_path / "part", {}, limit=limit)
    assert 0 < len(part.items) < 7 and part.items == whole.items[: len(part.items)]
    assert size_of(tmp_path / "part") <= limit
    with pytest.raises(FastglowError, match="has no room for clips"):
        pack(data, run, "waveglow", tmp_path / "none", {}, limit=limit // 2)
    anew = pack(data, run, "waveglow", tmp_path / "anew", {}, anew=True, limit=limit // 2)
    assert len(anew.items) == 7 and not (tmp_path / "anew" / WEIGHTS).exists()
    monkeypatch.setattr(packing, "LIMIT", 5_000_000)
    with pytest.raises(
        FastglowError, match=r"parameters: what comes back would have 5 MB and the log, must have at most 5 MB"
    ):
        pack(data, run, "waveglow", tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


def test_only_a_pack_is_replaced(machines, here, tmp_path, capsys):
    arguments = run_of(here, "waveglow")
    assert call("pack", *arguments, "--out", tmp_path / "new") == 0
    before = Manifest.read(tmp_path / "new").id
    assert call("pack", *arguments, "--out", tmp_path / "new") == 0
    assert Manifest.read(tmp_path / "new").id != before
    run = here.out / "waveglow"
    files = {path: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    refused(capsys, "is there and is no pack", "pack", *arguments, "--out", run)
    assert {path: path.read_bytes() for path in run.iterdir()} == files


def test_a_training_that_was_stopped_is_taken_back(machines, here, monkeypatch):
    """`run` packs anew whenever it is called: what the GPU learned would be lost."""

    def train_and_stop(pack, folder, out, *_):
        result = Result.read(machines.there / "waveglow" / "result")
        replace(result, pack=Manifest.read(pack).id).write(out)
        shutil.copy(machines.there / "waveglow" / "result" / "log.jsonl.xz", out)
        raise Stopped(2)

    run = here.out / "waveglow"
    before = newest(run, "waveglow")["iteration"]
    monkeypatch.setattr(training, "train", train_and_stop)
    words = ("run", *run_of(here, "waveglow"), "--device", "cpu")
    assert call(*words) == 130
    assert newest(run, "waveglow")["iteration"] == before + 3
    # Without a result: not that of the call before.
    monkeypatch.setattr(training, "train", lambda *_: killed([]))
    assert call(*words) == 128 + 15
    assert newest(run, "waveglow")["iteration"] == before + 3


def test_ctrl_c_while_packing(machines, here, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(coding, "encode_recordings", interrupt)
    assert call("pack", *run_of(here, "waveglow"), "--out", here.out / "pack") == 130
    assert capsys.readouterr().err == "voice-gpu: stopped by SIGINT\n"
    assert not list(here.out.glob("*pack*"))


def test_a_pack_names_files_in_its_own_folder_only(machines, tmp_path):
    manifest = machines.manifest("waveglow")
    clip = manifest.items[0]
    for name, good in (("other", True), ("../other", False), ("/other", False)):
        items = [replace(clip, id=name), *manifest.items[1:]]
        replace(manifest, items=items).write(tmp_path)
        if good:
            assert Manifest.read(tmp_path).items == items
        else:
            with pytest.raises(FastglowError, match="is no pack"):
                Manifest.read(tmp_path)


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(machines, here):
    folder = here.out / "result"
    shutil.copytree(machines.there / "waveglow" / "result", folder)
    log = lzma.decompress((folder / "log.jsonl.xz").read_bytes())
    (folder / "log.jsonl.xz").write_bytes(lzma.compress(log[:-20] + b"\n[1]\n{}"))
    unpack(folder, here.out / "waveglow")
    curve = read_curves(here.out / "waveglow", "waveglow").train["loss"]
    assert curve.iterations.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("model", MODELS)
def test_a_second_call_goes_on(machines, here, tmp_path, model):
    """Where the first one trained, if that is still there."""
    there = tmp_path / "there"
    shutil.copytree(machines.there / model, there)
    options = json.loads((there / "pack/options.json").read_text())
    (there / "pack/options.json").write_text(json.dumps(options | {"max_iterations": 5}))
    commands = Commands()
    result = train(there / "pack", there / "work", there / "result", 5, "cpu", commands)
    (words,) = commands.called
    assert "--resume" in words and "--init-from" not in words
    assert result.iterations == 5
    assert unpack(there / "result", here.out / model) == newest(machines.project.out / model, model)["iteration"] + 5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_pack_that_was_not_copied_whole_is_refused(machines, tmp_path, model, part):
    shutil.copytree(machines.there / model / "pack", tmp_path / "pack")
    clips = tmp_path / "pack" / "clips-000.xz"
    clips.write_bytes(clips.read_bytes()[: int(part * clips.stat().st_size)])
    commands = Commands()
    with pytest.raises(FastglowError, match=r"clips-000.xz is missing or damaged: copy the whole pack"):
        train(tmp_path / "pack", tmp_path / "work", tmp_path / "result", 5, "cpu", commands)
    assert commands.called == []
    assert not list(tmp_path.rglob("dataset.json"))


def test_what_is_rare_comes_first():
    clips = ["the cat", "the cat", "the cat", "the dog", "zephyrs"]
    items = [Item(str(i), text, 100 * len(text), len(text)) for i, text in enumerate(clips)]
    order = [item.text for item in by_coverage(items)]
    assert sorted(order) == clips
    assert set(order[:3]) == {"the cat", "the dog", "zephyrs"}
    assert [item.id for item in by_coverage([Item("a", "", 9, 3), Item("b", "no", 9, 3)])] == ["a", "b"]


def test_without_pytorch_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(capsys, "this Python has no PyTorch", "run")


def test_without_a_package_one_line_says_so(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "voices.gpu.packing")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "voices.gpu.results")
    monkeypatch.delattr("voices.gpu.results")
    monkeypatch.delattr("voices.gpu.packing")
    refused(capsys, "this Python has no safetensors", "run", "--device", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("arguments", [["run"], ["train", "pack", "--out", "result"]])
def test_without_a_gpu_one_line_says_what_to_do(capsys, arguments):
    assert call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("voice-gpu: PyTorch finds no CUDA GPU") and "voices.gpu pack" in line
