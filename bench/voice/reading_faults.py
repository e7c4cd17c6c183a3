"""Skips, repeats and endless items in a voice's reading of hard sentences.

The engine finds them from attention and stop gate, and decodes a faulty sentence again with another seed: what it says
of the first attempt is the acoustic model's, what is left after the last is the listener's. It allows for attention
that is a little uneven, so a short word may be missing: smaller leaps are suspicions. Attention may also look right
where speech is wrong: what the recogniser lost or added and the pace are suspicions that do not come from it.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fastglow.engine import Speech, Synthesizer
from fastglow.engine.jobs import make_jobs
from fastglow.engine.reading import Fault, Reading
from fastglow.errors import FastglowError
from fastglow.lines import read_lines
from fastglow.text import split_sentences
from fastglow.text.cleaners import clean

from .recognition import Recogniser, as_pcm
from .speaking import speak
from .word_errors import Edit, WordErrors, align, word_errors, words_of

HARD_SENTENCES = Path(__file__).with_name("hard_sentences.txt")
ILLEGIBLE = "illegible"
"""The attention does not point at symbols, so that the engine cannot judge it."""
LEAST_RUN = 3
"""Words that the recogniser lost or added in a row; even where speech is right it errs on single ones."""
LEAST_LEAP = 5
"""Symbols that attention leaps over or goes back: a short word. Correct readings of a voice with steps of two frames
stay within 4."""
OUTLIER = 3.5
"""Modified z-score from which a pace is an outlier (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993)."""


class HardSentence(NamedTuple):
    category: str
    text: str


def read_hard_sentences(path: Path = HARD_SENTENCES) -> list[HardSentence]:
    """Lines of `category|text`; raises FastglowError for another line, or none."""
    found = []
    for number, line in enumerate(read_lines(path), 1):
        category, bar, text = (part.strip() for part in line.partition("|"))
        if not category or not bar or not words_of(text):
            raise FastglowError(f"{path} line {number} is {line[:40]!r}, must be category|text")
        found.append(HardSentence(category, text))
    if not found:
        raise FastglowError(f"{path} holds no lines: write category|text")
    return found


def fault_name(reading: Reading) -> str | None:
    """The fault of one attempt, in words; None if there is none."""
    if reading.fault is Fault.NONE:
        return None if reading.legible else ILLEGIBLE
    return reading.fault.name.lower().replace("_", " ")


def first_faults(synthesizer: Synthesizer, text: str, speech: Speech) -> list[str]:
    """The faults of the first attempts at a text's sentences."""
    found = [fault_name(sentence.readings[0]) for sentence in speech.sentences]
    # The engine splits a sentence after an attempt that was too long, and reports its parts.
    most = synthesizer.acoustic.most_symbols
    expected = [job.text for job in make_jobs(split_sentences(text), speech.seed, synthesizer.frontend, most)]
    split = [fault_name(Reading(Fault.TOO_LONG))] * (len(speech.sentences) > len(expected))
    return [name for name in found + split if name]


def faults_left(speech: Speech) -> list[str]:
    """The faults of the speech that the engine returns."""
    return [name for sentence in speech.sentences if (name := fault_name(sentence.reading))]


def leaps(speech: Speech) -> tuple[int, int]:
    """The most symbols that attention moves on in one step, and that it goes back, in any sentence of a speech."""
    ahead, back = [0], [0]
    for sentence in speech.sentences:
        path = np.pad(sentence.alignment.argmax(axis=1), 1, mode="edge")
        # The median of three steps: a glance aside is neither heard nor meant.
        path = np.median(np.lib.stride_tricks.sliding_window_view(path, 3), axis=1).astype(int)
        furthest = np.maximum.accumulate(path)
        ahead.append(int(np.diff(furthest, prepend=0).max(initial=0)))
        back.append(int((furthest - path).max(initial=0)))
    return max(ahead), max(back)


def runs(edits: Sequence[Edit], kind: Edit) -> int:
    """The most edits of one kind in a row."""
    return max((len(list(group)) for edit, group in groupby(edits) if edit is kind), default=0)


