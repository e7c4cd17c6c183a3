"""Finds clips that do not say their text, for `fastglow prepare --exclude`.

`python -m voices.screening DATASET --out FOLDER` writes FOLDER/excluded.txt: clips that last much longer or shorter
than their text suggests, and clips of which an independent recogniser understands something else. It errs on a fifth
of the words of good clips, so that only what is wholly wrong counts. What it heard is kept in FOLDER/heard.jsonl:
stopped at any time, the same command goes on with the other clips.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from bench.voice.recognition import Pocketsphinx, Recogniser, Remembering, as_pcm
from bench.voice.word_errors import Edit, align, word_errors, words_of
from fastglow.audio import read_audio
from fastglow.cli import exit_code
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.sources import Source, read_sources

from .work import EXCLUDED

FEWEST_WORDS = 5
"""The recogniser may misunderstand all of a shorter sentence that is spoken well."""
MOST_RIGHT = 0.42
"""Part of the letters that is right in a clip that says something else. Of 250 sentences, none had more than 0.40 of
the letters heard in another clip, and none less than 0.48 of those heard in its own."""
FACTOR, SECONDS = 2.0, 1.0
"""Clips are left out that last this much longer or shorter than expected, by both."""


class Clip(NamedTuple):
    """A clip, and how long it lasts."""

    source: Source
    seconds: float


def expected_seconds(letters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """How long clips of so many letters last: a line through most of them."""
    rows = np.stack([np.ones(len(letters)), letters], axis=1)
    weights = np.ones(len(letters))
    line: np.ndarray = np.zeros(2)
    for _ in range(20):  # towards the line with the least absolute errors
        line, *_ = np.linalg.lstsq(rows * weights[:, None], seconds * weights, rcond=None)
        weights = 1 / np.sqrt(np.maximum(np.abs(seconds - rows @ line), 1e-3))
    return rows @ line


def of_odd_length(clips: Sequence[Clip]) -> dict[str, str]:
    """Clips by id whose length does not fit their text, with reasons."""
    seconds = np.array([clip.seconds for clip in clips])
    expected = expected_seconds(np.array([sum(map(str.isalnum, clip.source.text)) for clip in clips]), seconds)
    reasons: dict[str, str] = {}
    for clip, usual in zip(clips, expected, strict=True):
        shorter, longer = sorted((clip.seconds, usual))
        if longer > shorter * FACTOR and longer > shorter + SECONDS:
            reasons[clip.source.id] = f"lasts {clip.seconds:.1f} s, its text suggests {max(usual, 0):.1f} s"
    return reasons


def misheard(text: str, heard: str) -> str | None:
    """Why what was heard cannot be the text; None: it may be."""
    n_words, n_heard = len(words_of(text)), len(words_of(heard))
    if n_words < FEWEST_WORDS:
        return None
    if not n_heard:
        return "nothing is understood"
    if word_errors(text, heard).edits < max(n_words, n_heard) / 2:
        return None
    # Letters tell a wrong sentence from a badly understood one: "a curious plan" is near to "winter is planned".
    letters, others = "".join(words_of(text)), "".join(words_of(heard))
    wrong = sum(edit is not Edit.KEPT for edit in align(letters, others))
    return f"understood as: {heard}" if 1 - wrong / max(len(letters), len(others)) <= MOST_RIGHT else None


def listen(sources: Sequence[Source], recogniser: Recogniser) -> dict[str, str]:
    """What a recogniser hears, by id."""
    heard: dict[str, str] = {}
    for source in tqdm(sources, unit="clip", disable=not sys.stderr.isatty()):
        samples, rate = read_audio(source.path, None)
        heard[source.id] = recogniser.hear(as_pcm(samples, rate))
    return heard


def screen(sources: Sequence[Source], heard: dict[str, str] | None) -> dict[str, str]:
    """Clips to leave out, with reasons; `heard`: None without a recogniser."""
    reasons = of_odd_length([Clip(source, soundfile.info(source.path).duration) for source in sources])
    for source in sources:
        reason = None if heard is None else misheard(source.text, heard[source.id])
        if reason is not None:
            reasons.setdefault(source.id, reason)
    return {source.id: reasons[source.id] for source in sources if source.id in reasons}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m voices.screening", description=__doc__)
    parser.add_argument("dataset", type=Path, help="as for `fastglow prepare`")
    parser.add_argument("--out", type=Path, required=True, help="folder for excluded.txt and heard.jsonl")
    parser.add_argument("--lengths-only", action="store_true", help="without the recogniser")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _screen(options), "screening")


def _screen(options: argparse.Namespace) -> int:
    try:
        sources = read_sources(options.dataset)
        heard = None
        if not options.lengths_only:
            heard = listen(sources, Remembering(Pocketsphinx(), options.out / "heard.jsonl"))
        reasons = screen(sources, heard)
    except KeyboardInterrupt:
        print("screening: stopped by SIGINT: the same command goes on", file=sys.stderr)
        return 130
    except soundfile.LibsndfileError as error:
        raise FastglowError(str(error)) from error
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / EXCLUDED) as temporary:
        temporary.write_text("".join(f"{name}|{reason}\n" for name, reason in reasons.items()), encoding="utf-8")
    print(f"screening: {len(reasons)} of {len(sources)} clips are left out: {options.out / EXCLUDED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
