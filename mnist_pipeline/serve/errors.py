"""One shape for everything that goes wrong: `{"error": {"code": ..., "message": ...}}`."""

import logging
from functools import partial
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.stores import ModelStoreError

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """The reason of an error, for a program and for a person."""

    code: str = Field(description="Stable, for programs.", examples=["bad_image"])
    message: str = Field(description="A sentence: what was wrong and what is accepted.")


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def documented(meanings: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses`: the meaning of each status, in the one shape."""
    return {status: {"model": ErrorAnswer, "description": meaning} for status, meaning in meanings.items()}


class ServiceError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def answer(self) -> ErrorAnswer:
        """The body of the answer."""
        return ErrorAnswer(error=ErrorDetail(code=self.code, message=self.message))


bad_request, unusable = partial(ServiceError, 400), partial(ServiceError, 422)
"""The answers to a request that cannot be understood, and to one whose content cannot be used: code and message."""

too_large = partial(ServiceError, 413, "too_large")
"""The answer to more than this service takes: message."""


def overloaded() -> ServiceError:
    """Return the answer where as many requests as are allowed are in work."""
    return ServiceError(503, "overloaded", "too many requests are in work: try again in a second", retry_after=1)


def no_model() -> ServiceError:
    """Nothing was deployed yet, or nothing that can be used."""
    message = "no model is served: none is deployed yet, or it cannot be used (/readyz says which)"
    return ServiceError(503, "no_model", message, retry_after=5)


def as_service_error(error: Exception) -> ServiceError:
    """Return the answer to an error of any kind; those that are no answer themselves are logged."""
    match error:
        case ServiceError():
            return error
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
            answer = ServiceError(error.status_code, code, f"{error.detail}: see /docs for what there is")
            answer.headers.update(error.headers or {})
            return answer
        case RequestValidationError():
            problem = error.errors()[0]
            return unusable("bad_parameter", f"{problem['loc'][-1]}: {problem['msg']}")
        case ModelError():
            return ServiceError(503, "model_failed", str(error))
        case ModelStoreError() | OSError():
            log.error("storage failed: %s", error)
            message = "the storage of models or corrections cannot be used now: try again later; the log says why"
            return ServiceError(503, "storage_failed", message, retry_after=5)
    log.error("a defect", exc_info=error)
    return ServiceError(500, "internal", "this is a defect of the service: its log has the details")
