"""Routes about all that is in the store: versions, their cards, comparisons, leaderboards."""

import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from mnist_pipeline.serve.errors import ServiceError, documented
from mnist_pipeline.stores import ModelStore
from mnist_pipeline.stores.errors import ObjectMissing
from mnist_pipeline.stores.objects import EXPERIMENTS, LEADERBOARD, SWEEP_NAME
from mnist_pipeline.stores.overview import overview, sweep_names
from mnist_pipeline.stores.versions import CARD, COMPARED, VERSION_NAME

STATIC = Path(__file__).parent / "static"
SORT_SCRIPT = Path(__file__).parents[1] / "experiments/templates/sort.js"

LISTED, MOST_LISTED = 50, 200

LONGEST_NAME = 200
"""No version has a longer name; file systems end at 255."""


class Version(BaseModel):
    """A version in the list."""

    version: str
    created_at: str = Field(description="UTC, to the second.")
    data: str = Field(description="The beginning of the data version that it was trained on.")
    validation_accuracy: float | None = Field(description="0..1.")
    test_accuracy: float | None = Field(description="0..1, as it was measured when the gate last decided about it.")
    decision: str = Field(description="The outcome of the last decision about it.")
    state: str = Field(description="deployed, reference, waiting, rolled back, damaged, or empty.")


class Versions(BaseModel):
    """The newest versions, and those in use."""

    versions: list[Version]
    total: int
    sweeps: list[str] = Field(description="The sweeps that were started last, at most as many as versions.")


def model_routes(store: ModelStore, **guarded: Any) -> APIRouter:
    """GET /versions and the pages that the store has of them."""
    router = APIRouter(tags=["models"], responses=documented({404: "The store has no such thing."}))

    def listed(limit: int) -> Versions:
        found = overview(store, limit)
        versions = [Version(**row._asdict()) for row in found.rows]
        return Versions(versions=versions, total=found.versions, sweeps=sweep_names(store)[:limit])

    def kept(key: str, missing: str) -> Response:
        try:
            return Response(store.read_object(key)[0], media_type="text/html; charset=utf-8")
        except ObjectMissing:
            raise ServiceError(404, "not_found", missing) from None

    @router.get("/versions", **guarded)
    async def versions(limit: int = Query(LISTED, ge=1, le=MOST_LISTED)) -> Versions:
        """List the newest versions, and those in use."""
        return await run_in_threadpool(listed, limit)

    @router.get("/versions/{version}/card", response_class=Response, **guarded)
    async def card(version: str) -> Response:
        """Return the card of a version, a page that stands by itself."""
        _require_version(version)
        missing = f"there is no card of {version}: python -m mnist_pipeline card {version} makes one"
        return await run_in_threadpool(kept, f"{version}/{CARD}", missing)

    @router.get("/versions/{version}/compared", **guarded)
    async def comparisons(version: str) -> list[str]:
        """List the versions that a version was compared with."""
        _require_version(version)
        prefix = f"{version}/{COMPARED}"
        keys = await run_in_threadpool(lambda: list(store.list_objects(prefix)))
        return [key.removeprefix(prefix).removesuffix(".html") for key in keys]

    @router.get("/versions/{version}/compared/{other}", response_class=Response, **guarded)
    async def comparison(version: str, other: str) -> Response:
        """Return the comparison of two versions, a page that stands by itself."""
        _require_version(version)
        _require_version(other)
        missing = f"both were not compared: python -m mnist_pipeline compare {version} {other} does"
        return await run_in_threadpool(kept, f"{version}/{COMPARED}{other}.html", missing)

    @router.get("/sweeps/{sweep}/leaderboard", response_class=Response, **guarded)
    async def leaderboard(sweep: str) -> Response:
        """Return the leaderboard of a sweep, a page that stands by itself."""
        missing = f"there is no leaderboard of a sweep {sweep[:LONGEST_NAME]!r}, or it is not complete yet"
        if not re.fullmatch(SWEEP_NAME, sweep):
            raise ServiceError(404, "not_found", missing)
        return await run_in_threadpool(kept, f"{EXPERIMENTS}{sweep}/{LEADERBOARD}", missing)

    return router


def model_pages() -> APIRouter:
    """GET /models, /models/<version> and /leaderboards/<sweep>, without their data."""
    router = APIRouter(include_in_schema=False)

    @router.get("/models")
    async def models_page() -> FileResponse:
        return FileResponse(STATIC / "models.html")

    @router.get("/models/{version}")
    @router.get("/leaderboards/{sweep}")
    async def report_page() -> FileResponse:
        return FileResponse(STATIC / "report.html")

    @router.get("/static/sort.js")
    async def sort_script() -> FileResponse:
        return FileResponse(SORT_SCRIPT, media_type="text/javascript")

    return router


def _require_version(name: str) -> None:
    if len(name) > LONGEST_NAME or not VERSION_NAME.fullmatch(name):
        raise ServiceError(404, "not_found", f"{name[:LONGEST_NAME]!r} is not the name of a version")
