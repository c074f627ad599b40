"""Examples for the OpenAPI document; they work as they are."""

from base64 import b64decode
from typing import Any

from mnist_pipeline.serve.schemas import PredictOptions
from mnist_pipeline.serve.settings import FORMATS
from mnist_pipeline.task import example
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TASK


def _array_schema(shape: tuple[int, ...]) -> dict[str, Any]:
    """The schema of an image as nested lists."""
    if not shape:
        return {"type": "integer", "minimum": 0, "maximum": 255}
    return {"type": "array", "minItems": shape[0], "maxItems": shape[0], "items": _array_schema(shape[1:])}


ARRAY_SCHEMA = _array_schema(TASK.array_shape) | {"description": "Rows of values 0..255."}
IMAGE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "contentEncoding": "base64", "description": "An image file."}, ARRAY_SCHEMA]
}


def predict_parameters() -> list[dict[str, Any]]:
    """Describe the query of POST /predict."""
    properties = PredictOptions.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in properties.items()
    ]


def predict_body() -> dict[str, Any]:
    """Describe the bodies of POST /predict, with examples."""
    array = read_image(b64decode(example.PICTURE)).tolist()
    binary = {"type": "string", "format": "binary"}
    images = {"type": "array", "items": IMAGE_SCHEMA, "minItems": 1}
    json = {
        "schema": {"oneOf": [_json_object(image=IMAGE_SCHEMA), _json_object(images=images)]},
        "examples": {
            "one image file": {"value": {"image": example.PICTURE}},
            "several images": {"value": {"images": [example.PICTURE, array]}},
        },
    }
    form = {"type": "object", "properties": {"image": {"type": "array", "items": binary}}, "required": ["image"]}
    files = (*(f"image/{name.lower()}" for name in FORMATS), "application/octet-stream")
    content = {"application/json": json, "multipart/form-data": {"schema": form}}
    return {"required": True, "content": content | {name: {"schema": binary} for name in files}}


def correction_body() -> dict[str, Any]:
    """Describe the body of POST /corrections, with an example."""
    label = {"type": "integer", "minimum": 0, "maximum": TASK.classes - 1}
    shown = {"image": read_image(b64decode(example.PICTURE)).tolist(), "label": example.LABEL}
    json = {"schema": _json_object(image=ARRAY_SCHEMA, label=label), "example": shown}
    return {"required": True, "content": {"application/json": json}}


def _json_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
