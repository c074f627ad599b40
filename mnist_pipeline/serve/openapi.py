"""The document of the service: bodies with examples that work for the model that answers."""

from base64 import b64decode
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from math import prod
from typing import Any

from fastapi import FastAPI

from mnist_pipeline.serve.deployment import DeploymentFollower
from mnist_pipeline.serve.schemas import PredictOptions
from mnist_pipeline.serve.settings import FORMATS
from mnist_pipeline.task import example
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TaskSpec

SHOWN_NUMBERS = 128 * 128 * 3
"""Larger images are not shown as arrays: JSON of them would be refused."""


def describe(app: FastAPI, follower: DeploymentFollower) -> None:
    """Have the application describe its bodies by the task of the model that answers; without one, in general."""
    general: Callable[[], dict[str, Any]] = app.openapi

    @lru_cache(maxsize=2)
    def document(spec: TaskSpec | None) -> dict[str, Any]:
        described = deepcopy(general())
        described["paths"]["/predict"]["post"]["requestBody"] = predict_body(spec)
        described["paths"]["/corrections"]["post"]["requestBody"] = correction_body(spec)
        return described

    # FastAPI's documentation has this as the way to another document.
    app.openapi = lambda: document(served.predictor.spec if (served := follower.served) else None)  # type: ignore[method-assign]


def _array_schema(shape: tuple[int, ...]) -> dict[str, Any]:
    """The schema of an image as nested lists."""
    if not shape:
        return {"type": "integer", "minimum": 0, "maximum": 255}
    return {"type": "array", "minItems": shape[0], "maxItems": shape[0], "items": _array_schema(shape[1:])}


def _rows(spec: TaskSpec | None) -> dict[str, Any]:
    """The schema of an image as an array."""
    schema = _array_schema(spec.array_shape) if spec else {"type": "array", "items": {"type": "array"}}
    return schema | {"description": "Rows of values 0..255."}


def predict_parameters() -> list[dict[str, Any]]:
    """Describe the query of POST /predict."""
    properties = PredictOptions.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in properties.items()
    ]


def predict_body(spec: TaskSpec | None) -> dict[str, Any]:
    """Describe the bodies of POST /predict, with examples."""
    file = {"type": "string", "contentEncoding": "base64", "description": "An image file."}
    image, array = {"anyOf": [file, _rows(spec)]}, _example(spec)
    binary = {"type": "string", "format": "binary"}
    images = {"type": "array", "items": image, "minItems": 1}
    json = {
        "schema": {"oneOf": [_json_object(image=image), _json_object(images=images)]},
        "examples": {
            "one image file": {"value": {"image": example.PICTURE}},
            "several images": {"value": {"images": [example.PICTURE, *array]}},
        },
    }
    form = {"type": "object", "properties": {"image": {"type": "array", "items": binary}}, "required": ["image"]}
    files = (*(f"image/{name.lower()}" for name in FORMATS), "application/octet-stream")
    content = {"application/json": json, "multipart/form-data": {"schema": form}}
    return {"required": True, "content": content | {name: {"schema": binary} for name in files}}


def correction_body(spec: TaskSpec | None) -> dict[str, Any]:
    """Describe the body of POST /corrections, with an example."""
    label: dict[str, Any] = {"type": "integer", "minimum": 0}
    schema = _json_object(image=_rows(spec), label=label)
    schema["properties"]["class"] = {"type": "string", "description": "Its name: refused if it has another label now."}
    schema["properties"]["confirmed"] = {"type": "boolean", "description": "Somebody looked at it."}
    json: dict[str, Any] = {"schema": schema}
    if spec:
        label |= {"maximum": spec.classes - 1, "description": ", ".join(spec.class_names[:100])}
        if shown := _example(spec):
            json["example"] = {"image": shown[0], "label": example.label(spec)}
    return {"required": True, "content": {"application/json": json}}


def _example(spec: TaskSpec | None) -> list[Any]:
    """The example as an array of the task; nothing where the task is not known, or its images are long to read."""
    if spec is None or prod(spec.image_shape) > SHOWN_NUMBERS:
        return []
    return [read_image(b64decode(example.PICTURE), spec).tolist()]


def _json_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
