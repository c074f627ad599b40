"""Routes of the loop back to training: corrections, and the unsure predictions to be looked at."""

import logging
from collections.abc import Callable
from math import prod
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from mnist_pipeline.serve.corrections import IMAGE_ID, Correction, Corrections
from mnist_pipeline.serve.decoding import parse_content_type, read_array, read_json
from mnist_pipeline.serve.errors import ErrorAnswer, ServiceError, documented, unusable
from mnist_pipeline.serve.limits import MIB, BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.review import ReviewItem, ReviewQueue
from mnist_pipeline.serve.schemas import CorrectionState
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

LEAST_MIB = 0.0625
BYTES_A_NUMBER = 6
"""At most three figures, a comma, and some spaces."""

ANSWERS = documented(
    {
        **{403: "Feedback is off.", 408: "Too slow.", 409: "There are other classes now.", 413: "Too large."},
        **{415: "Not JSON.", 429: "Too many."},
    }
)


class CorrectionRequest(BaseModel, extra="forbid", strict=True):
    """An image and its true label."""

    image: list[Any]
    label: int = Field(ge=0)
    class_name: str | None = Field(None, alias="class")


def feedback_routes(
    corrections: Corrections | None,
    queue: ReviewQueue | None,
    bodies: BodyReader,
    metrics: Metrics,
    spec: Callable[[], TaskSpec],
    **options: Any,
) -> APIRouter:
    """Return the routes; without `corrections` they answer that feedback is switched off."""
    router = APIRouter(tags=["feedback"], **options)

    def switched_on() -> Corrections:
        if corrections is None:
            raise ServiceError(403, "feedback_off", "corrections are switched off on this service (FEEDBACK=off)")
        return corrections

    @router.get("/corrections")
    async def state() -> CorrectionState:
        """Tell if corrections are taken, and how many wait for the next training."""
        if corrections is None:
            return CorrectionState(enabled=False, waiting=0)
        return CorrectionState(enabled=True, waiting=await run_in_threadpool(corrections.waiting))

    @router.post(
        "/corrections",
        status_code=201,
        response_model=Correction,
        responses={200: {"model": Correction, "description": "Stored before."}, **ANSWERS},
    )
    async def correct(request: Request) -> Response:
        """Say what an image really shows: it is stored for the next training, the same image once."""
        store, task = switched_on(), spec()
        wanted = await _correction_request(request, bodies, task)
        correction, new = await run_in_threadpool(store.add, read_array(wanted.image, task), wanted.label, task)
        if queue:
            await run_in_threadpool(_quietly, queue.label, correction.id)
        if new:
            metrics.corrections.inc()
        return JSONResponse(correction.model_dump(), 201 if new else 200)

    @router.delete(
        "/corrections/{id}",
        status_code=204,
        responses={**ANSWERS, 404: {"model": ErrorAnswer, "description": "There is no such correction."}},
    )
    async def take_back(id: Annotated[str, Path(pattern=IMAGE_ID)]) -> None:
        """Undo a correction."""
        store = switched_on()
        await run_in_threadpool(store.take_back, id, spec())
        if queue:
            await run_in_threadpool(_quietly, queue.take_back, id)

    @router.get("/review/items")
    async def review_items() -> list[ReviewItem]:
        """The latest predictions below the confidence threshold, least sure first, of images as they are now."""
        items = await run_in_threadpool(queue.items) if queue else []
        shape = spec().array_shape if items else ()
        return [item for item in items if np.shape(item.image) == shape]

    return router


def _quietly(change: Callable[[str], None], digest: str) -> None:
    """Change the queue; where that cannot be, the correction is stored all the same."""
    try:
        change(digest)
    except OSError as error:
        log.warning("what is to be reviewed cannot be stored now: %s", error)


async def _correction_request(request: Request, bodies: BodyReader, task: TaskSpec) -> CorrectionRequest:
    """The body, read within bounds. Raises ServiceError."""
    if parse_content_type(request.headers.get("content-type", "")).get_content_type() != "application/json":
        raise ServiceError(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    # It is read on the event loop: no more than an image as numbers needs.
    mib = max(LEAST_MIB, prod(task.image_shape) * BYTES_A_NUMBER / MIB)
    async with bodies.hold(request, mib) as body:
        content = read_json(body)
    try:
        wanted = CorrectionRequest.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise unusable("bad_correction", f"{where}: {problem['msg']}") from None
    if wanted.class_name not in (None, *task.class_names[wanted.label : wanted.label + 1]):
        message = f"{str(wanted.class_name)[:100]!r} is not what label {wanted.label} stands for now: see /model"
        raise ServiceError(409, "other_classes", message)
    return wanted
