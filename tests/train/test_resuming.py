"""Resuming a run: what may change, what is logged, what is refused."""

import json
import logging
import math
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from fastglow.audio import MelConfig
from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.models import Tacotron2Config, WaveGlowConfig
from fastglow.train.checkpointing import BEST, load_training_checkpoint
from fastglow.train.config import Tacotron2TrainConfig, WaveGlowTrainConfig
from fastglow.train.loop import Trainer, train
from fastglow.train.manifest import PreparedDataset
from fastglow.train.resuming import plan_resumption

from .conftest import SMALL_TACOTRON2, SMALL_WAVEGLOW, command_line, configs, rewritten, run


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A run of each model, stopped after the first of three iterations of an epoch."""
    folder = tmp_path_factory.mktemp("runs")
    for model in ("tacotron2", "waveglow"):
        run(model, prepared, folder / model, max_iterations=1)
    return folder


@pytest.fixture
def resume(runs, prepared, tmp_path, caplog):
    """`resume(model, data, model_options, given, **options)`: the trainer of a copied run that is resumed."""

    def start(model, data=prepared, model_options=None, given=None, **options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        shutil.copytree(runs / model, out)
        config, model_config = configs(model, data, out, resume=True, **options)
        model_config = replace(model_config, **(model_options or {}))
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            return Trainer(model, config, model_config, progress=False, given=given)

    return start


@pytest.mark.parametrize(
    ("model", "changes", "flag"),
    [
        ("tacotron2", {"n_frames_per_step": 2}, "--n-frames-per-step 2"),
        ("tacotron2", {"prenet_dim": 20, "attention_dim": 9}, "--attention-dim 9 --prenet-dim 20"),
        ("tacotron2", {"encoder_n_convolutions": 2, "gate_threshold": 0.3}, "--encoder-n-convolutions 2"),
        ("waveglow", {"n_flows": 6}, "--n-flows 6"),
        ("waveglow", {"alternate_halves": True}, "--alternate-halves"),
        ("waveglow", {"WN_config": {"n_layers": 2, "n_channels": 10, "kernel_size": 3}}, "--wn-channels 10"),
    ],
)
def test_options_of_another_model_are_refused_by_name(resume, model, changes, flag):
    with pytest.raises(FastglowError, match=f"leave out {flag} to continue with it") as error:
        resume(model, model_options=changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"gate_threshold": 0.3},
        {"max_decoder_steps": 33, "decoder_no_early_stopping": True},
        {"p_attention_dropout": 0.0, "p_decoder_dropout": 0.25},
        {"p_prenet_dropout": 0.4, "p_encoder_dropout": 0.1, "p_postnet_dropout": 0.2},
        {"mask_padding": False},
    ],
)
def test_options_that_keep_the_weights_are_logged_and_used(resume, caplog, changes):
    trainer = resume("tacotron2", model_options=changes, given=changes.keys())
    before = {**asdict(Tacotron2Config()), **SMALL_TACOTRON2}
    for name, value in changes.items():
        assert f"{name} {before[name]} -> {value}" in caplog.text
    assert asdict(trainer.task.model_config) == asdict(trainer.state.model.config) == {**before, **changes}
    assert (trainer.state.iteration, trainer.state.batch) == (1, 1)


def test_options_that_were_not_given_are_the_checkpoints(resume, caplog):
    for model, config_class in (("tacotron2", Tacotron2Config), ("waveglow", WaveGlowConfig)):
        trainer = resume(model, model_options=asdict(config_class()), given=())
        small = SMALL_TACOTRON2 if model == "tacotron2" else SMALL_WAVEGLOW
        assert trainer.task.model_config == config_class(**small)
    # In Python, options at their default count as not given.
    trainer = resume("waveglow", model_options=asdict(WaveGlowConfig()), learning_rate=1e-4, batch_size=10)
    assert trainer.task.model_config == WaveGlowConfig(**SMALL_WAVEGLOW)
    assert (trainer.config.learning_rate, trainer.config.batch_size) == (5e-3, 3)
    assert not caplog.text


def test_what_a_killed_process_did_not_finish_is_removed(runs, prepared, tmp_path):
    shutil.copytree(runs / "waveglow", tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    for name in ("checkpoint_7.pt", BEST):
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "run" / name) as temporary:
            shutil.copy(temporary, tmp_path / temporary.name)
            raise KeyboardInterrupt
        shutil.move(tmp_path / temporary.name, temporary)  # as a killed process leaves it
    config, model_config = configs("waveglow", prepared, tmp_path / "run", resume=True)
    Trainer("waveglow", config, model_config, progress=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_automatic_precision_is_what_it_stands_for(resume, caplog):
    trainer = resume("waveglow", amp="auto")
    assert trainer.config.amp == "bf16" and "amp off -> bf16" in caplog.text
    trainer.save()
    config, model_config = configs("waveglow", trainer.config.data, trainer.out, resume=True, amp="auto")
    caplog.clear()
    assert Trainer("waveglow", config, model_config, progress=False).config.amp == "bf16"
    assert "differ" not in caplog.text


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
def test_the_command_resumes_bit_for_bit_without_its_options(model, prepared, tmp_path, capfd):
    whole, short = (command_line(model, prepared, tmp_path / name) for name in ("whole", "short"))
    short[short.index("--max-iterations") + 1] = "3"
    assert main(whole) == main(short) == 0
    few = ["train", model, "--data", str(prepared), "--out", str(tmp_path / "short"), "--device", "cpu", "--quiet"]
    capfd.readouterr()
    assert main([*few, "--no-tensorboard", "--resume", "--max-iterations", "8"]) == 0
    assert "differ" not in capfd.readouterr().err
    whole, resumed = (load_training_checkpoint(tmp_path / d / "checkpoint_8.pt", model) for d in ("whole", "short"))
    assert all(torch.equal(tensor, resumed["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    assert resumed["training"] | {"out": "", "resume": 0} == whole["training"] | {"out": "", "resume": 0}


@pytest.mark.parametrize("where", ["command line", "file", "default value"])
def test_the_command_distinguishes_given_options_from_defaults(where, runs, prepared, tmp_path, capsys):
    shutil.copytree(runs / "tacotron2", tmp_path / "out")
    arguments = ["train", "tacotron2", "--data", str(prepared), "--out", str(tmp_path / "out"), "--resume", "--quiet"]
    (tmp_path / "options.json").write_text(json.dumps({"decoder_config": {"prenet-dim": 256}}))
    extra = {
        "command line": ["--prenet-dim", "20"],
        "file": ["--config-file", str(tmp_path / "options.json")],
        "default value": ["--prenet-dim", "256"],  # given, though it is the default
    }[where]
    assert main([*arguments, *extra]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"prenet_dim=12, not {extra[1] if extra[1].isdigit() else 256}: leave out --prenet-dim" in line
    waveglow = ["train", "waveglow", "--data", str(prepared), "--out", str(tmp_path / "w"), "--resume", "--quiet"]
    shutil.copytree(runs / "waveglow", tmp_path / "w")
    assert main([*waveglow, "--wn-layers", "3"]) == 2
    assert "WN_config.n_layers=2, not 3: leave out --wn-layers 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({"learning_rate": 1e-3}, 1),
        ({"weight_decay": 0.5}, 1),
        ({"batch_size": 2}, 1),
        ({"seed": 5}, 0),
        ({"bucket_batches": 2}, 0),
    ],
)
def test_an_epoch_starts_again_if_its_batches_change(resume, caplog, options, batch):
    trainer = resume("waveglow", **options)
    assert (trainer.state.iteration, trainer.state.batch) == (1, batch)
    assert ("epoch 1 starts again" in caplog.text) is (batch == 0)
    (name,) = options
    assert f"{name} " in caplog.text
    assert trainer.state.optimizer.param_groups[0]["weight_decay"] == options.get("weight_decay", 1e-6)


def add_two(items):
    items["train"] += [replace(items["train"][0], id=f"new{i}") for i in range(2)]


def drop_three(items):
    del items["train"][2:5]


def correct_a_text(items):
    items["train"][3] = replace(items["train"][3], text="Other words.")


def trim_a_clip(items):
    items["train"][3] = replace(items["train"][3], samples=4000, frames=16)


def reverse(items):
    items["train"].reverse()


def hold_out_less(items):
    items["train"].append(items["validation"].pop())


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
@pytest.mark.parametrize(
    ("edit", "logged"),
    [
        (add_two, "2 new"),
        (drop_three, "3 gone"),
        (trim_a_clip, "1 changed"),
        (reverse, "in another order"),
        (hold_out_less, "1 new"),
        (lambda items: (add_two(items), drop_three(items)), "2 new, 3 gone"),
    ],
)
def test_changed_data_is_logged_and_the_epoch_starts_again(resume, prepared, tmp_path, caplog, model, edit, logged):
    trainer = resume(model, data=rewritten(prepared, tmp_path / "data", edit))
    assert f"data: train items: {logged}\n" in caplog.text
    assert "epoch 1 starts again" in caplog.text
    assert (trainer.state.iteration, trainer.state.epoch, trainer.state.batch) == (1, 0, 0)


@pytest.mark.parametrize(("model", "read"), [("tacotron2", True), ("waveglow", False)])
def test_a_changed_text_matters_to_tacotron2_only(resume, prepared, tmp_path, caplog, model, read):
    trainer = resume(model, data=rewritten(prepared, tmp_path / "data", correct_a_text))
    assert ("data: train items: 1 changed" in caplog.text) is read
    assert trainer.state.batch == (0 if read else 1)


def test_other_validation_items_change_nothing_in_training(resume, prepared, tmp_path, caplog):
    def edit(items):
        items["validation"][0] = replace(items["validation"][0], id="other")

    trainer = resume("tacotron2", data=rewritten(prepared, tmp_path / "data", edit))
    assert "data: validation items: 1 new, 1 gone" in caplog.text
    assert trainer.state.batch == 1


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
def test_the_same_data_in_another_folder_is_the_same(resume, prepared, tmp_path, caplog, model):
    shutil.copytree(prepared, tmp_path / "moved")
    assert resume(model, data=tmp_path / "moved").state.batch == 1
    assert not caplog.text


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
def test_data_of_another_run_is_refused(resume, prepared, tmp_path, model):
    def rename(items):
        items["train"] = [replace(item, id=f"x{item.id}") for item in items["train"]]

    def cut(items):
        items["train"] = [replace(item, samples=item.samples - 1) for item in items["train"]]

    for edit in (rename, cut):
        folder = rewritten(prepared, tmp_path / edit.__name__, edit)
        with pytest.raises(
            FastglowError, match="none of its 7 training items .* --init-from .*checkpoint_1.pt"
        ) as error:
            resume(model, data=folder)
        assert "\n" not in str(error.value)


def test_other_audio_parameters_are_refused_by_name(resume, prepared, tmp_path):
    rewritten(prepared, tmp_path / "data", audio=MelConfig(16000))
    with pytest.raises(FastglowError, match=r"different audio parameters .*\(sampling_rate 16000 and 22050\)"):
        resume("waveglow", data=tmp_path / "data")


@pytest.mark.parametrize("model", ["tacotron2", "waveglow"])
def test_older_checkpoints_are_resumed(model, runs, prepared, tmp_path, caplog):
    """They lack digests of the data, have audio parameters and cleaners in other places, and an Adam that is not fused,
    which would not leave out an update."""
    checkpoint = torch.load(runs / model / "checkpoint_1.pt", weights_only=True)
    checkpoint["optimizer"]["param_groups"][0]["fused"] = None
    known = checkpoint.pop("trained_with")
    del checkpoint["items"], checkpoint["training"]["ignore_layers"]
    torch.save({**checkpoint, "audio": known["audio"]}, tmp_path / "checkpoint_1.pt")
    config, model_config = configs(model, rewritten(prepared, tmp_path / "data", add_two), tmp_path, resume=True)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(model, config, model_config, progress=False)
    assert (trainer.state.iteration, trainer.state.batch) == (1, 1)
    assert not caplog.text
    before = [parameter.clone() for parameter in trainer.state.model.parameters()]
    batch = trainer.task.collate([trainer.trainset[0]])
    batch.mel.fill_(math.nan)
    trainer.state.model.train()
    trainer.step([batch], [1.0])
    assert all(map(torch.equal, before, trainer.state.model.parameters()))


def test_lexicons_are_compared_by_their_pronunciations(prepared, tmp_path, lexicon_file, caplog):
    first = tmp_path / "first.txt"
    shutil.copy(lexicon_file, first)
    run("tacotron2", prepared, tmp_path / "run", max_iterations=1, lexicon=str(first))
    moved = first.rename(tmp_path / "moved.txt")

    def resumed(**options):
        config, model_config = configs("tacotron2", prepared, tmp_path / "run", resume=True, **options)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return Trainer("tacotron2", config, model_config, progress=False)

    with pytest.raises(FastglowError, match="cannot read the lexicon .*first.txt"):
        resumed()
    assert resumed(lexicon=str(moved)).config.lexicon == str(moved)
    assert not caplog.text
    moved.write_text(moved.read_text() + "# a comment\n\n")
    resumed(lexicon=str(moved))
    assert not caplog.text
    moved.write_text(moved.read_text().replace("OW1 L D", "OW2 L D"))
    resumed(lexicon=str(moved))
    assert "pronunciations differ" in caplog.text
    moved.rename(first)
    assert resumed().config.lexicon == str(first)
    assert "pronunciations differ" in caplog.text


def test_a_repeated_call_loads_the_checkpoint_and_not_init_from(resume, caplog):
    """The first call's command with --resume: the file of --init-from may be missing by now."""
    trainer = resume("waveglow", init_from="gone.pt", ignore_layers=["WN.9"])
    assert trainer.state.iteration == 1
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "logged"),
    [
        ({"init_mel_bias": True}, "init_mel_bias=True is ignored"),
        ({"uniform_initialize_bn_weight": False}, "uniform_initialize_bn_weight=False is ignored"),
        ({"uniform_initialize_bn_weight": True, "init_mel_bias": False}, ""),
    ],
)
def test_options_of_the_start_are_ignored_on_resuming(resume, caplog, options, logged):
    trainer = resume("tacotron2", given=options, **options)
    assert (logged in caplog.text) and ("options that differ" not in caplog.text)
    assert bool(logged) is bool(caplog.text)
    assert (trainer.config.init_mel_bias, trainer.config.uniform_initialize_bn_weight) == (False, True)


