"""Runs the service with uvicorn, and ends it without losing what it has accepted."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager

import uvicorn
from starlette.applications import Starlette

from fastglow.errors import FastglowError

Beside = Callable[[], AbstractAsyncContextManager[str]]
"""Makes another server: its context gives the address, and ends once it has answered what it has accepted."""

# Seconds between looks for a second Ctrl-C.
_TICK = 0.1


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there. Taken before anything is loaded, so that a port in use is told at once.

    Raises:
        FastglowError: it cannot.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FastglowError(f"cannot listen at {host}:{port}: {reason}: pass another --host or --port") from error
    with listener:
        yield listener


def run(app: Starlette, listener: socket.socket, ready: Callable[[str], None], beside: Beside | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what was accepted; a further Ctrl-C ends at once.

    Args:
        app: of `create_app`.
        listener: of `listening`.
        ready: told the service's address, and that of `beside`, once they answer.
        beside: another server.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        # The one that is tested, whatever else is installed.
        http="h11",
        loop="asyncio",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
    )
    # uvicorn repeats the signal once it has ended.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        _Server(config, ready, beside).run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None], beside: Beside | None):
        super().__init__(config)
        self._ready, self._beside = ready, beside

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with AsyncExitStack() as self._others:
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        self._ready(f"http://{_shown(sockets[0])}")
        if self._beside is not None:
            self._ready(await self._others.enter_async_context(self._beside()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn ends the application with its own connections: the other server, which needs it, ends before.
        for server in self.servers:
            server.close()
        ending = asyncio.ensure_future(self._others.aclose())
        while not ending.done() and not self.force_exit:
            await asyncio.wait([ending], timeout=_TICK)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await super().shutdown(sockets)


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
