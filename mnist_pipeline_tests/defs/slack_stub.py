"""A server on loopback that speaks as much of Slack's Web API as chat.postMessage needs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs

TOKEN = "xoxb-secret-of-the-tests"


class SlackStub(ThreadingHTTPServer):
    """Keeps the messages that it took. `behaviour` says what happens to the next ones."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, str]] = []
        self.attempts = 0
        self.behaviour: list[str] = []
        """For each of the next requests: ok, 429, 500, slow or hang up; ok when the list is at its end."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api/"

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.messages]


class _Handler(BaseHTTPRequestHandler):
    server: SlackStub

    def do_POST(self) -> None:
        self.server.attempts += 1
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        behaviour = self.server.behaviour.pop(0) if self.server.behaviour else "ok"
        if behaviour == "hang up":
            self.close_connection = True
            return
        if behaviour == "slow":
            time.sleep(3)
        if behaviour in ("429", "500"):
            self._answer(int(behaviour), {"ok": False, "error": "ratelimited"}, {"Retry-After": "2"})
        elif self.path != "/api/chat.postMessage":
            self._answer(200, {"ok": False, "error": "unknown_method"})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(200, {"ok": False, "error": "invalid_auth"})
        else:
            is_json = self.headers["Content-Type"].startswith("application/json")
            message = json.loads(body) if is_json else {k: v[0] for k, v in parse_qs(body).items()}
            self.server.messages.append(message)
            self._answer(200, {"ok": True, "channel": message["channel"], "ts": "1.0", "message": {}})

    def _answer(self, status: int, content: dict[str, object], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def slack_stub() -> Iterator[SlackStub]:
    with SlackStub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
