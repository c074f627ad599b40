"""Request bodies within bounds of size, memory and time."""

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from mnist_pipeline.serve.errors import ServiceError, bad_request, overloaded, too_large
from mnist_pipeline.serve.settings import ServeSettings

MIB = 1 << 20


class BodyReader:
    """Knows how much all requests in work hold together."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, at_most_mib: float | None = None) -> AsyncIterator[bytes]:
        """Give the whole body, which counts as held until the block ends. Raises ServiceError."""
        mib = min(self._settings.max_body_mib, at_most_mib or self._settings.max_body_mib)
        too_long = too_large(f"the request is larger than {mib:g} MiB")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > mib * MIB:
            raise too_long
        held = 0

        async def receive_all() -> bytes:
            nonlocal held
            chunks: list[bytes] = []
            async for chunk in request.stream():
                held += len(chunk)
                self._held += len(chunk)
                if held > mib * MIB:
                    raise too_long
                if self._held > self._settings.max_held_mib * MIB:
                    raise overloaded()
                chunks.append(chunk)
            return b"".join(chunks)

        try:
            yield await self._in_time(receive_all())
        finally:
            self._held -= held

    async def _in_time(self, receiving: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            with anyio.fail_after(self._settings.body_seconds):
                return await receiving
        except TimeoutError:
            message = f"the request did not arrive whole within {self._settings.body_seconds:g} s"
            raise ServiceError(408, "too_slow", message) from None
        except ClientDisconnect:
            raise bad_request("disconnected", "the client hung up before the request was whole") from None
