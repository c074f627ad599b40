"""The HTTP application: routes over the batcher, the followed deployment and the corrections."""

import gc
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from upath import UPath

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.serve.batching import Answer, Batcher
from mnist_pipeline.serve.corrections import Corrections, ReviewQueue
from mnist_pipeline.serve.decoding import read_images
from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.errors import ServiceError, documented
from mnist_pipeline.serve.feedback import feedback_routes
from mnist_pipeline.serve.limits import BodyReader
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.middleware import Guard, error_response
from mnist_pipeline.serve.openapi import predict_body, predict_parameters
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.schemas import PredictionAnswer, Predictions, PredictOptions
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
    """The parts that one service is made of."""

    settings: ServeSettings
    metrics: Metrics
    follower: DeploymentFollower
    batcher: Batcher
    bodies: BodyReader
    corrections: Corrections | None
    queue: ReviewQueue


def create_app(
    settings: ServeSettings, store: ModelStore, labelled: UPath | None = None, token: SecretStr | None = None
) -> FastAPI:
    """Return the service over one store; `labelled` is where corrections go, None switches them off."""
    parts = _parts(settings, store, labelled)
    app = FastAPIOffline(
        title="mnist_pipeline", summary="Predictions by the deployed model.", lifespan=_lifespan(parts), redoc_url=None
    )
    bearer = [Depends(HTTPBearer(auto_error=False, description="SERVE_TOKEN"))] if token else []  # for /docs
    app.include_router(_predict_route(parts, bearer))
    app.include_router(operations_routes(settings, parts.follower, parts.batcher, parts.metrics, ERRORS, bearer))
    app.include_router(
        feedback_routes(
            *(parts.corrections, parts.queue, parts.bodies, parts.metrics, lambda: parts.follower.spec),
            responses=ERRORS,
            dependencies=bearer,
        )
    )
    _add_pages(app)
    _answer_errors_in_one_shape(app, parts.metrics)
    app.add_middleware(
        Guard, token=token.get_secret_value() if token else None, hosts=settings.known_hosts(), metrics=parts.metrics
    )
    return app


def _parts(settings: ServeSettings, store: ModelStore, labelled: UPath | None) -> Parts:
    metrics = Metrics()
    follower = DeploymentFollower(store, settings.reload_seconds, lambda what: metrics.deployments.labels(what).inc())
    return Parts(
        settings=settings,
        metrics=metrics,
        follower=follower,
        batcher=Batcher(settings, lambda: follower.served, metrics.batch_images.observe),
        bodies=BodyReader(settings),
        corrections=Corrections(labelled, store, settings.corrections_per_minute) if labelled else None,
        queue=ReviewQueue(settings.review_items),
    )


def _lifespan(parts: Parts) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        torch.set_num_threads(parts.settings.threads)
        await run_in_threadpool(parts.follower.start)
        parts.batcher.start()
        gc.collect()
        gc.freeze()  # what was imported stays: looking through it again and again would stop every answer for 0.2 s
        yield
        await run_in_threadpool(parts.batcher.stop)
        await run_in_threadpool(parts.follower.stop)

    return lifespan


def _predict_route(parts: Parts, bearer: list[Any]) -> APIRouter:
    router = APIRouter(tags=["predictions"], responses=ERRORS | PREDICT_ERRORS, dependencies=bearer)

    @router.post(
        "/predict",
        response_model=Predictions,
        # Read below: FastAPI's own reading of a query costs more than everything else on the event loop.
        openapi_extra={"requestBody": predict_body(), "parameters": predict_parameters()},
    )
    async def predict(request: Request) -> Response:
        """The class of each image."""
        try:
            options = PredictOptions.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        async with parts.bodies.read(request) as body:
            with parts.batcher.admitted():
                kind = request.headers.get("content-type", "")
                read = partial(read_images, body, kind, parts.settings, parts.follower.spec)
                answer = await parts.batcher.predict(read)
        predictions = _predictions(answer, options, parts.settings.confidence_threshold)
        _count(parts, answer, predictions, options)
        return Response(predictions.model_dump_json(exclude_none=True), media_type="application/json")

    return router


def _predictions(answer: Answer, options: PredictOptions, confidence_threshold: float) -> Predictions:
    labels, confidences = answer.probabilities.argmax(1).tolist(), answer.probabilities.max(1).tolist()
    return Predictions(
        model=answer.served.decision.version,
        predictions=[
            PredictionAnswer(
                id=uuid.uuid4().hex,
                label=label,
                confidence=confidence,
                needs_review=confidence < confidence_threshold,
                probabilities=row.tolist() if options.probabilities else None,
                prepared=image.tolist() if options.prepared else None,
            )
            for label, confidence, row, image in zip(
                labels, confidences, answer.probabilities, answer.images, strict=True
            )
        ],
    )


def _count(parts: Parts, answer: Answer, predictions: Predictions, options: PredictOptions) -> None:
    """Count an answer in the metrics, and put what is unsure into the queue for review."""
    for image, prediction in zip(answer.images, predictions.predictions, strict=True):
        parts.metrics.confidence.observe(prediction.confidence)
        parts.metrics.predictions.labels(prediction.label).inc()
        if prediction.needs_review:
            parts.metrics.needs_review.inc()
            if options.review and parts.corrections:
                parts.queue.add(image, prediction.label, prediction.confidence, predictions.model)


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def draw_page() -> FileResponse:
        return FileResponse(STATIC / "draw.html")

    @app.get("/review", include_in_schema=False)
    async def review_page() -> FileResponse:
        return FileResponse(STATIC / "review.html")


def _answer_errors_in_one_shape(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> JSONResponse:
        return error_response(error, metrics)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        answer = ServiceError(error.status_code, code, f"{error.detail}: see /docs for what there is")
        answer.headers.update(error.headers or {})
        return error_response(answer, metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return error_response(ServiceError(422, "bad_parameter", f"{problem['loc'][-1]}: {problem['msg']}"), metrics)

    @app.exception_handler(ModelError)
    async def model_failed(_: Request, error: ModelError) -> JSONResponse:
        return error_response(ServiceError(503, "model_failed", str(error)), metrics)

    @app.exception_handler(ModelStoreError)
    @app.exception_handler(OSError)
    async def storage_failed(_: Request, error: Exception) -> JSONResponse:
        log.error("storage failed: %s", error)
        message = "the storage of models or corrections cannot be used now: try again later; the log says why"
        return error_response(ServiceError(503, "storage_failed", message, retry_after=5), metrics)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        message = "this is a defect of the service: its log has the details"
        return error_response(ServiceError(500, "internal", message), metrics)
