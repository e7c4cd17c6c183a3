"""The command `fastglow serve`."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractAsyncContextManager

import click

from fastglow.errors import FastglowError

from . import Invocation
from .loading import load_engine
from .options import DTYPES

PORT, WYOMING_PORT = 8000, 10200


@click.command()
@click.option("-v", "--voice", "voices", multiple=True, metavar="[NAME=]VOICE",
              help="Bundled voice or a voice's folder (repeatable; the first is the default). NAME is what requests call "
                   "it, such as alloy=heart.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen at: 0.0.0.0 for all of this machine's.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
@click.option("--max-batch", type=int, help="Sentences that are decoded together; 1: none. Default: 8, on a GPU 64.")
@click.option("--max-wait-ms", type=float, default=10.0, show_default=True,
              help="Milliseconds that a sentence waits for others.")  # fmt: skip
@click.option("--max-queue", type=int, default=64, show_default=True,
              help="Requests that are worked on or wait; further ones are refused (429).")  # fmt: skip
@click.option("--max-characters", type=int, default=4096, show_default=True,
              help="Of a text; longer ones are refused (413).")  # fmt: skip
@click.option("--timeout", type=float, default=60.0, show_default=True,
              help="Seconds without speech, or without the client reading any, after which a request is given up.")  # fmt: skip
@click.option("--api-key", "api_keys", multiple=True, envvar="FASTGLOW_API_KEY",
              help="Require this key (repeatable; or in FASTGLOW_API_KEY, which other users cannot see).")  # fmt: skip
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
              help="Let pages of this origin use the API, * for all (repeatable). Default: none.")  # fmt: skip
@click.option("--wyoming", metavar="[HOST:]PORT",
              help=f"Speak Home Assistant's Wyoming protocol there, too; its own port is {WYOMING_PORT}.")  # fmt: skip
@click.option("--device", help="Such as cpu or cuda:0. Default: the GPU if there is one.")
@click.option("--dtype", type=click.Choice(DTYPES),
              help="Type of the weights. Default: bfloat16 on a CPU that has instructions for it, else float32.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.pass_obj
def serve(
    invocation: Invocation, voices: tuple[str, ...], host: str, port: int, max_batch: int | None, max_wait_ms: float,
    max_queue: int, max_characters: int, timeout: float, api_keys: tuple[str, ...], cors_origins: tuple[str, ...],
    wyoming: str | None, device: str | None, dtype: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Answer requests for speech over HTTP: OpenAI's API, and a web page.

    SIGTERM and Ctrl-C end it once it has answered what it has accepted; a second one ends it at once.
    """
    from fastglow.serve import require

    require("uvicorn", "starlette", "prometheus_client")
    if wyoming and importlib.util.find_spec("wyoming") is None:
        raise FastglowError("--wyoming needs wyoming: pip install 'fastglow[wyoming]'")
    if not all(key.strip() for key in api_keys):
        raise FastglowError("--api-key is empty: pass a key, or leave it out")
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

        app = create_app(
            voices, max_batch=max_batch, max_wait_ms=max_wait_ms, max_queue=max_queue, max_characters=max_characters,
            timeout=timeout, api_keys=api_keys, cors_origins=cors_origins, device=device,
            dtype=getattr(torch, dtype) if dtype else None,
        )  # fmt: skip
        service = app.state.service

        def other() -> AbstractAsyncContextManager[str]:
            from fastglow.serve.wyoming import wyoming_beside

            assert wyoming_address
            return wyoming_beside(service, *wyoming_address, max_characters)

        run(app, listener, tell, other if wyoming_address else None)


def _address(given: str, host: str) -> tuple[str, int]:
    """Of [HOST:]PORT; without its own host, that of HTTP.

    Raises:
        FastglowError: it is none.
    """
    own, _, port = given.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise FastglowError(f"--wyoming {given} must be a port, or HOST:PORT, such as {WYOMING_PORT}")
    return own.strip("[]") or host, int(port)
