"""Dynamic batching: requests that are there at the same time go through the network together."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

import numpy as np

from mnist_pipeline.serve.deployed import Served
from mnist_pipeline.serve.errors import no_model, overloaded
from mnist_pipeline.serve.settings import ServeSettings


class Answer(NamedTuple):
    """What one model said about the images of one request."""

    served: Served
    images: np.ndarray
    """uint8 (N, 28, 28)."""
    probabilities: np.ndarray
    """float32 (N, 10)."""


class _Job(NamedTuple):
    images: np.ndarray
    future: "asyncio.Future[Answer]"


class Batcher:
    """Some threads read requests into images, one thread predicts; the event loop only waits.

    The thread that predicts takes whatever has been read while it was busy, up to `max_batch_images`, and waits a
    moment more only while further requests are being read. So a single client never waits, and many share a pass.
    All images of a request are answered by one model.
    """

    def __init__(
        self, settings: ServeSettings, served: Callable[[], Served | None], observe_batch: Callable[[int], None]
    ) -> None:
        self._settings, self._served, self._observe_batch = settings, served, observe_batch
        self._readers = ThreadPoolExecutor(settings.decoders, thread_name_prefix="reader")
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._being_read = 0
        self._lock = Lock()
        self._requests = 0
        self._thread = Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """After the last request was answered."""
        self._readers.shutdown()
        self._queue.put(None)
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests in work. Raises ServiceError where all are taken. On the event loop only."""
        if self._requests >= self._settings.max_requests:
            raise overloaded()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def predict(self, read: Callable[[], np.ndarray]) -> Answer:
        """Read the images of one request and predict them.

        `read` gives uint8 (N, 28, 28) and runs in another thread; what it raises is raised here. Raises ServiceError
        where there is no model.
        """
        if self._served() is None:
            raise no_model()
        future: asyncio.Future[Answer] = self._loop.create_future()
        with self._lock:
            self._being_read += 1
        self._readers.submit(self._read, read, future)
        return await future

    def _read(self, read: Callable[[], np.ndarray], future: "asyncio.Future[Answer]") -> None:
        try:
            images = read()
        except Exception as error:  # handed on to the one who waits
            self._loop.call_soon_threadsafe(_fail, [future], error)
            return
        finally:
            with self._lock:
                self._being_read -= 1  # first: the batch must not wait for what it has
        self._queue.put(_Job(images, future))

    def _run(self) -> None:
        while job := self._queue.get():
            batch = self._gather(job)
            try:
                answers = self._predict(batch)
            except Exception as error:  # handed on to those who wait; the thread lives on
                self._loop.call_soon_threadsafe(_fail, [job.future for job in batch], error)
            else:
                self._loop.call_soon_threadsafe(_answer, batch, answers)

    def _gather(self, first: _Job) -> list[_Job]:
        batch, images = [first], len(first.images)
        deadline = time.monotonic() + self._settings.batch_wait_ms / 1000
        while images < self._settings.max_batch_images:
            try:
                job = self._queue.get_nowait()
            except Empty:
                wait = deadline - time.monotonic()
                if not self._being_read or wait <= 0:
                    break
                try:
                    job = self._queue.get(timeout=wait)
                except Empty:
                    break
            if job is None:  # to stop: after this batch
                self._queue.put(None)
                break
            batch.append(job)
            images += len(job.images)
        return batch

    def _predict(self, batch: list[_Job]) -> list[Answer]:
        served = self._served()
        assert served, "a model that is served stays until another one is"
        images = np.concatenate([job.images for job in batch]) if len(batch) > 1 else batch[0].images
        probabilities = served.predictor.predict(images, self._settings.max_batch_images)
        self._observe_batch(len(images))
        ends = np.cumsum([len(job.images) for job in batch])[:-1]
        return [
            Answer(served, job.images, part) for job, part in zip(batch, np.split(probabilities, ends), strict=True)
        ]


def _answer(batch: list[_Job], answers: list[Answer]) -> None:
    for job, answer in zip(batch, answers, strict=True):
        if not job.future.done():
            job.future.set_result(answer)


def _fail(futures: "list[asyncio.Future[Answer]]", error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
