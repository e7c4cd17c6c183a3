"""``english_speech_cleaners``: the s behind digits, which makes a plural or stands for seconds."""

import pytest

from fastglow.text.cleaners import english_speech_cleaners

DESIGNATIONS = [
    ("F-16s", "eff sixteens"),
    ("two B-52s and a P-51", "two bee fifty-twos and a pee fifty-one"),
    ("A320s", "ay three hundred twenties"),
    ("F/A-18s", "eff ay eighteens"),
    ("MP3s", "em pee threes"),
    ("AK-47s and M16s", "ay kay forty-sevens and em sixteens"),
    ("V8s roar", "vee eights roar"),
    ("my K-9s", "my kay nines"),
    ("Catch-22s", "catch-twenty-twos"),
    ("a pair of 747s landed", "a pair of seven hundred forty-sevens landed"),
    ("I flew 737s.", "i flew seven hundred thirty-sevens."),
    ("Boeing 787s", "boeing seven hundred eighty-sevens"),
    ("three Falcon 9s", "three falcon nines"),
    ("the 1040s are due", "the ten forties are due"),
    ("RTX 4090s", "ar tee ex forty nineties"),
    ("in the 500s", "in the five hundreds"),
    ("low 300s", "low three hundreds"),
    ("the 8300s", "the eighty-three hundreds"),
    ("4x4s", "four by fours"),
    ("some 2x4s", "some two by fours"),
    ("401ks", "four oh one kays"),
    ("his 401(k) plan", "his four oh one kay plan"),
    ("403bs", "four oh three bees"),
    ("401k subscribers", "four hundred one thousand subscribers"),
    ("two 10Ks", "two ten kays"),
    ("the 49ers", "the forty-niners"),
    ("a 76er", "a seventy-sixer"),
    ("crisp $20s", "crisp twenties"),
    ("two 6s", "two sixes"),
    ("0s and 1s", "zeros and ones"),
    ("100s of people", "hundreds of people"),
    ("10s of thousands", "tens of thousands"),
    ("1,000s of miles", "thousands of miles"),
    ("747's wing", "seven hundred forty-seven's wing"),
]
DECADES = [
    ("the 1980s", "the nineteen eighties"),
    ("in the '90s", "in the nineties"),
    ("the 60's", "the sixties"),
    ("late 30''s", "late thirties"),
    ("80s music", "eighties music"),
    ("for 80s music", "for eighties music"),
    ("a 70s band", "a seventies band"),
    ("her 30s", "her thirties"),
    ("mid-20s", "mid-twenties"),
    ("Mid-1950s", "mid-nineteen fifties"),
    ("over-65s", "over-sixty-fives"),
    ("temperatures in the 70s", "temperatures in the seventies"),
    ("the 20s and 30s", "the twenties and thirties"),
    ("the 60s-70s", "the sixties to seventies"),
    ("in their 20-30s", "in their twenties to thirties"),
    ("the 1970-80s", "the nineteen seventy to eighties"),
    ("the '00s", "the two thousands"),
    ("in the 1800s", "in the eighteen hundreds"),
]
SECONDS = [
    ("It took 30s.", "it took thirty seconds."),
    ("30s", "thirty seconds"),
    ("Wait 20s!", "wait twenty seconds!"),
    ("wait 3s", "wait three seconds"),
    ("a 10s delay", "a ten second delay"),
    ("the 90s timeout", "the ninety second timeout"),
    ("a timeout of 60s", "a timeout of sixty seconds"),
    ("5-10s", "five to ten seconds"),
    ("100m in 9.8s", "one hundred meters in nine point eight seconds"),
    ("done in 40s", "done in forty seconds"),
    ("after 50s it stops", "after fifty seconds it stops"),
    ("80s later", "eighty seconds later"),
    ("(30s)", "(thirty seconds)"),
    ("Timeout: 300s", "timeout: three hundred seconds"),
    ("it lasted 120s", "it lasted one hundred twenty seconds"),
    ("took 1200s", "took one thousand two hundred seconds"),
    ("every 15s", "every fifteen seconds"),
    ("1s", "one second"),
    ("30 s", "thirty seconds"),
    ("1m30s", "one minute thirty seconds"),
    ("2h5m", "two hours five minutes"),
    ("1h 1m 1s", "one hour one minute one second"),
    ("0m12.5s", "zero minutes twelve point five seconds"),
]
UNITS = [
    ("9mms", "nine millimeters"),
    ("5 kms away", "five kilometers away"),
    ("16GBs", "sixteen gigabytes"),
    ("5ms", "five milliseconds"),
    ("20 kgs", "twenty kilograms"),
]


@pytest.mark.parametrize(("written", "spoken"), DESIGNATIONS + DECADES + SECONDS + UNITS)
def test_s_behind_digits(written, spoken):
    assert english_speech_cleaners(written) == spoken
    assert english_speech_cleaners(spoken) == spoken