def test_a_run_that_is_done_says_so(prepared, tmp_path, caplog):
    run("waveglow", prepared, tmp_path, epochs=1)
    with caplog.at_level(logging.WARNING):
        config = WaveGlowTrainConfig(str(prepared), str(tmp_path), resume=True, device="cpu", tensorboard=False)
        assert train("waveglow", config, WaveGlowConfig(), progress=False).name == "checkpoint_3.pt"
    assert "nothing to do: the run has completed 1 epochs and 3 iterations" in caplog.text


@pytest.mark.parametrize("part", ["config", "training"])
def test_a_checkpoint_of_other_options_is_one_line(runs, prepared, part):
    checkpoint = torch.load(runs / "tacotron2" / "checkpoint_1.pt", weights_only=True)
    checkpoint[part] = {**checkpoint[part], "batch_size": None, "no_such_option": 3}
    config = Tacotron2TrainConfig(str(prepared), "")
    with pytest.raises(FastglowError, match="options cannot be read") as error:
        plan_resumption(checkpoint, config, Tacotron2Config(), PreparedDataset.open(prepared), ())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("items", [3, {}, {"train": torch.zeros(3, 2)}, {"train": "x", "validation": "y"}])
def test_digests_that_cannot_be_read_are_one_line(runs, prepared, items):
    checkpoint = {**torch.load(runs / "waveglow" / "checkpoint_1.pt", weights_only=True), "items": items}
    config = WaveGlowTrainConfig(str(prepared), "")
    with pytest.raises(FastglowError, match="digests of its data cannot be read"):
        plan_resumption(checkpoint, config, WaveGlowConfig(), PreparedDataset.open(prepared), ())


