"""The 148 symbols of NVIDIA's Tacotron 2 in their order (DeepLearningExamples, ``tacotron2/text/symbols.py``)."""

import string

PAD = "_"
SPECIAL = "-"
PUNCTUATION = "!'(),.:;? "
LETTERS = string.ascii_uppercase + string.ascii_lowercase

_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
_STRESSES = ("", "0", "1", "2")

# The phones of the CMU Pronouncing Dictionary; vowels with and without stress.
ARPABET = sorted(_CONSONANTS + [vowel + stress for vowel in _VOWELS for stress in _STRESSES])

# Distinguishes the phone "@B" from the letter "B".
PHONE_MARK = "@"

symbols = [PAD, *SPECIAL, *PUNCTUATION, *LETTERS, *(PHONE_MARK + phone for phone in ARPABET)]
