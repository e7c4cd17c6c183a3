"""``english_speech_cleaners``: from one month to another."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

RANGES = [
    ("Jan-Mar", "january to march"),
    ("Oct-Dec 2024", "october to december twenty twenty-four"),
    ("Jan–Mar", "january to march"),
    ("Apr - Jun", "april to june"),
    ("January-March", "january to march"),
    ("Sept.-Nov.", "september to november."),
    ("from Feb.–Aug. this year", "from february to august this year"),
    ("May-July", "may to july"),
    ("Dec 2023-Feb 2024", "december twenty twenty-three to february twenty twenty-four"),
    ("Nov '23 - Mar '24", "november twenty-three to march twenty-four"),
    ("Jan 5-Feb 3", "january fifth to february third"),
    ("June 28 – July 4, 2025", "june twenty-eighth to july fourth, twenty twenty-five"),
    ("5 Jan-3 Feb", "the fifth of january to the third of february"),
    (
        "30 June 1914 – 4 August 1914",
        "the thirtieth of june, nineteen fourteen to the fourth of august, nineteen fourteen",
    ),
    ("Mar/Apr", "march april"),
    ("the September/October issue", "the september october issue"),
    ("Jan/Feb/Mar 2020", "january february march twenty twenty"),
    ("Mon-Fri, Jan-Jun", "monday to friday, january to june"),
    ("Closed Nov-Mar.", "closed november to march."),
]
OTHERS = [
    ("Jan 5-10", "january fifth to tenth"),
    ("Jan-Ove Waldner", "jan-ove waldner"),
    ("Jean-Marc", "jean-marc"),
    ("Mars-Jupiter", "mars-jupiter"),
    ("may-june", "may-june"),
    ("He left in March - May I go?", "he left in march, may i go?"),
    ("march/may", "march slash may"),
    ("Dec. 5", "december fifth"),
    ("mid-March", "mid-march"),
]


@pytest.mark.parametrize(("written", "spoken"), RANGES + OTHERS)
def test_months(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken
