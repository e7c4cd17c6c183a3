"""The web page of the service: one document that asks for nothing but the API."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
STYLE = '<link rel="stylesheet" href="page.css">'
SCRIPT = '<script type="module" src="page.js"></script>'
SCRIPTS = ("sound.js", "figures.js", "page.js")


class Page(NamedTuple):
    """A document in HTML and the headers to send with it."""

    body: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """The page, with its style and scripts inside. Its policy allows no others, and connections to its server alone."""
    style = _read("page.css")
    script = "\n".join(_read(name) for name in SCRIPTS)
    html = _read("page.html").replace(STYLE, f"<style>{style}</style>")
    html = html.replace(SCRIPT, f'<script type="module">{script}</script>')
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(html.encode(), headers)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
