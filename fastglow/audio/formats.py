"""Audio file formats for writing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        container, subtype: libsndfile's names.
        rates: supported sampling rates in Hz, ascending; empty if all are.
    """

    container: str
    subtype: str
    rates: tuple[int, ...] = ()

    def rate_for(self, sampling_rate: int) -> int:
        """The rate in Hz to write audio of `sampling_rate` at: the lowest that is not below it, else the highest."""
        return next((rate for rate in self.rates if rate >= sampling_rate), (sampling_rate, *self.rates)[-1])


FORMATS = {
    "wav": Format("WAV", "PCM_16"),
    "flac": Format("FLAC", "PCM_16"),
    "mp3": Format("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "ogg": Format("OGG", "VORBIS"),
    "opus": Format("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
}
"""By name, which is the file's suffix without the dot."""
