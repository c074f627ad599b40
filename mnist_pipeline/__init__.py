"""A Dagster code location for the whole life of a machine-learning model."""
