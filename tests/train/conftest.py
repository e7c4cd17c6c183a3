"""Eight short clips, prepared once, and models small enough to train in a test."""

from pathlib import Path

import pytest

from fastglow.train.prepare import prepare

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

# Words of the clips' texts, and one that is in none of them.
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
def prepared(tmp_path_factory):
    """Folder of the prepared clips: 7 to train on, 1 to validate."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(CLIPS, folder, progress=False, workers=1)
    return folder
