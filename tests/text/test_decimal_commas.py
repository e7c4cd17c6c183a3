"""``english_speech_cleaners``: unambiguous numbers with decimal commas."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

EUROPEAN = [
    ("1.000.000 people", "one million people"),
    ("a fleet of 2.500.000 cars", "a fleet of two million five hundred thousand cars"),
    ("12.345.678,9", "twelve million three hundred forty-five thousand six hundred seventy-eight point nine"),
    ("1.234,56 €", "one thousand two hundred thirty-four euros and fifty-six cents"),
    ("27,50 €", "twenty-seven euros and fifty cents"),
    ("€27,50", "twenty-seven euros and fifty cents"),
    ("€ 1.299,00", "one thousand two hundred ninety-nine euros"),
    ("EUR 3.499,95", "three thousand four hundred ninety-nine euros and ninety-five cents"),
    ("9,99 EUR", "nine euros and ninety-nine cents"),
    ("0,99 €", "ninety-nine cents"),
    ("€ 25,-", "twenty-five euros"),
    ("1 299 €", "one thousand two hundred ninety-nine euros"),
    ("€2,5 million", "two point five million euros"),
    ("3,5 %", "three point five percent"),
    ("12,75%", "twelve point seven five percent"),
    ("37,5 °C", "thirty-seven point five degrees celsius"),
    ("2,5 km", "two point five kilometers"),
    ("1,8 meters", "one point eight meters"),
    ("7,5 euros", "seven point five euros"),
    (
        "1 234 567,89",
        "one million two hundred thirty-four thousand five hundred sixty-seven point eight nine",
    ),
    ("10 000 km", "ten thousand kilometers"),
    ("2 500 000 people", "two million five hundred thousand people"),
    ("0,5 l", "zero point five liters"),
    ("2,5 million", "two point five million"),
    ("1'000'000", "one million"),
    ("1'234.50", "one thousand two hundred thirty-four point five zero"),
]
OTHERS = [
    ("1,234", "one thousand two hundred thirty-four"),
    ("27,500", "twenty-seven thousand five hundred"),
    ("27,500 €", "twenty-seven thousand five hundred euros"),
    ("1.234", "one point two three four"),
    ("$1,234.56", "one thousand two hundred thirty-four dollars and fifty-six cents"),
    ("$3.375 a share", "three point three seven five dollars a share"),
    ("€5, 10 or 20", "five euros, ten or twenty"),
    ("01.02.2003", "february first, two thousand three"),
    ("1.2.3", "one point two point three"),
    ("version 1.200.300", "version one point two hundred point three hundred"),
    ("192.168.100.200", "one hundred ninety-two dot one hundred sixty-eight dot one hundred dot two hundred"),
    ("1,2,3", "one, two, three"),
    ("1,2,3 %", "one, two, three percent"),
    ("2,4-D", "two, four-dee"),
    ("f(1,5)", "eff (one, five)"),
    ("2 500 g bags", "two five hundred gram bags"),
    ("call 555 123 000", "call five hundred fifty-five one hundred twenty-three zero zero zero"),
    ("pages 3,4", "pages three, four"),
    ("1,00,000 %", "one hundred thousand percent"),
    ("555.123.4567", "five five five, one two three, four five six seven"),
    ("rooms 12 and 345", "rooms twelve and three hundred forty-five"),
    ("6'2\" tall", "six feet two inches tall"),
]


@pytest.mark.parametrize(("written", "spoken"), EUROPEAN + OTHERS)
def test_number(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken
