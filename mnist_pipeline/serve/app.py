"""The HTTP application: routes over the followed deployment, the corrections and the review queue."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

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
from mnist_pipeline.ml.review import ReviewQueue
from mnist_pipeline.serve.corrections import Corrections
from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.errors import ServiceError, as_service_error, documented
from mnist_pipeline.serve.feedback import feedback_routes
from mnist_pipeline.serve.labelling import Labelling
from mnist_pipeline.serve.limits import BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.middleware import Guard, error_response
from mnist_pipeline.serve.models import model_pages, model_routes
from mnist_pipeline.serve.openapi import describe, predict_parameters
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.predicting import Predicting
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


def create_app(
    settings: ServeSettings,
    store: ModelStore,
    labelled: UPath | None = None,
    review: UPath | None = None,
    token: SecretStr | None = None,
    task: str | None = None,
    second_opinion: bool = False,
) -> Guard:
    """Return the service over one store, for models of one task; None: of any.

    `labelled` is where corrections go, and `review` where images to be looked at are kept; without both there is no
    feedback. With `second_opinion` every label that contradicts the model waits until somebody confirms it.
    """
    labelling = None
    if labelled and review:
        corrections = Corrections(labelled, store, settings.corrections_per_minute)
        queue = ReviewQueue(review, settings.review_items)
        labelling = Labelling(corrections, queue, second_opinion, settings.review)

    def count(outcome: str) -> None:
        metrics.deployments.labels(outcome).inc()

    def tidy() -> None:
        try:
            if labelling:
                labelling.queue.write()
                labelling.corrections.count_again()
        except (ModelStoreError, OSError) as error:
            log.warning("the storage of corrections or of what is to be reviewed cannot be used now: %s", error)

    follower = DeploymentFollower(store, settings.reload_seconds, count, settings.threads, tidy, task, settings)
    metrics = Metrics(lambda: follower.served)
    bodies = BodyReader(settings)
    predicting = Predicting(settings, follower, bodies, metrics, labelling.queue if labelling else None)
    app = FastAPIOffline(
        title="mnist_pipeline",
        summary="Predictions by the deployed model.",
        lifespan=_lifespan(follower),
        redoc_url=None,
    )
    bearer = [Depends(HTTPBearer(auto_error=False, description="SERVE_TOKEN"))] if token else []  # for /docs
    common: dict[str, Any] = {"responses": ERRORS, "dependencies": bearer}
    app.include_router(_predict_route(predicting), **common)
    app.include_router(operations_routes(settings, follower, metrics, **common))
    app.include_router(feedback_routes(labelling, follower, bodies, metrics, **common))
    app.include_router(model_routes(store, **common))
    describe(app, follower)
    _add_pages(app)
    _answer_errors_in_one_shape(app, metrics)
    secret, direct = token.get_secret_value() if token else None, {("POST", "/predict"): predicting.predict}
    return Guard(app, secret, settings.known_hosts(), metrics, direct)


def _lifespan(follower: DeploymentFollower) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(follower.start)
        yield
        await run_in_threadpool(follower.stop)

    return lifespan


def _predict_route(predicting: Predicting) -> APIRouter:
    router = APIRouter(tags=["predictions"], responses=PREDICT_ERRORS)
    router.add_api_route(
        "/predict",
        predicting.predict,
        methods=["POST"],
        response_model=Predictions,
        openapi_extra={"parameters": predict_parameters()},
    )
    return router


def _add_pages(app: FastAPI) -> None:
    app.include_router(model_pages())
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
