"""The processes of a service: one, or several on one port that a supervisor starts again when they die."""

import ctypes
import logging
import os
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from mnist_pipeline.environment import Environment
from mnist_pipeline.serve.connections import server_config
from mnist_pipeline.serve.settings import SHARED_METRICS, ServeSettings

if TYPE_CHECKING:
    from mnist_pipeline.serve.middleware import Guard


LARGE_BYTES = 1 << 20
M_MMAP_THRESHOLD = -3
"""The name of the option in glibc's malloc.h."""


def give_memory_back() -> None:
    """Have what large pictures needed returned to the system, and not kept for the next ones.

    glibc raises the size from which it does so as it goes, up to 32 MiB, unless it is set.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def log_to_stderr() -> None:
    """Set up logging, which each process does for itself."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def serve(settings: ServeSettings, environment: Environment) -> None:
    """Serve in this process, or in as many of its own as the settings say, until it is told to stop."""
    config = server_config(settings, partial(build_app, settings, environment), factory=True)
    if settings.workers == 1:
        uvicorn.Server(config).run()
        return
    with TemporaryDirectory(prefix="metrics-") as folder:  # where the processes count together
        os.environ[SHARED_METRICS] = folder
        Multiprocess(config, sockets=[config.bind_socket()]).run()


def build_app(settings: ServeSettings, environment: Environment) -> "Guard":
    """Return the service of a deployment; each process makes its own."""
    from mnist_pipeline.files.storage import storage_path
    from mnist_pipeline.serve.app import create_app
    from mnist_pipeline.stores import store_from_environment

    log_to_stderr()
    give_memory_back()
    labelled, review = (
        storage_path(environment.place(name, folder), environment.s3_endpoint_url)
        for name, folder in (("labelled_dir", "labelled"), ("review_dir", "review"))
    )
    return create_app(
        settings,
        store_from_environment(environment),
        labelled if environment.feedback else None,
        review,
        environment.serve_token,
        environment.task_name,
        environment.second_opinion,
    )
