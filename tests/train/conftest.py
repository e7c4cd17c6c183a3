"""Eight short clips, prepared once, and models small enough to train in a test."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fastglow.audio import MelConfig
from fastglow.models import Tacotron2Config, WaveGlowConfig
from fastglow.train.config import Tacotron2TrainConfig, WaveGlowTrainConfig
from fastglow.train.loop import train
from fastglow.train.manifest import Item, PreparedDataset
from fastglow.train.publishing import About, Clip, write_dataset

# Of a process that runs this checkout.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

MODELS = ["tacotron2", "waveglow"]

CLIPS = Path(__file__).parents[1] / "data" / "clips"

SMALL_TACOTRON2 = {
    "symbols_embedding_dim": 16,
    "encoder_embedding_dim": 16,
    "attention_rnn_dim": 24,
    "attention_dim": 8,
    "attention_location_n_filters": 4,
    "attention_location_kernel_size": 7,
    "decoder_rnn_dim": 24,
    "prenet_dim": 12,
    "postnet_embedding_dim": 12,
    "n_frames_per_step": 4,
    "max_decoder_steps": 20,
    "mask_padding": True,
}
SMALL_WAVEGLOW = {
    "n_flows": 4,
    "n_early_every": 2,
    "WN_config": {"n_layers": 2, "n_channels": 8, "kernel_size": 3},
    "upsample_kernel_size": 512,
}

# Words of the clips' texts, and one that is in none.
LEXICON = """\
how HH AW1
old OW1 L D
are AA1 R
you Y UW1
it IH1 T
zebra Z IY1 B R AH0
"""


@pytest.fixture
def clips():
    return CLIPS


@pytest.fixture(scope="session")
def lexicon_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
    path.write_text(LEXICON)
    return path


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """Folder of a prepared data set of six clips of noise, none to validate: needs no package that reads audio."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    clips = []
    for i, frames in enumerate((9, 14, 20, 23, 31, 40)):
        item = Item(f"noise{i}", "hello " * (i + 1), 256 * (frames - 1), frames)
        mel = random.normal(-5, 1, (80, frames)).astype(np.float32)
        clips.append(Clip(item, random.integers(-3000, 3000, item.samples).astype(np.int16), mel))
    write_dataset(folder, About("noise", MelConfig(), text_cleaners=["basic_cleaners"]), {"train": clips})
    return folder


def rewritten(source, folder, edit=lambda items: None, change=lambda item, mel: mel, **about):
    """Another data set of the clips of a prepared one.

    Args:
        edit: changes the items, in lists by split; one that is derived from another has the other's data, fitted.
        change: gives the log-mel of an item.
        about: fields of `About` that differ.
    """
    dataset = PreparedDataset.open(source)
    known = {item.row: item for split in dataset.items.values() for item in split}
    items = {split: list(members) for split, members in dataset.items.items()}
    edit(items)

    def clip(item):
        samples, mel = dataset.samples(known[item.row]), dataset.mel(known[item.row])
        mel = np.resize(mel, (len(mel), item.frames)) if item.frames != mel.shape[1] else mel
        return Clip(item, np.resize(samples, item.samples), change(item, mel))

    about = {"audio": dataset.audio, "text_cleaners": dataset.text_cleaners, "mel_dtype": dataset.mel_dtype} | about
    write_dataset(folder, About("edited", **about), {split: map(clip, members) for split, members in items.items()})
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Folder of the prepared clips: 7 to train on, 1 to validate."""
    from fastglow.train.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    prepare(CLIPS, folder, progress=False, workers=1)
    return folder


@contextmanager
def files_of_at_most(n_bytes):
    """Around single calls only, as on a full disk: pytest's own output may be a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def poisoned(prepared, tmp_path):
    """(a data set with one mel of NaNs, that item)."""
    bad = PreparedDataset.open(prepared).items["train"][4]
    change = lambda item, mel: np.full_like(mel, np.nan) if item.id == bad.id else mel  # noqa: E731
    return rewritten(prepared, tmp_path / "data", change=change), bad


def configs(model, data, out, **options):
    options = {
        "device": "cpu",
        "num_workers": 0,
        "batch_size": 3,
        "tensorboard": False,
        "epochs_per_validation": 1000,
        "learning_rate": 5e-3,
        **options,
    }
    if model == "tacotron2":
        return (
            Tacotron2TrainConfig(data=str(data), out=str(out), guided_attention_weight=1.0, **options),
            Tacotron2Config(**SMALL_TACOTRON2),
        )
    return (
        WaveGlowTrainConfig(data=str(data), out=str(out), segment_length=1024, **options),
        WaveGlowConfig(**SMALL_WAVEGLOW),
    )


def run(model, data, out, **options):
    return train(model, *configs(model, data, out, **options), progress=False)


def options_of(config):
    """Command-line options of a model's config."""
    for name, value in config.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "WN_config":
            yield from ("--wn-layers", str(value["n_layers"]), "--wn-channels", str(value["n_channels"]))
        elif value is True:
            yield flag
        else:
            yield from (flag, str(value))


def command_line(model, data, out, *extra):
    own = ["--guided-attention-weight", "1"] if model == "tacotron2" else ["--segment-length", "1024"]
    small = SMALL_TACOTRON2 if model == "tacotron2" else SMALL_WAVEGLOW
    return [
        *("train", model, "--data", str(data), "--out", str(out), "--batch-size", "3", "--learning-rate", "5e-3"),
        *("--device", "cpu", "--num-workers", "0", "--no-tensorboard", "--quiet"),
        *("--iters-per-checkpoint", "3", "--max-iterations", "8", "--epochs-per-validation", "3"),
        *own,
        *options_of(small),
        *extra,
    ]
