"""The task: the one folder to replace for another data set, other pictures or another network.

It imports nothing of the project but `files/`. What the rest of the project takes from it:

- `spec`: `TaskSpec`, the name of a task, its classes, and what its images are like
- `dataset`: `LabelledImages`, `Dataset` and their validation; `DatasetSettings`, which `environment.py` fills
- `known`: the data sets that are known by name, a file each, among them `MNIST`, the one task of before;
  `least_accuracy`, the threshold of the gate where none is set
- `sources`: `load_dataset`, by its settings; with `download` and `image_folder`
- `preprocessing`: `read_image` and `prepare`, from a picture to an image. What is prepared already must pass unchanged:
  corrections are prepared again. The page sends PNGs of transparent paper with dark or light ink
- `settings`: `NetworkSettings` (with `FAMILY` and `network_label` for the names of versions), `AugmentationSettings`,
  `TASK_CODE_VERSION`; apart from what they set up, so that they load fast
- `networks`: `build_network`; a file in it is a network, found by its name
- `augmentation`: `augment`
- `statistics`: `image_statistics`, which drift watches
- `example`: a picture and its label, for the document of the service

The files in `presets/` name settings of this task, too.
"""