def test_a_repeatable_option_in_a_file_may_be_one_string(prepared, tmp_path, capsys):
    file = tmp_path / "options.json"
    arguments = [
        "train",
        "tacotron2",
        "--data",
        str(prepared),
        "--out",
        str(tmp_path / "run"),
        "--config-file",
        str(file),
    ]
    for name, value in (("ignore_layers", "no.layer"), ("ignore-layers", ["no.layer"]), ("text-cleaners", "no.layer")):
        file.write_text(json.dumps({name: value}))
        assert main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "ignore_layers=no.layer needs init_from" in line or "unknown cleaner 'no.layer'" in line


@pytest.mark.parametrize(
    "damage", [{"done": [[0, 1]]}, {"done": [[3, -1]]}, {"done": 5}, {"random_states": 3}, {"best_loss": "x"}]
)
def test_a_damaged_state_is_one_line(runs, prepared, tmp_path, damage):
    checkpoint = torch.load(runs / "waveglow" / "checkpoint_1.pt", weights_only=True)
    torch.save({**checkpoint, **damage}, tmp_path / "checkpoint_1.pt")
    config, model_config = configs("waveglow", prepared, tmp_path, resume=True)
    with pytest.raises(FastglowError, match="does not fit its own config") as error:
        Trainer("waveglow", config, model_config, progress=False)
    assert "\n" not in str(error.value)


