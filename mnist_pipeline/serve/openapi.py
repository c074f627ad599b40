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
    file = {"schema": {"type": "string", "format": "binary"}}
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        {
                            "type": "object",
                            "properties": {"image": IMAGE_SCHEMA},
                            "required": ["image"],
                            "additionalProperties": False,
                        },
                        {
                            "type": "object",
                            "properties": {"images": {"type": "array", "items": IMAGE_SCHEMA, "minItems": 1}},
                            "required": ["images"],
                            "additionalProperties": False,
                        },
                    ]
                },
                "examples": {
                    "one image file": {"value": {"image": example.PICTURE}},
                    "several images": {"value": {"images": [example.PICTURE, array]}},
                },
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["image"],
                }
            },
            **{f"image/{form.lower()}": file for form in FORMATS},
            "application/octet-stream": file,
        },
    }


def correction_body() -> dict[str, Any]:
    """Describe the body of POST /corrections, with an example."""
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": ARRAY_SCHEMA,
                        "label": {"type": "integer", "minimum": 0, "maximum": TASK.classes - 1},
                    },
                    "required": ["image", "label"],
                    "additionalProperties": False,
                },
                "example": {"image": read_image(b64decode(example.PICTURE)).tolist(), "label": example.LABEL},
            }
        },
    }
