"""The records that rest in a model store and outlive the code that wrote them.

What is needed to predict is strict: a name that is unknown there would be ignored, and the predictions would be
wrong. The record of how a version or a decision came about is lenient: names that this code does not know are kept
and shown, names that it misses are None, so that another version of the code can be rolled back to.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from mnist_pipeline.ml.records import CoverageCurve, Digests, DriftReference, EpochMetrics, Record
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec

PROMOTED = "promoted"
"""The one outcome of a decision that deploys."""

WAITING = "waiting"
"""The outcome of a decision that deploys once a person approves."""

DECISION_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}$"
"""Ids of decisions: they name files."""

YEAR_SECONDS = 365 * 86400
"""More is no time of a training."""


class LenientRecord(BaseModel, frozen=True, extra="allow"):
    """A record that another version of the code can read, except for the names in STRICT."""

    STRICT: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _keep_what_cannot_be_read(cls, content: Any) -> Any:
        """A known name with an unreadable value is kept by another name and counts as missing."""
        if isinstance(content, cls):
            return content
        content = dict(content) if isinstance(content, dict) else {"unreadable": content}
        for name in content.keys() & cls.model_fields.keys() - cls.STRICT:
            try:
                _adapter(cls, name).validate_python(content[name])
            except ValidationError:
                content[f"unreadable_{name}"] = content.pop(name)
        return content


class SplitRecord(LenientRecord):
    """One of the splits that a version was trained, chosen or tested on."""

    digest: str | None = Field(None, description="Content digest of images and labels (hex), by which it is kept.")
    images: int | None = None
    bytes: int | None = Field(None, description="The size that they are kept in.")
    class_counts: list[int] = Field([], description="Images of each class, in the order of the class names.")


class Provenance(LenientRecord):
    """The code, the packages and the machine that trained a version: with settings and data, what weights hang on."""

    git_commit: str | None = Field(None, description="The commit of the code (hex); None where it is no git checkout.")
    uncommitted_changes: bool | None = Field(None, description="True: tracked files differed from that commit.")
    python: str | None = Field(None, description="The version of Python.")
    packages: dict[str, str] = Field({}, description="The version of each installed package, by its name.")
    processor: str | None = Field(None, description="The model of the CPU.")
    instructions: str | None = Field(None, description="The vector instructions that PyTorch uses, such as AVX512.")
    cores: int | None = Field(None, description="Cores of the machine that the process may use.")
    threads: int | None = Field(None, ge=1, description="Threads of one operation of PyTorch.")
    device: str | None = Field(None, description="cpu, cuda or mps.")
    precision: str | None = Field(None, description="float32 or bfloat16.")
    gpu: str | None = Field(None, description="The model of the GPU; None: there is none, or it was not used.")
    memory_gib: float | None = Field(None, description="Memory of the machine.")
    seconds: float | None = Field(None, description="Wall clock of all epochs, validation included.")
    peak_memory_mib: float | None = Field(None, description="The most memory that the process of the training took.")
    initial_weights_sha256: str | None = Field(None, description="Of the file `initial_weights`; None: there was none.")


class TrainingRecord(LenientRecord):
    """The origin of a version, as far as the code that wrote it recorded it."""

    settings: dict[str, Any] = Field({}, description="All settings of the training, by their names at that time.")
    history: list[dict[str, Any]] = Field([], description="`records.EpochMetrics` of each epoch.")
    best_epoch: int | None = Field(None, description="The epoch whose weights these are, counted from 1.")
    data_version: str | None = Field(None, description="Digest of the splits it was trained on.")
    code_version: str | None = None
    run_id: str | None = Field(None, description="The Dagster run that trained it.")
    created_at: datetime | None = Field(None, description="UTC.")
    drift_reference: DriftReference | None = Field(None, description="None in versions from before it was kept.")
    temperature: float | None = Field(None, description="The number that model.onnx divides the logits by.")
    coverage: CoverageCurve | None = Field(None, description="None in versions from before it was kept.")
    splits: dict[str, SplitRecord] = Field(
        {}, description="By their names; none in versions from before they were kept."
    )
    provenance: Provenance | None = Field(None, description="None in versions from before it was recorded.")
    trial: str | None = Field(None, description="The trial of a sweep that it was; None: of the main graph.")

    def best(self, metric: str) -> float | None:
        """Return a metric of the best epoch; None if it was not recorded."""
        if self.best_epoch is None or not 1 <= self.best_epoch <= len(self.history):
            return None
        value = self.history[self.best_epoch - 1].get(metric)
        return value if isinstance(value, int | float) else None

    @property
    def epochs(self) -> list[EpochMetrics]:
        """The history, as far as this code can read it: none if an epoch lacks something."""
        known = [{name: epoch.get(name) for name in EpochMetrics.model_fields} for epoch in self.history]
        try:
            return [EpochMetrics.model_validate(epoch) for epoch in known]
        except ValidationError:
            return []

    @property
    def began_at(self) -> datetime | None:
        """The beginning of the training, UTC; None if that was not recorded."""
        if self.created_at is None:
            return None
        spent = [epoch.get("seconds") for epoch in self.history]
        seconds = sum(value for value in spent if isinstance(value, int | float) and 0 <= value < YEAR_SECONDS)
        created = self.created_at if self.created_at.tzinfo else self.created_at.replace(tzinfo=UTC)
        return created - timedelta(seconds=min(seconds, YEAR_SECONDS)) if created.year > 1 else None


@cache
def _adapter(record: type[LenientRecord], name: str) -> TypeAdapter[Any]:
    """The validator of one field; made once, since manifests and decisions are read again and again."""
    return TypeAdapter(cast(Any, record.model_fields[name].annotation))


class ModelManifest(Record):
    """Everything about a model version but its weights."""

    format_version: Literal[3] = 3
    name: str
    weights_sha256: str = Field(description="SHA-256 (hex) of weights.safetensors.")
    onnx_sha256: str | None = Field(
        None, description="SHA-256 (hex) of model.onnx; None in versions from before there was one, see stores.exports."
    )
    task: TaskSpec = Field(description="Classes, shape and scale of the images.")
    network: NetworkSettings = Field(description="The architecture, from which the network is built again.")
    training: TrainingRecord = TrainingRecord()

    @property
    def digests(self) -> Digests:
        """The model that the files of the version are."""
        return Digests(self.weights_sha256, self.onnx_sha256)

    @model_validator(mode="before")
    @classmethod
    def _from_earlier_formats(cls, content: Any) -> Any:
        """Format 2 had no model.onnx. Format 1 had all settings in one object and no task but the normalization."""
        if isinstance(content, dict) and content.get("format_version") == 2:
            return content | {"format_version": 3}
        if not isinstance(content, dict) or content.get("format_version") != 1:
            return content
        old = dict(content)
        del old["format_version"]
        strict = {name: old.pop(name, None) for name in ("name", "weights_sha256")}
        scale, settings = old.pop("normalization", None), old.get("settings")
        if not isinstance(scale, dict) or not isinstance(settings, dict):
            raise ValueError("settings and normalization must be objects")
        return strict | {
            "task": MNIST.model_dump() | {name: (value,) for name, value in scale.items()},
            "network": {name: settings[name] for name in NetworkSettings.model_fields if name in settings},
            "training": old,
        }


class Comparison(BaseModel, frozen=True, extra="allow"):
    """A candidate beside another version, image by image on the same images; see `ml.comparison` for the statistics."""

    role: str = Field(description="incumbent or reference: what the other version was at that time.")
    slice: str | None = Field(None, description="The slice of the suite (`ml.suite`) that it is about; None: the test.")
    version: str = Field(description="The other version.")
    test_accuracy: float = Field(description="0..1, of the other version on these images.")
    images: int = Field(description="Images of the classes that both know.")
    images_of_other_classes: int = Field(0, description="Test images left out: one does not know their class.")
    fixed: int = Field(description="Images that only the candidate labels correctly.")
    broken: int = Field(description="Images that only the other version labels correctly.")
    regression: float = Field(description="broken less fixed, as a share of the images; negative: a gain.")
    regression_low: float = Field(description="Lower end of the regression's interval, one-sided 95%.")
    regression_high: float = Field(description="Upper end of the regression's interval, one-sided 95%.")
    p_better: float = Field(description="Exact McNemar, one-sided: small where the candidate is better.")
    p_worse: float = Field(description="Exact McNemar, one-sided: small where the candidate is worse.")
    margin_held: float = Field(description="The smallest margin that these images can hold.")


class ServingCheck(LenientRecord):
    """The answers of the service with a candidate, before it was promoted."""

    left_out: str | None = Field(None, description="Why it was not checked; None: it was.")
    requests: int | None = Field(None, description="Requests of one image, one after the other.")
    median_ms: float | None = Field(None, description="From the request to the answer. A shared machine is no measure.")
    slowest_ms: float | None = None
    memory_mib: float | None = Field(None, description="The most memory that the process took.")
    onnx_bytes: int | None = Field(None, description="The size of model.onnx.")


class Decision(LenientRecord):
    """One decision of the gate, or of a person. The latest one that promoted is what is deployed."""

    STRICT = frozenset(
        {"id", "outcome", "version", "weights_sha256", "onnx_sha256", "incumbent_version", "replaces", "decided_at"}
        | {"sequence"}
    )

    id: str = Field(pattern=DECISION_ID, description="Sorts by time; it names a file.")
    outcome: str = Field(
        description="promoted, waiting, refused or unchanged; another one is shown, and deploys nothing."
    )
    strategy: str = Field("unknown", description="quality, approval, manual, force or rollback.")
    reason: str = ""
    version: str = Field(description="The version decided about.")
    weights_sha256: str
    onnx_sha256: str | None = Field(None, description="None in decisions from before there was a model.onnx.")
    test_accuracy: float | None = Field(None, description="0..1; None where it was not measured.")
    incumbent_version: str | None = Field(None, description="The version deployed before; None: nothing.")
    incumbent_test_accuracy: float | None = Field(None, description="0..1, on the same test images.")
    replaces: str | None = Field(
        None, pattern=DECISION_ID, description="Id of the decision that had deployed the incumbent."
    )
    sequence: int | None = Field(
        None,
        ge=0,
        description="The number of the deployment: of a promotion its own, counted from 1, else that of the deployment "
        "it was decided against, 0 where there was none. None in decisions of before there were numbers.",
    )
    actor: str = Field("unknown", description="The person or the run that decided.")
    decided_at: datetime = Field(description="UTC.")
    test_digest: str | None = Field(None, description="Content digest of the test images and labels.")
    earlier_decisions: int | None = Field(None, description="How often these test images had decided before.")
    comparisons: tuple[Comparison, ...] = Field((), description="With the incumbent, and the reference if another.")
    slices: tuple[Comparison, ...] = Field(
        (), description="On the held-out labels, and on the slices for which it was refused."
    )
    serving: ServingCheck | None = Field(None, description="None where nothing was to be promoted.")
    max_regression: float | None = Field(None, description="The margin that was asked for, 0..1.")
    too_few_images: bool | None = Field(None, description="True: the test images cannot hold that margin.")
    reference_version: str | None = Field(
        None, description="The reference of later decisions once this one deploys; None: the version itself."
    )

    @property
    def digests(self) -> Digests:
        """The model decided about."""
        return Digests(self.weights_sha256, self.onnx_sha256)

    @property
    def by_evidence(self) -> bool:
        """True where the test images decided, and not a threshold or a person."""
        return self.max_regression is not None

    @property
    def reference(self) -> str:
        """The version that later candidates must not be worse than, beside what is deployed.

        A deployment of before there were references is its own.
        """
        return self.reference_version or self.version
