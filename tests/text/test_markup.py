"""Pasted HTML: which of it is spoken, and where it is cut."""

import pytest

from fastglow.text import split_sentences
from fastglow.text.cleaners import english_speech_cleaners

EXAMPLES = [
    ("It&#39;s", "it's"),
    ("&quot;Go&quot; &amp; stay", "go and stay"),
    ("caf&eacute;&nbsp;au lait", "cafe au lait"),
    ("don&#x2019;t", "don't"),
    ("Tom &amp;amp; Jerry", "tom and jerry"),
    ("I &lt;3 you", "i less than three you"),
    ("<b>bold</b> and b<i>ol</i>d", "bold and bold"),
    ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
    ("One<br/>Two<br>Three", "one. two. three"),
    ("<p>One</p><p>Two!</p>", "one. two!"),
    ('<a href="http://x.org/a?b=1">link</a>', "link"),
    ("a <!-- no, <b> --> word", "a word"),
    ("<style>p {x: y}</style>Hi<SCRIPT>a = {b};</SCRIPT>", "hi"),
    ("m<sup>2</sup> and H<sub>2</sub>O", "em squared and aitch two oh"),
    ("<tr><td>x</td><td>y</td></tr><tr><td>z</td></tr>", "ex, why. zee"),
    ("{&amp;<b>} <i>x</i>", "{&amp;<b>} ex"),
    ("&#123;AA&#125;", "(ay ay)"),
    ("AT&T and R&D", "ay tee and tee and ar and dee"),
    ("Tom & Jerry", "tom and jerry"),
    ("a < b and c > d", "a less than bee and see greater than dee"),
    ("I <3 you", "i less than three you"),
    ("I <think> so", "i think so"),
    ("an unclosed <script> here", "an unclosed here"),
]


@pytest.mark.parametrize(("written", "spoken"), EXAMPLES)
def test_example(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken


SPLIT = [
    ["<p>One. ", "Two</p>", "<p>Three &quot;Stop.&quot; ", "Four</p>"],
    ["<ul><li>a</li>", "<li>b</li></ul>"],
    ["Left<br>", "right<br />", "end"],
    ['See <a href="x. Y z">this. ', "<b>Now</b>."],
    ["<script>a. B. c</script>End"],
    ["I <3 you. ", "a < b. ", "And x > y."],
]


@pytest.mark.parametrize("pieces", SPLIT)
def test_cut(pieces):
    assert split_sentences("".join(pieces)) == [piece.strip() for piece in pieces]


def test_tags_are_never_torn():
    tag = '<a href="' + "x. " * 30 + '">'
    pieces = split_sentences(f"some words {tag}link</a> more words", max_chars=20)
    assert any(tag in piece for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(f"some words {tag}link</a> more words".split())


HOSTILE = [
    "<",
    "<a ",
    "<a b",
    '<a b="',
    "<a b='",
    "<!--",
    "<script>",
    "</p>",
    "<p>",
    "&amp;",
    "&amp",
    "<b> ",
    "{<b>",
    "<td>",
    "a<p>",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    text = unit * (40_000 // len(unit))
    assert "<p>" not in english_speech_cleaners(text, [])
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
