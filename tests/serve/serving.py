"""The service in a thread, and clients for it."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import uvicorn

JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def error(self):
        return json.loads(self.body)["error"]

    @property
    def events(self):
        """The objects of server-sent events."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
        return [json.loads(part.removeprefix("data: ")) for part in parts]


@dataclass
class Address:
    """Of a service that runs."""

    host: str
    port: int
    app: object = None

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def service(self):
        return self.app.state.service

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def ask(self, method, path, body=None, headers=None):
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def speak(self, headers=None, **values):
        return self.ask("POST", "/v1/audio/speech", json.dumps(values), {**JSON, **(headers or {})})

    def raw(self, values, options=()):
        """A socket with these options, on which a request for speech was sent."""
        body = json.dumps(values).encode()
        sock = socket.socket()
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, options[option])
        sock.settimeout(120)
        sock.connect((self.host, self.port))
        head = ["POST /v1/audio/speech HTTP/1.1", "Host: x", "Content-Type: application/json"]
        head += [f"Content-Length: {len(body)}", "", ""]
        sock.sendall("\r\n".join(head).encode() + body)
        return sock

    def metric(self, name, **labels):
        """The sum of a metric's values."""
        total = 0.0
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith((name + " ", name + "{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextmanager
def running(app):
    """Serves in a thread until the block ends, then shuts down as at SIGTERM."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http="h11", loop="asyncio", ws="none", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.005)
        yield Address("127.0.0.1", server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


def wav_samples(data):
    """int16 of a streamed WAV, whose header has no length."""
    assert data[:4] == b"RIFF" and data[36:40] == b"data"
    return np.frombuffer(data[44:], "<i2")
