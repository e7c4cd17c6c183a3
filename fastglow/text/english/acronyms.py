"""Words in capitals, read as words if possible, else letter by letter; and single letters."""

import re

from fastglow.text.english.context import after, before, ends_sentence, final_stop, last_word
from fastglow.text.english.letters import spell

_SPECIAL = {
    "AAA": "triple ay",
    "IEEE": "eye triple ee",
    "JPEG": "jay peg",
    "JSON": "jay son",
    "MPEG": "em peg",
    "OK": "okay",
    "PHD": "pee aitch dee",
    "SCSI": "scuzzy",
}
_MIXED = {
    "PhD": "pee aitch dee",
    "PhDs": "pee aitch dees",
    "iOS": "eye oh ess",
    "macOS": "mac oh ess",
    "GHz": "gigahertz",
    "MHz": "megahertz",
    "kHz": "kilohertz",
    "Wi-Fi": "wifi",
}

# Spelt, although they are readable as words.
_SPELT = frozenset(
    """
    ABC AD ADHD AGI AI AKA AOL ASAP ATM CD CEO CFO CIO CSI DIY DIYS DOB DOJ DUI DVR EKG ETF EU FAQ FYI GED GOP GUI HIV
    HOA ID IT ITV KGB KYC LED LOL MIT NIH NYC NYSE OMG POV POW RAF ROI SAT SOS SUV UAV UCLA UFC UFO UK UN UPS US USA
    USAF USDA USSR VAT VIN VIP YMCA YWCA
    """.split()
)
# The ones that are ordinary words if everything is in capitals.
_SPELT_UNLESS_SHOUTED = frozenset("AD AI ID IT LED SAT UN UPS US VAT".split())

# Words in capitals for emphasis, which the rules below would spell.
_WORDS = frozenset(
    """
    AH AM MM AN AS AT BE BY DO EH EX GO HA HE HI HM IF IN IS LO MA ME MY NO OF OH ON OR OW OX PA SH SO TO UP WE YE YO
    ACE ACT ADD ADO AGE AGO AID AIM AIR ALE ALL AND ANT ANY APE APP APT ARC ARE ARK ARM ART ASH ASK ATE AWE AXE BEE BOA
    BOO BYE COO CUE DIE DUE DYE EAR EAT EEL EGG EGO ELF ELK ELM EMI END ERA EVE EYE FEE FLU FOE HMM HOE HUE ICE ICY ILL
    IMP INK INN ION ISO ITS IVY LIE MOO NTH OAK OAR OAT ODD ODE OFF OIL OLD ONE OPT ORE OUR OUT OWE OWL OWN PEA PEE PIE
    PSST PUB ROE RUE RYE SEA SEE SHE SHH SKI SUE TEA TEE THE TIE TOE TOO TWO UGH USE VIA WHO WOE YEA YOU ZOO
    """.split()
)

_VOWEL = "[AEIOUY]"
_ONSET = (
    "(?:B[LR]?|C[HLR]?|CH[LR]|D[RW]?|F[LR]?|G[HLNR]?|H|J|K[LNR]?|L|M|N|P[HLR]?|PHR|QU|R|RH|S[CHKLMNPQTW]?|SC[HR]|SHR"
    "|SPL|SPR|STR|T[HRSW]?|THR|V|W[HR]?|X|Z)"
)
_CODA = (
    "(?:[BDFGHKLMNPRSTVWXZ]|C[KHST]?|CHT|CKS|[BDFGKLMNPRT]S|BB|DD|FF|FFS|FT|FTS|GG|GH|GHS|GHT|GHTS|GN|LB|LD|LDS|LF|LK"
    "|LKS|LL|LLS|LM|LMS|LP|LPS|LT|LTS|LTH|MB|MBS|MN|MP|MPS|MPT|NCH|ND|NDS|NG|NGS|NGTH|NGTHS|NK|NKS|NN|NT|NTH|NTS|NX|PH"
    "|PHS|PP|PT|PTS|RB|RBS|RC|RCH|RD|RDS|RF|RG|RK|RKS|RL|RLD|RLDS|RLS|RM|RMS|RN|RNS|RP|RPS|RR|RSH|RST|RT|RTH|RTS|SH|SK"
    "|SKS|SM|SMS|SP|SPS|SS|ST|STS|TCH|TH|THS|TT|TZ|WD|WL|WLS|WN|WNS|WS|XT|XTS|ZZ)"
)
_READABLE = re.compile(rf"{_ONSET}?{_VOWEL}+(?:[B-DF-HJ-NP-TV-XZ]{{1,3}}{_VOWEL}+)*{_CODA}?")
# Sounds: "HMM", "SHH", "PFFT", but "SSH", "BRB"; and stretched words: "YESSS", but "XXXL".
_SOUND = re.compile(
    r"H+M{2,}|M{3,}H?|M+H+M+|W+O{2,}|T+C+H+|K+S+H{2,}|A+R+G+H+|U+R*G+H+|G+R{2,}|B+R{2,}|S+H{2,}|S{3,}H*|P+F{2,}T*|PFT+"
    r"|P+S+H|P+S{2,}T|H+R*M+P+[HF]|T+S+K+|Z{3,}|B+Z{2,}T*|A{2,}H+|A+H{2,}|A+W+|E+W+|E{2,}K+|O+H{2,}|O{2,}[FHP]+|U+H+"
    r"|U+H*M+|E+RM+|E+H{2,}|VRO+M+|TH?WA+C?K+|B?M?WA+H(?:A+H)*|AHA|OHO|AYE"
)
_STRETCHED = re.compile(r"([A-HJ-VYZ])\1\1")
# A longer run of capitals with a vowel is a word.
_MAX_SPELT = 6

