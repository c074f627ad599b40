"""EMNIST's balanced part: digits and letters, 47 classes."""

import string

from mnist_pipeline.task.known._emnist import part

CASES_THAT_LOOK_ALIKE = "cijklmopsuvwxyz"
"""The letters whose two cases are one class in EMNIST's merged sets (Cohen et al. 2017)."""

DATA_SET = part(
    "balanced",
    class_names=string.digits
    + string.ascii_uppercase
    + "".join(letter for letter in string.ascii_lowercase if letter not in CASES_THAT_LOOK_ALIKE),
    least_accuracy=0.8,
)
