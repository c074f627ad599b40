"""The service over a real socket, and models to deploy in its store."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import httpx
import uvicorn
from pydantic import SecretStr
from upath import UPath

from mnist_pipeline.serve.app import create_app
from mnist_pipeline.serve.connections import server_config
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline.stores import ModelStore
from mnist_pipeline_tests.live import OWN_VARIABLES, PROJECT, wait_until

LISTENING = re.compile(r"running on (http://\S+)")

FAST = {"reload_seconds": 0.1}


class Service:
    """One service on a free port of loopback, in a thread of this process."""

    def __init__(
        self,
        store: ModelStore,
        labelled: Path | UPath | None = None,
        token: str | None = None,
        task: str | None = None,
        second_opinion: bool = False,
        **settings: Any,
    ) -> None:
        secret = SecretStr(token) if token else None
        self.settings, folder = ServeSettings(**FAST | settings), UPath(labelled) if labelled else None
        review = folder.parent / "review" if folder else None
        app = create_app(self.settings, store, folder, review, secret, task, second_opinion)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = uvicorn.Server(server_config(self.settings, app))
        self.thread = Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> "Service":
        self.thread.start()
        wait_until(lambda: self.server.started, "the service to listen")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def predict(self, image: bytes, **parameters: Any) -> httpx.Response:
        return self.client.post("/predict", content=image, headers={"Content-Type": "image/png"}, params=parameters)

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; 0 where there is none yet."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


class Process(NamedTuple):
    """A service in a process of its own."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def process(*arguments: str, python: str = "", prefix: tuple[str, ...] = (), **variables: str) -> Iterator[Process]:
    """Started with these options and this environment, by another `python` and below another command if they are
    named, once it listens."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    own = {} if python else {"PYTHONPATH": str(PROJECT)}  # another one has the package installed
    command = [*prefix, python or sys.executable, "-m", "mnist_pipeline.serve", "--port", "0", *arguments]
    with TemporaryDirectory() as folder:  # where no .env names the stores of a real deployment
        log = Path(folder) / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command,
                cwd=folder,
                env=kept | own | variables,
                stderr=output,
            ) as server,
        ):
            try:
                wait_until(lambda: LISTENING.search(log.read_text()) or server.poll() is not None, "it to listen", 60)
                found = LISTENING.search(log.read_text())
                assert found, log.read_text()
                yield Process(found.group(1), server, log)
            finally:
                server.kill()


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright; a skip that says what is missing."""
    import shutil

    import pytest
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
