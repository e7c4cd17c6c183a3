"""Services of a small voice of random weights, whose gate fires after some steps, and of the bundled one."""

import warnings

import pytest
import torch

from fastglow import Synthesizer
from fastglow.serve import create_app

from ..engine.conftest import make_tacotron2, make_waveglow, voice_folder  # noqa: F401
from .serving import running


def make_voice(vocoder="waveglow"):
    # Few steps, for a chunk a sentence; and a level that is not measured, since random weights read nothing.
    return Synthesizer(
        make_tacotron2(max_decoder_steps=8), vocoder, make_waveglow(), device="cpu", level=-20.0,
        text_cleaners=["english_speech_cleaners"],
    )  # fmt: skip


def make_app(voices, **options):
    """Without a warning on processors whose rows round differently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_app(voices, **options)


@pytest.fixture(scope="package")
def tiny():
    """The address of a service of the small voice, as "tiny" and "other"."""
    voice = make_voice()
    with running(make_app({"tiny": voice, "other": voice}, max_batch=4)) as address:
        yield address


@pytest.fixture(scope="package")
def heart():
    """The address of a service of the bundled voice."""
    with running(make_app({"heart": Synthesizer.from_voice("heart", "cpu", torch.float32)}, max_batch=4)) as address:
        yield address
