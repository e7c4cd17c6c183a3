"""The commands' tests speak with the engine's small voice."""

from ..engine.conftest import lexicon_file, voice_folder  # noqa: F401
