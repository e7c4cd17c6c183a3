"""Amounts of money."""

import re

from fastglow.text.english.attributive import is_attributive
from fastglow.text.english.context import after, before
from fastglow.text.numbers import NUMBER, number

# Singular, plural, hundredth singular, hundredth plural; an empty name means that hundredths are not in use.
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "", ""),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₺": ("lira", "lira", "kurus", "kurus"),
    "₪": ("shekel", "shekels", "agora", "agorot"),
    "₫": ("dong", "dong", "", ""),
    "฿": ("baht", "baht", "satang", "satang"),
    "₱": ("peso", "pesos", "centavo", "centavos"),
    "₿": ("bitcoin", "bitcoins", "", ""),
}
_SIGN_OF_CODE = {
    "USD": "$",
    "GBP": "£",
    "EUR": "€",
    "INR": "₹",
    "JPY": "¥",
    "KRW": "₩",
    "RUB": "₽",
    "TRY": "₺",
    "ILS": "₪",
}
_NATIONS = {
    "US": "you ess ",
    "U.S.": "you ess ",
    "A": "australian ",
    "AU": "australian ",
    "C": "canadian ",
    "CA": "canadian ",
    "NZ": "new zealand ",
    "HK": "hong kong ",
    "S": "singapore ",
}
_CODE_NATIONS = {"AUD": "australian ", "CAD": "canadian ", "NZD": "new zealand ", "HKD": "hong kong "}
_SCALES = {
    "k": "thousand",
    "m": "million",
    "mn": "million",
    "mm": "million",
    "b": "billion",
    "bn": "billion",
    "t": "trillion",
    "tn": "trillion",
}

SIGN = "[" + "".join(_CURRENCIES) + "]"
_NATION = r"(?:(?<![A-Za-z.])(US|U\.S\.|AU?|CA?|NZ|HK|S)(?=\$))?"
_SCALE = r"(?:([ -]?)(hundred|thousand|[mb]illion|trillion|[kK]|[Mm]n?|mm|MM|[Bb]n?|[Tt]n)(?![A-Za-z0-9]))?"
CODES = "|".join([*_SIGN_OF_CODE, *_CODE_NATIONS])

_BEFORE = re.compile(rf"{_NATION}({SIGN}) ?({NUMBER})(?: ?[-–] ?(?:{SIGN})?({NUMBER}))?{_SCALE}(-(?:(?:an?|per)-)?)?")
_AFTER = re.compile(rf"(?<![\w.])(?<!\d,)({NUMBER})(?: ?[-–] ?({NUMBER}))?{_SCALE} ?(?:({SIGN})(?! ?\d)|({CODES})\b)")
_CODE_BEFORE = re.compile(rf"\b({CODES}) ?({NUMBER})(?: ?[-–] ?({NUMBER}))?{_SCALE}")
_CENTS = re.compile(rf"(?<![\w.])(?<!\d,)({NUMBER}) ?¢")
_PENCE = re.compile(r"(?<![\w.,-])(\d{1,2})p\b")
_RUPEES = re.compile(r"\bRs\.? ?(?=\d)")
_LONE_SIGN = re.compile(rf" ?(?:{SIGN}|¢) ?")


def read_currency(text: str) -> str:
    """``"$3.5 million"``, ``"£1.05"``, ``"€5-10"``, ``"5 USD"``, ``"50p"``, ``"A$20k"`` in words."""
    text = _RUPEES.sub("₹", text)
    text = _BEFORE.sub(_before, text)
    text = _AFTER.sub(_after, text)
    text = _CODE_BEFORE.sub(_code_before, text)
    text = _CENTS.sub(lambda match: _coins("$", match[1], _describes(match)), text)
    text = _PENCE.sub(lambda match: _coins("£", match[1], _describes(match)), text)
    return _LONE_SIGN.sub(lambda match: f" {_name(match[0].strip())} ", text)


def _before(match: re.Match) -> str:
    nation, sign, first, last, tie, scale, hyphen = match.groups()
    spoken = _amount(_NATIONS.get(nation, ""), sign, first, last, scale, _describes(match, tie, hyphen or ""))
    return spoken + (hyphen or "").replace("-", " ")  # "a $20-a-day job"


def _after(match: re.Match) -> str:
    first, last, tie, scale, sign, code = match.groups()
    sign = sign or _SIGN_OF_CODE.get(code, "$")
    return _amount(_CODE_NATIONS.get(code, ""), sign, first, last, scale, _describes(match, tie))


def _code_before(match: re.Match) -> str:
    code, first, last, tie, scale = match.groups()
    sign = _SIGN_OF_CODE.get(code, "$")
    return _amount(_CODE_NATIONS.get(code, ""), sign, first, last, scale, _describes(match, tie))


def _describes(match: re.Match, tie: str | None = None, hyphen: str = "") -> bool:
    return tie == "-" or is_attributive(before(match), hyphen + after(match))


def _amount(nation: str, sign: str, first: str, last: str | None, scale: str | None, adjective: bool) -> str:
    one, many, coin, _ = _CURRENCIES[sign]
    if last or scale:
        spoken = number(first) + (f" to {number(last)}" if last else "")
        spoken += f" {_SCALES.get(scale.lower(), scale)}" if scale else ""
        return f"{spoken} {nation}{one if adjective else many}"
    whole, _, fraction = first.replace(",", "").partition(".")
    # One decimal is tenths; three or more are not coins.
    if not coin or not 1 <= len(fraction) <= 2:
        unit = one if adjective or (whole == "1" and not fraction) else many
        return f"{number(first)} {nation}{unit}"
    cents = int(fraction.ljust(2, "0"))
    whole = whole.lstrip("0")
    parts = []
    if whole or not cents:
        parts.append(f"{number(whole or '0')} {nation}{one if adjective or whole == '1' else many}")
    if cents:
        parts.append(_coins(sign, str(cents), adjective))
    return " and ".join(parts)


def _coins(sign: str, amount: str, adjective: bool) -> str:
    _, _, one, many = _CURRENCIES[sign]
    is_singular = amount == "1" or (adjective and many.endswith("s"))  # a fifty pence coin
    return f"{number(amount)} {one if is_singular else many}"


def _name(sign: str) -> str:
    return "cents" if sign == "¢" else _CURRENCIES[sign][0]
