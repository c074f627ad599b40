"""EMNIST's letters: 26 classes, the two cases of a letter together."""

import string

from mnist_pipeline.task.known._emnist import part

# The first label in the files is 1; the 0 is torchvision's class "N/A".
DATA_SET = part("letters", class_names=string.ascii_lowercase, least_accuracy=0.85, first_label=1)
