"""Measures: numbers with units, percentages, temperatures, heights in feet and inches."""

import re

from fastglow.text.english.attributive import is_attributive
from fastglow.text.english.context import after, before, ends_sentence
from fastglow.text.english.typography import MICRO, OHM
from fastglow.text.numbers import FRACTION, NUMBER, fraction_of, quantity

_SPELLINGS = {
    "kilometer": "km kms",
    "meter": "m",
    "centimeter": "cm cms",
    "millimeter": "mm mms",
    "micrometer": f"{MICRO}m um",
    "nanometer": "nm",
    "mile": "mi",
    "yard": "yd yds",
    "foot": "ft",
    "kilogram": "kg kgs",
    "gram": "g",
    "milligram": "mg mgs",
    "microgram": f"{MICRO}g mcg",
    "pound": "lb lbs",
    "ounce": "oz",
    "liter": "l L",
    "milliliter": "ml mL mls",
    "microliter": f"{MICRO}l {MICRO}L",
    "centiliter": "cl cL",
    "gallon": "gal",
    "tablespoon": "tbsp",
    "teaspoon": "tsp",
    "pint": "pt pts",
    "quart": "qt qts",
    "part per million": "ppm",
    "hour": "h hr hrs",
    "minute": "min mins",
    "second": "s sec secs",
    "millisecond": "ms",
    "microsecond": f"{MICRO}s",
    "nanosecond": "ns",
    "hertz": "Hz",
    "kilohertz": "kHz KHz",
    "megahertz": "MHz",
    "gigahertz": "GHz",
    "kilobyte": "KB kB",
    "megabyte": "MB MBs",
    "gigabyte": "GB GBs",
    "terabyte": "TB TBs",
    "petabyte": "PB",
    "kilobit per second": "kbps Kbps",
    "megabit per second": "Mbps",
    "gigabit per second": "Gbps",
    "watt": "W",
    "kilowatt": "kW",
    "megawatt": "MW",
    "gigawatt": "GW",
    "kilowatt hour": "kWh",
    "megawatt hour": "MWh",
    "volt": "V",
    "millivolt": "mV",
    "kilovolt": "kV",
    "milliamp": "mA",
    "milliamp hour": "mAh",
    "ohm": OHM,
    "kilohm": f"k{OHM}",
    "megohm": f"M{OHM}",
    "pascal": "Pa",
    "hectopascal": "hPa",
    "kilopascal": "kPa",
    "calorie": "cal",
    "kilocalorie": "kcal",
    "kilojoule": "kJ",
    "decibel": "dB",
    "pixel": "px",
    "mile per hour": "mph",
    "mile per gallon": "mpg",
    "kilometer per hour": "kph kmh",
    "beat per minute": "bpm",
    "revolution per minute": "rpm",
    "frame per second": "fps",
    "pound per square inch": "psi",
    "square kilometer": "km² km2",
    "square meter": "m² m2",
    "square centimeter": "cm² cm2",
    "square millimeter": "mm² mm2",
    "square foot": "ft² ft2 sqft",
    "square inch": "in² in2",
    "cubic meter": "m³ m3",
    "cubic centimeter": "cm³ cm3 cc",
    "cubic foot": "ft³ ft3",
    "degree celsius": "°C",
    "degree fahrenheit": "°F",
    "degree": "°",
    "degree north": "°N",
    "degree south": "°S",
    "degree east": "°E",
    "degree west": "°W",
    "percent": "% pct",
    "per mille": "‰",
}
_UNITS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_UNITS |= {
    "sq ft": "square foot",
    "sq. ft": "square foot",
    "sq km": "square kilometer",
    "sq m": "square meter",
    "sq mi": "square mile",
    "sq. mi": "square mile",
    "cu ft": "cubic foot",
    "° C": "degree celsius",
    "° F": "degree fahrenheit",
}
_DENOMINATORS = {
    "hour": "h hr hour",
    "minute": "min minute",
    "second": "s sec second",
    "day": "d day",
    "week": "wk week",
    "month": "mo month",
    "year": "yr y year",
    "kilogram": "kg",
    "gram": "g",
    "liter": "l L",
    "milliliter": "ml mL",
    "deciliter": "dl dL",
    "pound": "lb",
    "ounce": "oz",
    "gallon": "gal",
    "kilometer": "km",
    "meter": "m",
    "mile": "mi mile",
    "square meter": "m² m2",
    "cubic meter": "m³ m3",
    "second squared": "s² s2",
    "person": "person",
    "kilowatt hour": "kWh",
}
_PER = {spelling: name for name, spellings in _DENOMINATORS.items() for spelling in spellings.split()}


# Recipes omit "of" after these.
_SUBSTANCES = frozenset(
    "kilogram gram milligram microgram pound ounce liter milliliter microliter centiliter gallon tablespoon teaspoon "
    "pint quart".split()
)
_IRREGULAR_PLURALS = {"foot": "feet", "inch": "inches", "degree": "degrees"}
# After these a full stop belongs to the abbreviation.
_DOTTED = frozenset("cal ft gal hr hrs in lb lbs mi min mins oz sec secs tbsp tsp pt pts qt qts yd yds".split())
_PLURAL_SPELLINGS = frozenset(unit for unit in _UNITS if unit.endswith("s") and unit[:-1] in _UNITS)
_MARKED = {"'": "feet", '"': "inches"}
_JOINERS = {"-": "to", "–": "to", "to": "to", "±": "plus or minus", "x": "by", "×": "by"}


