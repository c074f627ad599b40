"""Examples for the OpenAPI document; they work as they are."""

from base64 import b64decode
from typing import Any

from mnist_pipeline.ml.images import read_image
from mnist_pipeline.ml.settings import SIDE
from mnist_pipeline.serve.answers import PredictOptions
from mnist_pipeline.serve.settings import FORMATS

SEVEN = (
    "iVBORw0KGgoAAAANSUhEUgAAADgAAAA4AQAAAACA/QazAAAAX0lEQVR42rWQsRGAIBRDgwvgBjIKm7kck7CA0Fl4PgsbQk+Vy7+8"
    "3OUHJEnatFYFkk5+PfjvaczBncc8NLCePvXWyRc5H51n9/yb3D/Z+YbzfdpVJ198LxEQcAFh0Z8/Oo01s3YI6D8AAAAASUVORK5C"
    "YII="
)
"""A drawn seven, a PNG file in base64."""

ARRAY_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": SIDE,
    "maxItems": SIDE,
    "items": {
        "type": "array",
        "minItems": SIDE,
        "maxItems": SIDE,
        "items": {"type": "integer", "minimum": 0, "maximum": 255},
    },
    "description": f"{SIDE} rows of {SIDE} values, 0 background to 255 ink.",
}
IMAGE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "contentEncoding": "base64", "description": "An image file."}, ARRAY_SCHEMA]
}


def predict_parameters() -> list[dict[str, Any]]:
    """The query of POST /predict."""
    properties = PredictOptions.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in properties.items()
    ]


def predict_body() -> dict[str, Any]:
    """The request bodies of POST /predict, with examples."""
    array = read_image(b64decode(SEVEN)).tolist()
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
                    "one image file": {"value": {"image": SEVEN}},
                    "several images": {"value": {"images": [SEVEN, array]}},
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


def correction_body(label_max: int) -> dict[str, Any]:
    """The request body of POST /corrections, with an example."""
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": ARRAY_SCHEMA,
                        "label": {"type": "integer", "minimum": 0, "maximum": label_max},
                    },
                    "required": ["image", "label"],
                    "additionalProperties": False,
                },
                "example": {"image": read_image(b64decode(SEVEN)).tolist(), "label": 7},
            }
        },
    }
