"""Around every request: who may ask, how long it took, and what a browser may do with the answer."""

import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_pipeline.serve.errors import ErrorAnswer, ErrorDetail, ServiceError
from mnist_pipeline.serve.metrics import Metrics

OPEN_PATHS = ("/", "/review", "/docs", "/openapi.json", "/healthz", "/readyz")
OPEN_FOLDERS = ("/static/", "/static-offline-docs/")
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


class Guard:
    """Checks the token and where a browser's request comes from, measures, and sets headers."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None, metrics: Metrics) -> None:
        """`hosts` are the names that a request may ask for, None any: a page elsewhere whose name was made to point
        to this machine (DNS rebinding) gives itself away by it."""
        self.app, self.metrics, self.hosts = app, metrics, None if token else hosts
        self.authorization = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, path = time.perf_counter(), 500, scope["path"]
        extra = DOCS_HEADERS if path == "/docs" else HEADERS

        async def measured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            refusal = self._refusal(scope["method"], path, Headers(scope=scope))
            answer = error_response(refusal, self.metrics) if refusal else self.app
            await answer(scope, receive, measured_send)
        finally:
            route = scope.get("route")  # its template: whatever people ask for must not become a label
            name = getattr(route, "path", None) or "other"
            self.metrics.requests.labels(name, status).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - began)

    def _refusal(self, method: str, path: str, headers: Headers) -> ServiceError | None:
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            message = "this name of the service is not known to it: see --allowed-hosts, or set SERVE_TOKEN"
            return ServiceError(403, "foreign_host", message)
        if method not in SAFE_METHODS and _from_another_site(headers):
            return ServiceError(403, "foreign_origin", "pages of other sites may not use this service")
        if self.authorization and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
            given = headers.get("authorization", "").encode()
            if not secrets.compare_digest(given, self.authorization):
                error = ServiceError(401, "unauthorized", "send the header 'Authorization: Bearer <SERVE_TOKEN>'")
                error.headers["WWW-Authenticate"] = "Bearer"
                return error
        return None


def _name(host: str) -> str:
    """Without the port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _from_another_site(headers: Headers) -> bool:
    """Tell by what the browser says; it asks no page's permission for simple requests. Other clients say nothing."""
    if site := headers.get("sec-fetch-site"):
        return site in ("cross-site", "same-site")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def error_response(error: ServiceError, metrics: Metrics) -> JSONResponse:
    """The one shape of errors, counted by code."""
    metrics.errors.labels(error.code).inc()
    answer = ErrorAnswer(error=ErrorDetail(code=error.code, message=error.message))
    return JSONResponse(answer.model_dump(), error.status, error.headers)
