"""Request bodies within bounds of size, memory and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

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
    async def hold(self, request: Request, at_most_mib: float | None = None) -> AsyncIterator[bytes]:
        """Give the whole body, which counts as held until the end of the context. Raises ServiceError."""
        mib = min(self._settings.max_body_mib, at_most_mib or self._settings.max_body_mib)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > mib * MIB:
            raise too_large(f"the request is larger than {mib:g} MiB")
        received, size = bytearray(), 0
        try:
            try:
                seconds = self._settings.body_seconds
                async with asyncio.timeout(seconds), aclosing(request.stream()) as stream:
                    async for chunk in stream:
                        received += chunk
                        size += len(chunk)
                        self._held += len(chunk)
                        if size > mib * MIB:
                            raise too_large(f"the request is larger than {mib:g} MiB")
                        if self._held > self._settings.max_held_mib * MIB:
                            raise overloaded()
            except TimeoutError:
                message = f"the request did not arrive whole within {seconds:g} s"
                raise ServiceError(408, "too_slow", message) from None
            except ClientDisconnect:
                raise bad_request("disconnected", "the client hung up before the request was whole") from None
            body = bytes(received)
            del received
            yield body
        finally:
            self._held -= size
