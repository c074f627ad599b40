"""The settings of the network and of its augmentation: default, range and meaning, once. Loads without torch."""

from typing import ClassVar, NamedTuple, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from mnist_pipeline.task.networks import TORCHVISION, known_networks

TASK_CODE_VERSION = ""
"""Change it when the same settings would give another network or augmentation: candidates are trained anew."""

MAX_LAYER_WIDTH = 4096
MAX_BLOCKS = 3
MAX_BLOCK_DEPTH = 12
USUAL_SIDE, FEATURES_SIDE = 28, 8
"""Larger last feature maps would make the first fully connected layer the largest part of the network by far."""


DIGIT_CNN = "digit_cnn"
LAYERS = ("conv_channels", "conv_depths", "hidden_units", "conv_dropout", "hidden_dropout")
"""The settings of its layers."""


class Settings(BaseModel, frozen=True, extra="forbid"):
    """The base of all settings: immutable, and a misspelt name is an error."""


class Convolution(NamedTuple):
    """One convolution of the network."""

    channels: int
    kernel_size: int
    pooled: bool
    """True if 2x2 max pooling follows."""


class NetworkSettings(Settings):
    """The network; the settings of layers are those of digit_cnn, or of a network of your own that reads them."""

    FAMILY: ClassVar[str] = "cnn"
    """The kind of network, which the names of versions tell after the task."""

    network: str = Field(
        DIGIT_CNN,
        description="The network by its name: digit_cnn, a file of your own in task/networks, or of torchvision "
        f"{', '.join(TORCHVISION)}.",
    )
    conv_channels: list[int] = Field(
        [32, 64, 128],
        description=f"Channels of each block of convolutions, 1..{MAX_LAYER_WIDTH}; 1..{MAX_BLOCKS} blocks, with 2x2 "
        "max pooling between them.",
    )
    conv_depths: list[int] = Field(
        [1, 1, 1],
        description=f"Convolutions in each block, 1..{MAX_BLOCK_DEPTH}, for as many blocks as conv_channels. The first "
        "of all is 5x5, the others 3x3. They are not padded, so that the image must be large enough for all together: "
        "for 28x28 pixels [12], [3, 4] and [1, 3, 1] just fit. Of larger images, more convolutions like the last one, "
        "with pooling, follow until the feature maps are small.",
    )
    hidden_units: list[int] = Field(
        [256, 128],
        description=f"Widths of the fully connected layers before the output, each 1..{MAX_LAYER_WIDTH}; [] for none.",
    )
    conv_dropout: float = Field(0.1, ge=0, lt=1, description="Probability of dropping a whole feature map.")
    hidden_dropout: float = Field(0.2, ge=0, lt=1, description="Probability of dropping a hidden unit.")

    @property
    def network_label(self) -> str:
        """The part of a version's name that tells its network: `c32-64x3` for 32, then three times 64 channels."""
        if self.network != DIGIT_CNN:
            return self.network
        blocks = zip(self.conv_channels, self.conv_depths, strict=True)
        return "c" + "-".join(f"{channels}x{depth}" if depth > 1 else f"{channels}" for channels, depth in blocks)

    @property
    def convolutions(self) -> list[Convolution]:
        """The convolutions that the settings name, from input to output."""
        last_block = len(self.conv_channels) - 1
        return [
            Convolution(
                channels,
                kernel_size=5 if block == number == 0 else 3,
                pooled=block < last_block and number == depth - 1,
            )
            for block, (channels, depth) in enumerate(zip(self.conv_channels, self.conv_depths, strict=True))
            for number in range(depth)
        ]

    def convolutions_for(self, height: int, width: int) -> list[Convolution]:
        """Return all convolutions for images of that size, from input to output.

        Those of the settings come first. While the feature maps are larger than 8x8, and than they would be for 28x28
        pixels, one more like the last follows, with pooling: by default none for 28x28, one for 64x64, two for 128x128.
        Raises ValueError if the image is too small for them.
        """
        chosen, more = list(self.convolutions), Convolution(self.conv_channels[-1], kernel_size=3, pooled=True)
        most = max(FEATURES_SIDE, *self.features_size(chosen, USUAL_SIDE))
        while max(self.features_size(chosen, height, width)) > most:
            if min(self.features_size([*chosen, more], height, width)) < 1:  # a long, narrow image
                break
            chosen.append(more)
        if min(self.features_size(chosen, height, width)) < 1:
            raise ValueError(
                f"conv_depths {self.conv_depths} are too many convolutions for {height}x{width} pixels: nothing is left"
            )
        return chosen

    @staticmethod
    def features_size(convolutions: list[Convolution], *sides: int) -> tuple[int, ...]:
        """Return height and width of the last feature maps for images of that height and width."""
        for convolution in convolutions:
            sides = tuple((side - convolution.kernel_size + 1) // (2 if convolution.pooled else 1) for side in sides)
        return sides

    @field_validator("network")
    @classmethod
    def _known(cls, network: str) -> str:
        if network not in (known := known_networks()):
            raise ValueError(f"there is no network {network!r}, but {', '.join(known)}")
        return network

    @field_validator("conv_channels")
    @classmethod
    def _some_blocks(cls, channels: list[int]) -> list[int]:
        if not 1 <= len(channels) <= MAX_BLOCKS:
            raise ValueError(f"conv_channels needs 1..{MAX_BLOCKS} numbers, one a block, not {len(channels)}")
        return channels

    @field_validator("conv_channels", "conv_depths", "hidden_units")
    @classmethod
    def _within_range(cls, numbers: list[int], field: ValidationInfo) -> list[int]:
        most = MAX_BLOCK_DEPTH if field.field_name == "conv_depths" else MAX_LAYER_WIDTH
        if wrong := [number for number in numbers if not 1 <= number <= most]:
            raise ValueError(f"each of {field.field_name} must be in 1..{most}, not {wrong}")
        return numbers

    @model_validator(mode="after")
    def _nothing_of_another_network(self) -> Self:
        ignored = [name for name in LAYERS if getattr(self, name) != type(self).model_fields[name].default]
        if self.network in TORCHVISION and ignored:
            raise ValueError(f"{ignored[0]} has no effect with network={self.network!r}: leave {ignored[0]} out")
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if len(self.conv_depths) != len(self.conv_channels):
            raise ValueError(
                f"conv_depths {self.conv_depths} and conv_channels {self.conv_channels} need one number a block each: "
                "give both, equally long"
            )
        return self


class AugmentationSettings(Settings):
    """The variation of training images."""

    rotation_degrees: float = Field(
        8.0, ge=0, le=180, description="Random rotation up to this angle; 0 switches it off."
    )
    mirrored: bool | None = Field(
        None,
        description="Mirror every second image, left and right; when not given, photos and cutouts, not handwriting.",
    )
    translation_pixels: float = Field(2.0, ge=0, le=64, description="Random shift up to this many pixels; 0: off.")
    scaling_fraction: float = Field(
        0.1, ge=0, lt=1, description="Random size change of width and height, each by up to about this share; 0: off."
    )
    shear_degrees: float = Field(5.0, ge=0, le=60, description="Random shear up to this angle; 0: off.")
