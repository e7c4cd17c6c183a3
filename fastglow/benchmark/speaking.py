"""The calls that are measured."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastglow.errors import FastglowError

from .measuring import Case, Outcome, Passage
from .texts import BATCH_CHARACTERS, SENTENCES, text_of

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer


def speaking_cases(synthesizer: "Synthesizer", characters: Sequence[int], batch_sizes: Sequence[int]) -> list[Case]:
    """Latency and first sound of texts of these lengths, throughput of batches of these sizes, the short ones first.

    Larger batches repeat their texts: the fewer there are, the sooner a seed is found that reads each at once.
    """
    cases: list[Case] = []
    for n in characters:
        passage = Passage((text_of(n),))
        cases.append(Case("latency", _latency(synthesizer, passage), passage))
        cases.append(Case("first_sound", _first_sound(synthesizer, passage), passage))
    for size in batch_sizes:
        passage = Passage(tuple(text_of(BATCH_CHARACTERS, i % len(SENTENCES)) for i in range(size)))
        cases.append(Case("throughput", _throughput(synthesizer, passage), passage))
    return sorted(cases, key=lambda case: case.passage.characters if case.passage else 0)


def load_case(load: Callable[[], object], seconds: float) -> Case:
    """Loading a voice, which is dropped; it takes about so many seconds."""

    def call(seed: int) -> Outcome:
        load()
        return Outcome()

    return Case("load", call, seconds=seconds)


def _latency(synthesizer: "Synthesizer", passage: Passage) -> Callable[[int], Outcome]:
    return lambda seed: _outcome([synthesizer.synthesize(passage.texts[0], seed)], passage)


def _throughput(synthesizer: "Synthesizer", passage: Passage) -> Callable[[int], Outcome]:
    return lambda seed: _outcome(synthesizer.synthesize_batch(passage.texts, seed), passage)


def _first_sound(synthesizer: "Synthesizer", passage: Passage) -> Callable[[int], Outcome]:
    def call(seed: int) -> Outcome:
        chunks = synthesizer.stream(passage.texts[0], seed)
        chunk = next(chunks, ())
        _check_sound(len(chunk), passage)
        return Outcome(samples=len(chunk), close=getattr(chunks, "close", lambda: None))

    return call


def _outcome(speeches: Sequence["Speech"], passage: Passage) -> Outcome:
    sentences = [sentence for speech in speeches for sentence in speech.sentences]
    n_samples = sum(len(sentence.audio) for sentence in sentences)
    _check_sound(n_samples, passage)
    timings = speeches[0].timings  # of the whole call
    return Outcome(
        samples=n_samples,
        mel_frames=sum(sentence.mel.shape[1] for sentence in sentences),
        acoustic_seconds=timings["acoustic"],
        vocoder_seconds=timings["vocoder"],
        sentences=len(sentences),
        attempts=sum(sentence.attempts for sentence in sentences),
        faulty=sum(bool(sentence.reading.fault) for sentence in sentences),
    )


def _check_sound(n_samples: int, passage: Passage) -> None:
    if not n_samples:
        raise FastglowError(
            f"the voice made no sound of {passage.texts[0][:60]!r}: only a voice that speaks English can be measured"
        )
