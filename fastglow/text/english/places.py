"""Postal addresses: streets with their directions, flats, states, ZIP codes.

This step comes before units and titles, which would read ``W`` in ``"350 W 42nd St"`` as watts and ``Dr`` in
``"12 Elm Dr"`` as doctor.
"""

import re

from fastglow.text.english.abbreviations import STREETS
from fastglow.text.english.context import SENTENCE_STARTERS, after, before, ends_sentence, final_stop, next_word
from fastglow.text.english.letters import spell
from fastglow.text.english.states import DEGREES, STATES, WORDS
from fastglow.text.numbers import spell_digits

_DIRECTIONS = {
    "N": "north",
    "S": "south",
    "E": "east",
    "W": "west",
    "NE": "northeast",
    "NW": "northwest",
    "SE": "southeast",
    "SW": "southwest",
}
_TYPES = STREETS | {"av": "avenue", "ter": "terrace", "terr": "terrace", "cres": "crescent", "trl": "trail"}
_TYPES |= {"expy": "expressway", "fwy": "freeway", "tpke": "turnpike", "aly": "alley"}
_IN_FULL = "street avenue boulevard circle court drive highway lane parkway place road square terrace way trail alley"
_FLATS = {"apt": "apartment", "ste": "suite", "fl": "floor", "rm": "room", "bldg": "building"}

_ORDINAL = r"\d{1,3}(?:st|nd|rd|th|ST|ND|RD|TH)"
_NAME = rf"(?:{_ORDINAL}|(?:St\.? )?[A-Z][A-Za-z'-]{{1,24}}|(?:Mc|O')[A-Z][a-z]{{1,20}}|M\.?L\.?K\.?)"
_DIRECTION = r"(?:[NS]\.? ?[EW]|[NSEW])"
_ABBREVIATED = "|".join(name.capitalize() for name in _TYPES)
_SHOUTED = "|".join(name.upper() for name in _TYPES)
_WRITTEN_OUT = "|".join(f"{name.capitalize()}|{name.upper()}" for name in _IN_FULL.split())

_TYPE = rf"(?P<type>{_ABBREVIATED}|{_SHOUTED}|{_WRITTEN_OUT})(?![\w'-])(?P<stop>\.?)"
_SUFFIX = rf"(?: (?P<suffix>{_DIRECTION})(?![\w'&-])(?P<last>\.?))?"
# House numbers: "12", "221B", "12-14".
_NUMBERED = re.compile(
    rf"(?<![\w.,:/$£€-])(?P<house>\d{{1,5}})(?P<letter>[A-Z]?)(?P<to>-\d{{1,5}})? (?:(?P<prefix>{_DIRECTION})\.? )?"
    rf"(?P<name>[A-Z]|{_NAME}(?: {_NAME}){{0,3}}?) {_TYPE}{_SUFFIX}"
)
_DIRECTED = re.compile(
    rf"(?<![\w.'&-])(?P<prefix>{_DIRECTION})\.? (?=(?:{_ORDINAL}\b|{_NAME}(?: {_NAME}){{0,2}}? {_TYPE}))"
)
_NAMED = re.compile(
    rf"(?<![\w'.-])(?P<name>{_ORDINAL}|[A-Z][A-Za-z'-]{{1,24}}) "
    rf"(?P<type>{_ABBREVIATED})(?![\w'-])(?P<stop>\.?){_SUFFIX}"
)
_IN_FULL_SUFFIX = re.compile(
    rf"(?<= )(?P<type>Street|Avenue|Boulevard|Court|Drive|Lane|Road) (?P<suffix>{_DIRECTION})(?![\w'&-])(?P<last>\.?)"
)
_ROUTE = re.compile(
    r"\b(?P<road>Hwy\.?|Highway|highway|Route|Rte\.?|Interstate) ?(?P<number>\d{1,4})"
    rf"(?: (?P<suffix>{_DIRECTION})(?![\w'&-]))?"
)
_FLAT = re.compile(r"\b(Apt|APT|Ste|STE|Fl|FL|Rm|RM|Bldg|BLDG)\.? ?#? ?(?=\d|[A-Z]\b)")
_FLOOR = re.compile(r"(?<=\d)(?P<ending>st|nd|rd|th) Fl(?![\w'-])\.?")
_FLAT_LETTER = re.compile(
    r"\b((?:apartment|suite|room|floor|building|unit|flat|Apartment|Suite|Room|Unit|Flat) #?\d{1,5})-?([A-Z])(?![\w'/])"
)
_ANNOUNCES = re.compile(
    r"(?:^|[^\w])(?:on|at|along|down|up|off|near|corner of|and|to|from|of|between|crosses) \Z", re.I
)
_MOUNTS = frozenset("mount mt lake port fort cape isle east west north south sault old new sir lady lord".split())
# "Hello Dr", "Thanks Dr": not a drive.
_GREETINGS = frozenset(
    "hello hi hey dear thanks thank ok okay sorry please good morning evening afternoon sure".split()
)
_CAPITAL = re.compile(r"[ ][A-Z]")
_FLAT_FOLLOWS = re.compile(rf" (?:Apt|Ste|Fl|Rm|Unit|Suite|Bldg|#|{_DIRECTION}\b)")

