"""Dashes between numbers, lines of signs such as =====, and other cases that were once read wrong."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

READ = [
    # a dash of any kind between numbers
    ("1─2", "one to two"),
    ("pp. 3━5", "pages three to five"),
    ("1914―1918", "nineteen fourteen to nineteen eighteen"),
    ("$5—$10", "five to ten dollars"),
    ("5--10 men", "five to ten men"),
    ("3~7 km", "three to seven kilometers"),
    ("in 1914 — 20 left", "in nineteen fourteen, twenty left"),
    ("A1─B2", "ay one, bee two"),
    ("Mon─Fri", "monday to friday"),
    ("9:00–17:00", "nine o'clock to seventeen hundred"),
    ("9am-5pm", "nine ay em to five pee em"),
    ("～7", "about seven"),
    ("see it~and go", "see it, and go"),
    # rules
    ("one ===== two", "one, two"),
    ("+++", ""),
    ("a == b", "a equals equals bee"),
    # numbers of Europe
    ("1.000 €", "one thousand euros"),
    ("EUR 12,50", "twelve euros and fifty cents"),
    ("1\u202f234\u202f567 people", "one million two hundred thirty-four thousand five hundred sixty-seven people"),
    ("1.459 €/l", "one point four five nine euros per liter"),
    # dates
    ("5-Jan-2020", "the fifth of january, twenty twenty"),
    ("Jan-2020", "january twenty twenty"),
    ("then 5. January came", "then the fifth of january came"),
    ("See no. 5. June came.", "see number five. june came."),
    # the rest
    ("99/100ths", "ninety-nine hundredths"),
    ("a 12 oz can", "a twelve ounce can"),
    ("20 kg can be lifted", "twenty kilograms can be lifted"),
    ("S-stop", "suh-stop"),
    ("W-words", "wuh-words"),
    ("g-gnome and p-psalm", "nuh-gnome and suh-psalm"),
    ("T-test", "tee-test"),
    ("MM-HMM", "mm-hmm"),
    ("WOO", "woo"),
    ("bread &amp butter", "bread and butter"),
    ("don&#39t", "don't"),
    ("?a=1&copy=2", "a equals one and copy equals two"),
    ("Ask Dr. Who.", "ask doctor who."),
    ("I met him on Elm Dr. The house", "i met him on elm drive. the house"),
    ("He said no. I left.", "he said no. i left."),
]
TORN = [
    ("his ex-\nwife", "his ex-wife"),
    ("ex-\nample", "example"),
    ("so-\ncalled", "so-called"),
    ("so-\nlution", "solution"),
    ("sugar-\nfree", "sugar-free"),
    ("an X-\nray", "an ex-ray"),
    ("state-\nof-the-art", "state-of-the-art"),
    ("the hon-\nor is ours", "the honor is ours"),
    ("a man-\nand woman-sized suit", "a man and woman-sized suit"),
    ("pre-\nor post-war", "pre or post-war"),
    ("thous-\nand men", "thousand men"),
    ("low-\nered", "lowered"),
]


@pytest.mark.parametrize(("written", "spoken"), READ + TORN)
def test_read(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken


@pytest.mark.parametrize("unit", ["1─", "5~", "= ", "9am-", "5-Jan-", "1\u202f234", "5. January ", "&#39"])
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    english_speech_cleaners(unit * (30_000 // len(unit)), [])
