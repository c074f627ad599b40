"""The commands of `python -m mnist_pipeline`, by what they are about."""