def test_the_lowest_validation_loss_is_that_on_the_same_items(runs, prepared, tmp_path):
    def hold_out_another(items):
        items["validation"][0] = replace(items["validation"][0], id="other")

    checkpoint = torch.load(runs / "waveglow" / "checkpoint_1.pt", weights_only=True)
    torch.save({**checkpoint, "best_loss": 1.5}, tmp_path / "checkpoint_1.pt")
    found = []
    for data in (prepared, rewritten(prepared, tmp_path / "data", hold_out_another)):
        config, model_config = configs("waveglow", data, tmp_path, resume=True)
        found.append(Trainer("waveglow", config, model_config, progress=False).state.best_loss)
    assert found == [1.5, math.inf]


@pytest.mark.parametrize(
    ("model", "options", "compares"),
    [
        ("tacotron2", {"learning_rate": 1e-4, "p_frame_dropout": 0.1, "grad_clip_thresh": 0.5}, True),
        ("tacotron2", {"guided_attention_weight": 0.5}, False),
        ("tacotron2", {"gate_positive_weight": 3.0}, False),
        ("tacotron2", {"ssim_weight": 0.5}, False),
        ("waveglow", {"segment_length": 2048}, False),
        ("waveglow", {"sigma": 0.7}, False),
    ],
)
def test_the_lowest_validation_loss_is_that_of_the_same_loss(
    runs, prepared, tmp_path, caplog, model, options, compares
):
    checkpoint = torch.load(runs / model / "checkpoint_1.pt", weights_only=True)
    # As if an older version, without these options, had saved it.
    saved = {name: value for name, value in checkpoint["training"].items() if name != "ssim_weight"}
    torch.save({**checkpoint, "best_loss": 1.5, "training": saved}, tmp_path / "checkpoint_1.pt")
    config, model_config = configs(model, prepared, tmp_path, resume=True)
    config = replace(config, **options)
    state = Trainer(model, config, model_config, progress=False).state
    assert state.best_loss == (1.5 if compares else math.inf)
    for name, value in options.items():
        assert re.search(rf"{name} \S+ -> {value}\b", caplog.text)
