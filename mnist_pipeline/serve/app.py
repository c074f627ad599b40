"""The HTTP application: routes over the batcher, the followed deployment and the corrections."""

import gc
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import torch
from botocore.exceptions import BotoCoreError
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from upath import UPath

from mnist_pipeline.ml.network import ModelError
from mnist_pipeline.serve.answers import PredictionAnswer, Predictions, PredictOptions
from mnist_pipeline.serve.batching import Answer, Batcher
from mnist_pipeline.serve.bodies import BodyReader
from mnist_pipeline.serve.corrections import Corrections, ReviewQueue
from mnist_pipeline.serve.deployed import DeploymentFollower
from mnist_pipeline.serve.errors import ServiceError, documented
from mnist_pipeline.serve.examples import predict_body, predict_parameters
from mnist_pipeline.serve.feedback import feedback_routes
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.middleware import Guard, error_response
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.requests import read_images
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline.stores import ModelStoreError, ModelStoreResource

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
    settings: ServeSettings, store: ModelStoreResource, labelled: UPath | None = None, token: SecretStr | None = None
) -> FastAPI:
    """The service over one store; `labelled` is where corrections go, None switches them off."""
    metrics = Metrics()
    follower = DeploymentFollower(store, settings.reload_seconds, lambda what: metrics.deployments.labels(what).inc())
    batcher = Batcher(settings, lambda: follower.served, metrics.batch_images.observe)
    bodies = BodyReader(settings)
    corrections = Corrections(labelled, store, settings.corrections_per_minute) if labelled else None
    queue = ReviewQueue(settings.review_items)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        torch.set_num_threads(settings.threads)
        await run_in_threadpool(follower.start)
        batcher.start()
        gc.collect()
        gc.freeze()  # what was imported stays: looking through it again and again would stop every answer for 0.2 s
        yield
        await run_in_threadpool(batcher.stop)
        await run_in_threadpool(follower.stop)

    app = FastAPIOffline(
        title="mnist_pipeline", summary="Digits, by the deployed model.", lifespan=lifespan, redoc_url=None
    )
    bearer = [Depends(HTTPBearer(auto_error=False, description="SERVE_TOKEN"))] if token else []  # for /docs

    @app.post(
        "/predict",
        tags=["predictions"],
        response_model=Predictions,
        responses=ERRORS | PREDICT_ERRORS,
        dependencies=bearer,
        # Read below: FastAPI's own reading of a query costs more than everything else on the event loop.
        openapi_extra={"requestBody": predict_body(), "parameters": predict_parameters()},
    )
    async def predict(request: Request) -> Response:
        """The digit in each image."""
        try:
            options = PredictOptions.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        async with bodies.read(request) as body:
            with batcher.admitted():
                kind = request.headers.get("content-type", "")
                answer = await batcher.predict(partial(read_images, body, kind, settings))
        predictions = Predictions(model=answer.served.decision.version, predictions=_predictions(answer, options))
        for image, prediction in zip(answer.images, predictions.predictions, strict=True):
            metrics.confidence.observe(prediction.confidence)
            metrics.predictions.labels(prediction.label).inc()
            if prediction.needs_review:
                metrics.needs_review.inc()
                if options.review and corrections:
                    queue.add(image, prediction.label, prediction.confidence, predictions.model)
        return Response(predictions.model_dump_json(exclude_none=True), media_type="application/json")

    def _predictions(answer: Answer, options: PredictOptions) -> list[PredictionAnswer]:
        labels, confidences = answer.probabilities.argmax(1).tolist(), answer.probabilities.max(1).tolist()
        return [
            PredictionAnswer(
                id=uuid.uuid4().hex,
                label=label,
                confidence=confidence,
                needs_review=confidence < settings.confidence_threshold,
                probabilities=row.tolist() if options.probabilities else None,
                prepared=image.tolist() if options.prepared else None,
            )
            for label, confidence, row, image in zip(
                labels, confidences, answer.probabilities, answer.images, strict=True
            )
        ]

    app.include_router(operations_routes(settings, follower, batcher, metrics, ERRORS, bearer))
    app.include_router(feedback_routes(corrections, queue, bodies, metrics, responses=ERRORS, dependencies=bearer))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def draw_page() -> FileResponse:
        return FileResponse(STATIC / "draw.html")

    @app.get("/review", include_in_schema=False)
    async def review_page() -> FileResponse:
        return FileResponse(STATIC / "review.html")

    _answer_errors_in_one_shape(app, metrics)
    app.add_middleware(
        Guard, token=token.get_secret_value() if token else None, hosts=settings.known_hosts(), metrics=metrics
    )
    return app


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

    @app.exception_handler(BotoCoreError)
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
