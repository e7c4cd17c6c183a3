"""Sentences of pasted HTML, lists of every kind, days and letters: where ``split_sentences`` cuts."""

import pytest

from fastglow.text import split_sentences

# "|" marks the cuts; any other line break stays.
CUT = [
    # tags and entities glued to an abbreviation
    "Ask <b>Dr. Who</b>. | Yes.",
    "He met <i>Prof. X</i>. | Then he left.",
    "<p>Mr. Fox came. | He left.",
    "by <a href='x. Y'>J. Smith</a>. | He wrote it.",
    "&quot;Mr. Fox is in.&quot; | He is.",
    "See&nbsp;Dr. Who. | Yes.",
    "It is &lsquo;Dr. No&rsquo;. | See it.",
    "a&mdash;Mrs. Fox came. | She left.",
    "We saw the caf&eacute;. | They left.",
    "We work for AT&amp;T. | They left.",
    "<script>var a. B = {};\n\nC</script>One. | Two.",
    # titles that are streets too
    "Ask Dr. Who. | Yes.",
    "I live on Elm Dr. | The house is old.",
    # bullets
    "Agenda\n|– minutes\n|– reports",
    "To buy:\n|— milk\n|— eggs",
    "– one\n|– two",
    "he came\n– and left",
    "a. milk\n|b. eggs\n|c. bread",
    "i. milk\n|ii. eggs\n|iii. bread",
    "I. Methods\n|II. Results",
    "A. First\n|B. Second",
    "Agenda\n|(1) minutes\n|(ii) reports",
    "Buy\n|[ ] milk\n|[x] eggs",
    "Buy\n|→ milk\n|✓ eggs",
    "Pros:\n|+ fast\n|+ cheap\n|Cons:\n|- loud",
    "To do\n|* call mum\n|Thanks",
    "I saw:\n|– a dog that\n    ran away\n|– a cow",
    "Mix\n|½ cup of milk\n|2 eggs",
    "he met J. R.\nTolkien there",
    "it was option\na. | That is all",
    # lines
    "Title\n=====\n|Text of it",
    "Title\n─────\n|Text of it",
    "John Smith\n|12 Main St.\n|Tulsa, OK 74104",
    "He said Dr.\nSmith came",
    "No capital letters\nare here",
    "Title\n|Text",
    # days
    "Then 5. January came. | It was cold.",
    "It runs from 2. March to 5. April every year. | Come.",
    "He left us. | 5. January was cold.",
    "He got 5. | January came.",
    "See no. 5. | June came.",
    "See chapters 1 to 5. | January is near.",
    "Then 5. | May I go?",
    # letters
    "It is plan B. | Three men came.",
    "they say it was option\nC. | Five of us took it.",
    "I am in class A. | Smith is not.",
    "Major T. Smith came. | He sat.",
    "He said no. | I left.",
    "See Fig. B for it. | It is in Eq. B2 too.",
]


@pytest.mark.parametrize("marked", CUT)
def test_cut(marked):
    pieces = [piece.strip() for piece in marked.split("|")]
    assert split_sentences(marked.replace("|", "")) == pieces


@pytest.mark.parametrize(
    "unit", ["– a\n", "a. x\n", "<b>Dr. ", "&quot;Mr. ", "=== \n", "<", "&amp", "12 St.\nA\n", "then 5. "]
)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    text = unit * (60_000 // len(unit))
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
