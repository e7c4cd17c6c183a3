"""Home Assistant's Wyoming protocol over TCP: what `fastglow serve --wyoming` answers beside HTTP.

Home Assistant opens a connection for each text. It sends the text in pieces while a language model still writes it
(`synthesize-start`, `synthesize-chunk`, ..., and for older servers the whole text as `synthesize`, then
`synthesize-stop`) and reads audio until `synthesize-stopped`; or one `synthesize`, and reads until `audio-stop`. It
skips `error` and waits on, so that the connection must end after one.
"""

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from fastglow._version import __version__
from fastglow.audio.io import write_pcm16
from fastglow.engine.delivery import Delivery
from fastglow.errors import FastglowError
from fastglow.text.growing import GrowingText
from fastglow.text.markdown import without_markdown

from .answers import LEFT, ClientLeft, as_api_error
from .errors import ApiError
from .requests import most_bytes, speech_request
from .service import Service

logger = logging.getLogger(__name__)

INTERNAL = 500
# A client that sends faster than it listens waits.
_MAX_UTTERANCES = 8
_MAX_SENTENCES = 64
_LINGER_SECONDS = 2.0
_ATTRIBUTION = Attribution(name="fastglow", url="https://pypi.org/project/fastglow/")


class _Reader(asyncio.StreamReader):
    """Reads events of bounded size: the package would read as much as a client announces."""

    def __init__(self, most: int):
        super().__init__(most)
        self.most = most

    async def readexactly(self, n: int) -> bytes:
        if n > self.most:
            raise ValueError(f"{n} bytes in an event, at most {self.most}")
        return await super().readexactly(n)


@dataclass
class _Utterance:
    """A text that is spoken in one go; `None` ends its sentences."""

    voice: str
    streamed: bool
    sentences: asyncio.Queue[str | None] = field(default_factory=lambda: asyncio.Queue(_MAX_SENTENCES))
    growing: GrowingText = field(default_factory=lambda: GrowingText(without_markdown))

    async def put(self, *sentences: str | None) -> None:
        for sentence in sentences:
            await self.sentences.put(sentence)


@asynccontextmanager
async def wyoming_beside(service: Service, host: str, port: int, max_characters: int) -> AsyncGenerator[str, None]:
    """Answers Wyoming clients in the running event loop; at its end, once what they have begun is spoken.

    Args:
        service: speaks; its voices are described.
        host: name or address to listen at.
        port: 0 for any that is free.
        max_characters: of a `synthesize`, or a sentence of a stream.

    Yields:
        the address, as tcp://127.0.0.1:10200.

    Raises:
        FastglowError: nothing can listen there.
    """
    server = WyomingServer(service, max_characters)
    await server.start(host, port)
    try:
        yield server.address
    finally:
        server.close()
        try:
            await server.wait_closed()
        except asyncio.CancelledError:
            server.abort()
            raise


class WyomingServer:
    """Listens, and holds the connections."""

    def __init__(self, service: Service, max_characters: int):
        self._service, self._max_characters = service, max_characters
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_Reader(most_bytes(self._max_characters)), self._connected)

        try:
            self._server = await asyncio.get_running_loop().create_server(protocol, host, port)
        except OSError as error:
            raise FastglowError(f"cannot listen for Wyoming at {host}:{port}: {error.strerror or error}") from error

    @property
    def address(self) -> str:
        assert self._server
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def close(self) -> None:
        """Takes no more connections; those that speak end when they have spoken, the others at once."""
        if self._server:
            self._server.close()
        for connection in self._connections.values():
            connection.close()

    async def wait_closed(self) -> None:
        """Waits, after `close`, until every connection has ended."""
        while self._connections:
            await asyncio.wait(list(self._connections))

    def abort(self) -> None:
        """Stops what still goes on."""
        self.close()
        for task in self._connections:
            task.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._service, self._max_characters, reader, writer)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._connections[task] = connection
        task.add_done_callback(lambda task: self._connections.pop(task, None))


