"""The bounds of a connection, before there is a request: how many, how long a header may be and may take.

uvicorn reads headers without end and waits for the rest of one for ever. Its protocol is extended here.
"""

import asyncio
import json
from collections import OrderedDict
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mnist_pipeline.serve.settings import ServeSettings

MAX_HEADER_BYTES = 32 << 10
MAX_HEADER_FIELDS = 100
"""Browsers send about 20 fields and 2 KiB; nginx and Apache have similar limits."""

IDLE_SECONDS = 5
"""A connection is kept for so long after an answer."""

UNREAD_SECONDS = 30
"""A client that does not read its answer is given up after so long."""


class Waiting:
    """The connections of one server that wait for a request or for the rest of its header, oldest first."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.protocols: OrderedDict[BoundedProtocol, None] = OrderedDict()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds.

    A connection has so long to send a whole header, whether it sends a byte now and then or none. Where there are too
    many connections, a new one takes the place of the one that has waited longest; it is refused only where all have a
    request in work.
    """

    def __init__(self, waiting: Waiting, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting, self._settings = waiting, waiting.settings
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._begin_header()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            if not self._waiting.protocols:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many connections: try again")
                return
            self._waiting.protocols.popitem(last=False)[0].transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_header:
            self._header_bytes += len(data)  # until the callbacks below tell that it is a body
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_header and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse_header()
        elif not self._in_work:
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_header()

    def on_url(self, url: bytes) -> None:
        self._admit(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._admit(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and not self._in_work:
            self._waiting.protocols[self] = None

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse_header()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    @property
    def _in_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _too_large(self) -> bool:
        return self._fields > MAX_HEADER_FIELDS or self._field_bytes > MAX_HEADER_BYTES

    def _admit(self, count: int) -> None:
        self._field_bytes += count
        if self._too_large:
            raise ValueError("the header is too large")  # the parser ends, and `send_400_response` is called

    def _begin_header(self) -> None:
        self._in_header, self._header_bytes, self._fields, self._field_bytes = True, 0, 0, 0

    def _wait(self) -> None:
        """Give the next header its time, which more bytes of it do not prolong."""
        if self._deadline is None and not self.transport.is_closing():
            self._waiting.protocols[self] = None
            self._deadline = self.loop.call_later(self._settings.header_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting.protocols.pop(self, None)
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_header(self) -> None:
        limits = f"{MAX_HEADER_BYTES >> 10} KiB and {MAX_HEADER_FIELDS} fields"
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", f"the header of a request may have {limits}"
        )

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()


def server_config(settings: ServeSettings, app: Any, **options: Any) -> Config:
    """Return uvicorn's configuration for an application, or with `factory=True` for a function that makes it."""
    return Config(
        app,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=partial(BoundedProtocol, Waiting(settings)),  # type: ignore[arg-type]  # called as the class is
        ws="none",
        timeout_keep_alive=IDLE_SECONDS,
        access_log=False,
        log_config=None,
        server_header=False,
        **options,
    )
