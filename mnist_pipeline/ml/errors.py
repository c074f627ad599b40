"""Errors of models."""


class ModelError(ValueError):
    """A model is not what its manifest promises, or computes nonsense."""


class NoDeployedModel(LookupError):
    """The store has nothing deployed to predict with."""
