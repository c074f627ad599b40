"""The settings of the lifecycle: default, range and meaning of each, once.

Plain frozen pydantic models. The assets add `dagster.Config` to them, so that the launchpad shows the same defaults
and descriptions, and a run refuses the same values.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from mnist_pipeline.task.settings import TASK_CODE_VERSION, AugmentationSettings, NetworkSettings, Settings

TRAINING_CODE_VERSION = f"2{TASK_CODE_VERSION}"
"""Raise the number when the same settings and data would give other weights: candidates are trained anew."""

DEFAULT_WEIGHT_DECAY = {"adamw": 0.1, "adam": 0.0, "sgd": 0.0005}
"""One for each optimizer: an L2 penalty of the size that suits AdamW keeps Adam and SGD from learning."""
DEFAULT_SGD_MOMENTUM = 0.9
DEFAULT_WARMUP_FRACTION = 0.25
DEFAULT_STEP_SIZE = 10
DEFAULT_STEP_GAMMA = 0.1
DEFAULT_MAX_REGRESSION = 0.003

DRIFT_PSI = 0.25
"""Population stability index from which a shift counts as major: the convention of credit scoring, Siddiqi 2006,
Credit Risk Scorecards (below 0.1: none; 0.1 to 0.25: some)."""
DRIFT_P_VALUE = 0.001
"""Small batches differ by chance: a shift must also be this unlikely under the validation distribution."""


class SplitSettings(Settings):
    """The division of the training images into training and validation."""

    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the training images held out for validation (0..1, exclusive)."
    )
    seed: int = Field(42, ge=0, description="Seed of the stratified split.")
    held_out_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of the labelled images that are held out from training and show whether the others helped "
        "(0..1); their content decides which.",
    )


class RecipeSettings(Settings):
    """The recipe of a training."""

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

    initial_weights: str | None = Field(
        None,
        description="A file of weights to begin with, of an earlier version or of torchvision: .safetensors, or a "
        "state dict of PyTorch. What has another name or shape in the network begins at random, as the last layer may.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: in the training loss an image counts the more the rarer its class is, so that each "
        "class has the same weight; for classes of very different size.",
    )
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
    def recipe_label(self) -> str:
        """The part of a version's name that tells its recipe: batch size, optimizer, learning rate and seed."""
        rate = f"{self.learning_rate:.0e}".replace("e-0", "e-").replace("e+0", "e")
        return f"bs{self.batch_size}_{self.optimizer}_lr{rate}_s{self.seed}"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
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


class TrainingSettings(NetworkSettings, AugmentationSettings, RecipeSettings):
    """All settings of one training run: architecture, augmentation and recipe.

    They are inherited, not nested, since dagster.Config refuses nested models.
    """

    def architecture(self) -> NetworkSettings:
        """Return the part that decides the architecture."""
        return NetworkSettings(**self.model_dump(include=set(NetworkSettings.model_fields)))


class TargetErrorSettings(Settings):
    """The error that answers may have that nobody looks at."""

    target_error: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="The share of wrong answers (0..1) among those that need no review; from it follows, by the "
        "validation images of the model, the confidence below which an answer is marked `needs_review`.",
    )


class ReviewSettings(TargetErrorSettings):
    """The answers that are marked to be looked at."""

    confidence_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A prediction below this confidence (0..1) is marked `needs_review`; when not given, what follows "
        "from target_error.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        usual = type(self).model_fields["target_error"].default
        if self.confidence_threshold is not None and self.target_error != usual:
            raise ValueError("target_error has no effect beside confidence_threshold: leave one of them out")
        return self


class EvaluationSettings(TargetErrorSettings):
    """The measures and pictures of a candidate."""

    calibration_bins: int = Field(15, ge=1, le=1000, description="Bins of the expected calibration error.")
    worst_mistakes: int = Field(25, ge=0, le=100, description="How many of the surest mistakes are pictured.")


