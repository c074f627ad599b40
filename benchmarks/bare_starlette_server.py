"""The least that could answer: a Starlette endpoint that decodes a picture and runs the model where it stands.

It has no limits, no errors of its own, no metrics, and follows no deployment: a yardstick, not a service.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.preprocessing import read_image

_, store, port, threads = sys.argv
predictor = Predictor.from_store(LocalModelStore(base_path=store), threads=int(threads))


async def predict(request: Request) -> JSONResponse:
    """Label and confidence of the picture that is the body."""
    [probabilities] = predictor.predict(read_image(await request.body(), predictor.spec)[None])
    label = int(probabilities.argmax())
    return JSONResponse({"model": predictor.version, "label": label, "confidence": float(probabilities[label])})


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
uvicorn.run(app, port=int(port), access_log=False, log_level="warning")
