"""The web page: one document that needs nothing else."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


@cache
def _document() -> str:
    return files("fastglow.serve").joinpath("page.html").read_text(encoding="utf-8")


async def page(request: Request) -> Response:
    return HTMLResponse(_document())
