"""The command `fastglow serve`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from fastglow.errors import FastglowError
from fastglow.lines import read_lines

from . import Invocation
from .loading import load_engine
from .options import DTYPES, Command

PORT, WYOMING_PORT = 8000, 10200

_LIMITS = (
    click.option("--max-batch", type=int,
                 help="Sentences that are decoded together; 1: none. Default: 8, on a GPU 64."),
    click.option("--max-wait-ms", type=float, default=10.0, show_default=True,
                 help="Milliseconds that a sentence waits for others."),
    click.option("--max-queue", type=int, default=64, show_default=True,
                 help="Requests that are worked on or wait; further ones are refused (429)."),
    click.option("--max-characters", type=int, default=4096, show_default=True,
                 help="Of a text; longer ones are refused (413)."),
    click.option("--timeout", type=float, default=60.0, show_default=True,
                 help="Seconds without speech, or without the client reading any, until a request is given up."),
    click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one."),
    click.option("--dtype", type=click.Choice(DTYPES),
                 help="Type of the weights. Default: bfloat16 on a CPU that has instructions for it, else float32."),
)  # fmt: skip


def _limits(command: Command) -> Command:
    """Decorator: an option for each of `create_app`'s that is passed on as it is."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


@click.command()
@click.option("-v", "--voice", "voices", multiple=True, metavar="[NAME=]VOICE",
              help="Bundled voice or a voice's folder (repeatable; the first is the default). NAME is what requests "
                   "call it, such as alloy=heart.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen at: 0.0.0.0 for all of this machine's.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
@click.option("--wyoming", metavar="[HOST:]PORT",
              help=f"Speak Home Assistant's Wyoming protocol there, too; its own port is {WYOMING_PORT}.")  # fmt: skip
@click.option("--api-key", "api_keys", multiple=True,
              help="Require this key (repeatable). Other users of the machine can see it.")  # fmt: skip
@click.option("--api-key-file", type=click.Path(), help="File with a key a line, to require one of them.")
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
              help="Let pages of this origin use the API, * for all (repeatable). Default: none.")  # fmt: skip
@_limits
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.pass_obj
def serve(
    invocation: Invocation, voices: tuple[str, ...], host: str, port: int, wyoming: str | None,
    api_keys: tuple[str, ...], api_key_file: str | None, cors_origins: tuple[str, ...], quiet: bool, **limits: Any,
) -> None:  # fmt: skip
    """Answer requests for speech over HTTP: OpenAI's API, and a web page.

    SIGTERM and Ctrl-C end it once it has answered what it has accepted; a second Ctrl-C ends it at once.
    """
    from fastglow.serve import require

    require("uvicorn", "starlette", "prometheus_client")
    if wyoming and importlib.util.find_spec("wyoming") is None:
        raise FastglowError("--wyoming needs wyoming: pip install 'fastglow[wyoming]'")
    keys = _keys(api_keys, api_key_file)
    wyoming_address = _address(wyoming, host) if wyoming else None
    from fastglow.serve.running import listening, run

    def tell(address: str) -> None:
        if not quiet:
            click.echo(f"fastglow: serving {', '.join(service.voices)} at {address}", err=True)

    # Before the voices, which take seconds to load.
    with listening(host, port) as listener:
        if invocation.owns_process:
            load_engine()
        import torch

        from fastglow.serve import create_app

        limits["dtype"] = getattr(torch, limits["dtype"]) if limits["dtype"] else None
        app = create_app(voices, api_keys=keys, cors_origins=cors_origins, **limits)
        service = app.state.service

        def other() -> AbstractAsyncContextManager[str]:
            from fastglow.serve.wyoming import wyoming_beside

            assert wyoming_address
            return wyoming_beside(service, *wyoming_address, limits["max_characters"])

        run(app, listener, tell, other if wyoming_address else None)


def _keys(given: Sequence[str], path: str | None) -> list[str]:
    keys = list(given)
    if path is not None:
        from_file = [line.strip() for line in read_lines(path) if line.strip()]
        if not from_file:
            raise FastglowError(f"--api-key-file {path} has no key: write one a line, or leave the option out")
        keys += from_file
    for key in keys:
        if not key or not key.isprintable() or key != key.strip():
            raise FastglowError("an API key is empty, or has white space around it or control characters: pass another")
    return keys


def _address(given: str, host: str) -> tuple[str, int]:
    """Of [HOST:]PORT; without its own host, that of HTTP.

    Raises:
        FastglowError: it is none.
    """
    own, _, port = given.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise FastglowError(f"--wyoming {given} must be a port, or HOST:PORT, such as {WYOMING_PORT}")
    return own.strip("[]") or host, int(port)
