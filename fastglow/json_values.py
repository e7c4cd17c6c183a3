"""JSON from outside: objects whose values are checked, with errors of one line."""

import json
from typing import Any

from fastglow.errors import FastglowError

_KINDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def read_object(data: bytes, what: str, example: str, remedy: str) -> dict[str, Any]:
    """The object of a JSON text in UTF-8.

    Args:
        data: the text.
        what: is read, such as "the line".
        example: of such an object.
        remedy: for what is not UTF-8.

    Raises:
        FastglowError: it is none.
    """
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FastglowError(
            f"byte {error.start + 1} of {what}, 0x{data[error.start]:02X}, is not UTF-8: {remedy}"
        ) from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise FastglowError(f"{what} is not JSON: {error.msg} ({place})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in brackets
        raise FastglowError(f"{what} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise FastglowError(f"{what} is {shown(values)}, must be an object such as {example}")
    return values


def checked(name: str, value: Any, kind: type) -> Any:
    """The value of a name; whole numbers become floats where these are asked for.

    Raises:
        FastglowError: it has another type, or is a string that is no Unicode text.
    """
    if kind is float and type(value) is int and abs(value) < 2**64:
        value = float(value)
    if type(value) is not kind:
        raise FastglowError(f"{name}={shown(value)} must be {_KINDS[kind]}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FastglowError(
                f"{name} has half a surrogate pair at character {error.start + 1}: leave it out"
            ) from error
    return value


def shown(value: Any) -> str:
    """A value for an error, cut to a length that can be read."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
