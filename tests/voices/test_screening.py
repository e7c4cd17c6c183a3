"""Clips that do not say their text are found; the recogniser is made up."""

import shutil

import numpy as np
import pytest
import soundfile

from fastglow.train.sources import read_exclusions, read_sources
from voices import screening
from voices.screening import Clip, Source, main, misheard, of_odd_length

from .conftest import CLIPS


class Recogniser:
    """Hears the texts of the clips in turn, but nothing of the fourth and other words in the sixth; it may be stopped
    after some clips."""

    name = "made up"

    def __init__(self, stopped_after=100):
        self.texts = [source.text for source in read_sources(CLIPS)]
        self.texts[3], self.texts[5] = "", "quite another sentence that somebody said"
        self.heard = 0
        self.stopped_after = stopped_after

    def hear(self, pcm):
        if self.heard == self.stopped_after:
            raise KeyboardInterrupt
        self.heard += 1
        return self.texts[self.heard - 1]


def test_clips_that_say_something_else_are_found(tmp_path, monkeypatch):
    sources = read_sources(CLIPS)
    listener = Recogniser(stopped_after=3)
    monkeypatch.setattr(screening, "Pocketsphinx", lambda: listener)
    assert main([str(CLIPS), "--out", str(tmp_path)]) == 130
    assert not (tmp_path / "excluded.txt").exists()
    listener.stopped_after = 100
    assert main([str(CLIPS), "--out", str(tmp_path)]) == 0
    assert listener.heard == len(sources)  # each clip once
    assert read_exclusions(tmp_path / "excluded.txt", sources) == {
        sources[3].id: "excluded: nothing is understood",
        sources[5].id: "excluded: understood as: quite another sentence that somebody said",
    }


def test_without_the_recogniser_only_lengths_count(tmp_path):
    shutil.copytree(CLIPS, tmp_path / "clips")
    *_, last = read_sources(tmp_path / "clips")
    samples, rate = soundfile.read(last.path)
    soundfile.write(last.path, np.concatenate([samples, np.zeros(20 * rate)]), rate)
    assert main([str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--lengths-only"]) == 0
    (line,) = (tmp_path / "out" / "excluded.txt").read_text().splitlines()
    assert line.startswith(f"{last.id}|lasts 2")


@pytest.mark.parametrize(
    "text, heard, found",
    [
        ("A dead man is of no use.", "at that man is of no use", None),
        ("A dead man is of no use.", "the weeks of the carbon", "understood as: the weeks of the carbon"),
        ("A dead man is of no use.", "", "nothing is understood"),
        ("Oh my dear paws!", "i'll make your cause", None),  # too short to tell
        ("What a curious plan!' exclaimed Alice.", "winter is planned explain dallas", None),  # alike, no word right
        ("It is a very fine day.", "one two three four five six seven eight nine it is", "understood as: one"),
    ],
)
def test_only_what_is_wholly_wrong_counts(text, heard, found):
    reason = misheard(text, heard)
    assert reason is None if found is None else (reason or "").startswith(found)


def test_odd_lengths_are_found_beside_usual_ones(tmp_path):
    random = np.random.default_rng(0)
    letters = random.integers(3, 150, 200)
    clips = [
        Clip(Source(str(i), tmp_path, "a" * n), 0.15 + 0.07 * n * random.uniform(0.8, 1.25))
        for i, n in enumerate(letters)
    ]
    assert of_odd_length(clips) == {}
    usual = np.flatnonzero(letters > 50)
    long, short = clips[usual[0]], clips[usual[1]]
    clips[usual[0]], clips[usual[1]] = long._replace(seconds=30.0), short._replace(seconds=0.4)
    assert set(of_odd_length(clips)) == {long.source.id, short.source.id}
