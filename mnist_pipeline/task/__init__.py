"""The task: the one folder to replace for another data set, other pictures or another network.

It imports nothing of the project but `files/`. What the rest of the project takes from it:

- `spec`: `TaskSpec` and `TASK`, the classes and the shape of the images
- `dataset`: `LabelledImages`, `Dataset` and their validation
- `sources`: `load_dataset`, from the source that is chosen by name
- `preprocessing`: `read_image` and `prepare`, from a picture to an image
- `settings`: `NetworkSettings` and `AugmentationSettings` (apart from what they set up, so that they load fast)
- `network`: `build_network`
- `augmentation`: `augment`
- `statistics`: `image_statistics`, which drift watches
- `example`: a picture and its label, for the document of the service
"""