def pace_scores(symbols: Sequence[int], seconds: Sequence[float]) -> np.ndarray:
    """How unusual the duration of each sentence is for its number of symbols: modified z-scores.

    The usual duration is a line through the sentences (Sen, "Estimates of the regression coefficient based on
    Kendall's tau", 1968), since beginning and end take time in any sentence. Deviations grow as the root of the length.
    """
    x, y = np.asarray(symbols, float), np.asarray(seconds, float)
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    slope = np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart]) if apart.any() else 0.0
    residuals = y - slope * x
    deviations = (residuals - np.median(residuals)) / np.sqrt(np.maximum(x, 1))
    spread = np.median(np.abs(deviations - np.median(deviations)))
    # 0.6745 is the quartile of a normal distribution: the score of one deviates by its standard deviation.
    return 0.6745 * (deviations - np.median(deviations)) / max(spread, 1e-9)


def read_hard(
    synthesizer: Synthesizer, sentences: Sequence[HardSentence], seed: int, recogniser: Recogniser | None
) -> list[dict[str, Any]]:
    """A row for each sentence, spoken with the same seed.

    Args:
        recogniser: None leaves out what was heard.
    """
    rows = []
    for sentence in tqdm(sentences, "hard sentences", leave=False, disable=None):
        speech = speak(synthesizer, sentence.text, seed)
        ahead, back = leaps(speech)
        row: dict[str, Any] = {
            **sentence._asdict(),
            "first": first_faults(synthesizer, sentence.text, speech),
            "left": faults_left(speech),
            "retries": sum(part.attempts - 1 for part in speech.sentences),
            "leap": ahead,
            "return": back,
            "symbols": sum(part.alignment.shape[1] for part in speech.sentences),
            "seconds": sum(len(part.audio) for part in speech.sentences) / speech.sample_rate,
        }
        if recogniser is not None:
            spoken = clean(sentence.text, synthesizer.frontend.text_cleaners).text
            heard = recogniser.hear(as_pcm(speech.audio, speech.sample_rate))
            edits = align(words_of(spoken), words_of(heard))
            row |= {
                "spoken": spoken,
                "heard": heard,
                "errors": word_errors(spoken, heard).as_dict(),
                "lost": runs(edits, Edit.DELETED),
                "added": runs(edits, Edit.INSERTED),
            }
        rows.append(row)
    scores = pace_scores([row["symbols"] for row in rows], [row["seconds"] for row in rows])
    for row, score in zip(rows, scores, strict=True):
        row["pace"] = float(score)
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of sentences: by fault, by category and by check, with the rows."""
    heard = [row for row in rows if "errors" in row]
    return {
        "sentences": len(rows),
        "faulty": {when: sum(bool(row[when]) for row in rows) for when in ("first", "left")},
        "faults": {when: _count(rows, when) for when in ("first", "left")},
        "retries": sum(row["retries"] for row in rows),
        "categories": {
            category: {
                "sentences": len(of),
                "first": sum(bool(row["first"]) for row in of),
                "left": sum(bool(row["left"]) for row in of),
                "word_errors": _errors(of),
            }
            for category in dict.fromkeys(row["category"] for row in rows)
            if (of := [row for row in rows if row["category"] == category])
        },
        "word_errors": _errors(rows),
        "checks": {
            "leap": sum(row["leap"] >= LEAST_LEAP for row in rows),
            "return": sum(row["return"] >= LEAST_LEAP for row in rows),
            "lost": sum(row["lost"] >= LEAST_RUN for row in heard),
            "added": sum(row["added"] >= LEAST_RUN for row in heard),
            "pace": sum(abs(row["pace"]) > OUTLIER for row in rows),
        },
        "rows": list(rows),
    }


def _errors(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the rows that the recogniser heard; None: it heard none."""
    heard = [word_errors(row["spoken"], row["heard"]) for row in rows if "errors" in row]
    return sum(heard, WordErrors()).as_dict() if heard else None


def _count(rows: Sequence[dict[str, Any]], when: str) -> dict[str, int]:
    """Sentences by fault; one with two kinds counts for both."""
    counts = Counter(name for row in rows for name in set(row[when]))
    return {name: counts[name] for name in sorted(counts)}
