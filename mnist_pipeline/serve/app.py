"""The HTTP application: routes over the batcher, the followed deployment and the corrections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from upath import UPath

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.serve.corrections import Corrections
from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.errors import ServiceError, as_service_error, documented
from mnist_pipeline.serve.feedback import feedback_routes
from mnist_pipeline.serve.limits import BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.middleware import Guard, error_response
from mnist_pipeline.serve.openapi import predict_body, predict_parameters
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.predicting import Predicting
from mnist_pipeline.serve.review import ReviewQueue
from mnist_pipeline.serve.schemas import Predictions
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline.stores import ModelStore, ModelStoreError

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
ERRORS = documented(
    {
        400: "The request cannot be understood.",
        401: "The token is missing or wrong.",
        403: "Not allowed.",
        422: "The content cannot be used.",
        503: "No model is deployed, or too much is asked at a time.",
    }
)
PREDICT_ERRORS = documented({408: "Too slow.", 413: "Too large.", 415: "Not a kind of content that is accepted."})


class Parts(NamedTuple):
    """The parts of one service that work beside its requests."""

    follower: DeploymentFollower
    corrections: Corrections | None
    queue: ReviewQueue | None


def create_app(
    settings: ServeSettings,
    store: ModelStore,
    labelled: UPath | None = None,
    review: UPath | None = None,
    token: SecretStr | None = None,
) -> Guard:
    """Return the service over one store.

    `labelled` is where corrections go, None switches them off; `review` is where unsure predictions are kept.
    """
    follower = DeploymentFollower(
        store, settings.reload_seconds, lambda outcome: metrics.deployments.labels(outcome).inc(), settings.threads
    )
    metrics = Metrics(lambda: follower.served)
    corrections = Corrections(labelled, store, settings.corrections_per_minute) if labelled else None
    queue = ReviewQueue(review, settings.review_items) if labelled and review else None
    bodies = BodyReader(settings)
    predicting = Predicting(settings, follower, bodies, metrics, queue)
    app = FastAPIOffline(
        title="mnist_pipeline",
        summary="Predictions by the deployed model.",
        lifespan=_lifespan(Parts(follower, corrections, queue), settings.reload_seconds),
        redoc_url=None,
    )
    common: dict[str, Any] = {
        "responses": ERRORS,
        "dependencies": [Depends(HTTPBearer(auto_error=False, description="SERVE_TOKEN"))]
        if token
        else [],  # for /docs
    }
    app.include_router(_predict_route(predicting), **common)
    app.include_router(operations_routes(settings, follower, metrics, **common))
    app.include_router(
        feedback_routes(corrections, queue, bodies, metrics, lambda: follower.spec, **common),
    )
    _add_pages(app)
    _answer_errors_in_one_shape(app, metrics)
    secret, direct = token.get_secret_value() if token else None, {("POST", "/predict"): predicting.predict}
    return Guard(app, secret, settings.known_hosts(), metrics, direct)


def _lifespan(parts: Parts, every_seconds: float) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(parts.follower.start)
        keeping = asyncio.create_task(_keep(parts, every_seconds))
        yield
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await run_in_threadpool(parts.follower.stop)
        await run_in_threadpool(_tidy, parts)

    return lifespan


async def _keep(parts: Parts, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        await run_in_threadpool(_tidy, parts)


def _tidy(parts: Parts) -> None:
    """Store what is to be reviewed, and count the corrections; both only where there is something to do."""
    try:
        if parts.queue:
            parts.queue.write()
        if parts.corrections:
            parts.corrections.count_again(parts.follower.spec)
    except (ModelStoreError, OSError) as error:
        log.warning("the storage of corrections or of what is to be reviewed cannot be used now: %s", error)


def _predict_route(predicting: Predicting) -> APIRouter:
    router = APIRouter(tags=["predictions"], responses=PREDICT_ERRORS)
    router.add_api_route(
        "/predict",
        predicting.predict,
        methods=["POST"],
        response_model=Predictions,
        openapi_extra={"requestBody": predict_body(), "parameters": predict_parameters()},
    )
    return router


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def draw_page() -> FileResponse:
        return FileResponse(STATIC / "draw.html")

    @app.get("/review", include_in_schema=False)
    async def review_page() -> FileResponse:
        return FileResponse(STATIC / "review.html")


def _answer_errors_in_one_shape(app: FastAPI, metrics: Metrics) -> None:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        return error_response(as_service_error(error), metrics)

    for kind in (ServiceError, HTTPException, RequestValidationError, ModelError, ModelStoreError, OSError, Exception):
        app.add_exception_handler(kind, answer)
