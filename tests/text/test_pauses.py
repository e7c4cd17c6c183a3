"""Pause marks, and SSML as plain text with them."""

import warnings

import pytest

from fastglow import FastglowError
from fastglow.text.markup import without_tags
from fastglow.text.pauses import DEFAULT_PAUSE, Pause, PauseMarkWarning, mark_spans, split_pauses

LENGTHS = {
    "[pause:1.5s]": 1.5,
    "[pause:500ms]": 0.5,
    "[pause 2s]": 2,
    "[Pause = 1.5]": 1.5,
    "[ PAUSE : .25 sec ]": 0.25,
    "[pause:1,5 Seconds]": 1.5,
    "[pause +2]": 2,
    "[pause:1min]": 60,
    "[pause:0]": 0,
    "[pause]": DEFAULT_PAUSE,
    "[pause:]": DEFAULT_PAUSE,
    "<break time='500ms'/>": 0.5,
    '<BREAK TIME=" 1.5 S " >': 1.5,
    "<break strength='x-strong' time=2/>": 2,
    "<break strength='x-weak'/>": 0.25,
    "<break strength=strong />": 1,
    "<break/>": 0.75,
    "<ssml:break/>": 0.75,
}


@pytest.mark.parametrize(("mark", "seconds"), LENGTHS.items())
def test_length(mark, seconds):
    assert split_pauses(without_tags(f"a {mark}b")) == ["a ", Pause(seconds), "b"]


@pytest.mark.parametrize("mark", ["[pause:abc]", "[pause:-1s]", "[pause 2 x]", "[pause:1..5]", "<break time='soon'/>",
                                  "<break strength='odd'/>"])  # fmt: skip
def test_a_length_that_cannot_be_read(mark):
    with pytest.warns(PauseMarkWarning) as caught:
        assert split_pauses(without_tags(f"a{mark}")) == ["a", Pause(DEFAULT_PAUSE)]
    (message,) = (str(one.message) for one in caught)
    assert message.startswith(f"the length of {mark!r} cannot be read: 0.75 s are used")


@pytest.mark.parametrize("mark", ["[pause:60.1s]", "[pause:2 min]", "[pause:99999999999999999999999999]"])
def test_too_long(mark):
    with pytest.raises(FastglowError, match="^pause=[^\n]* must be at most 60 seconds: write several in a row"):
        split_pauses(mark)


@pytest.mark.parametrize(
    "text",
    ["{HH [pause:1s] AH0}", "[pause for applause]", "[pauses]", "[pause", "pause:1s]", "[[paused]]", "no", "",
     "<!-- never closed [x]"],
)  # fmt: skip
def test_no_pause(text):
    assert mark_spans(text) == [] and split_pauses(without_tags(text)) == [text] * bool(text)


@pytest.mark.parametrize("text", ["<!-- [pause] -->", "<a title='[pause]'>", "<script>[pause]<break/></script>",
                                  "<break strength='none'/>", "{AA <break/>}"])  # fmt: skip
def test_no_pause_in_markup(text):
    assert not any(isinstance(part, Pause) for part in split_pauses(without_tags(f"a {text} b")))


SSML = [
    ("<?xml version='1.0'?>\n<speak version='1.1'>Hi <prosody rate='+10%'>you</prosody>.</speak>", "Hi you."),
    ("<speak><s>One</s><s>Two</s> <p>Three</p>Four</speak>", "One\n\nTwo\n\nThree\n\nFour"),
    ("<s>One</s><s>Two</s>", "One\n\nTwo"),
    ("Not <s>only</s> this", "Not only this"),
    ("<w>one</w><w role='x:y'>two</w>, un<emphasis level='strong'>believ</emphasis>able", "one two, unbelievable"),
    ("<voice name='a'>Hi</voice><voice name='b'>Ho</voice>", "Hi Ho"),
    ("<sub alias='the Web'>W3</sub>, <sub alias=\"A&amp;B {HH AH0}\">x <b>y</b></sub>!", "the Web, A&B {HH AH0}!"),
    ("<sub alias='never'>closed", "closed"),
    ("H<sub>2</sub>O, m<sup>2</sup>", "H2O, m²"),
    ("<say-as interpret-as='characters'>ABC</say-as> <phoneme alphabet='ipa' ph='a'>b</phoneme>", "ABC b"),
    ("<amazon:effect name='x'>a</amazon:effect> <mstts:express-as style='y'>b</mstts:express-as>", "a b"),
    ("<google:style name='x'>a</google:style> <lang xml:lang='de'>b</lang><mark name='m'/>", "a b"),
    ("<audio src='x'><desc>a dog</desc>woof</audio><metadata>m</metadata><desc/>d", "woofd"),
    ("<speak>AT&amp;T &lt;3 <token>x</token></speak>", "AT&T <3 x"),
    ("AT&amp;T <token> <foo> a < b <think> I <3 you", "AT&amp;T <token> <foo> a < b <think> I <3 you"),
    ("a <!-- <break/> --> b", "a  b"),
    ("<td>a</td><td>b</td><br/>c", "a, b\n\nc"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "plain"), SSML)
def test_tags_are_dropped(written, plain):
    assert without_tags(written) == plain


HOSTILE = ["<s>", "</s>", "<sub alias='a'>", "<sub alias='", "<break ", "<break/>", "[pause", "[pause:", "[pause:x]",
           "<desc>", "<metadata", "<speak>", "</voice><voice>", "<amazon:", "{[pause]", "[pause]", "<a:"]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PauseMarkWarning)
        assert isinstance(split_pauses(without_tags(unit * (60_000 // len(unit)) + " x")), list)
