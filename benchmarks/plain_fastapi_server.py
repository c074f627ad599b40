"""The same model behind a plain FastAPI endpoint: one image, one forward pass, in FastAPI's thread pool."""

import sys

import uvicorn
from fastapi import FastAPI, UploadFile

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.preprocessing import read_image

_, store, port, threads = sys.argv
predictor = Predictor.from_store(LocalModelStore(base_path=store), threads=int(threads))
app = FastAPI()


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, float | int | str]:
    """Label and confidence."""
    [probabilities] = predictor.predict(read_image(image.file.read(), predictor.spec)[None])
    return {
        "model": predictor.version,
        "label": int(probabilities.argmax()),
        "confidence": float(probabilities.max()),
    }


uvicorn.run(app, port=int(port), access_log=False, log_level="warning")
