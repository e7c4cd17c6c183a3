"""Postal addresses in ``english_speech_cleaners``: streets, flats, states, ZIP codes."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

STREETS = [
    ("350 W 42nd St", "three hundred fifty west forty-second street"),
    ("20 L St", "twenty ell street"),
    ("45 W. 3rd St.", "forty-five west third street."),
    ("8 V St is near", "eight vee street is near"),
    ("77 S Grand Ave", "seventy-seven south grand avenue"),
    ("12 Elm Dr with Dr Smith", "twelve elm drive with doctor smith"),
    ("5 Oak Rd, 6 Ash Ln, 7 Fir Ct", "five oak road, six ash lane, seven fir court"),
    ("99 Hudson Pl and 3 Bay Pkwy", "ninety-nine hudson place and three bay parkway"),
    ("18 Evergreen Ter", "eighteen evergreen terrace"),
    ("Spring St and 5th Ave", "spring street and fifth avenue"),
    ("14 NE 65th St. The house", "fourteen northeast sixty-fifth street. the house"),
    ("James St S", "james street south"),
    ("on Pine St. S.", "on pine street south."),
    ("NE 5th Ave", "northeast fifth avenue"),
    ("N. Main St.", "north main street."),
    ("St James St", "saint james street"),
    ("15 E 7th St Apt 4W", "fifteen east seventh street apartment four double you"),
    ("Ste. 200, 9 Lake Blvd", "suite two hundred, nine lake boulevard"),
    ("30 MAIN ST", "thirty main street"),
    ("take Hwy 61 N", "take highway sixty-one north"),
]
STATES = [
    ("Portland, OR", "portland, oregon"),
    ("Gary, IN", "gary, indiana"),
    ("Bangor, ME", "bangor, maine"),
    ("Denver, CO.", "denver, colorado."),
    ("Salem, OR is wet", "salem, oregon is wet"),
    ("He lives in Enid, OK.", "he lives in enid, oklahoma."),
    ("Are you from Honolulu, HI?", "are you from honolulu, hawaii?"),
    ("in Austin, TX and Reno, NV", "in austin, texas and reno, nevada"),
    ("Washington, DC", "washington, dee see"),
    ("Silver Spring, MD", "silver spring, maryland"),
    ("Toronto, ON", "toronto, ontario"),
    ("Vancouver, BC V6B 1A1", "vancouver, british columbia vee six bee one ay one"),
    ("Tulsa, OK 74104", "tulsa, oklahoma seven four one zero four"),
    ("Gary, IN 46402-1234", "gary, indiana four six four zero two, one two three four"),
    ("SALEM, OR 97301", "salem, oregon nine seven three zero one"),
    ("ZIP 90210", "zip nine zero two one zero"),
    ("my zip code is: zip code 02134", "my zip code is: zip code zero two one three four"),
    ("90210-1234", "nine zero two one zero, one two three four"),
]
NO_PLACES = [
    ("Dr Smith", "doctor smith"),
    ("Hello Dr, how are you?", "hello dr, how are you?"),
    ("Mount St Helens", "mount saint helens"),
    ("a 20 L tank", "a twenty liter tank"),
    ("5 W of power", "five watts of power"),
    ("John S. Smith", "john ess smith"),
    ("Robert E. Lee Blvd", "robert ee lee boulevard"),
    ("Yes, OR no", "yes, or no"),
    ("Tell me, OK?", "tell me, okay?"),
    ("Bob, OK?", "bob, okay?"),
    ("Hi, OK?", "hi, okay?"),
    ("Come in, HI!", "come in, hi!"),
    ("YES, OR NO AND MAYBE", "yes, or no and maybe"),
    ("John Smith, MD", "john smith, em dee"),
    ("Well, LA is fun", "well, ell ay is fun"),
    ("10000-20000 people", "ten thousand to twenty thousand people"),
]


@pytest.mark.parametrize(("written", "spoken"), STREETS + STATES + NO_PLACES)
def test_places(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken


@pytest.mark.parametrize(
    "unit", ["1 N ", "1 A B ", "St ", "St. St ", "A, OK ", "12345-1234 ", "N Elm ", "W. W. ", "Apt 1"]
)
def test_long_monotonous_text(unit):
    """A step that takes quadratic time would need minutes."""
    assert english_speech_cleaners(unit * (30_000 // len(unit)))