_CODE = "|".join(sorted(STATES))
_ZIP = r"(?P<zip>\d{5})(?:-(?P<more>\d{4}))?(?![\w-]|[.,]\d)"
_POSTCODE = r"(?P<post>[A-Z]\d[A-Z] ?\d[A-Z]\d)(?![\w-])"
_STATE = re.compile(
    rf"(?<=[A-Za-z.])(?P<comma>,? ?)(?<=[, ])(?P<code>{_CODE})(?!(?!'s\b)['&/-]|\w)(?: (?:{_ZIP}|{_POSTCODE}))?"
)
_PLACE = re.compile(r"(?:\A|(?<=[\s(\"]))((?:[A-Z][\w.'-]*,? ){0,3})((?:[dl]')?[A-Z][\w.'-]{1,24})\Z")
# "in Ada, OK.", but "talk to Bob, OK?".
_AFTER_SURE_PREPOSITION = re.compile(
    r"\b(?:in|In|near|Near|outside|through|(?:moved?|moving|went|flew|fly|drove|drive|travell?ed) to) \Z"
)
_AFTER_PREPOSITION = re.compile(r"\b(?:in|In|at|near|Near|from|From|to|of|through|outside|around|for|visit|leave) \Z")
_BEFORE_ZIP = re.compile(rf"(?i:\b((?:zip(?: ?code)?|postal code|postcode)s?:?(?: (?:is|was|of|[#=]))?) ){_ZIP}")
_BARE_ZIP = re.compile(r"(?<![\w.,/$£€-])(\d{5})-(\d{4})(?![\w%-]|[.,]\d| ?=)")
_CLOSES = re.compile(r"[\"')]*(?:[.,;:]|\Z|[\"')]|'s\b| ?[(\u2013\u2014]| - )")
# "in Rome, OR so I heard", "from Tom, OH my": words after a code that is meant as a word.
_OR_ELSE = frozenset(
    """
    a an any anyone anything anywhere at did do does else even from he her his i if in is it just maybe more my near
    not one our perhaps possibly rather she should so some somewhere the their there they to we what whatever wherever
    will would you your
    """.split()
)
# "Talk to Mary, OR call", but "moved to Salem, OR last year".
_AFTER_PLACE = frozenset(
    """
    about after again ago alone also and are around as back because before but by can despite due during each earlier
    early every for four from had has in is last late later many next on once onto over per said says since ten that
    then this three through throughout to today together tomorrow tonight twice two under until via was were when
    where which while who will with within without would yesterday
    """.split()
)
_SOME_TIME_AGO = re.compile(r" [a-z0-9 ]{1,30}\b(?:ago|later|earlier)\b")
_GOES_ON_AS_WORD = {
    "OR": _OR_ELSE,
    "IN": frozenset("a all an any case fact her his its my our short that the their which your".split()),
    "ON": frozenset("a an her his its my our that the their top which your".split()),
    "OH": frozenset("boy come dear god hey how i it man my no so that wait well what wow yeah yes you".split()),
    "HI": frozenset("again all everybody everyone folks guys there to".split()),
    "ME": frozenset("myself not or too".split()),
    "OK": frozenset("and but folks go i if it just let now please so that then to we well you".split()),
}
_PLACE_WORDS = re.compile(
    r"(?:New|North|South|East|West|Fort|Ft|Port|San|Santa|St|Saint|Mount|Mt|Lake|Silver|Bel|El|Los|Las|Grand)\.? "
)
# "in Dallas TX": these are rarely anything else.
_SURE_WITHOUT_COMMA = frozenset("AZ CA FL GA IL KY MN NC NH NJ NM NV NY TN TX UT VA WA WI WV WY".split())
_SHORT_CITIES = frozenset("LA NYC SF".split())
_WEST_VIRGINIA = re.compile(r"(?<![\w.'&-])([NSW])\. (?=(?:Carolina|Dakota|Virginia)\b)")
# "Tulsa, OK, is ...", but "Bob, OK, go".
_IN_OKLAHOMA = frozenset("Ardmore Bartlesville Broken City Edmond Enid Lawton Moore Muskogee Norman Tulsa".split())
_NO_PLACES = (
    SENTENCE_STARTERS
    | _GREETINGS
    | frozenset("fine great right alright ah oh well tell come red mr mrs ms dr mom dad".split())
)


