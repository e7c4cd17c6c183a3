"""Text to audio, with a voice's models."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastglow.audio import MelConfig
from fastglow.checkpoint import load_checkpoint
from fastglow.devices import pick_device
from fastglow.errors import FastglowError
from fastglow.kernels.arguments import dtype_name
from fastglow.kernels.backend import AUTOMATIC, CPU_DTYPES, backend_name
from fastglow.kernels.cpu import fast_dtype
from fastglow.models import Tacotron2, WaveGlow
from fastglow.text import Lexicon, split_sentences
from fastglow.text.markup import without_tags
from fastglow.text.pauses import Pause, split_pauses
from fastglow.voices import AS_TRAINED, AsTrained, Voice

from .acoustic import Acoustic
from .delivery import Delivery, check_count
from .frontend import Frontend
from .jobs import Job, make_jobs
from .remarks import warn_of_silence
from .seeds import check_seed, random_seed, seeds_of
from .settings import check_mel_channels, resolve_settings, with_parts
from .silence import Silence, zeros
from .speaking import LEVEL_TEXT, Speaker, Spoken
from .speech import Seconds, Sentence, Speech
from .streaming import growing
from .vocoders import build_vocoder

DEFAULT_SIGMA = 0.6
CPU_DECODERS = {"int8": torch.int8}
# Sentences that synthesize_batch decodes together: on a CPU, enough to amortise reading the weights.
BATCH_SIZE = {"cuda": 64, "cpu": 8}
FIRST_CHUNK_FRAMES = 16


class Synthesizer(Speaker):
    """Acoustic model, vocoder and text front end of one voice.

    Any number of threads may use one synthesizer.

    Args:
        tacotron2: acoustic model; its device and dtype change.
        vocoder: 'griffin-lim' or 'waveglow'.
        waveglow: for the vocoder of that name; its device and dtype change.
        audio: parameters of the mel; default: those that the models' checkpoints record, else those of the
            published models.
        text_cleaners: default: those that the acoustic model's checkpoint records, else english_cleaners.
        lexicon: pronunciations, for an acoustic model that was trained on ARPAbet: a file in CMUdict's format or a
            `fastglow.text.Lexicon`; None: none; default: the one that the acoustic model's checkpoint records, if any.
        sigma: standard deviation of WaveGlow's noise.
        denoise: strength of WaveGlow's denoiser; 0: off.
        level: of the voice's speech in dBFS; default: measured when it is first needed.
        device: default: the GPU if there is one.
        dtype: of the weights; default: as they are. On a CPU, bfloat16 takes and gives float32 mels and audio.
        cpu_decoder: 'int8': on a CPU the decoder reads its LSTMs' weights rounded to 8 bits, with a scale for each row;
            sets the acoustic model's `decoder.cpu_weights`; default: as that is.

    Attributes:
        voice: that `from_voice` has loaded.

    Raises:
        FastglowError: models that do not fit each other, the vocoder, the lexicon or the device; a bad lexicon; an
            unknown cpu_decoder, or one on another device or in another dtype than float32 and bfloat16.
    """

    voice: Voice | None = None

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
        level: float | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        cpu_decoder: str | None = None,
    ):
        self.device = pick_device(device)
        computed = dtype or tacotron2.embedding.weight.dtype
        if cpu_decoder is not None and not (_reads_cpu_weights(self.device, computed) and cpu_decoder in CPU_DECODERS):
            raise FastglowError(
                f"cpu_decoder={cpu_decoder!r} with device={str(self.device)!r} and dtype={dtype_name(computed)}: use "
                f"{' or '.join(CPU_DECODERS)} on a CPU in float32 or bfloat16, or leave it out"
            )
        used = waveglow if vocoder == "waveglow" else None
        settings = resolve_settings(tacotron2, used, audio, text_cleaners, lexicon)
        check_mel_channels(tacotron2, settings.audio)
        for model in (tacotron2, used):
            if model is not None:
                # The mode of its parameters: they may have been made or loaded outside, or in the caller's.
                with torch.inference_mode(next(model.parameters()).is_inference()):
                    model.to(self.device, dtype).eval()
        if cpu_decoder is not None:
            tacotron2.decoder.cpu_weights = CPU_DECODERS[cpu_decoder]
        super().__init__(
            settings.audio,
            Frontend(settings.text_cleaners, tacotron2.config.n_symbols, settings.lexicon, settings.symbols),
            Acoustic(tacotron2, settings.audio.hop_length / settings.audio.sampling_rate),
            build_vocoder(vocoder, settings.audio, used, sigma, denoise),
            level,
        )

    @classmethod
    def from_voice(
        cls,
        name: str | Path | Voice,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        cpu_decoder: str | None = None,
        **overrides: Any,
    ) -> "Synthesizer":
        """Loads a voice.

        Args:
            name: of a bundled voice, a voice's folder, or a `Voice`.
            device, cpu_decoder: as for the constructor.
            dtype: of the weights; default: bfloat16 on a CPU that has instructions for it, else float32.
            overrides: other values for fields of `Voice`: vocoder, sigma, denoise, text_cleaners, lexicon, ...;
                another tacotron2 brings the audio parameters, cleaners and lexicon that its checkpoint records.

        Raises:
            FastglowError: unknown voice, unreadable files, absent device, or a vocoder that the voice lacks.
        """
        voice = with_parts(name if isinstance(name, Voice) else Voice.load(name), **overrides)
        device = pick_device(device)
        dtype = dtype or (fast_dtype() if device.type == "cpu" else torch.float32)
        waveglow = None
        if voice.vocoder == "waveglow":
            if voice.waveglow is None:
                raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
            waveglow = load_checkpoint(voice.waveglow, expect="waveglow")
        synthesizer = cls(
            load_checkpoint(voice.tacotron2, expect="tacotron2"),
            voice.vocoder,
            waveglow,
            audio=voice.audio,
            text_cleaners=voice.text_cleaners,
            lexicon=voice.lexicon,
            sigma=voice.sigma,
            denoise=voice.denoise,
            level=voice.level,
            device=device,
            dtype=dtype,
            cpu_decoder=cpu_decoder,
        )
        synthesizer.voice = voice
        return synthesizer

    def synthesize(self, text: str, seed: int | None = None, *, progress: bool = False, **delivery: Any) -> Speech:
        """Speaks a text of any length, sentence by sentence.

        A sentence whose speech has a fault (it runs on, stalls, repeats, skips or breaks off, as its attention and the
        stop gate show) is decoded again with seeds derived from this one; `Sentence` records the outcome. A sentence
        that is too long to read at once, or for max_decoder_steps, or long and never read in full, is spoken in parts,
        which count as sentences. Where sentences join, their audio fades in and out within 5 ms.

        Args:
            text: anything; what cannot be spoken is left out with a warning.
            seed: the same seed gives the same audio; None: a random one, recorded in the result.
            progress: show a progress bar on standard error if there is more than one sentence.
            delivery: fields of `fastglow.engine.delivery.Delivery`: sentence_silence, normalize, volume, speed,
                trim_silence.

        Raises:
            FastglowError: a field of the delivery, or the seed, is out of its range.

        Warns:
            SilentTextWarning: nothing to speak, or the model produced nothing.
            FaultySpeechWarning: every attempt at a sentence had a fault; the warning names the remaining one.
            DecoderStepLimitWarning: a sentence reached max_decoder_steps; its end may be missing.
        """
        how = Delivery(**delivery)
        seed = random_seed() if seed is None else check_seed(seed)
        speech = self._new_speech(seed, how)
        seconds = Seconds()
        for spoken in self._spoken(self._jobs(text, seed), how, progress):
            speech.sentences.extend(chain.from_iterable(spoken.sentences))
            seconds = seconds.plus(spoken.seconds)
        speech.timings.update(seconds._asdict())
        return speech

    def synthesize_batch(
        self,
        texts: Sequence[str],
        seed: int | Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
        **delivery: Any,
    ) -> list[Speech]:
        """Speaks several texts; their sentences are decoded and vocoded in batches.

        Each text gets the computation of `synthesize` with its seed, further attempts included, and in float64 the
        same result. In float32, larger matrix products round differently, and the decoder feeds its rounding back to
        itself: the speech is as good, but it drifts from the result of `synthesize` by an amount that is not bounded.
        With the bundled voice the median over 20 texts of the largest difference was 0.002 of full scale; in the worst
        it was 0.5, where the waveforms no longer coincide. A sentence may take a step more or less. For the same
        bits, call `synthesize` for each text.

        Args:
            texts: as for `synthesize`.
            seed: one for all texts, or one per text.
            batch_size: sentences that are decoded together; default: 8, on a GPU 64.
            delivery: as for `synthesize`.

        Returns:
            results in the order of the texts; their timings are those of the whole call.

        Raises:
            FastglowError: as for `synthesize`; another number of seeds than texts.
        """
        how = Delivery(**delivery)
        seeds = seeds_of(texts, seed)
        size = self.batch_size if batch_size is None else check_count("batch_size", batch_size)
        jobs = [(i, job) for i, text in enumerate(texts) for job in self._jobs(text, seeds[i])]
        speeches = [self._new_speech(own, how) for own in seeds]
        # Sorted by length: a batch takes as many steps as its longest item.
        by_length = sorted(range(len(jobs)), key=lambda j: len(jobs[j][1].symbols))
        done: dict[int, list[Sentence]] = {}
        seconds = Seconds()
        for start in range(0, len(jobs), size):
            members = by_length[start : start + size]
            spoken = self._speak([jobs[j][1] for j in members], how)
            done.update(zip(members, spoken.sentences, strict=True))
            seconds = seconds.plus(spoken.seconds)
        for j, (i, _) in enumerate(jobs):
            speeches[i].sentences.extend(done[j])
        for speech in speeches:
            speech.timings.update(seconds._asdict())
        return speeches

    def stream(
        self, text: str, seed: int | None = None, *, chunk_frames: int = FIRST_CHUNK_FRAMES, **delivery: Any
    ) -> Generator[np.ndarray, None, None]:
        """Speaks a text and yields float32 audio [n] as soon as it is certain, while the decoder still runs.

        The concatenated chunks are the audio that `synthesize` returns for the same arguments, in float32 to 1e-5; at
        another speed, to what the time stretch makes of that rounding.
        The first sentence alone can differ: it is handed out before it is known to be free of faults, so a fault that
        shows after the first chunk remains, with a warning. Later sentences are decoded before they are handed out.
        Memory does not grow with the text. Close the iterator to stop early.

        With WaveGlow a chunk is computed together with the mel around it that it depends on. Griffin-Lim needs the
        whole mel: it gives a sentence at once.

        Args:
            text, seed, delivery: as for `synthesize`.
            chunk_frames: mel frames of the first chunk, at least 1; chunks grow to 512 frames.
        """
        parts = self.stream_sentences(text, seed, chunk_frames=chunk_frames, **delivery)
        return _audio_of(parts)

    def stream_sentences(
        self, text: str, seed: int | None = None, *, chunk_frames: int = FIRST_CHUNK_FRAMES, **delivery: Any
    ) -> Generator[np.ndarray | Sentence, None, None]:
        """As `stream`, and yields each `Sentence` after its last chunk; its audio is that of its chunks, without the
        silence before it. The end of a sentence in the whole audio is the number of samples so far."""
        how = Delivery(**delivery)
        sizes = growing(check_count("chunk_frames", chunk_frames))
        jobs = self._jobs(text, random_seed() if seed is None else check_seed(seed))
        return self._stream(jobs, sizes, how)

    def sentences(
        self, text: str, seed: int | None = None, *, progress: bool = False, **delivery: Any
    ) -> Iterator[Sentence]:
        """Speaks a text and yields each sentence as soon as it is done; arguments as for `synthesize`."""
        how = Delivery(**delivery)
        jobs = self._jobs(text, random_seed() if seed is None else check_seed(seed))
        spoken = self._spoken(jobs, how, progress)
        return chain.from_iterable(chain.from_iterable(one.sentences) for one in spoken)

    @property
    def dtype(self) -> torch.dtype:
        """Of the acoustic model's weights."""
        return self.tacotron2.embedding.weight.dtype

    @property
    def cpu_decoder(self) -> str | None:
        """The type, as 'int8', in which the decoder reads its LSTMs' weights, if it is another than `dtype`."""
        weights = self.tacotron2.decoder.cpu_weights
        reads = _reads_cpu_weights(self.device, self.dtype) and backend_name() == AUTOMATIC
        if weights in (None, self.dtype) or not reads:
            return None
        return dtype_name(weights)

    @property
    def batch_size(self) -> int:
        """Sentences that `synthesize_batch` decodes together by default."""
        return BATCH_SIZE.get(self.device.type, BATCH_SIZE["cpu"])

    def warmup(self, batch_size: int = 1) -> None:
        """Does beforehand what first calls do: load libraries, compile kernels, and on a GPU record CUDA graphs.

        Args:
            batch_size: of the calls to come, such as `synthesize_batch`'s.
        """
        batch_size = check_count("batch_size", batch_size)
        self.acoustic.warm_up(batch_size)
        self.vocoder.warm_up(self.tacotron2.embedding.weight.new_zeros(batch_size, self.audio.n_mel_channels, 1))
        with closing(self.stream(LEVEL_TEXT, 0)) as chunks:
            next(chunks, None)
        self.frontend.encode("At 5:15 pm on May 1st, 1984, $3.50.")  # the packages for numbers

    def memory(self) -> dict[str, int]:
        """Bytes of device memory: 'weights' of the models, and 'graphs' with the tensors that they compute with."""
        calls = [call for call in (self.acoustic.call, self.vocoder.call) if call is not None]
        parameters = [parameter for call in calls for parameter in call.model.parameters()]
        return {
            "weights": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            "graphs": sum(call.memory() for call in calls),
        }

    def _spoken(self, jobs: Iterable[Job], how: Delivery, progress: bool) -> Iterator[Spoken]:
        """A text's sentences one by one."""
        if progress:
            jobs = list(jobs)
            jobs = tqdm(jobs, unit="sentence", leave=False, disable=len(jobs) < 2)
        for job in jobs:
            yield self._speak([job], how)

    def _jobs(self, text: str, seed: int) -> Iterator[Job]:
        """Lazy but for what a text can have wrong, so that the first sentence need not wait for the others."""
        parts = split_pauses(without_tags(text))
        return self._jobs_of(parts, text, seed)

    def _jobs_of(self, parts: list[str | Pause], text: str, seed: int) -> Iterator[Job]:
        def pieces() -> Iterator[str | Pause]:
            for part in parts:
                yield from [part] if isinstance(part, Pause) else split_sentences(part)

        found = False
        for job in make_jobs(pieces(), seed, self.frontend, self.acoustic.most_symbols):
            found = True
            yield job
        if not found:
            warn_of_silence(text)

    def _stream(
        self, jobs: Iterator[Job], sizes: Iterator[int], how: Delivery
    ) -> Generator[np.ndarray | Sentence, None, None]:
        silence = Silence(how.sentence_silence, self.audio.sampling_rate)
        for i, job in enumerate(jobs):
            silence.ask(job.pause_before)
            yield from zeros(silence.certain())
            yield from self._stream_sentence(job, sizes, how, silence, early=i == 0)
            silence.ask(job.pause_after)
            yield from zeros(silence.certain())

    def _new_speech(self, seed: int, how: Delivery) -> Speech:
        return Speech([], self.audio.sampling_rate, seed, how.sentence_silence, self.audio.n_mel_channels)


def _audio_of(parts: Generator[np.ndarray | Sentence, None, None]) -> Generator[np.ndarray, None, None]:
    with closing(parts):
        for part in parts:
            if not isinstance(part, Sentence):
                yield part


def _reads_cpu_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the decoder reads its LSTMs' weights as `Decoder.cpu_weights` says."""
    return device.type == "cpu" and dtype in CPU_DTYPES
