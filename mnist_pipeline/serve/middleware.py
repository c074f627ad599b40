"""Around every request: who may ask, how long it took, and what a browser may do with the answer."""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from mnist_pipeline.serve.errors import ServiceError, as_service_error
from mnist_pipeline.serve.metrics import Metrics

OPEN_PATHS = ("/", "/review", "/models", "/docs", "/openapi.json", "/healthz", "/readyz")
OPEN_FOLDERS = ("/static/", "/static-offline-docs/", "/models/", "/leaderboards/")
"""The paths that need no token: the pages without their data, and the probes of orchestrators."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
)
"""Swagger UI begins with a script in its page and styles its own elements."""


def _headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]


HEADERS, DOCS_HEADERS = _headers(POLICY), _headers(DOCS_POLICY)

Respond = Callable[[Request], Awaitable[Response]]


class Guard:
    """Checks the token and where a browser's request comes from, measures, and sets headers."""

    def __init__(
        self,
        app: FastAPI,
        token: str | None,
        hosts: frozenset[str] | None,
        metrics: Metrics,
        direct: Mapping[tuple[str, str], Respond],
    ) -> None:
        """`hosts` are the names that a request may ask for, None any: a page elsewhere whose name was made to point
        to this machine (DNS rebinding) gives itself away by it. `direct` are the methods and paths that are answered
        here: the way through FastAPI takes longer than the network."""
        self.app, self.metrics, self.direct, self.hosts = app, metrics, direct, None if token else hosts
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, method, path = time.perf_counter(), 500, scope["method"], scope["path"]
        extra = DOCS_HEADERS if path == "/docs" else HEADERS

        async def measured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        name: str | None = None
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
            if refusal := self._refusal(method, path, headers):
                await error_response(refusal, self.metrics)(scope, receive, measured_send)
            elif respond := self.direct.get((method, path)):
                name = path
                await (await self._respond(respond, Request(scope, receive)))(scope, receive, measured_send)
            else:
                await self.app(scope, receive, measured_send)
        finally:
            if name is None:  # the template of a route: whatever people ask for must not become a label
                name = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.answered(name, status, time.perf_counter() - began)

    async def _respond(self, respond: Respond, request: Request) -> Response:
        try:
            return await respond(request)
        except Exception as error:  # every one has an answer
            return error_response(as_service_error(error), self.metrics)

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> ServiceError | None:
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            message = "this name of the service is not known to it: see --allowed-hosts, or set SERVE_TOKEN"
            return ServiceError(403, "foreign_host", message)
        if method not in SAFE_METHODS and _from_another_site(headers):
            return ServiceError(403, "foreign_origin", "pages of other sites may not use this service")
        if self.token and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self.token):
                error = ServiceError(401, "unauthorized", "send the header 'Authorization: Bearer <SERVE_TOKEN>'")
                error.headers["WWW-Authenticate"] = "Bearer"
                return error
        return None


def _name(host: str) -> str:
    """Without the port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _from_another_site(headers: Mapping[str, str]) -> bool:
    """Tell by what the browser says; it asks no page's permission for simple requests. Other clients say nothing."""
    if site := headers.get("sec-fetch-site"):
        return site in ("cross-site", "same-site")
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("host")
    except ValueError:  # no browser sends such a one
        return True


def error_response(error: ServiceError, metrics: Metrics) -> JSONResponse:
    """The one shape of errors, counted by code."""
    metrics.errors.labels(error.code).inc()
    return JSONResponse(error.answer.model_dump(), error.status, error.headers)
