"""The assets, each in a file of its own name, with its configuration, its condition and its checks.

Each one reads, calls `mnist_pipeline.ml`, and records metadata. All of this folder is loaded by `definitions.py`; a
new asset is a new file here and a place in `defs/jobs.py`.
"""
