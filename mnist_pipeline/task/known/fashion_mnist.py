"""Fashion-MNIST: articles of clothing (Xiao et al. 2017)."""

from mnist_pipeline.task.known import Known

DATA_SET = Known(
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    torchvision="FashionMNIST",
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    least_accuracy=0.85,
    pictures="cutouts",
)
