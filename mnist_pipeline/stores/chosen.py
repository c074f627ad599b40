"""The store that the environment chooses."""

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores.base import ModelStoreResource
from mnist_pipeline.stores.local import LocalModelStoreResource
from mnist_pipeline.stores.s3 import S3ModelStoreResource


def chosen_store(environment: Environment) -> ModelStoreResource:
    """By MODEL_STORE."""
    if environment.model_store == "s3":
        return S3ModelStoreResource(
            bucket=environment.s3_model_bucket or "",  # never empty: Environment requires it
            prefix=environment.s3_model_prefix,
            endpoint_url=environment.s3_endpoint_url,
        )
    return LocalModelStoreResource(base_path=environment.local_place("model_dir", "models"))