class _Connection:
    """One client: one task reads its events, another speaks its texts in turn."""

    def __init__(
        self, service: Service, max_characters: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ):
        self._service, self._max_characters, self._reader, self._writer = service, max_characters, reader, writer
        self._writing = asyncio.Lock()
        self._utterances: asyncio.Queue[_Utterance] = asyncio.Queue(_MAX_UTTERANCES)
        self._stream: _Utterance | None = None
        self._n_begun = 0
        self._closing = self._failed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until the client leaves, an error has been told, or the server is closed and every text is spoken."""
        self._tasks = [asyncio.create_task(self._guarded(work)) for work in (self._read, self._speak)]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self._failed:
                    await self._linger()
            self._writer.close()

    def close(self) -> None:
        """Ends once its texts are spoken; a text that goes on arriving has the time of a request without progress."""
        self._closing = True
        if not self._n_begun:
            self._cancel()
        elif self._stream is not None:
            asyncio.get_running_loop().call_later(self._service.timeout, self._give_up, self._stream)

    def _give_up(self, stream: _Utterance) -> None:
        if self._stream is stream:
            self._cancel()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does the work; tells the client of an error in it."""
        with suppress(ClientLeft):
            try:
                await work()
            except ClientLeft:
                raise
            except Exception as error:
                told = as_api_error(error)
                if told.status == INTERNAL:
                    logger.exception("a Wyoming request failed")
                await self._send(Error(str(told), told.error["code"] or told.error["type"]))
                self._failed = True

    async def _linger(self) -> None:
        """Reads on for a moment: to close on unread data would reset the connection, and the error could be lost."""
        with suppress(OSError, asyncio.TimeoutError):
            self._writer.write_eof()
            await asyncio.wait_for(self._skip(), _LINGER_SECONDS)

    async def _skip(self) -> None:
        while await self._reader.read(2**16):
            pass

    async def _send(self, *events: Eventable) -> None:
        """Raises ClientLeft if the client has left, or does not read."""
        try:
            async with self._writing:
                for event in events:
                    await asyncio.wait_for(async_write_event(event.event(), self._writer), self._service.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            self._writer.transport.abort()
            raise ClientLeft from error

    async def _read(self) -> None:
        while event := await self._event():
            await self._handle(event)

    async def _event(self) -> Event | None:
        """The next event; None if the client has left."""
        try:
            event = await async_read_event(self._reader)
            if event is None and self._reader.at_eof():
                return None
            if event is not None and isinstance(event.type, str) and isinstance(event.data, dict):
                return event
        except OSError:
            return None
        except (AttributeError, EOFError, LookupError, RecursionError, TypeError):
            pass
        raise ApiError(
            400, f"not an event of the Wyoming protocol, or one of more than {most_bytes(self._max_characters)} bytes"
        )

    async def _handle(self, event: Event) -> None:
        kind, stream = event.type, self._stream
        if Describe.is_type(kind):
            await self._send(described(self._service))
        elif Ping.is_type(kind):
            await self._send(Pong(event.data.get("text")))
        elif Synthesize.is_type(kind) and stream is None:
            utterance = await self._begin(event, streamed=False)
            await utterance.put(without_markdown(_text_of(event)), None)
        elif SynthesizeStart.is_type(kind):
            if stream is not None:
                raise FastglowError(f"{kind} inside a stream: send synthesize-stop first")
            self._stream = await self._begin(event, streamed=True)
        elif SynthesizeChunk.is_type(kind) or SynthesizeStop.is_type(kind):
            if stream is None:
                raise FastglowError(f"{kind} outside a stream: send synthesize-start first")
            if SynthesizeChunk.is_type(kind):
                await stream.put(*stream.growing.push(_text_of(event)))
            else:
                self._stream = None
                await stream.put(*stream.growing.finish(), None)

    async def _begin(self, event: Event, streamed: bool) -> _Utterance:
        utterance = _Utterance(self._voice_of(event), streamed)
        self._n_begun += 1
        await self._utterances.put(utterance)
        return utterance

    def _voice_of(self, event: Event) -> str:
        """The named voice; else the first of the language, else the first."""
        asked = event.data.get("voice") or {}
        if not isinstance(asked, dict):
            raise FastglowError(f"voice={asked!r} must be an object")
        name, language = asked.get("name"), str(asked.get("language"))
        voices = self._service.described()
        names = [voice["id"] for voice in voices]
        if name is not None:
            if name not in names:
                raise FastglowError(f"unknown voice {name!r}: use one of {', '.join(names)}")
            return name
        alike = [voice["id"] for voice in voices if _primary(voice["language"]) == _primary(language)]
        return (alike + names)[0]

    async def _speak(self) -> None:
        while not (self._closing and not self._n_begun):
            utterance = await self._utterances.get()
            status = LEFT
            try:
                await self._say(utterance)
                status = 200
            except ClientLeft:
                raise
            except Exception as error:
                status = as_api_error(error).status
                raise
            finally:
                self._service.metrics.requests.labels(utterance.voice, "wyoming", status).inc()
            self._n_begun -= 1

    async def _say(self, utterance: _Utterance) -> None:
        rate = self._service.voices[utterance.voice].audio.sampling_rate
        pause = np.zeros(round(Delivery.sentence_silence * rate), np.float32)
        begun = follows = False
        async with aclosing(self._chunks(utterance)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    follows = begun
                    continue
                if not begun:
                    await self._send(AudioStart(rate, 2, 1))
                audio = np.concatenate((pause, chunk)) if follows else chunk
                await self._send(AudioChunk(rate, 2, 1, _pcm16(audio)))
                begun, follows = True, False
        if not begun:
            await self._send(AudioStart(rate, 2, 1))
        await self._send(AudioStop(), *([SynthesizeStopped()] if utterance.streamed else []))

    async def _chunks(self, utterance: _Utterance) -> AsyncGenerator[np.ndarray | None, None]:
        """The audio of the sentences as it is made; None after each of them."""
        while (text := await utterance.sentences.get()) is not None:
            if not text.strip():
                continue
            request = speech_request(text, utterance.voice, self._service.voices, self._max_characters, markdown=False)
            async with aclosing(self._service.speak(request)) as items:
                async for item in items:
                    if isinstance(item, np.ndarray) and len(item):
                        yield item
            yield None


def described(service: Service) -> Info:
    """What `describe` is answered with. Home Assistant shows a voice's description, or its name if it has none."""
    voices = [
        TtsVoice(
            name=voice["id"],
            description=voice["description"] or None,
            languages=[voice["language"]],
            attribution=_ATTRIBUTION,
            installed=True,
            version=None,
        )
        for voice in service.described()
    ]
    program = TtsProgram(
        name="fastglow",
        description="Tacotron 2 with WaveGlow or Griffin-Lim",
        attribution=_ATTRIBUTION,
        installed=True,
        version=__version__,
        voices=voices,
        supports_synthesize_streaming=True,
    )
    return Info(tts=[program])


def _primary(language: str) -> str:
    """Of a BCP 47 tag, or of a locale such as en_US: "en"."""
    return language.replace("_", "-").split("-")[0].lower()


def _text_of(event: Event) -> str:
    text = event.data.get("text")
    if not isinstance(text, str):
        raise FastglowError(f"{event.type}: text={text!r} must be a string")
    return text


def _pcm16(audio: np.ndarray) -> bytes:
    """float32 [n] as little-endian int16."""
    stream = io.BytesIO()
    write_pcm16(stream, audio)
    return stream.getvalue()
