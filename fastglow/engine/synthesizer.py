"""The whole way from text to audio."""

import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastglow.audio import MelConfig
from fastglow.checkpoint import load_checkpoint
from fastglow.devices import pick_device
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, WaveGlow
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text import Lexicon, split_sentences
from fastglow.voices import AS_TRAINED, VOCODERS, AsTrained, Voice

from .frontend import Frontend
from .training_facts import settle, with_parts
from .vocoders import GriffinLimVocoder, Vocoder, WaveGlowVocoder

DEFAULT_SIGMA = 0.6
# Texts decoded together by synthesize_batch: enough to share the reading of the weights.
BATCH_SIZE = 8


class SilentTextWarning(UserWarning):
    """A text, or a sentence of it, gave no audio."""


@dataclass
class Sentence:
    """One sentence's synthesis.

    Attributes:
        text: as split from the input, before cleaning.
        mel: log-mel, float32 [n_mel_channels, frames].
        alignment: attention weights, float32 [decoder steps, symbols].
        audio: float32 [samples].
        stopped: whether the stop gate fired; if not, the speech was cut at max_decoder_steps.
    """

    text: str
    mel: np.ndarray
    alignment: np.ndarray
    audio: np.ndarray
    stopped: bool


@dataclass
class Speech:
    """A text's synthesis.

    Attributes:
        sentences: one by one.
        sample_rate: Hz.
        seed: what to pass to get the same again.
        sentence_silence: seconds between the sentences.
        timings: seconds spent: 'acoustic' (text to mel), 'vocoder' (mel to audio), 'total'.
    """

    sentences: list[Sentence]
    sample_rate: int
    seed: int
    sentence_silence: float
    n_mel_channels: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def audio(self) -> np.ndarray:
        """float32 [N]: the sentences with silence between them; empty if there was nothing to speak."""
        silence = silence_of(self.sentence_silence, self.sample_rate)
        parts = [part for sentence in self.sentences for part in (silence, sentence.audio)]
        return np.concatenate(parts[1:]) if parts else np.zeros(0, np.float32)

    @property
    def mel(self) -> np.ndarray:
        """float32 [n_mel_channels, frames]: the sentences' mels one after the other."""
        if not self.sentences:
            return np.zeros((self.n_mel_channels, 0), np.float32)
        return np.concatenate([sentence.mel for sentence in self.sentences], axis=1)

    @property
    def alignment(self) -> np.ndarray:
        """float32 [decoder steps, symbols]: the sentences' alignments as blocks along the diagonal."""
        blocks = [torch.from_numpy(sentence.alignment) for sentence in self.sentences]
        return torch.block_diag(*blocks).numpy() if blocks else np.zeros((0, 0), np.float32)

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate


