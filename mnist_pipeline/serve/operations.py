"""Routes for those who run the service: what is served, whether it works, metrics."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.metrics import Metrics
from mnist_pipeline.serve.schemas import DeployedModel, Health, Readiness
from mnist_pipeline.serve.settings import ServeSettings


def operations_routes(
    settings: ServeSettings,
    follower: DeploymentFollower,
    metrics: Metrics,
    **guarded: Any,
) -> APIRouter:
    """GET /model, /healthz, /readyz and /metrics."""
    router = APIRouter(tags=["operations"])

    @router.get("/model", **guarded)
    async def model() -> DeployedModel:
        """Describe what is served: its metrics, when and why it was deployed."""
        return DeployedModel.of(follower.answering)

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> JSONResponse:
        """Tell if the process works; if not, restart it."""
        healthy = follower.is_alive()
        return JSONResponse(Health(healthy=healthy).model_dump(), 200 if healthy else 503)

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """Tell if there is a verified model to answer with."""
        served, store_error, refused = follower.status
        problems = []
        if store_error:
            problems.append("the model store cannot be reached")
        if refused:
            problems.append("what is deployed now cannot be used")
        if not served and not problems:
            problems.append("no model is deployed yet")
        state = Readiness(ready=bool(served), model=served.decision.version if served else None, problems=problems)
        return JSONResponse(state.model_dump(), 200 if served else 503)

    @router.get("/metrics", response_class=Response, **guarded)
    async def prometheus() -> Response:
        """Answer in the text format of Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
