"""Reads the mappings of a YAML file as NeMo writes it: indented keys, one scalar each.

Tags, anchors, lists and text of several lines are passed over, so that nothing in a file can make this run code or
grow. A full YAML parser would be one more dependency, for a dozen numbers.
"""

from __future__ import annotations

import re
from typing import Any

_ENTRY = re.compile(r"( *)([A-Za-z_][\w.-]*):(?: +(.*?))? *")
_INTEGER = re.compile(r"[-+]?\d{1,18}")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
_WORDS = {"null": None, "~": None, "true": True, "false": False}


def read_mappings(text: str) -> dict[str, Any]:
    """Keys and values of nested mappings: dict, str, int, float, bool or None.

    Lines that are none of these are passed over, with all that is indented below them. A key without a value is
    None, unless indented keys follow. Never raises.
    """
    top: dict[str, Any] = {}
    # The mappings around the current line, with the indentation of their keys.
    open_mappings: list[tuple[int, dict[str, Any]]] = [(0, top)]
    last: tuple[int, str] | None = None  # indentation and name of a key without a value
    passed_over: int | None = None
    for line in text.splitlines():
        body = line.lstrip(" ")
        if not body or body.startswith("#"):
            continue
        indent = len(line) - len(body)
        if passed_over is not None and indent > passed_over:
            continue
        passed_over = None
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            passed_over, last = indent, None
            continue
        if last is not None and indent > last[0]:
            inner: dict[str, Any] = {}
            open_mappings[-1][1][last[1]] = inner
            open_mappings.append((indent, inner))
        while len(open_mappings) > 1 and indent < open_mappings[-1][0]:
            open_mappings.pop()
        last = None
        name, value = entry[2], entry[3]
        open_mappings[-1][1][name] = _scalar(value) if value else None
        if value:
            passed_over = indent
        else:
            last = (indent, name)
    return top


def _scalar(value: str) -> Any:
    if value[0] in "'\"":
        return value[1:].removesuffix(value[0])
    value = value.partition(" #")[0].rstrip()
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _FLOAT.fullmatch(value) else value
