"""Dynamic batching: requests that are there at the same time go through the network together."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple, Protocol

import numpy as np

from mnist_pipeline.serve.decoding import NotQuick
from mnist_pipeline.serve.deployment import Served
from mnist_pipeline.serve.errors import no_model, overloaded
from mnist_pipeline.serve.settings import ServeSettings

SMALL_PIXELS = 512 * 512


class Answer(NamedTuple):
    """The answer of one model about the images of one request."""

    served: Served
    images: np.ndarray
    """uint8 (N, *spec.array_shape)."""
    probabilities: np.ndarray
    """float32 (N, classes)."""


class Read(Protocol):
    """Gives the images of one request, uint8 (N, *spec.array_shape); with `quick`, NotQuick instead of long work."""

    def __call__(self, *, quick: bool) -> np.ndarray: ...


class _Job(NamedTuple):
    read: Read
    future: "asyncio.Future[Answer]"


class _ReadJob(NamedTuple):
    images: np.ndarray
    future: "asyncio.Future[Answer]"


class Batcher:
    """One thread reads small requests and predicts, others read large ones; the event loop only waits.

    The thread that predicts takes whatever came while it was busy, up to `max_batch_images`, and waits a moment more
    only while further requests are being read. So a single client never waits, many share a pass, and a request is
    handed from thread to thread as seldom as can be. All images of a request are answered by one model.
    """

    def __init__(
        self, settings: ServeSettings, served: Callable[[], Served | None], observe_batch: Callable[[int], None]
    ) -> None:
        self._settings, self._served, self._observe_batch = settings, served, observe_batch
        # A drawing does not wait behind large photos.
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._large_readers = ThreadPoolExecutor(settings.decoders, thread_name_prefix="large-reader")
        self._queue: SimpleQueue[_Job | _ReadJob | None] = SimpleQueue()
        self._being_read = 0
        self._lock = Lock()
        self._requests = 0
        self._thread = Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to answer, on the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the threads, after the last request was answered."""
        self._readers.shutdown()
        self._large_readers.shutdown()
        self._queue.put(None)
        self._thread.join()

    def is_alive(self) -> bool:
        """Return whether the thread that predicts works."""
        return self._thread.is_alive()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among the requests in work. Raises ServiceError where all are taken. On the event loop only."""
        if self._requests >= self._settings.max_requests:
            raise overloaded()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def predict(self, read: Read) -> Answer:
        """Predict the images of one request. What `read` raises is raised here. Raises ServiceError where there is
        no model."""
        if self._served() is None:
            raise no_model()
        job = _Job(read, self._loop.create_future())
        self._queue.put(job)
        return await job.future

    def _run(self) -> None:
        while job := self._queue.get():
            batch = self._gather(job)
            if not batch:
                continue
            try:
                answers = self._predict(batch)
            except Exception as error:  # handed on to those who wait; the thread lives on
                self._loop.call_soon_threadsafe(_fail, [job.future for job in batch], error)
            else:
                self._loop.call_soon_threadsafe(_answer, batch, answers)

    def _gather(self, first: _Job | _ReadJob) -> list[_ReadJob]:
        """Read and return the requests that are predicted together."""
        batch: list[_ReadJob] = []
        images, deadline = 0, time.monotonic() + self._settings.batch_wait_ms / 1000
        job: _Job | _ReadJob | None = first
        taken = 0  # also jobs that come to nothing
        while job:
            taken += 1
            read = self._read(job, quick=True) if isinstance(job, _Job) else job
            if read:
                batch.append(read)
                images += len(read.images)
            if max(taken, images) >= self._settings.max_batch_images:
                break
            job = self._next(deadline)
        return batch

    def _next(self, deadline: float) -> _Job | _ReadJob | None:
        """Another job: now, or before the deadline while one is being read; else None."""
        wait = max(0.0, deadline - time.monotonic()) if self._being_read else 0.0
        try:
            job = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
        except Empty:
            return None
        if job is None:
            self._queue.put(None)  # to stop: after this batch
        return job

    def _read(self, job: _Job, quick: bool) -> _ReadJob | None:
        """Read a request; None where that failed, or is left to another thread."""
        try:
            return _ReadJob(job.read(quick=quick), job.future)
        except NotQuick as long:
            with self._lock:
                self._being_read += 1
            is_small = long.pixels is not None and long.pixels <= SMALL_PIXELS
            (self._readers if is_small else self._large_readers).submit(self._read_long, job)
        except Exception as error:  # handed on to the one who waits
            self._loop.call_soon_threadsafe(_fail, [job.future], error)
        return None

    def _read_long(self, job: _Job) -> None:
        read = self._read(job, quick=False)
        with self._lock:
            self._being_read -= 1
        if read:
            self._queue.put(read)

    def _predict(self, batch: list[_ReadJob]) -> list[Answer]:
        served = self._served()
        assert served, "a model that is served stays until another one is"
        images = np.concatenate([job.images for job in batch]) if len(batch) > 1 else batch[0].images
        probabilities = served.predictor.predict(images, self._settings.max_batch_images)
        self._observe_batch(len(images))
        ends = np.cumsum([len(job.images) for job in batch])[:-1]
        return [
            Answer(served, job.images, part) for job, part in zip(batch, np.split(probabilities, ends), strict=True)
        ]


def _answer(batch: list[_ReadJob], answers: list[Answer]) -> None:
    for job, answer in zip(batch, answers, strict=True):
        if not job.future.done():
            job.future.set_result(answer)


def _fail(futures: "list[asyncio.Future[Answer]]", error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
