"""Every setting of the pipeline: its default, its range and its meaning, once.

Plain frozen pydantic models. The assets add `dagster.Config` to them, so that the launchpad shows the
same defaults and descriptions and the steps refuse the same values.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

CLASSES = 10
SIDE = 28
"""Height and width of an MNIST image in pixels."""

MAX_LAYER_WIDTH = 4096
MAX_BLOCKS = 3
MAX_BLOCK_DEPTH = 12

TRAINING_CODE_VERSION = "2"
"""Raise it when the same settings and data would give other weights: candidates are trained anew."""

DEFAULT_WEIGHT_DECAY = {"adamw": 0.1, "adam": 0.0, "sgd": 0.0005}
"""By optimizer: an L2 penalty of the size that suits AdamW keeps Adam and SGD from learning."""
DEFAULT_SGD_MOMENTUM = 0.9
DEFAULT_WARMUP_FRACTION = 0.25
DEFAULT_STEP_SIZE = 10
DEFAULT_STEP_GAMMA = 0.1
DEFAULT_ACCURACY_THRESHOLD = 0.95
DEFAULT_MAX_REGRESSION = 0.0

DRIFT_PSI = 0.25
"""Population stability index from which a shift counts as major: the convention of credit scoring, Siddiqi 2006,
Credit Risk Scorecards (below 0.1: none; 0.1 to 0.25: some)."""
DRIFT_P_VALUE = 0.001
"""Small batches differ by chance: a shift must also be this unlikely under the validation distribution."""


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitSettings(Settings):
    """How the training images are divided into training and validation."""

    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the training images held out for validation (0..1, exclusive)."
    )
    seed: int = Field(42, ge=0, description="Seed of the stratified split.")


class Convolution(NamedTuple):
    """One convolution of the network."""

    channels: int
    kernel_size: int
    pooled: bool
    """Whether 2x2 max pooling follows."""


class TrainingSettings(Settings):
    """Architecture, optimisation and augmentation of one training run."""

    conv_channels: list[int] = Field(
        [32, 64, 128],
        description=f"Channels of each block of convolutions, 1..{MAX_LAYER_WIDTH}; 1..{MAX_BLOCKS} blocks, with 2x2 "
        "max pooling between them.",
    )
    conv_depths: list[int] = Field(
        [1, 1, 1],
        description=f"Convolutions in each block, 1..{MAX_BLOCK_DEPTH}, for as many blocks as conv_channels. The first "
        "of all is 5x5, the others 3x3. They are not padded, so that the image must be large enough for all together: "
        "[12], [3, 4] and [1, 3, 1] just fit.",
    )
    hidden_units: list[int] = Field(
        [256, 128],
        description=f"Widths of the fully connected layers before the output, each 1..{MAX_LAYER_WIDTH}; [] for none.",
    )
    conv_dropout: float = Field(0.1, ge=0, lt=1, description="Probability of dropping a whole feature map.")
    hidden_dropout: float = Field(0.2, ge=0, lt=1, description="Probability of dropping a hidden unit.")

    epochs: int = Field(20, ge=1, le=1000, description="Passes over the training images, at most.")
    batch_size: int = Field(256, ge=4, le=65536, description="Images in one optimiser step, at most.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="adam, adamw or sgd (with Nesterov).")
    learning_rate: float = Field(
        0.006, gt=0, le=10, description="Peak learning rate (with `none`: the only one); sgd needs more, about 0.1."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Decoupled for adamw, L2 penalty for adam and sgd; when not given "
        f"{', '.join(f'{decay} with {optimizer}' for optimizer, decay in DEFAULT_WEIGHT_DECAY.items())}.",
    )
    ema_epochs: float = Field(
        0.5,
        ge=0,
        le=100,
        description="The weights that are validated and kept are an exponential moving average over about this many "
        "epochs (its time constant); 0: the weights of the last step.",
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description=f"Only with sgd; {DEFAULT_SGD_MOMENTUM} when not given."
    )
    schedule: Literal["onecycle", "step", "none"] = Field("onecycle", description="Learning-rate schedule.")
    warmup_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Only with onecycle: share of steps with a rising rate, of which there is at least one; "
        f"{DEFAULT_WARMUP_FRACTION} when not given.",
    )
    step_size: int | None = Field(
        None, ge=1, description=f"Only with step: epochs between two decays; {DEFAULT_STEP_SIZE} when not given."
    )
    step_gamma: float | None = Field(
        None, gt=0, le=1, description=f"Only with step: factor of a decay; {DEFAULT_STEP_GAMMA} when not given."
    )

    rotation_degrees: float = Field(
        8.0, ge=0, le=180, description="Random rotation up to this angle; 0 switches it off."
    )
    translation_pixels: float = Field(2.0, ge=0, le=14, description="Random shift up to this many pixels; 0: off.")
    scaling_fraction: float = Field(
        0.1, ge=0, lt=1, description="Random size change of width and height, each by up to about this share; 0: off."
    )
    shear_degrees: float = Field(5.0, ge=0, le=60, description="Random shear up to this angle; 0: off.")

    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many epochs without a better validation loss; null: never. With onecycle the best "
        "epochs are the last ones, which it may cut off.",
    )
    early_stopping_min_delta: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Only with early_stopping_patience: how much lower (in nats) a validation loss must be to count as "
        "better.",
    )

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, shuffling, augmentation and dropout.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 autocast on GPUs and x86 processors that multiply it in hardware, else float32.",
    )

    @property
    def convolutions(self) -> list[Convolution]:
        """From input to output."""
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

    @property
    def features_side(self) -> int:
        """Height and width of the last feature maps in pixels: 3 by default. Not above 0: the blocks do not fit."""
        side = SIDE
        for convolution in self.convolutions:
            side = (side - convolution.kernel_size + 1) // (2 if convolution.pooled else 1)
        return side

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
    def _blocks_fit(self) -> "TrainingSettings":
        if len(self.conv_depths) != len(self.conv_channels):
            raise ValueError(
                f"conv_depths {self.conv_depths} and conv_channels {self.conv_channels} need one number a block each: "
                "give both, equally long"
            )
        if self.features_side < 1:
            raise ValueError(
                f"conv_depths {self.conv_depths} are too many convolutions for {SIDE}x{SIDE} pixels: nothing is left"
            )
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "TrainingSettings":
        """A setting that the chosen combination would ignore is refused."""
        conditions = [
            ("momentum", "optimizer", "sgd"),
            ("warmup_fraction", "schedule", "onecycle"),
            ("step_size", "schedule", "step"),
            ("step_gamma", "schedule", "step"),
        ]
        for name, chooser, choice in conditions:
            if getattr(self, name) is not None and getattr(self, chooser) != choice:
                raise ValueError(
                    f"{name} has an effect only with {chooser}={choice!r}, not {getattr(self, chooser)!r}: "
                    f"leave {name} out or set {chooser}={choice!r}"
                )
        if self.early_stopping_min_delta and self.early_stopping_patience is None:
            raise ValueError(
                "early_stopping_min_delta has an effect only with early_stopping_patience: set both or none"
            )
        return self


class EvaluationSettings(Settings):
    """How a candidate is measured and pictured."""

    calibration_bins: int = Field(15, ge=1, le=1000, description="Bins of the expected calibration error.")
    worst_mistakes: int = Field(25, ge=0, le=100, description="How many of the surest mistakes are pictured.")


class DeploymentSettings(Settings):
    """The deployment gate's policy."""

    strategy: Literal["quality", "manual", "force"] = Field(
        "quality",
        description="quality: by test accuracy and against the incumbent; manual: the version in model_name; "
        "force: the candidate whatever its score (needs a reason).",
    )
    accuracy_threshold: float = Field(
        DEFAULT_ACCURACY_THRESHOLD, ge=0, le=1, description="Only with quality: least test accuracy (0..1)."
    )
    max_regression: float = Field(
        DEFAULT_MAX_REGRESSION,
        ge=0,
        le=1,
        description="Only with quality: how much lower than the incumbent's the test accuracy may be (0..1).",
    )
    model_name: str | None = Field(
        None, description="Only with manual: the version to deploy; with none given, the versions are listed."
    )
    reason: str | None = Field(
        None, description="Why, for the audit trail: only with force, which needs it, and manual."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "DeploymentSettings":
        if self.strategy == "force" and not (self.reason or "").strip():
            raise ValueError("strategy 'force' needs a reason: say in `reason` why the gate is to be overridden")
        if self.model_name is not None and self.strategy != "manual":
            raise ValueError(f"model_name has an effect only with strategy='manual', not {self.strategy!r}")
        if self.reason is not None and self.strategy == "quality":
            raise ValueError("reason has an effect only with strategy='force' or 'manual', not 'quality'")
        if self.strategy != "quality":
            for name, default in [
                ("accuracy_threshold", DEFAULT_ACCURACY_THRESHOLD),
                ("max_regression", DEFAULT_MAX_REGRESSION),
            ]:
                if getattr(self, name) != default:
                    raise ValueError(f"{name} has an effect only with strategy='quality', not {self.strategy!r}")
        return self


class BatchPredictionSettings(Settings):
    """What the batch predictions read and how."""

    input_paths: list[str] = Field(
        [],
        description="Image files (PNG, JPEG, WebP, BMP, GIF, TIFF, IDX, npy, npz) and folders of them; "
        "with none given, the folder PREDICTION_INPUT, or else the test images.",
    )
    batch_size: int = Field(1024, ge=1, le=65536, description="Images in memory at a time.")


class RealTimePredictionSettings(Settings):
    """The images to predict now."""

    image_paths: list[str] = Field([], description="Image files to predict.")
    images_base64: list[str] = Field([], description="Image files to predict, base64-encoded.")
    confidence_threshold: float = Field(
        0.8, ge=0, le=1, description="A prediction below this confidence (0..1) is marked `needs_review`."
    )
    include_probabilities: bool = Field(False, description="Also give the probabilities of all ten classes.")
