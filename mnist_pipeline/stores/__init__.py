"""Model stores: immutable versions, one production pointer, an audit trail."""

from mnist_pipeline.stores.base import ModelStoreResource
from mnist_pipeline.stores.errors import CorruptModel, ModelStoreError, NothingDeployed, PromotionConflict, UnknownModel
from mnist_pipeline.stores.local import LocalModelStoreResource
from mnist_pipeline.stores.s3 import S3ModelStoreResource

__all__ = [
    "CorruptModel",
    "LocalModelStoreResource",
    "ModelStoreError",
    "ModelStoreResource",
    "NothingDeployed",
    "PromotionConflict",
    "S3ModelStoreResource",
    "UnknownModel",
]
