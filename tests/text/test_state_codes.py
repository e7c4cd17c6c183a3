"""State codes that are also words: ``"Portland, OR last year"`` and ``"Come to Rome, OR else"``."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

STATES = [
    ("I moved to Portland, OR last year.", "i moved to portland, oregon last year."),
    ("He went to Dayton, OH last week", "he went to dayton, ohio last week"),
    ("We drove from Gary, IN yesterday", "we drove from gary, indiana yesterday"),
    ("born in Lima, OH during the war", "born in lima, ohio during the war"),
    ("from Bangor, ME back home", "from bangor, maine back home"),
    ("I moved to Eugene, OR a year ago", "i moved to eugene, oregon a year ago"),
    ("Mrs. Lee of Salem, OR said so", "missus lee of salem, oregon said so"),
    ("I was in Ada, OK last night.", "i was in ada, oklahoma last night."),
    ("Come to London, ON next week", "come to london, ontario next week"),
    ("Columbus, OH (the capital)", "columbus, ohio (the capital)"),
    ("Portland, OR - the city", "portland, oregon, the city"),
    ("Portland, OR's rain", "portland, oregon's rain"),
    ("DENVER, CO", "denver, colorado"),
    ("PORTLAND, OR", "portland, oregon"),
    ("in Dallas TX", "in dallas, texas"),
    ("from Phoenix AZ to Reno NV", "from phoenix, arizona to reno, nevada"),
    ("LA, CA", "ell ay, california"),
    ("Coeur d'Alene, ID", "coeur d'alene, idaho"),
    ("W. Virginia", "west virginia"),
    ("the ZIP is 94107", "the zip is nine four one zero seven"),
]
WORDS = [
    ("go to Paris, OR London", "go to paris, or london"),
    ("Talk to Mary, OR call Bob", "talk to mary, or call bob"),
    ("I gave it to Ann, OR so I thought", "i gave it to ann, or so i thought"),
    ("Come to Rome, OR else", "come to rome, or else"),
    ("Look at Bob, OH no", "look at bob, oh no"),
    ("turn left at Main, IN the rain", "turn left at main, in the rain"),
    ("talk to Bob, OK?", "talk to bob, okay?"),
    ("in Virginia W. Smith", "in virginia double you smith"),
    ("the Rolex CT scan", "the rolex see tee scan"),
    ("I bought Sony PA gear", "i bought sony pa gear"),
    ("BOB, OK", "bob, okay"),
    ("YES, OR NO", "yes, or no"),
]


@pytest.mark.parametrize(("written", "spoken"), STATES + WORDS)
def test_read(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken
