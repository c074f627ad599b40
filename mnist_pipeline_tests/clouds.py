"""Servers on loopback that speak the protocols of clouds, and a proxy that misbehaves as networks do."""

import base64
import fcntl
import hashlib
import hmac
import http.client
import itertools
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from mnist_pipeline_tests.live import wait_until

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of every emulator, published by Microsoft."""

AZURITE = "azurite@3.37.0"


def install_azurite(folder: Path) -> Path | str:
    """Return Azure's emulator, installed into `folder` once; where that is not possible, why."""
    if found := shutil.which("azurite-blob"):
        return Path(found)
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "npm is absent, which has Azurite, Azure's emulator"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two workers one installs
        installed = folder / AZURITE.replace("@", "-")  # empty; npm may have been killed half-way
        if not installed.exists():
            quietly = ["--no-audit", "--no-fund", "--fetch-retries=1"]
            command = ["npm", "install", *quietly, "--prefix", str(folder), AZURITE]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            except subprocess.TimeoutExpired:
                return "npm could not install Azurite in five minutes"
            if done.returncode:
                return f"npm could not install Azurite: {done.stderr[-300:]}"
            installed.touch()
    return program


@contextmanager
def azurite(program: Path, folder: Path) -> Iterator[str]:
    """Run Azure's emulator; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
    command = [str(program), *options, "--silent", "--disableTelemetry"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port), "Azurite to listen", 60, 0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def make_container(url: str, name: str) -> None:
    """Make a container, signed as Azure's REST API asks for (Shared Key)."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    signed = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}"
        "\nrestype:container"
    )
    digest = hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    request = urllib.request.Request(f"{url}/{AZURE_ACCOUNT}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # head and body in one packet

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle_expect_100(self) -> bool:
        done = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it
        return done

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def google(*buckets: str) -> Iterator[str]:
    """Serve the part of Google Cloud Storage's XML API that obstore speaks, with its preconditions; yields the URL.

    Written for these tests: the emulators of the package indexes (gcp-storage-emulator, fake-gcs-server's wrapper)
    ignore preconditions, or refuse the way obstore uploads.
    """
    objects: dict[str, dict[str, tuple[bytes, int]]] = {name: {} for name in buckets}
    generations, lock = itertools.count(1_700_000_000_000_000), Lock()

    class Google(_Handler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            bucket, _, key = unquote(address.path).lstrip("/").partition("/")
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            if bucket not in objects:
                return self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            if not key:
                return self._list(bucket, query)
            if key not in objects[bucket]:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            data, generation = objects[bucket][key]
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
                part = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
                return self.answer(206, data[first : last + 1], self._meta(generation) | part)
            return self.answer(200, data, self._meta(generation))

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            data = self.body()
            if bucket not in objects:
                return self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            with lock:
                wanted = self.headers.get("x-goog-if-generation-match")
                found = objects[bucket].get(key, (b"", 0))[1]
                if wanted is not None and int(wanted) != found:
                    return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                generation = next(generations)
                objects[bucket][key] = data, generation
            return self.answer(200, b"", self._meta(generation))

        def do_DELETE(self) -> None:
            bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            with lock:
                found = objects.get(bucket, {}).pop(key, None)
            self.answer(204 if found else 404)

        def _list(self, bucket: str, query: dict[str, str]) -> None:
            start = max(query.get("continuation-token", ""), query.get("start-after", ""))
            with lock:
                found = dict(objects[bucket])
            keys = sorted(key for key in found if key > start and key.startswith(query.get("prefix", "")))
            page, size = [], int(query.get("max-keys", 1000))
            if "delimiter" in query:  # folders in place of all that is in them
                start_of_name = len(query.get("prefix", ""))
                folders = {key[: key.index("/", start_of_name) + 1] for key in keys if "/" in key[start_of_name:]}
                keys = [key for key in keys if "/" not in key[start_of_name:]]
                page = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
            for key in keys[:size]:
                data, generation = found[key]
                page.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>&quot;{generation}&quot;</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
            more = f"<NextContinuationToken>{escape(keys[size - 1])}</NextContinuationToken>" if keys[size:] else ""
            self.answer(200, f"<ListBucketResult>{''.join(page)}{more}</ListBucketResult>".encode())

        def _meta(self, generation: int) -> dict[str, str]:
            return {
                "ETag": f'"{generation}"',
                "x-goog-generation": str(generation),
                "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            }

    with _serving(Google) as url:
        yield url


Fault = Callable[[str, str], str | None]
"""By method and path of a request: None to pass it on, or what is to go wrong with it."""


@contextmanager
def faulty(upstream: str, fault: Fault, strip: tuple[str, ...] = ()) -> Iterator[str]:
    """Pass requests on to a server, without the headers `strip`, and let go wrong what `fault` says; yields the URL.

    503 and 429: refused with that status, as by a throttling store. reset: the connection breaks before the request is
    passed on. lost: it breaks after that, so that the write happened and its answer is lost. silent: nothing is
    answered until the client gives up.
    """
    host = urlsplit(upstream).netloc

    class Proxy(_Handler):
        def forward(self) -> None:
            body, wrong = self.body(), fault(self.command, self.path)
            if wrong in ("503", "429"):
                return self.answer(int(wrong), b"<Error><Code>SlowDown</Code></Error>")
            if wrong == "reset":
                return self._break()
            if wrong == "silent":
                with suppress(OSError):
                    self.connection.recv(1)  # returns when the client closes
                return self._break()
            headers = {name: value for name, value in self.headers.items() if name.lower() not in strip}
            upstream_connection = http.client.HTTPConnection(host, timeout=60)
            upstream_connection.request(self.command, self.path, body, headers)
            answer = upstream_connection.getresponse()
            content = answer.read()
            upstream_connection.close()
            if wrong == "lost":
                return self._break()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            return None

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def _break(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    with _serving(Proxy) as url:
        yield url
