"""Model stores in a bucket or in memory, safe between machines by conditional writes (create, compare-and-swap)."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from mnist_pipeline.files import cloud
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ModelStoreError, ObjectChanged, ObjectMissing

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Bucket


class CloudModelStore(ModelStore):
    """A model store below a prefix of a bucket.

    Credentials come as the tools of its owner find them (`files.cloud.options`), never from here.
    """

    SCHEME: ClassVar[str]

    bucket: str = Field(description="The bucket; it must exist.")
    prefix: str = Field(default="", description="Put before all keys; a slash is added.")
    max_attempts: int = Field(default=5, ge=1, description="Attempts of one request, with growing pauses.")
    timeout_seconds: float = Field(default=30, gt=0, description="To connect, and to wait for each answer.")

    @property
    def address(self) -> str:
        return f"{self.SCHEME}://{self.bucket}/{self.prefix.strip('/')}".rstrip("/")

    def read_object(self, key: str) -> tuple[bytes, str]:
        import obstore

        with self._errors(key):
            answer = obstore.get(self._bucket(), self._key(key))
            return bytes(answer.bytes()), _token(answer.meta)

    def create_object(self, key: str, data: bytes) -> str:
        return self._put(key, data, "create")

    def replace_object(self, key: str, data: bytes, token: str) -> None:
        e_tag, _, version = token.partition(" ")
        self._put(key, data, {"e_tag": e_tag} | ({"version": version} if version else {}))

    def list_objects(self, prefix: str = "", after: str = "") -> Iterator[str]:
        import obstore

        base = self._key("")
        with self._errors(prefix):
            where = (base + prefix).rstrip("/") or None
            pages = obstore.list(self._bucket(), where, offset=base + after if after else None, chunk_size=cloud.PAGE)
            for page in pages:
                for found in page:
                    yield found["path"].removeprefix(base)

    def delete_object(self, key: str) -> None:
        import obstore

        with suppress(ObjectMissing), self._errors(key):  # Azure and Google say so
            obstore.delete(self._bucket(), self._key(key))

    def below(self, folder: str) -> Self:
        return self.model_copy(update={"prefix": self._key(folder)})

    def _put(self, key: str, data: bytes, mode: Any) -> str:
        import obstore

        try:
            with self._errors(key):
                # In one request: a killed upload in parts would leave them for ever.
                return _token(obstore.put(self._bucket(), self._key(key), data, mode=mode, use_multipart=False))
        except ObjectMissing:  # the object to be replaced was deleted
            raise ObjectChanged(key) from None

    def _key(self, key: str) -> str:
        return f"{self.prefix.strip('/')}/{key}" if self.prefix.strip("/") else key

    def _bucket(self) -> "Bucket":
        return cloud.connect(self.SCHEME, self.bucket, None, self.max_attempts, self.timeout_seconds)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with cloud.sentences(self.address):
                yield
        except (AlreadyExistsError, PreconditionError):
            raise ObjectChanged(key) from None
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        except cloud.StorageError as error:
            raise ModelStoreError(str(error)) from error


class S3ModelStore(CloudModelStore):
    """A model store in a bucket of Amazon S3, or of a store that speaks S3."""

    SCHEME = "s3"

    endpoint_url: str | None = Field(default=None, description="For stores that speak S3 but are not Amazon's.")

    def _bucket(self) -> "Bucket":
        return cloud.connect("s3", self.bucket, self.endpoint_url, self.max_attempts, self.timeout_seconds)


class GoogleModelStore(CloudModelStore):
    """A model store in a bucket of Google Cloud Storage."""

    SCHEME = "gs"


class AzureModelStore(CloudModelStore):
    """A model store in a container of Azure Blob Storage."""

    SCHEME = "az"


class MemoryModelStore(CloudModelStore):
    """A model store in the memory of this process, by the name `bucket`: for notebooks and tests."""

    SCHEME = cloud.MEMORY

    bucket: str = Field(default="", description="A name; stores of one name in a process are the same.")


def _token(meta: Any) -> str:
    """The e_tag, and the version where there is one."""
    return f"{meta['e_tag']} {meta['version'] or ''}".rstrip()
