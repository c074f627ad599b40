"""Routes of the loop back to training: corrections, and the images to be looked at."""

import hashlib
from ipaddress import IPv6Address, ip_address, ip_network
from math import prod
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from mnist_pipeline.ml.review_items import IMAGE_ID, ReviewItem
from mnist_pipeline.serve.corrections import Correction
from mnist_pipeline.serve.decoding import parse_content_type, read_array, read_json
from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.errors import ErrorAnswer, ServiceError, documented, unusable
from mnist_pipeline.serve.labelling import HeldGroup, Labelling, Settled
from mnist_pipeline.serve.limits import MIB, BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.schemas import CorrectionState
from mnist_pipeline.task.spec import TaskSpec

LEAST_MIB = 0.0625
BYTES_A_NUMBER = 6
"""At most three figures, a comma, and some spaces."""

HOUSEHOLD_BITS = 64
"""The part of an IPv6 address that stands for a network; its owner has all the addresses behind it."""

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
    confirmed: bool = Field(
        False, description="Somebody looked at it: it is used for training even if the model says otherwise."
    )


def feedback_routes(
    labelling: Labelling | None, follower: DeploymentFollower, bodies: BodyReader, metrics: Metrics, **options: Any
) -> APIRouter:
    """Return the routes; without `labelling` they answer that it is switched off."""
    router = APIRouter(tags=["feedback"], **options)
    _add_corrections(router, labelling, follower, bodies, metrics)
    _add_review(router, labelling, follower, bodies, metrics)
    return router


def _switched_on(labelling: Labelling | None) -> Labelling:
    if labelling is None:
        raise ServiceError(403, "feedback_off", "corrections are switched off on this service (FEEDBACK=off)")
    return labelling


def _reviewing(labelling: Labelling | None) -> Labelling:
    if not (on := _switched_on(labelling)).review:
        raise ServiceError(403, "review_off", "nobody looks at images on this service (--review off)")
    return on


def _add_corrections(
    router: APIRouter, labelling: Labelling | None, follower: DeploymentFollower, bodies: BodyReader, metrics: Metrics
) -> None:
    @router.get("/corrections")
    async def state() -> CorrectionState:
        """Tell if corrections are taken, and how many wait for the next training."""
        if labelling is None:
            return CorrectionState(enabled=False, waiting=0)
        return CorrectionState(enabled=True, waiting=await run_in_threadpool(labelling.corrections.waiting))

    @router.post(
        "/corrections",
        status_code=201,
        response_model=Correction,
        responses={
            200: {"model": Correction, "description": "Stored before."},
            202: {"model": Correction, "description": "Held back until somebody confirms it."},
            **ANSWERS,
        },
    )
    async def correct(request: Request) -> Response:
        """Say what an image really shows: it is stored for the next training, the same image once.

        Of labels that contradict the deployed model some of a kind are used from one address in an hour; others wait.
        """
        on, served = _switched_on(labelling), follower.answering
        wanted = await _correction_request(request, bodies, served.predictor.spec)
        if wanted.confirmed:
            _reviewing(labelling)
        image = read_array(wanted.image, served.predictor.spec)
        source = source_of(request)
        correction, new = await run_in_threadpool(on.correct, served, image, wanted.label, wanted.confirmed, source)
        if new:
            (metrics.corrections_held if correction.held else metrics.corrections).inc()
        return JSONResponse(correction.model_dump(), 202 if correction.held else 201 if new else 200)

    @router.delete(
        "/corrections/{id}",
        status_code=204,
        responses={**ANSWERS, 404: {"model": ErrorAnswer, "description": "There is no such correction."}},
    )
    async def take_back(request: Request, id: Annotated[str, Path(pattern=IMAGE_ID)]) -> None:
        """Undo a correction."""
        await run_in_threadpool(_switched_on(labelling).take_back, id, follower.spec, source_of(request))


def _add_review(
    router: APIRouter, labelling: Labelling | None, follower: DeploymentFollower, bodies: BodyReader, metrics: Metrics
) -> None:
    @router.get("/review/items")
    async def items() -> list[ReviewItem]:
        """The latest images to be looked at that have the shape of the model's: labels that wait first."""
        if labelling is None or (served := follower.served) is None:
            return []
        return await run_in_threadpool(_reviewing(labelling).queue.items, served.predictor.spec.array_shape)

    @router.delete("/review/items/{id}", status_code=204, responses=ANSWERS)
    async def dismiss(id: Annotated[str, Path(pattern=IMAGE_ID)]) -> None:
        """Say that an image is of no class: it is shown no more, and trains no more if a correction said otherwise."""
        await run_in_threadpool(_reviewing(labelling).dismiss, id, follower.spec)

    body = {"required": True, "content": {"application/json": {"schema": HeldGroup.model_json_schema()}}}

    @router.post("/review/held", responses=ANSWERS, openapi_extra={"requestBody": body})
    async def settle(request: Request) -> Settled:
        """Confirm labels that wait, so that they train, or forget them."""
        on, served = _reviewing(labelling), follower.answering
        wanted = await _read(request, bodies, LEAST_MIB, HeldGroup, "bad_request")
        settled = await run_in_threadpool(on.settle, served, wanted)
        if wanted.confirm:
            metrics.corrections.inc(settled.settled)
        return settled


def source_of(request: Request) -> str:
    """Return a digest (hex) of the address that a request came from, of IPv6 of its network.

    So addresses do not stand in files and answers; they are no secret, since all of IPv4 can be tried.
    """
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:  # a socket of the system has a name
        return hashlib.sha256(host.encode()).hexdigest()[:16]
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or ip_network((int(address), HOUSEHOLD_BITS), strict=False).network_address
    return hashlib.sha256(str(address).encode()).hexdigest()[:16]


Content = TypeVar("Content", bound=BaseModel)


async def _read(request: Request, bodies: BodyReader, mib: float, kind: type[Content], code: str) -> Content:
    """The body, read within bounds. Raises ServiceError, for wrong content with the code."""
    if parse_content_type(request.headers.get("content-type", "")).get_content_type() != "application/json":
        raise ServiceError(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    async with bodies.hold(request, mib) as body:
        content = read_json(body)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise unusable(code, f"{where}: {problem['msg']}") from None


async def _correction_request(request: Request, bodies: BodyReader, task: TaskSpec) -> CorrectionRequest:
    # It is read on the event loop: no more than an image as numbers needs.
    mib = max(LEAST_MIB, prod(task.image_shape) * BYTES_A_NUMBER / MIB)
    wanted = await _read(request, bodies, mib, CorrectionRequest, "bad_correction")
    if wanted.class_name not in (None, *task.class_names[wanted.label : wanted.label + 1]):
        message = f"{str(wanted.class_name)[:100]!r} is not what label {wanted.label} stands for now: see /model"
        raise ServiceError(409, "other_classes", message)
    return wanted
