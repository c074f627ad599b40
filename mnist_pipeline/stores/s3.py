"""A model store in an S3 bucket, safe between machines by S3's conditional writes."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ModelStoreError, ObjectChanged, ObjectMissing

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

MISSING = {"NoSuchKey", "404"}
CONDITION_FAILED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def from_environment(environment: Environment) -> ModelStore:
    """Return the store below S3_MODEL_PREFIX of S3_MODEL_BUCKET."""
    return S3ModelStore(
        bucket=environment.s3_model_bucket or "",  # never empty: Environment requires it
        prefix=environment.s3_model_prefix,
        endpoint_url=environment.s3_endpoint_url,
    )


class S3ModelStore(ModelStore):
    """A model store below a prefix of an S3 bucket.

    Credentials and region come the way boto3 finds them (environment, profile, role), never from here.
    """

    bucket: str = Field(description="The bucket; it must exist.")
    prefix: str = Field(default="", description="Put before all keys; a slash is added.")
    endpoint_url: str | None = Field(default=None, description="For stores that speak S3 but are not Amazon's.")
    max_attempts: int = Field(default=5, ge=1, description="Attempts of one request, with growing pauses.")
    timeout_seconds: float = Field(default=30, gt=0, description="To connect, and to wait for each answer.")

    def read_object(self, key: str) -> tuple[bytes, str]:
        response = self._call("get_object", key)
        return self._body(response, key), response["ETag"]

    def create_object(self, key: str, data: bytes) -> None:
        self._call("put_object", key, Body=data, IfNoneMatch="*")

    def replace_object(self, key: str, data: bytes, token: str) -> None:
        try:
            self._call("put_object", key, Body=data, IfMatch=token)
        except ObjectMissing:  # S3 answers NoSuchKey to If-Match on an absent key
            raise ObjectChanged(key) from None

    def list_objects(self, prefix: str = "") -> Iterator[str]:
        from botocore.exceptions import BotoCoreError, ClientError

        base = self._key("")
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
        try:
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(base)
        except (ClientError, BotoCoreError) as error:
            self._fail("list", prefix, error)

    def delete_object(self, key: str) -> None:
        self._call("delete_object", key)

    def _key(self, key: str) -> str:
        return f"{self.prefix.strip('/')}/{key}" if self.prefix.strip("/") else key

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self.bucket, Key=self._key(key), **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in MISSING:
                raise ObjectMissing(key) from error
            if code in CONDITION_FAILED:
                raise ObjectChanged(key) from error
            self._fail(operation, key, error)
        except BotoCoreError as error:
            self._fail(operation, key, error)

    def _body(self, response: dict[str, Any], key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            return response["Body"].read()
        except BotoCoreError as error:  # the connection broke while the content was on its way
            self._fail("get_object", key, error)

    def _fail(self, operation: str, key: str, error: "ClientError | BotoCoreError") -> NoReturn:
        where = f"s3://{self.bucket}/{self._key(key)}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")
        raise ModelStoreError(
            f"{operation} on {where} failed: {error}. Check the bucket's name, the credentials and the network"
        ) from error

    @cached_property
    def _client(self) -> Any:
        from boto3 import Session
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "max_attempts": self.max_attempts},
            connect_timeout=self.timeout_seconds,
            read_timeout=self.timeout_seconds,
        )
        return Session().client("s3", endpoint_url=self.endpoint_url, config=config)
