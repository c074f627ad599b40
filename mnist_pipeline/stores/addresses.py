"""The choice of a store by its address, and of the deployment's by the environment."""

from mnist_pipeline.environment import PROJECT, Environment, EnvironmentInvalid
from mnist_pipeline.files.cloud import MEMORY, expand_user, parse_address, require_url
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.cloud import (
    AzureModelStore,
    CloudModelStore,
    GoogleModelStore,
    MemoryModelStore,
    S3ModelStore,
)
from mnist_pipeline.stores.local import LocalModelStore
from mnist_pipeline.stores.versions import MANIFEST

KINDS: dict[str, type[CloudModelStore]] = {
    kind.SCHEME: kind for kind in (S3ModelStore, GoogleModelStore, AzureModelStore, MemoryModelStore)
}
"""The stores that are named by an address with a scheme."""


def store_at(address: str, s3_endpoint_url: str | None = None) -> ModelStore:
    """Return the store at a folder, or at `s3://`, `gs://`, `az://` or `memory://`, of bucket and prefix.

    `s3_endpoint_url` is of stores that speak S3 but are not Amazon's. Raises ValueError for what is neither.
    """
    scheme, bucket, prefix = parse_address(address)
    if s3_endpoint_url:
        require_url(s3_endpoint_url)
    if not scheme:
        return LocalModelStore(base_path=str(expand_user(address).absolute()))
    if scheme == S3ModelStore.SCHEME:
        return S3ModelStore(bucket=bucket, prefix=prefix, endpoint_url=s3_endpoint_url)
    return KINDS[scheme](bucket=bucket, prefix=prefix)


def store_from_environment(environment: Environment) -> ModelStore:
    """Return the store that MODEL_STORE names, by default `models` in STORAGE_ROOT.

    Raises EnvironmentInvalid where STORAGE_ROOT is a bucket and the models of earlier code lie in the project.
    """
    before = PROJECT / "storage" / "models"
    elsewhere = "://" in environment.storage_root and not environment.storage_root.startswith(f"{MEMORY}://")
    if not environment.model_store and not environment.model_dir and elsewhere and any(before.glob(f"*/{MANIFEST}")):
        raise EnvironmentInvalid(
            f"MODEL_STORE: with STORAGE_ROOT={environment.storage_root} the models are in "
            f"{environment.model_address()} by default; those of before are in {before}. Set MODEL_STORE={before} to "
            f"keep them there, or copy them: MODEL_STORE={before} python -m mnist_pipeline copy "
            f"{environment.model_address()}, and set MODEL_STORE to that"
        )
    return store_at(environment.model_address(), environment.s3_endpoint_url)
