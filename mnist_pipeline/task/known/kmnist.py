"""Kuzushiji-MNIST: ten cursive Japanese characters (Clanuwat et al. 2018)."""

from mnist_pipeline.task.known import Known

DATA_SET = Known(
    class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    torchvision="KMNIST",
    mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    least_accuracy=0.85,
)
