"""Request bodies within bounds of size, memory and time."""

import asyncio

from starlette.requests import Request

from mnist_pipeline.serve.errors import ServiceError, bad_request, overloaded, too_large
from mnist_pipeline.serve.settings import ServeSettings

MIB = 1 << 20


class BodyReader:
    """Knows how much all requests in work hold together."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held = 0

    async def read(self, request: Request, at_most_mib: float | None = None) -> bytes:
        """Return the whole body, which counts as held until it is released. Raises ServiceError."""
        mib = min(self._settings.max_body_mib, at_most_mib or self._settings.max_body_mib)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > mib * MIB:
            raise too_large(f"the request is larger than {mib:g} MiB")
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while await self._receive(request, body, mib):
                    pass
        except TimeoutError:
            self.release(body)
            message = f"the request did not arrive whole within {self._settings.body_seconds:g} s"
            raise ServiceError(408, "too_slow", message) from None
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray) -> None:
        """Count a body no more."""
        self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray, mib: float) -> bool:
        """Add what comes next; False if that was the end."""
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise bad_request("disconnected", "the client hung up before the request was whole")
        body += (chunk := message.get("body", b""))
        self._held += len(chunk)
        if len(body) > mib * MIB:
            raise too_large(f"the request is larger than {mib:g} MiB")
        if self._held > self._settings.max_held_mib * MIB:
            raise overloaded()
        return message.get("more_body", False)
