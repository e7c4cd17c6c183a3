"""The speech service: OpenAI's speech API, a web page, metrics. Needs Starlette (pip install 'fastglow[serve]').

`create_app` is an ASGI application for any server; `fastglow serve` runs it with uvicorn.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from fastglow.errors import FastglowError

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    """On first use, because it loads torch."""
    if name != "create_app":
        raise AttributeError(f"module 'fastglow.serve' has no attribute {name!r}")
    require("starlette", "prometheus_client")
    from .app import create_app

    return create_app


def require(*modules: str) -> None:
    """Raises FastglowError unless packages of the extra are installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise FastglowError(f"the service needs {' and '.join(missing)}: pip install 'fastglow[serve]'")
