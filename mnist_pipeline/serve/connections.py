"""The bounds of a connection, before there is a request: how many, how long a header may be and may take.

uvicorn reads headers without end, waits for the rest of one for ever, and takes any number of requests at once from one
connection. Its protocol is extended here.
"""

import asyncio
import resource
from collections import OrderedDict
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mnist_pipeline.serve.errors import ServiceError
from mnist_pipeline.serve.settings import ServeSettings

MAX_HEADER_BYTES = 32 << 10
MAX_HEADER_FIELDS = 100
"""Browsers send about 20 fields and 2 KiB; nginx and Apache have similar limits."""

MAX_PIPELINED = 8
"""Requests that a connection may send ahead of their answers. Browsers send none."""

OVERHEAD_OF_A_BYTE = 8
"""The most that is received for a byte of a body: in chunks of one byte each, six."""

IDLE_SECONDS = 5
"""A connection is kept for so long after an answer."""

UNREAD_SECONDS = 30
"""A client that does not read its answer is given up after so long."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds.

    A connection has so long to send a whole header, whether it sends a byte now and then or none. Where there are too
    many connections, a new one takes the place of the one that has waited longest, for a request or for the rest of
    one; it is refused only where the requests of all have arrived and are in work.
    """

    def __init__(self, waiting: "OrderedDict[BoundedProtocol, None]", settings: ServeSettings, **options: Any) -> None:
        """`waiting` is shared by the connections of a server, and has those that wait, oldest first."""
        super().__init__(**options)
        self._waiting, self._settings = waiting, settings
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._overhead = 0
        self._begin_header()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self.connections) > min(self._settings.max_connections, open_files // 2):
            if not self._waiting:
                self._refuse(ServiceError(503, "overloaded", "too many connections: try again"))
                return
            self._waiting.popitem(last=False)[0].transport.abort()
        self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._overhead > MAX_HEADER_BYTES + len(data):
            self._refuse_header()
        elif self.cycle is None or self.cycle.response_complete:
            self._wait_for_header()

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
        self._stop("header")
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead - OVERHEAD_OF_A_BYTE * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self._waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        self._refuse_header() if self._too_large else super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("unread", UNREAD_SECONDS)

    def resume_writing(self) -> None:
        self._stop("unread")
        super().resume_writing()

    def _begin_header(self) -> None:
        self._overhead = self._fields = self._field_bytes = 0
        self._too_large = False

    def _admit(self, count: int) -> None:
        self._field_bytes += count
        if self._fields > MAX_HEADER_FIELDS or self._field_bytes > MAX_HEADER_BYTES:
            self._too_large = True
            raise ValueError("the header is too large")  # the parser ends, and `send_400_response` is called

    def _wait_for_header(self) -> None:
        """Give the next header its time, which more bytes of it do not prolong."""
        self._waiting.setdefault(self)
        self._start("header", self._settings.header_seconds)

    def _start(self, name: str, seconds: float) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _refuse_header(self) -> None:
        limits = f"the header of a request may have {MAX_HEADER_BYTES >> 10} KiB and {MAX_HEADER_FIELDS} fields"
        self._refuse(ServiceError(431, "too_large", limits))

    def _refuse(self, error: ServiceError) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer is on its way
            return
        body, status = error.answer.model_dump_json().encode(), HTTPStatus(error.status)
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
        http=partial(BoundedProtocol, OrderedDict(), settings),  # type: ignore[arg-type]  # called as the class is
        ws="none",
        timeout_keep_alive=IDLE_SECONDS,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),  # uvicorn would believe whoever is on this machine
        forwarded_allow_ips=settings.trusted_proxies,
        **options,
    )
