"""The speech service: OpenAI's speech API, a web page, metrics. Needs Starlette (pip install 'fastglow[serve]').

`create_app` is an ASGI application for any server; `fastglow serve` runs it with uvicorn.
"""

import importlib.util

from fastglow.errors import FastglowError

if missing := [name for name in ("starlette", "prometheus_client") if importlib.util.find_spec(name) is None]:
    raise FastglowError(f"the service needs {' and '.join(missing)}: pip install 'fastglow[serve]'")

from .app import create_app  # noqa: E402

__all__ = ["create_app"]