def read_places(text: str) -> str:
    """``"45 W. 3rd St."``, ``"20 L St"``, ``"James St S"``, ``"Apt 4B"``, ``"Gary, IN 46402"``, ``"90210-1234"``."""
    text = _WEST_VIRGINIA.sub(lambda match: _DIRECTIONS[match[1]] + " ", text)
    text = _NUMBERED.sub(_numbered, text)
    text = _DIRECTED.sub(_directed, text)
    text = _NAMED.sub(_named, text)
    text = _IN_FULL_SUFFIX.sub(lambda match: f"{match['type']} {_direction(match['suffix'])}{_last(match)}", text)
    text = _ROUTE.sub(_route, text)
    text = _BEFORE_ZIP.sub(lambda match: match[1] + " " + _digits(match), text)
    text = _STATE.sub(_state, text)
    text = _BARE_ZIP.sub(lambda match: f"{spell_digits(match[1])}, {spell_digits(match[2])}", text)
    text = _FLOOR.sub(lambda match: f"{match['ending']} floor{final_stop(match)}", text)
    text = _FLAT.sub(lambda match: _FLATS[match[1].lower()] + " ", text)
    return _FLAT_LETTER.sub(lambda match: f"{match[1]} {spell(match[2])}", text)


def _numbered(match: re.Match) -> str:
    name, kind = match["name"], match["type"].lower()
    following = after(match)
    saint = kind == "st" and not match["suffix"] and _CAPITAL.match(following)
    if saint and not _FLAT_FOLLOWS.match(following) and name.split()[-1].lower() in _MOUNTS:
        return match[0]
    if saint and len(name) == 1 and not match["prefix"] and not _FLAT_FOLLOWS.match(following) and not match["stop"]:
        return match[0]  # "2 L St Pauli"
    if match["type"].isupper() and not name.isupper() and name[-2:] not in ("st", "nd", "rd", "th"):
        return match[0]
    parts = [match["house"], spell(match["letter"])] if match["letter"] else [match["house"] + (match["to"] or "")]
    if match["prefix"]:
        parts.append(_direction(match["prefix"]))
    parts.append(spell(name) if len(name) == 1 else name)
    return " ".join(parts) + " " + _street(match)


def _directed(match: re.Match) -> str:
    context = before(match)
    last = re.search(r"([A-Z][\w'-]*)\.? \Z", context)
    # "Robert E. Lee Blvd": an initial.
    if last and last[1].lower() not in SENTENCE_STARTERS and not _ANNOUNCES.search(context):
        return match[0]
    return _direction(match["prefix"]) + " "


