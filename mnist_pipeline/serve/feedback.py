"""Routes of the loop back to training: corrections, and the unsure predictions to be looked at."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from mnist_pipeline.ml.settings import CLASSES
from mnist_pipeline.serve.answers import CorrectionState
from mnist_pipeline.serve.bodies import BodyReader
from mnist_pipeline.serve.corrections import IMAGE_ID, Correction, Corrections, ReviewItem, ReviewQueue
from mnist_pipeline.serve.errors import ErrorAnswer, ServiceError, documented, unusable
from mnist_pipeline.serve.examples import correction_body
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.requests import parse_content_type, read_array, read_json

CORRECTION_MIB = 0.0625
"""Read on the event loop; 28x28 numbers need far less."""


class CorrectionRequest(BaseModel):
    """An image and what it really shows."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: list[Any]
    label: int = Field(ge=0, lt=CLASSES)


def feedback_routes(
    corrections: Corrections | None, queue: ReviewQueue, bodies: BodyReader, metrics: Metrics, **options: Any
) -> APIRouter:
    """The routes; without `corrections` they answer that feedback is switched off."""
    router = APIRouter(tags=["feedback"], **options)
    answers = documented(
        {403: "Feedback is off.", 408: "Too slow.", 413: "Too large.", 415: "Not JSON.", 429: "Too many."}
    )

    def switched_on() -> Corrections:
        if corrections is None:
            raise ServiceError(403, "feedback_off", "corrections are switched off on this service (FEEDBACK=off)")
        return corrections

    @router.get("/corrections")
    async def state() -> CorrectionState:
        """Whether corrections are taken, and how many wait for the next training."""
        if corrections is None:
            return CorrectionState(enabled=False, waiting=0)
        return CorrectionState(enabled=True, waiting=await run_in_threadpool(corrections.waiting))

    @router.post(
        "/corrections",
        status_code=201,
        response_model=Correction,
        responses={200: {"model": Correction, "description": "Stored before."}, **answers},
        openapi_extra={"requestBody": correction_body(CLASSES - 1)},
    )
    async def correct(request: Request) -> Response:
        """Say what an image really shows: it is stored for the next training, the same image once."""
        store = switched_on()
        if parse_content_type(request.headers.get("content-type", "")).get_content_type() != "application/json":
            raise ServiceError(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        async with bodies.read(request, CORRECTION_MIB) as body:
            content = read_json(body)
        try:
            wanted = CorrectionRequest.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise unusable("bad_correction", f"{where}: {problem['msg']}") from None
        correction, new = await run_in_threadpool(store.add, read_array(wanted.image), wanted.label)
        queue.label(correction.id)
        if new:
            metrics.corrections.inc()
        return JSONResponse(correction.model_dump(), 201 if new else 200)

    @router.delete(
        "/corrections/{id}",
        status_code=204,
        responses={**answers, 404: {"model": ErrorAnswer, "description": "There is no such correction."}},
    )
    async def take_back(id: Annotated[str, Path(pattern=IMAGE_ID)]) -> None:
        """Undo a correction."""
        store = switched_on()
        await run_in_threadpool(store.take_back, id)
        queue.take_back(id)

    @router.get("/review/items")
    async def review_items() -> list[ReviewItem]:
        """The latest predictions below the confidence threshold, least sure first."""
        return queue.items()

    return router
