"""Audio formats for writing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of files or streams.

    Attributes:
        container, subtype: libsndfile's names.
        media_type: as in HTTP's Content-Type.
        rates: supported sampling rates in Hz, ascending; empty if all are.
    """

    container: str
    subtype: str
    media_type: str
    rates: tuple[int, ...] = ()

    def rate_for(self, sampling_rate: int) -> int:
        """The rate in Hz to write audio of `sampling_rate` at: the lowest that is not below it, else the highest."""
        return next((rate for rate in self.rates if rate >= sampling_rate), (sampling_rate, *self.rates)[-1])


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

FORMATS = {
    "wav": Format("WAV", "PCM_16", "audio/wav"),
    "flac": Format("FLAC", "PCM_16", "audio/flac"),
    "mp3": Format("MP3", "MPEG_LAYER_III", "audio/mpeg", _MP3_RATES),
    "ogg": Format("OGG", "VORBIS", "audio/ogg"),
    "opus": Format("OGG", "OPUS", "audio/ogg; codecs=opus", (8000, 12000, 16000, 24000, 48000)),
}
"""By name, which is the file's suffix without the dot."""

STREAM_FORMATS = {**FORMATS, "pcm": Format("RAW", "PCM_16", "audio/pcm", (24000,))}
"""What `StreamEncoder` writes: also samples without a header, at the rate of OpenAI's "pcm"."""
