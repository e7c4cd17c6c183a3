"""The web page: one document that needs nothing else but the API."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_STYLE = '<link rel="stylesheet" href="page.css">'
_SCRIPT = '<script type="module" src="page.js"></script>'
_SCRIPTS = ("sound.js", "figures.js", "page.js")


async def page(request: Request) -> Response:
    document, headers = _page()
    return HTMLResponse(document, headers=headers)


@cache
def _page() -> tuple[str, dict[str, str]]:
    """The document with its style and scripts inside, and headers that allow no others."""
    style, script = _read("page.css"), "\n".join(_read(name) for name in _SCRIPTS)
    document = _read("page.html").replace(_STYLE, f"<style>{style}</style>")
    document = document.replace(_SCRIPT, f'<script type="module">{script}</script>')
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
    return document, {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _read(name: str) -> str:
    return (files("fastglow.serve") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