class DeploymentSettings(Settings):
    """The policy of the deployment gate."""

    strategy: Literal["quality", "approval", "manual", "force", "observe"] = Field(
        "quality",
        description="quality: by evidence against the incumbent and the reference; approval: the same, but what would "
        "be promoted waits for `python -m mnist_pipeline approve`; manual: the version in model_name; force: the "
        "candidate whatever its score (needs a reason); observe: decide nothing, record what is deployed.",
    )
    accuracy_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="With quality and approval: least test accuracy (0..1); when not given, what suits the data set "
        "(task/known).",
    )
    max_regression: float = Field(
        DEFAULT_MAX_REGRESSION,
        ge=0,
        le=1,
        description="With quality and approval: the margin (0..1). A candidate is promoted if it can be shown that its "
        "test accuracy is lower by no more than this. A margin of 0 is strict only with when_too_few='keep'.",
    )
    max_slice_regression: float = Field(
        0.02,
        ge=0,
        le=1,
        description="With quality and approval: a candidate is refused that is shown to be worse on a slice of the "
        "evaluation suite, and was worse on more than this share of its images (0..1); 1: slices refuse nothing.",
    )
    when_too_few: Literal["promote", "keep"] = Field(
        "promote",
        description="With quality and approval: where there are too few test images to show that margin, promote what "
        "is not shown to be worse, or keep what is deployed.",
    )
    serve_check: Literal["on", "off"] = Field(
        "on",
        description="on: what is to be promoted must answer real requests of the service first, in a process of its "
        "own; off: it need not.",
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        description="Only with serve_check: the longest that the median of its answers may take; null: any time, since "
        "a shared machine is no measure.",
    )
    model_name: str | None = Field(
        None, description="Only with manual: the version to deploy; with none given, the versions are listed."
    )
    reason: str | None = Field(
        None, description="Why, for the audit trail: only with force, which needs it, and manual."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "observe":  # it decides nothing, whatever defaults PIPELINE_CONFIG has for decisions
            return self
        if self.strategy == "force" and not (self.reason or "").strip():
            raise ValueError("strategy 'force' needs a reason: say in `reason` why the gate is to be overridden")
        if self.model_name is not None and self.strategy != "manual":
            raise ValueError(f"model_name has an effect only with strategy='manual', not {self.strategy!r}")
        if self.reason is not None and self.strategy not in ("force", "manual"):
            raise ValueError(f"reason has an effect only with strategy='force' or 'manual', not {self.strategy!r}")
        if self.max_latency_ms is not None and self.serve_check == "off":
            raise ValueError("max_latency_ms has an effect only with serve_check='on'")
        if self.strategy in ("manual", "force"):
            for name in ("accuracy_threshold", "max_regression", "max_slice_regression", "when_too_few"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} has an effect only with strategy='quality' or 'approval', not {self.strategy!r}"
                    )
        return self


class BatchPredictionSettings(ReviewSettings):
    """The inputs of the batch predictions, and what of them is to be looked at."""

    input_paths: list[str] = Field(
        [],
        description="Image files (PNG, JPEG, WebP, BMP, GIF, TIFF, IDX, npy, npz) and folders of them; "
        "with none given, the folder PREDICTION_INPUT, or else the test images.",
    )
    batch_size: int = Field(1024, ge=1, le=65536, description="Images in memory at a time.")
    review_images: int = Field(
        20,
        ge=0,
        le=1000,
        description="Images of each kind that go to /review when inputs are predicted for the first time: the least "
        "sure of those that need review, and the most unlike the training data. Test images do not: they must not "
        "train.",
    )


class RealTimePredictionSettings(ReviewSettings):
    """The images to predict now."""

    image_paths: list[str] = Field([], description="Image files to predict.")
    images_base64: list[str] = Field([], description="Image files to predict, base64-encoded.")
    include_probabilities: bool = Field(False, description="Also give the probabilities of all classes.")
