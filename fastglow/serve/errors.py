"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from fastglow.errors import FastglowError

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(FastglowError):
    """What a client is told.

    Args:
        status: of HTTP.
        message: one line that names the value and the remedy.
        type, param, code: as OpenAI's.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.error = {"message": message, "type": type, "param": param, "code": code}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def queue_is_full(most: int, seconds: int) -> ApiError:
    return ApiError(
        429,
        f"{most} requests are being worked on, which is the most: try again in {seconds} s",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def shutting_down() -> ApiError:
    return ApiError(
        503, "the server is shutting down: try again in 10 s", type=SERVER, code="shutting_down",
        headers={"Retry-After": "10"},
    )  # fmt: skip


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        504, f"no speech within {seconds:g} s: try again later, or send less text", type=SERVER, code="timeout"
    )


def internal(error: BaseException) -> ApiError:
    """Of a fault of ours, of which the client learns no details."""
    return ApiError(500, f"the server failed with {type(error).__name__}: see its log", type=SERVER)
