"""POST /predict: answered at once where that is quick, else in a thread, so that nothing waits behind a large photo.

The network takes a tenth of a millisecond for an image, less than handing a request from thread to thread. So a request
of one small picture is answered where it stands, on the event loop; one that takes longer goes to one of a few threads.
"""

import uuid
from typing import NamedTuple

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from mnist_pipeline.ml.predictor import Answers
from mnist_pipeline.ml.review import ReviewQueue
from mnist_pipeline.ml.review_items import Doubt, Reason
from mnist_pipeline.serve.decoding import NotQuick, read_images
from mnist_pipeline.serve.deployment import DeploymentFollower, Served
from mnist_pipeline.serve.errors import ServiceError, overloaded
from mnist_pipeline.serve.limits import BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.middleware import error_response
from mnist_pipeline.serve.schemas import PredictOptions
from mnist_pipeline.serve.settings import ServeSettings

DEFAULTS = PredictOptions()


class Answer(NamedTuple):
    """The answer of one model about the images of one request."""

    served: Served
    images: np.ndarray
    """uint8 (N, *spec.array_shape)."""
    answers: Answers


class Predicting:
    """Reads and predicts requests, so many at a time."""

    def __init__(
        self,
        settings: ServeSettings,
        follower: DeploymentFollower,
        bodies: BodyReader,
        metrics: Metrics,
        queue: ReviewQueue | None,
    ) -> None:
        self._settings, self._follower, self._bodies = settings, follower, bodies
        self._metrics, self._queue = metrics, queue
        self._requests = 0
        self._threads = CapacityLimiter(settings.decoders)

    async def predict(self, request: Request) -> Response:
        """The class of each image."""
        # Read here: FastAPI's own reading of a query costs more than the network.
        options = _options(request) if request.scope["query_string"] else DEFAULTS
        async with self._bodies.hold(request) as body:
            if self._requests >= self._settings.max_requests:
                raise overloaded()
            self._requests += 1
            try:
                answer = await self._predict(body, request.headers.get("content-type", ""))
            finally:
                self._requests -= 1
        if isinstance(answer, ServiceError):
            return error_response(answer, self._metrics)
        return Response(to_json(self._describe(answer, options)), media_type="application/json")

    async def _predict(self, body: bytes, content_type: str) -> Answer | ServiceError:
        served = self._follower.answering
        try:
            return self._answer(served, body, content_type, quick=True)
        except NotQuick:
            pass
        return await to_thread.run_sync(self._in_thread, served, body, content_type, limiter=self._threads)

    def _answer(self, served: Served, body: bytes, content_type: str, quick: bool) -> Answer:
        images = read_images(body, content_type, self._settings, served.predictor.spec, quick=quick)
        return Answer(served, images, served.predictor.answer(images))

    def _in_thread(self, served: Served, body: bytes, content_type: str) -> Answer | ServiceError:
        """Return a refusal instead of raising it.

        An exception that passes from thread to thread ends in a cycle with its traceback, whose frames hold the request
        and the decoded picture: hundreds of megabytes, until Python next looks for cycles.
        """
        try:
            return self._answer(served, body, content_type, quick=False)
        except ServiceError as error:
            return ServiceError(error.status, error.code, error.message)

    def _describe(self, answer: Answer, options: PredictOptions) -> dict[str, object]:
        """Return the answer as `schemas.Predictions` has it, counted in the metrics; the unsure is queued."""
        version, spec, described = answer.served.decision.version, answer.served.predictor.spec, []
        probabilities, unlike = answer.answers.probabilities, answer.answers.unlike
        labels, confidences = probabilities.argmax(1).tolist(), probabilities.max(1).tolist()
        strange = [None] * len(labels) if unlike is None else unlike.tolist()
        self._metrics.batch_images.observe(len(labels))
        for position, (label, confidence) in enumerate(zip(labels, confidences, strict=True)):
            unsure = confidence < answer.served.threshold
            prediction = {
                "id": uuid.uuid4().hex,
                "label": label,
                "class": spec.class_names[label],
                "confidence": confidence,
                "needs_review": unsure,
                "unlike_training_data": strange[position],
            }
            if options.probabilities:
                prediction["probabilities"] = probabilities[position].tolist()
            if options.prepared:
                prediction["prepared"] = answer.images[position].tolist()
            described.append(prediction)
            self._metrics.predicted(label, confidence)
            if unsure:
                self._metrics.needs_review.inc()
            if strange[position]:
                self._metrics.unlike_training_data.inc()
            if (unsure or strange[position]) and options.review and self._queue:
                reason: Reason = "unlike" if strange[position] else "unsure"
                self._queue.add(Doubt(answer.images[position], reason, label, confidence), spec, version)
        return {"model": version, "predictions": described}


def _options(request: Request) -> PredictOptions:
    try:
        return PredictOptions.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
