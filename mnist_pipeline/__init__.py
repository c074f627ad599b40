"""A Dagster code location for the whole life of an MNIST digit classifier."""
