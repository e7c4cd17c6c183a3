"""Options of a training run: errors of one line, files of options, the learning rate."""

import json

import pytest

from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2Config, WaveGlowConfig
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.config import TrainConfig
from fastglow.train.loop import train

from .conftest import SMALL_WAVEGLOW, command_line, configs, run


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"checkpoint_path": "absent.pt"}, "absent.pt does not exist"),
        ({"init_from": "absent.pt"}, "absent.pt"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
        ({"iters_per_checkpoint": -1}, "iters_per_checkpoint=-1 must not be negative"),
        *(({"loss_scale": s}, f"loss_scale={s} must be .* a positive number of float32") for s in ("1e39", "1e-50")),
        *(({"init_loss_scale": s}, "init_loss_scale=.* must be finite and not 0 in float32") for s in (1e39, 1e-50)),
        ({"num_workers": -1}, "num_workers=-1 must not be negative"),
        ({"seed": 2**63}, "does not fit in 64 bits"),
        ({"data": "nowhere"}, "run `fastglow prepare"),
    ],
)
def test_bad_options_are_one_line(prepared, tmp_path, options, pattern):
    options = {"data": prepared, **options}
    with pytest.raises(FastglowError, match=pattern) as raised:
        run("waveglow", options.pop("data"), tmp_path, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        *(({"p_arpabet": p}, rf"p_arpabet={p} must be between 0 and 1$") for p in (-0.01, 1.01, float("nan"))),
        *(
            ({"p_frame_dropout": p}, rf"p_frame_dropout={p} must be at least 0 and below 1$")
            for p in (-0.01, 1.0, 1.5, float("nan"))
        ),
        ({"lexicon": "absent.txt"}, "cannot read the lexicon absent.txt: No such file or directory$"),
    ],
)
def test_bad_options_of_tacotron2_are_one_line(prepared, tmp_path, options, pattern):
    with pytest.raises(FastglowError, match=pattern) as raised:
        run("tacotron2", prepared, tmp_path, max_iterations=1, **options)
    assert "\n" not in str(raised.value)


def test_models_that_do_not_fit_the_data(prepared, tmp_path):
    config, _ = configs("tacotron2", prepared, tmp_path)
    with pytest.raises(FastglowError, match="40 mel channels"):
        train("tacotron2", config, Tacotron2Config(n_mel_channels=40), progress=False)
    config, _ = configs("waveglow", prepared, tmp_path)
    with pytest.raises(FastglowError, match="upsample_stride=200 must equal"):
        train("waveglow", config, WaveGlowConfig(upsample_stride=200), progress=False)


def test_learning_rate_schedule():
    def rates(**options):
        config = TrainConfig("", "", learning_rate=1.0, anneal_steps=[2, 4, 6], **options)
        return [config.learning_rate_at(epoch, iteration=9) for epoch in range(8)]

    assert rates(anneal_factor=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rates(anneal_factor=0.3) == pytest.approx([1, 1, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03])


def test_commands_print_one_line_and_exit_2(prepared, tmp_path, capsys):
    assert main(["train", "waveglow", "--data", "nowhere", "--out", str(tmp_path)]) == 2
    assert main(["prepare", "nowhere", "--out", str(tmp_path)]) == 2
    tacotron2 = ["train", "tacotron2", "--data", str(prepared), "--out", str(tmp_path)]
    assert main([*tacotron2, "--p-frame-dropout", "1"]) == 2
    assert main([*tacotron2, "--lexicon", str(tmp_path / "absent.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "run `fastglow prepare" in lines[0]
    assert "nowhere does not exist" in lines[1]
    assert "p_frame_dropout=1.0 must be" in lines[2]
    assert "cannot read the lexicon" in lines[3]


def test_prepare_command_lists_what_it_left_out(clips, tmp_path, capsys):
    filelist = tmp_path / "list.txt"
    good = clips / "wavs" / "arctic_a0158_1592713801.ogg"
    filelist.write_text(f"{good}|Does that look good.\nmissing.wav|Words.\n")
    assert main(["prepare", str(filelist), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    output = capsys.readouterr()
    assert "1 items to train on, 0 to validate" in output.out
    assert "left out missing: " in output.err
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"] == {"train": 1, "validation": 0}


def test_options_from_a_config_file(prepared, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"optimization": {"learning-rate": 0.25, "batch_size": 2}, "max-iterations": 1}))
    arguments = command_line("waveglow", prepared, tmp_path / "run")
    for flag in ("--learning-rate", "--max-iterations"):
        i = arguments.index(flag)
        del arguments[i : i + 2]
    assert main([*arguments, "--config-file", str(file), "--disable-uniform-initialize-bn-weight"]) == 0
    training = load_training_checkpoint(tmp_path / "run" / "checkpoint_1.pt", "waveglow")["training"]
    assert (training["learning_rate"], training["batch_size"]) == (0.25, 3)  # the command line takes precedence
    assert not training["uniform_initialize_bn_weight"]
    cases = (
        ('{"no-such": 1}', "sets unknown options: no_such"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
    )
    for content, pattern in (*cases, ('{"a": ' + "9" * 10_000 + "}", "must be a JSON object")):
        file.write_text(content)
        capsys.readouterr()
        assert main([*arguments, "--config-file", str(file)]) == 2
        assert pattern in capsys.readouterr().err


def test_fine_tuning_from_another_shape_names_the_option_and_the_layers(prepared, tmp_path):
    path = run("waveglow", prepared, tmp_path / "run", max_iterations=1)
    config, _ = configs("waveglow", prepared, tmp_path / "tuned", init_from=str(path))
    other = WaveGlowConfig(**{**SMALL_WAVEGLOW, "WN_config": {"n_layers": 2, "n_channels": 12, "kernel_size": 3}})
    with pytest.raises(
        FastglowError, match=r"n_channels=8 \(this run: 12\): pass --wn-channels 8, or .* --ignore-layers WN.3$"
    ):
        train("waveglow", config, other, progress=False)
