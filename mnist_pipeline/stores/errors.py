"""The errors of a model store."""


class ModelStoreError(Exception):
    """The store cannot do what was asked; the message says why and what to do."""


class UnknownModel(ModelStoreError):
    """No complete version has this name."""


class CorruptModel(ModelStoreError):
    """The stored content is not what was saved."""


class NotExported(CorruptModel):
    """The version has no `model.onnx` yet, and it cannot be made here."""


class NothingDeployed(ModelStoreError):
    """Nothing was ever promoted."""


class PromotionConflict(ModelStoreError):
    """Somebody else deployed in the meantime: read what is deployed and decide again."""


class ObjectMissing(Exception):
    """A backend has no object of this key."""


class ObjectChanged(Exception):
    """A conditional write of a backend found something else than it expected."""
