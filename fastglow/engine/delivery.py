"""How speech is delivered: its level, speed, pauses and ends."""

from dataclasses import dataclass
from numbers import Integral, Real

from fastglow.audio.loudness import CEILING_DB, SILENCE_DB, amplitude, check_volume, normalizing_gain
from fastglow.audio.stretch import check_speed
from fastglow.errors import FastglowError

from .finishing import Finisher

MAX_SILENCE = 60.0


@dataclass(frozen=True)
class Delivery:
    """What the `Synthesizer`'s methods take besides text and seed.

    Attributes:
        sentence_silence: seconds between sentences, 0 to 60, where the text has no pause mark.
        normalize: bring the voice to -18 dBFS, with peaks of at most -1 dBFS; otherwise peaks are at most full scale.
            Higher peaks are lowered by a limiter, see `fastglow.audio.limiter`.
        volume: factor on the level, at least 0.
        speed: factor from 0.5 to 4, 2 is twice as fast, at the same pitch; pauses stay as long as they are.
        trim_silence: remove silence from the ends of each sentence.

    Raises:
        FastglowError: a value is out of its range.
    """

    sentence_silence: float = 0.2
    normalize: bool = True
    volume: float = 1.0
    speed: float = 1.0
    trim_silence: bool = False

    def __post_init__(self) -> None:
        _check_silence(self.sentence_silence)
        check_volume(self.volume)
        check_speed(self.speed)

    @property
    def needs_level(self) -> bool:
        """Whether `finisher` reads the voice's level."""
        return self.normalize or self.trim_silence

    def finisher(self, sampling_rate: int, level: float, follows: bool) -> Finisher:
        """For one sentence of a voice whose active speech has `level` dBFS; `follows`: another sentence."""
        return Finisher(
            sampling_rate,
            gain=self.volume * (normalizing_gain(level) if self.normalize else 1.0),
            ceiling=amplitude(CEILING_DB) if self.normalize else 1.0,
            speed=self.speed,
            silence=amplitude(level + SILENCE_DB) if self.trim_silence else None,
            follows=follows,
        )


def _check_silence(seconds: object) -> None:
    if not isinstance(seconds, Real) or not 0 <= float(seconds) <= MAX_SILENCE:
        raise FastglowError(f"sentence_silence={seconds!r} must be between 0 and {MAX_SILENCE:g} seconds")


def check_count(name: str, value: object) -> int:
    """The value; raises FastglowError unless it is a whole number of at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise FastglowError(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)