def _named(match: re.Match) -> str:
    name, kind, following = match["name"], match["type"].lower(), after(match)
    known = name.lower() not in SENTENCE_STARTERS and name.lower() not in _GREETINGS
    if match["stop"] and not match["suffix"]:
        return match[0]  # another step reads abbreviations with a full stop
    if match["suffix"] and match["stop"] and len(match["suffix"]) == 1 and _CAPITAL.match(following):
        return match[0]
    if not known or (kind in ("st", "dr", "ter") and not match["suffix"] and not _is_street(match, name, following)):
        return match[0]
    return f"{name} {_street(match)}"


def _is_street(match: re.Match, name: str, following: str) -> bool:
    """Whether a bare St, Dr or Ter belongs to the name before it and not to the name after it."""
    if not _CAPITAL.match(following) or _FLAT_FOLLOWS.match(following):
        return name.lower() not in _MOUNTS
    return name[0].isdigit() or (bool(_ANNOUNCES.search(before(match))) and ends_sentence(following))


def _street(match: re.Match) -> str:
    kind = match["type"]
    spoken = _TYPES.get(kind.lower(), kind.lower())
    if match["suffix"]:
        return f"{spoken} {_direction(match['suffix'])}{_last(match)}"
    written_out = kind.lower() not in _TYPES
    return spoken + ("." if match["stop"] and (written_out or ends_sentence(after(match))) else "")


def _route(match: re.Match) -> str:
    road = {"hwy": "highway", "rte": "route"}.get(match["road"].lower().rstrip("."), match["road"])
    return f"{road} {match['number']}" + (f" {_direction(match['suffix'])}" if match["suffix"] else "")


def _last(match: re.Match) -> str:
    return "." if match["last"] and ends_sentence(after(match)) else ""


def _direction(written: str) -> str:
    return _DIRECTIONS[written.replace(".", "").replace(" ", "")]


def _state(match: re.Match) -> str:
    code, comma = match["code"], match["comma"]
    context = before(match)
    place = _PLACE.search(context)
    if match["zip"] or match["post"]:
        if not place:
            return match[0]
        return f", {STATES[code]} {_digits(match)}"
    led_bare = code in _SURE_WITHOUT_COMMA and place and _AFTER_PREPOSITION.search(context[: place.start()])
    if not (comma.startswith(",") or led_bare) or not place or not _is_state(match, place, context):
        return match[0]
    return f", {STATES[code]}"


def _is_state(match: re.Match, place: re.Match, context: str) -> bool:
    code, following, last = match["code"], after(match), place[2]
    if last.lower() in _NO_PLACES:
        return False
    if last.isupper():
        # Little is certain in a text in capitals.
        sure = code not in WORDS or (code not in _GOES_ON_AS_WORD or code in ("IN", "OR")) and not following.strip(" .")
        return sure and (len(last) > 3 or last in _SHORT_CITIES)
    leading = context[: place.start()]
    led = bool(_AFTER_PREPOSITION.search(leading))
    if code in DEGREES and place[1] and not led:
        return bool(_PLACE_WORDS.match(place[1] + last)) or last.endswith(("ton", "ville", "field", "City", "Park"))
    if code not in WORDS:
        return not _CAPITAL.match(following) or ends_sentence(following) or led
    if following.startswith("!"):
        return False
    closes = bool(_CLOSES.match(following)) or following.startswith("?")
    if code == "OK" and last not in _IN_OKLAHOMA and closes and not _AFTER_SURE_PREPOSITION.search(leading):
        return not led and bool(re.match(r"\.?[\"')]*\s*\Z", following))
    if led:
        upcoming = next_word(following)
        if closes or _SOME_TIME_AGO.match(following):
            return True
        if code == "OR" and not _AFTER_SURE_PREPOSITION.search(leading) and not upcoming.endswith("ly"):
            return upcoming in _AFTER_PLACE
        return upcoming[:1].islower() and upcoming not in _GOES_ON_AS_WORD.get(code, ())
    return bool(_CLOSES.match(following) or re.match(r" (?:is|was|has|had|will)\b", following))


def _digits(match: re.Match) -> str:
    if match.groupdict().get("post"):
        return " ".join(spell_digits(sign) if sign.isdigit() else spell(sign) for sign in match["post"] if sign != " ")
    return spell_digits(match["zip"]) + (f", {spell_digits(match['more'])}" if match["more"] else "")