def _any_of(spellings: dict[str, str]) -> str:
    return "|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True))


UNIT_SPELLINGS = _any_of(_UNITS)
UNIT_NAMES = "|".join(f"{name}s?" for name in _SPELLINGS if name.isalpha()) + "|feet|inch(?:es)?|[Ee]uros?|dollars?"

_START = r"(?<![\w./])(?<!\d,)"
_QUANTITY = rf"({FRACTION}|{NUMBER})(?: ?([-–±x×]|to) ?({FRACTION}|{NUMBER}))?"
_END = r"(?![A-Za-z0-9])"
_OVER = rf"(?: ?/ ?({_any_of(_PER)}){_END})?"

_MEASURE = re.compile(rf"{_START}{_QUANTITY}([ -]?)({_any_of(_UNITS)})(?:{_END}|(?<=[%‰])){_OVER}(\.?)")
_INCHES = re.compile(rf"{_START}{_QUANTITY}([ -]?)in(\.?)(?![\w-])")
# "in" is a preposition unless it is attached, abbreviated, or followed by words for a length.
_AFTER_INCHES = re.compile(
    r" ?\)| ?[x×] ?\d| (?:by \d|in diameter|long|wide|tall|deep|thick|high|of (?:rain|snow|water))"
)
_PER_UNIT = re.compile(rf"(?<=[a-z])/({_any_of(_PER)}){_END}")
_SYMBOL_RANGE = re.compile(r"(?:(?<=[%°‰])|(?<=°[CF])) ?[-–] ?(?=\d)")

_HEIGHT = re.compile(r"(?<![\w'.])(\d{1,2})' ?(\d{1,2})(?:\"|''|(?![\w']))")
_AREA = re.compile(r"(?<![\w'.])(\d{1,4})('|\") ?[x×] ?(\d{1,4})\2")
_DIMENSION = re.compile(r"(?<![\w'.])(\d{1,4})('|\")(?= ?(?:by|tall|high|wide|long|deep|thick)(?![A-Za-z]))")


def read_heights(text: str) -> str:
    """``6'2"`` and ``12" wide``; comes before quotation marks are removed."""
    text = _HEIGHT.sub(_height, text)
    text = _AREA.sub(lambda match: f"{match[1]} by {match[3]} {_MARKED[match[2]]}", text)
    return _DIMENSION.sub(lambda match: f"{match[1]} {_MARKED[match[2]]}", text)


def read_units(text: str) -> str:
    """``"5 km"``, ``"1 ft"``, ``"5-10%"``, ``"60 km/h"``, ``"20°C"``, ``"3 in."`` in words."""
    text = _SYMBOL_RANGE.sub(" to ", text)
    text = _INCHES.sub(_inches, text)
    text = _MEASURE.sub(_measure, text)
    return _PER_UNIT.sub(lambda match: f" per {_PER[match[1]]}", text)


def _height(match: re.Match) -> str:
    feet, inches = match.groups()
    if int(inches) > 11:
        return match[0]
    return f"{_with_unit(feet, None, None, 'foot')} {_with_unit(inches, None, None, 'inch')}"


def _inches(match: re.Match) -> str:
    first, joiner, last, tie, stop = match.groups()
    if tie == " " and not stop and not _AFTER_INCHES.match(after(match)):
        return match[0]
    adjective = tie == "-" or is_attributive(before(match), after(match))
    return _with_unit(first, joiner, last, "inch", adjective) + _stop(match, "in")


def _measure(match: re.Match) -> str:
    first, joiner, last, tie, unit, over, _ = match.groups()
    of_substance = _UNITS[unit] in _SUBSTANCES or unit in _PLURAL_SPELLINGS
    stop = _stop(match, over or unit)
    adjective = not stop and (tie == "-" or is_attributive(before(match), after(match), of_substance))
    spoken = _with_unit(first, joiner, last, _UNITS[unit], adjective)
    return spoken + (f" per {_PER[over]}" if over else "") + stop


def _with_unit(first: str, joiner: str | None, last: str | None, unit: str, adjective: bool = False) -> str:
    spoken = quantity(first)
    is_part = "/" in first and not set(" -") & set(first)
    if is_part and spoken.count(" ") > 1:
        spoken = fraction_of("", *first.split("/"))  # not "one over sixty of a second"
    if joiner and last:
        spoken += f" {_JOINERS[joiner]} {quantity(last)}"
    elif is_part and adjective:
        return f"{'half' if first == '1/2' else spoken.removesuffix('s')} {unit}"
    elif is_part and "percent" not in unit:
        part = "half" if first == "1/2" else f"{spoken} of"
        return f"{part} {'an' if unit in ('hour', 'ounce', 'inch', 'ohm') else 'a'} {unit}"
    singular = adjective or (first == "1" and not last)
    return f"{spoken} {unit if singular else _plural(unit)}"


def _plural(unit: str) -> str:
    head, per, rest = unit.partition(" per ")
    words = [_IRREGULAR_PLURALS.get(word, word) for word in head.split()]
    if " ".join(words) == head and not head.endswith(("hertz", "percent", "per mille")):
        words[-1] += "s"
    return " ".join(words) + per + rest


def _stop(match: re.Match, unit: str) -> str:
    if not match[0].endswith("."):
        return ""
    return "." if unit not in _DOTTED or ends_sentence(after(match)) else ""
