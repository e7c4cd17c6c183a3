"""Words as written among the symbols of what is spoken for them."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.text import Lexicon, cleaner_names, sequence_to_text, symbols
from fastglow.text.sequence import encode
from fastglow.text.written_words import written_words
from fastglow.voices import BUNDLED, DEFAULT_VOICE


@pytest.fixture(scope="module")
def cmudict():
    return Lexicon(BUNDLED / DEFAULT_VOICE / "lexicon.txt.gz")


def spoken_as(text, cleaner="english_speech_cleaners", pronounce=None):
    """Of each written word what its symbols say."""

    def speak(part):
        return encode(part, [cleaner], pronounce)

    encoded = speak(text)
    return [
        (word.text, sequence_to_text(encoded.ids[word.start : word.end]))
        for word in written_words(text, encoded.words, lambda part: speak(part).words)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50.", ["Dr.=doctor", "Smith=smith", "paid=paid", "$3.50.=three dollars and fifty cents"]),
        ("It's well-known, no?", ["It's=it's", "well-known,=well-known", "no?=no"]),
        ("Hello \N{GRINNING FACE} there — friend -", ["Hello=hello", "there=there", "friend=friend"]),
        ("At 5:15 pm he won 2 of 3", ["At=at", "5:15=five fifteen", "pm=pee em", "he=he", "won=won", "2=two", "of=of",
                                      "3=three"]),
        ("I won 1 of 2, one of two", ["I=i", "won=won", "1=one", "of=of", "2,=two", "one=one", "of=of", "two=two"]),
        ("The 3 – 5 rule", ["The=the", "3=three to", "5=five", "rule=rule"]),
        ("It cost $5 million or so", ["It=it", "cost=cost", "$5 million=five million dollars", "or=or", "so=so"]),
        ("No exam-\nple, please", ["No=no", "exam- ple,=example", "please=please"]),
        ("On Jan. 5, 2020.", ["On=on", "Jan.=january", "5,=fifth", "2020.=twenty twenty"]),
        ("10 km", ["10=ten", "km=kilometers"]),
        ("Café Привет", ["Café=cafe", "Привет=privet"]),
        ("<b>Bold</b> AT&amp;T", ["<b>Bold</b>=bold", "AT&amp;T=ay tee and tee"]),
        ("hello", ["hello=hello"]),
        ("你好", ["你好=ni hao"]),
        ("", []),
        (" - ... ", []),
        ("\N{GRINNING FACE}", []),
    ],
)  # fmt: skip
def test_words_of_the_bundled_voices_cleaner(text, expected):
    assert [f"{word}={spoken}" for word, spoken in spoken_as(text)] == expected


def test_words_of_nvidias_cleaner():
    text = "Dr. Smith paid $3.50 & left 5% to the 2nd"
    assert [f"{word}={spoken}" for word, spoken in spoken_as(text, "english_cleaners")] == [
        "Dr.=doctor", "Smith=smith", "paid=paid", "$3.50=three dollars, fifty cents", "left=left", "5%=five", "to=to",
        "the=the", "2nd=second",
    ]  # fmt: skip


def test_words_that_a_lexicon_has_and_phones_in_braces(cmudict):
    assert spoken_as("Hello {DH AH0  K AE1 T}s, the qxq", pronounce=cmudict) == [
        ("Hello", "{HH AH0 L OW1}"),
        ("{DH AH0  K AE1 T}s,", "{DH AH0 K AE1 T EH1 S}"),
        ("the", "{DH AH0}"),
        ("qxq", "qxq"),
    ]
    # A table of phones only.
    phones = {symbol: i for i, symbol in enumerate(symbols) if symbol.startswith("@") or symbol in " ,."}

    def speak(text):
        return encode(text, ["basic_cleaners"], cmudict, phones)

    encoded = speak("The qxq, dog.")
    words = written_words("The qxq, dog.", encoded.words, lambda part: speak(part).words)
    assert [word.text for word in words] == ["The", "dog."]
    assert words[1].end == len(encoded.ids) - 1


any_text = (
    st.text()
    | st.text("{}AH0 'a.5$-1\n")
    | st.lists(st.sampled_from("Dr. $3.50 1 000 5:15 pm - – {AA1} {AA1 the hello's x 2020, & 😀 <b> é {".split())).map(
        " ".join
    )
)


@pytest.mark.parametrize("cleaner", cleaner_names())
@settings(max_examples=60)
@given(text=any_text)
def test_in_any_text_each_spoken_word_belongs_to_a_written_one(cmudict, cleaner, text):
    encoded = encode(text, [cleaner], cmudict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = written_words(text, encoded.words, lambda part: encode(part, [cleaner], cmudict).words)
    assert all(word.start < word.end for word in words)
    assert all(one.end <= other.start for one, other in zip(words, words[1:], strict=False))
    for span in encoded.words:
        assert sum(word.start <= span.start and span.end <= word.end for word in words) == 1
    written = text.split()
    assert all(part in written for word in words if "{" not in word.text for part in word.text.split())


def test_spoken_words_among_symbols():
    ids, _, words = encode("Don't 'stop', {HH AW1 S}{B}x-ray {} {QQ} a_b ☃", ["basic_cleaners"])
    assert [(word.text, sequence_to_text(ids[word.start : word.end])) for word in words] == [
        ("don't", "don't"),
        ("stop", "stop"),
        ("{HH AW1 S}", "{HH AW1 S}"),
        ("{B}", "{B}"),
        ("x", "x"),
        ("ray", "ray"),
        ("a", "a"),
        ("b", "b"),
    ]
