"""Follows what is deployed: the model that answers is the one in production, verified, at most a moment late."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Event, Thread
from typing import NamedTuple

from mnist_pipeline.ml.coverage import review_threshold
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import ReviewSettings
from mnist_pipeline.serve.errors import no_model
from mnist_pipeline.stores import CorruptModel, ModelStore, ModelStoreError, UnknownModel
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)


REVIEW = ReviewSettings()


class Served(NamedTuple):
    """A verified model and the decision that deployed it."""

    decision: Decision
    predictor: Predictor
    since: datetime
    threshold: float
    """The confidence below which an answer needs review."""


class Status(NamedTuple):
    """The findings of the last look at the store."""

    served: Served | None
    store_error: str | None
    """Why the store could not be asked; None if it could."""
    refused: str | None
    """Why what is deployed is not served; None if it is."""


class DeploymentFollower:
    """Looks at the store every so often, in a thread of its own, and swaps the model in one assignment."""

    def __init__(
        self,
        store: ModelStore,
        every_seconds: float,
        count: Callable[[str], None],
        threads: int = 1,
        beside: Callable[[], None] = lambda: None,
        task: str | None = None,
        review: ReviewSettings = REVIEW,
    ) -> None:
        """Tell `count` each outcome: served, refused or store_error; `beside` is called after each look.

        A model of another task than `task` is refused; None: any is served.
        """
        self._store, self._every, self._count, self._threads = store, every_seconds, count, threads
        self._beside, self._task, self._review = beside, task, review
        self.status = Status(None, None, None)
        self._stop = Event()
        self._thread = Thread(target=self._run, name="deployment", daemon=True)

    @property
    def served(self) -> Served | None:
        """The model that answers; None while there is none."""
        return self.status.served

    @property
    def answering(self) -> Served:
        """The model that answers. Raises ServiceError while there is none."""
        if (served := self.status.served) is None:
            raise no_model()
        return served

    @property
    def spec(self) -> TaskSpec:
        """The task of the model that answers. Raises ServiceError while there is none."""
        return self.answering.predictor.spec

    def is_alive(self) -> bool:
        """Return whether the thread works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Look once, so that what is deployed already answers the first request; then again and again."""
        self.look()
        if self.status == Status(None, None, None):
            log.warning("no model is deployed yet in %r: it is served as soon as there is one", self._store)
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and wait for the thread."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Serve what is deployed by now. Whatever is wrong with it or with the store, what is served stays."""
        before = self.status
        try:
            decision = self._store.production()
            if decision is None:
                lost = "the store has no deployed model any more" if before.served else None
                self._change(before, Status(before.served, None, lost))
            else:
                self._change(before, Status(self._serve(decision, before.served), None, None))
        except (CorruptModel, UnknownModel, ModelError) as error:
            self._change(before, Status(before.served, None, str(error)))
        except (ModelStoreError, OSError) as error:
            self._change(before, Status(before.served, str(error), before.refused))
        except Exception as error:  # whatever another version of this code has deployed: it is refused
            log.debug("while looking at what is deployed", exc_info=True)
            self._change(before, Status(before.served, None, f"{type(error).__name__}: {error}"))

    def _serve(self, decision: Decision, served: Served | None) -> Served:
        if served and served.decision.id == decision.id:
            return served
        predictor = Predictor(*self._store.load_onnx(decision.version), threads=self._threads)
        if not predictor.manifest.digests.same(decision.digests):
            raise CorruptModel(f"{decision.version} has other files than the decision {decision.id} deployed")
        if self._task is not None:
            predictor.require_task(self._task)
        predictor.verify()
        return Served(decision, predictor, datetime.now(UTC), review_threshold(predictor.manifest, self._review))

    def _change(self, before: Status, now: Status) -> None:
        self.status = now
        if now.served and now.served is not before.served:
            log.info("serving %s: %s", now.served.decision.version, now.served.decision.reason)
            self._count("served")
        if now.refused and now.refused != before.refused:
            log.error("what is deployed is not served: %s", now.refused)
            self._count("refused")
        if now.store_error and now.store_error != before.store_error:
            log.error("the store cannot be reached: %s", now.store_error)
            self._count("store_error")
        if before.store_error and not now.store_error:
            log.info("the store can be reached again")

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.look()
            self._beside()
        self._beside()
