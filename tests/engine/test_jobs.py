"""Which sentences the acoustic model is given of a text that is too long for it."""

import pytest

from fastglow.engine.frontend import Frontend
from fastglow.engine.jobs import make_jobs, split_job

SHORT = 30


@pytest.fixture
def frontend():
    return Frontend(["english_speech_cleaners"], 148)


def texts(jobs):
    return [job.text for job in jobs]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two three", ["one two three"]),
        ("one two three and four five six", ["one two three", "and four", "five six"]),
        # A number is never cut in two: its words alone may be too long.
        ("000000000000 0", ["000000000000", "0"]),
        ("see 123456 now", ["see", "123456", "now"]),
        ("example.com/one/two", ["example.", "com/one/two"]),
        ("supercalifragilisticexpialidocious", ["supercalifragilisticexpialidocious"]),
    ],
)
def test_parts_of_a_sentence_with_too_many_symbols(frontend, text, parts):
    jobs = list(make_jobs([text], 0, frontend, SHORT))
    assert texts(jobs) == parts
    assert [job.follows for job in jobs] == [i > 0 for i in range(len(parts))]
    assert [job.is_followed for job in jobs] == [i + 1 < len(parts) for i in range(len(parts))]


def test_parts_of_a_sentence_that_the_decoder_could_not_finish(frontend):
    _, middle, _ = make_jobs(["a", "call 441234567890123456 now", "b"], 0, frontend, 250)
    parts = split_job(middle, frontend, 250)
    assert texts(parts) == ["call", "441234567890123456", "now"]
    assert all(job.follows and job.is_followed for job in parts)
    assert split_job(parts[1], frontend, 250) == []