_MIXED_WORD = re.compile(rf"\b(?:{'|'.join(_MIXED)})\b")
_PH_D = re.compile(r"\bPh\. ?D\b\.?")
_DOTTED = re.compile(r"\b[A-Za-z](?:\.[A-Za-z])+\b\.?")
_PAIR = re.compile(r"\b([A-Z]{1,3})&([A-Z]{1,3})\b|\b([A-Z])/([A-Z])\b")
_CAPITALS = re.compile(r"(?<![A-Za-z'])([A-Z]{2,})(s?)(?![A-Za-z])")
_INITIAL = re.compile(r"\b([A-Z])\.(?= ?[A-Z])")
_LETTER = re.compile(r"(?<![\w'])([A-HJ-Zb-hj-z])(?='s\b|(?!\w|'\w))")

# "vitamin A", but "a vitamin".
_BEFORE_LETTER_A = frozenset("an grade vitamin plan type group hepatitis class team section option size".split())
_NEXT_LETTER = re.compile(r",? [B-HJ-Z](?![\w.])")
_ENDS_CLAUSE = re.compile(r"[,;:.!?)]|\Z|'s\b")


def is_shouted(text: str) -> bool:
    """Whether a text of several words is all in capitals, which then carry no information."""
    return text.isupper() and len(text.split(maxsplit=3)) > 2


def is_spelt(word: str, shouted: bool = False) -> bool:
    """Whether a word in capitals is read letter by letter."""
    if word in _SPELT:
        return not (shouted and word in _SPELT_UNLESS_SHOUTED)
    if word in _WORDS or _SOUND.fullmatch(word) or (len(word) > 3 and _STRETCHED.search(word)):
        return False
    if len(word) > _MAX_SPELT:
        return not re.search(_VOWEL, word)
    if not _READABLE.fullmatch(word):
        return True
    if shouted or len(word) > 3:
        return False
    return len(word) == 2 or word[0] in "AEIOU" or word[-1] in "AEIOU"


def read_capitals(text: str, shouted: bool) -> str:
    """Spells acronyms (``"BBC"`` -> ``"bee bee see"``), keeps words (``"NASA"``), names single letters.

    ``shouted``: the whole text is in capitals, so only unreadable words are spelt.
    """
    text = _MIXED_WORD.sub(lambda match: _MIXED[match[0]], text)
    text = _PH_D.sub(lambda match: spell(match[0]) + final_stop(match), text)
    text = _DOTTED.sub(lambda match: spell(match[0]) + final_stop(match), text)
    text = _PAIR.sub(_pair, text)
    text = _CAPITALS.sub(lambda match: _capitals(match[1], bool(match[2]), shouted), text)
    text = _INITIAL.sub(_initial, text)
    return _LETTER.sub(_letter, text)


def _pair(match: re.Match) -> str:
    if match[1]:
        return f"{spell(match[1])} and {spell(match[2])}"
    return spell(match[0])


def _capitals(word: str, plural: bool, shouted: bool) -> str:
    if word in _SPECIAL:
        return _SPECIAL[word] + "s" * plural
    if is_spelt(word, shouted):
        return spell(word, plural)
    return word + "s" * plural


def _initial(match: re.Match) -> str:
    following = after(match)
    if re.match(r" ?[A-Z]\.", following):
        return spell(match[1])
    if ends_sentence(following) or match[1] in "AI":
        return match[0]
    return spell(match[1])


def _letter(match: re.Match) -> str:
    if match[1] != "A":
        return spell(match[1])
    following = after(match)
    named = last_word(before(match)).lower() in _BEFORE_LETTER_A and _ENDS_CLAUSE.match(following.lstrip())
    return spell("A") if named or _NEXT_LETTER.match(following) else match[1]