class Synthesizer:
    """Acoustic model, vocoder and text front end of one voice.

    Args:
        tacotron2: acoustic model.
        vocoder: 'griffin-lim' or 'waveglow'.
        waveglow: needed by the vocoder of that name.
        audio: parameters of the mel; default: those that the models' checkpoints tell, or else those of the
            published ones.
        text_cleaners: default: those that the acoustic model's checkpoint tells, or else english_cleaners.
        lexicon: pronunciations, for an acoustic model that was trained on ARPAbet: a file in CMUdict's format, or a
            `fastglow.text.Lexicon`; None: none; default: the one that the acoustic model's checkpoint tells, if any.
        sigma: standard deviation of WaveGlow's noise.
        denoise: strength of WaveGlow's denoiser; 0: off.
        device: default: the GPU if there is one.
        dtype: of the weights; default float32.

    Raises:
        FastglowError: models that do not fit each other, the vocoder, the lexicon or the device; a bad lexicon.
    """

    def __init__(
        self,
        tacotron2: Tacotron2,
        vocoder: str,
        waveglow: WaveGlow | None = None,
        *,
        audio: MelConfig | None = None,
        text_cleaners: Sequence[str] | None = None,
        lexicon: str | PathLike | Lexicon | AsTrained | None = AS_TRAINED,
        sigma: float = DEFAULT_SIGMA,
        denoise: float = 0.0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.device = pick_device(device)
        facts = settle(tacotron2, waveglow if vocoder == "waveglow" else None, audio, text_cleaners, lexicon)
        self.audio = facts.audio
        self.frontend = Frontend(facts.text_cleaners, tacotron2.config.n_symbols, facts.lexicon, facts.symbols)
        self.tacotron2 = tacotron2.to(self.device, dtype).eval()
        _check_mel_channels(tacotron2, self.audio)
        self.vocoder = self._build_vocoder(vocoder, waveglow, sigma, denoise, dtype)

    @classmethod
    def from_voice(
        cls,
        name: str | Path | Voice,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> "Synthesizer":
        """A bundled voice by name, any by folder, or a `Voice`.

        Args:
            name: which.
            device, dtype: as above.
            overrides: fields of `Voice` to have otherwise: vocoder, sigma, denoise, text_cleaners, lexicon, ...;
                another tacotron2 brings the audio parameters, cleaners and lexicon that its checkpoint tells.

        Raises:
            FastglowError: unknown voice, unreadable files, absent device, or a vocoder that the voice lacks.
        """
        voice = with_parts(name if isinstance(name, Voice) else Voice.load(name), **overrides)
        if voice.vocoder == "waveglow" and voice.waveglow is None:
            raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
        return cls(
            load_checkpoint(voice.tacotron2, expect="tacotron2"),
            voice.vocoder,
            load_checkpoint(voice.waveglow, expect="waveglow") if voice.vocoder == "waveglow" else None,
            audio=voice.audio,
            text_cleaners=voice.text_cleaners,
            lexicon=voice.lexicon,
            sigma=voice.sigma,
            denoise=voice.denoise,
            device=device,
            dtype=dtype,
        )

    def synthesize(
        self,
        text: str,
        seed: int | None = None,
        *,
        sentence_silence: float = 0.2,
        progress: bool = False,
    ) -> Speech:
        """Speaks a text of any length, sentence by sentence.

        Args:
            text: anything; what cannot be spoken is left out with a warning.
            seed: same seed, same audio; None: a random one, found in the result.
            sentence_silence: seconds between sentences.
            progress: show a progress bar on standard error if there is more than one sentence.

        Raises:
            FastglowError: negative or not finite sentence_silence, seed out of range.
        """
        seed = random_seed() if seed is None else seed
        speech = self._new_speech(seed, sentence_silence)
        speech.sentences.extend(self.sentences(text, seed, timings=speech.timings, progress=progress))
        return speech

    def synthesize_batch(
        self, texts: Sequence[str], seed: int | None = None, *, sentence_silence: float = 0.2
    ) -> list[Speech]:
        """Speaks several texts, their sentences decoded together.

        Each gets what `synthesize` gives it with this seed, but for the rounding of larger matrix products
        (1e-4 of full scale in float32). The results come in the order of the texts; their timings are those of
        the whole batch.
        """
        seed = random_seed() if seed is None else seed
        jobs = [(i, job) for i, text in enumerate(texts) for job in self._jobs(text, seed)]
        speeches = [self._new_speech(seed, sentence_silence) for _ in texts]
        # Alike lengths together: a batch takes as many steps as its longest item.
        by_length = sorted(range(len(jobs)), key=lambda j: len(jobs[j][1].symbols))
        done: dict[int, Sentence] = {}
        timings: dict[str, float] = {}
        for start in range(0, len(jobs), BATCH_SIZE):
            members = by_length[start : start + BATCH_SIZE]
            done.update(zip(members, self._run([jobs[j][1] for j in members], timings), strict=True))
        for j, (i, _) in enumerate(jobs):
            if len(done[j].audio):
                speeches[i].sentences.append(done[j])
        for speech in speeches:
            speech.timings.update(timings)
        return speeches

    def stream(self, text: str, seed: int | None = None, *, sentence_silence: float = 0.2) -> Iterator[np.ndarray]:
        """Speaks a text and hands out float32 audio [n] as soon as a sentence is done.

        The chunks joined are the audio that `synthesize` gives with the same arguments.
        """
        seed = random_seed() if seed is None else seed
        silence = silence_of(sentence_silence, self.audio.sampling_rate)
        for i, sentence in enumerate(self.sentences(text, seed)):
            yield np.concatenate((silence, sentence.audio)) if i else sentence.audio

    def sentences(
        self, text: str, seed: int, *, timings: dict[str, float] | None = None, progress: bool = False
    ) -> Iterator[Sentence]:
        """Speaks a text sentence by sentence; adds the seconds it takes to `timings`, if given."""
        timings = {} if timings is None else timings
        jobs = self._jobs(text, seed)
        for job in tqdm(jobs, unit="sentence", leave=False, disable=not progress or len(jobs) < 2):
            (sentence,) = self._run([job], timings)
            if len(sentence.audio):
                yield sentence

    def _jobs(self, text: str, seed: int) -> list["_Job"]:
        jobs = []
        for sentence in split_sentences(text):
            symbols = self.frontend(sentence)
            if symbols:
                jobs.append(_Job(sentence, symbols, sentence_seed(seed, len(jobs))))
        if not jobs:
            warnings.warn(f"nothing to speak in {_shorten(text)!r}", SilentTextWarning, stacklevel=3)
        return jobs

    def _run(self, jobs: list["_Job"], timings: dict[str, float]) -> list[Sentence]:
        started = time.perf_counter()
        lengths = torch.tensor([len(job.symbols) for job in jobs])
        text = torch.zeros(len(jobs), int(lengths.max()), dtype=torch.int64)
        for i, job in enumerate(jobs):
            text[i, : len(job.symbols)] = torch.tensor(job.symbols)
        with warnings.catch_warnings():
            # It counts items, where a reader of warnings knows sentences: told again below.
            warnings.simplefilter("ignore", DecoderStepLimitWarning)
            mels, mel_lengths, alignments = self.tacotron2.infer(
                text.to(self.device), lengths.to(self.device), seed=[job.seed for job in jobs]
            )
        mel_lengths = mel_lengths.tolist()
        acoustic_done = time.perf_counter()
        config = self.tacotron2.config
        sentences = []
        for i, (job, n_frames) in enumerate(zip(jobs, mel_lengths, strict=True)):
            if n_frames == 0:
                warnings.warn(
                    f"the model had nothing to say to {_shorten(job.text)!r}", SilentTextWarning, stacklevel=4
                )
            steps = n_frames // config.n_frames_per_step
            if steps == config.max_decoder_steps:
                warnings.warn(
                    f"the stop gate did not fire within max_decoder_steps {steps} and cut the speech of "
                    f"{_shorten(job.text)!r}: end it with punctuation, or split it",
                    DecoderStepLimitWarning,
                    stacklevel=4,
                )
            mel = mels[i, :, :n_frames]
            audio = self.vocoder(mel, job.seed) if n_frames else mel.new_zeros(0)
            sentences.append(
                Sentence(
                    job.text,
                    _to_numpy(mel),
                    _to_numpy(alignments[i, :steps, : len(job.symbols)]),
                    _to_numpy(audio),
                    stopped=steps < config.max_decoder_steps,
                )
            )
        finished = time.perf_counter()
        for name, seconds in (
            ("acoustic", acoustic_done - started),
            ("vocoder", finished - acoustic_done),
            ("total", finished - started),
        ):
            timings[name] = timings.get(name, 0.0) + seconds
        return sentences

    def _new_speech(self, seed: int, sentence_silence: float) -> Speech:
        silence_of(sentence_silence, self.audio.sampling_rate)
        timings = dict.fromkeys(("acoustic", "vocoder", "total"), 0.0)
        return Speech([], self.audio.sampling_rate, seed, sentence_silence, self.audio.n_mel_channels, timings)

    def _build_vocoder(
        self, name: str, waveglow: WaveGlow | None, sigma: float, denoise: float, dtype: torch.dtype | None
    ) -> Vocoder:
        if name not in VOCODERS:
            raise FastglowError(f"unknown vocoder {name!r}: use one of {', '.join(VOCODERS)}")
        if name == "griffin-lim":
            return GriffinLimVocoder(self.audio)
        if waveglow is None:
            raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
        if not sigma >= 0 or not denoise >= 0:
            raise FastglowError(f"sigma {sigma} and denoise {denoise} must not be negative")
        _check_mel_channels(waveglow, self.audio)
        if waveglow.config.upsample_stride != self.audio.hop_length:
            raise FastglowError(
                f"this WaveGlow makes {waveglow.config.upsample_stride} samples a frame, the voice's frames are "
                f"{self.audio.hop_length} samples apart: use a WaveGlow that was trained on such mels"
            )
        return WaveGlowVocoder(waveglow.to(self.device, dtype).eval(), sigma, denoise)


@dataclass
class _Job:
    text: str
    symbols: list[int]
    seed: int


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**31)


def sentence_seed(seed: int, index: int) -> int:
    """The seed of a text's sentence, int64; sentence 0 keeps the text's own.

    Raises:
        FastglowError: the seed does not fit 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed {seed} does not fit 64 bits: use a smaller one")
    # The odd multiplier (2^64 over the golden ratio) spreads the sentences of near seeds apart.
    mixed = (seed + index * 0x9E3779B97F4A7C15) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed


def silence_of(seconds: float, sampling_rate: int) -> np.ndarray:
    """Zeros, float32; raises FastglowError for a length that is none."""
    if not 0 <= seconds <= 60:
        raise FastglowError(f"sentence silence of {seconds} s: use 0 to 60 seconds")
    return np.zeros(round(seconds * sampling_rate), np.float32)


def _check_mel_channels(model: Tacotron2 | WaveGlow, audio: MelConfig) -> None:
    if model.config.n_mel_channels != audio.n_mel_channels:
        raise FastglowError(
            f"the {type(model).__name__} has {model.config.n_mel_channels} mel channels, "
            f"the voice {audio.n_mel_channels}: use models that belong together"
        )


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
