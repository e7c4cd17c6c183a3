"""Markdown of chat models: what of it is spoken, and what only looks like it."""

import pytest

from fastglow.text import split_sentences
from fastglow.text.emoji import without_emoji
from fastglow.text.markdown import without_markdown

# "|" stands for a blank line.
EXAMPLES = [
    ("# Title\nText", "Title|Text"),
    ("## About C# ##\nx", "About C#|x"),
    ("Title\n=====\nText\n---\nMore", "Title|Text|More"),
    ("**Bold**, *it*, __b__, _i_, ***both***, ~~gone~~", "Bold, it, b, i, both, gone"),
    ("un**believ**able and **“中文”**的 他*很*好", "unbelievable and “中文”的 他很好"),
    ("**a *b* c** *d **e** f*", "a b c d e f"),
    ("- one\n* two\n  + three\n- [x] done\n- [ ] open", "one|two|three|done|open"),
    ("1. first\n2) second\n10. third", "1. first|2) second|10. third"),
    ("- a\n  goes on\n\n- b", "a\ngoes on|b"),
    ("[link](https://x.org/a_(b)_c \"t\") and [one](<a b>).", "link and one."),
    ("![alt *x*](i.png) [![in](i.png)](u)", "alt x in"),
    ("[ref][1], [one][], [Two], [no]\n\n[1]: https://x.org 'T'\n[one]: /y\n[two]: z.org", "ref, one, Two, [no]"),
    ("<https://x.org/a_b_c> <me@x.org>", "https://x.org/a_b_c me@x.org"),
    ("Run `a_b * c` or ``x`y``.", "Run a_b * c or x`y."),
    ("Before\n```python\nx = [1](2)\n```\nAfter", "Before|After"),
    ("- item\n  ~~~\n  ```\n  ~~~\n  more", "item|more"),
    ("```markdown\n# Hi\n```py\nx\n```\nyou\n```\nBye", "Hi|you|Bye"),
    ("Open\n```\nnever closed", "Open"),
    ("| a | b |\n|---|:-:|\n| 1 | x\\|y |\n| `p` | |\nAfter", "a, b|1, x|y|p|After"),
    ("a | b\n--|--\nc | *d*", "a, b|c, d"),
    ("> one\n> > two\n> - three\n\nfour", "one\ntwo|three|four"),
    ("> [!NOTE]\n> Careful.", "Note|Careful."),
    ("a\n\n***\n* * *\n___\nb", "a|b"),
    ("Said[^1] so[^note].\n\n[^1]: A note.\n[^note]: https://x.org", "Said so.|A note."),
    (r"\*no\* 1986\. \# \[a\](b) C:\Users", r"*no* 1986. # [a](b) C:\Users"),
    ("<b>*</b> <a href='a_b_c' t='*'>*it*</a> <!-- *x* -->", "<b>*</b> <a href='a_b_c' t='*'>it</a> <!-- *x* -->"),
    ("*{HH AH0 L OW1}* [pause:1s] **a [pause] b** - [pause 2s]", "{HH AH0 L OW1} [pause:1s] a [pause] b - [pause 2s]"),
    ("[pause](https://x.org) [pause:1s](aside)", "pause [pause:1s](aside)"),
    ("Hi 👋🏽 there 👩‍👩‍👧! 🇩🇪 1️⃣ Done ✅.", "Hi there! Done."),
    ("✅ One\n🚀 Two\n1️⃣ Three", "One|Two|Three"),
    ("a\r\n\r\n# b\r\nc", "a|b|c"),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("written", "spoken"), EXAMPLES)
def test_example(written, spoken):
    kept_bars = spoken.replace("x|y", "\0").replace("|", "\n\n").replace("\0", "x|y")
    assert without_markdown(written) == kept_bars


PLAIN = [
    "2 * 3 * 4 and 2*3*4 and 2**3**4, x*y*z",
    "(a)*(b)*(c) + 5",
    "snake_case_name, a_b, trailing_ and _leading",
    "#5 is alive, C# and F#, issue #12",
    "1. Introduction",
    "The war ended in\n1945. Peace came.",
    "5 > 3, a < b and I <3 you",
    ">3 of them",
    "Name: ____ and (____)",
    "price* and *conditions apply",
    "see [1] and f[i], {a: *}",
    "© 2024 X™, A → B, C♯, ① ½",
    "-5 degrees, +1 555, 10:30 - 11:00",
    "~5 or ~6, 3~4",
    "a | b",
    "[Note]: important",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_comes_through_unharmed(text):
    assert without_markdown(text) == text


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿🏳️‍🌈 ok", "ok"),
        ("❤️‍🔥 ☺️ ⛹🏿‍♀️ ➡️ ℹ️", ""),
        ("©️ ®️ ™️ 5", "© ® ™ 5"),
        ("Hello👋world", "Hello world"),
        ("(nice 🎉) “yes 🎉”", "(nice) “yes”"),
        ("a 🎉\n\nb", "a\n\nb"),
    ],
)
def test_emoji(written, spoken):
    assert without_emoji(written).strip() == spoken


def test_blocks_are_sentences():
    text = without_markdown("# Plan\n1. **Buy** 2 eggs\n2. Eat `them`\n- now")
    assert split_sentences(text) == ["Plan", "1. Buy 2 eggs", "2. Eat them", "now"]


HOSTILE = [
    "*", "_", "~~", "`", "``` ", "[", "![", "](", "[a](", "[a](b", "[^", "[a]", "[a][", "<", "<a ", "\\", "|", "|-",
    "> ", "- ", "* ", "1. ", "#", "# ", " ", "-", "- -x", "**a", "*a **b ", "a*_", "{A", "[pause", "[pause:", "👩‍", 
    "1️⃣ ",     "🇩", "\n", "|a\n", "|-|\n", "```\n", "> - ", "[a]: b.c\n", "(", "[x](y(", "\"", "`a``",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    assert isinstance(without_markdown(unit * (60_000 // len(unit))), str)
    assert isinstance(without_markdown(unit * (60_000 // len(unit)) + "x"), str)
