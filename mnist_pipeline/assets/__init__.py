"""The assets, one file a group. Each one reads, calls `mnist_pipeline.ml`, and records metadata."""
