"""The facts of a deployment: the variables, their defaults and their meaning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from mnist_pipeline.files.cloud import MEMORY, parse_address
from mnist_pipeline.files.folders import Links
from mnist_pipeline.task.dataset import DEFAULT_DATASET, DatasetSettings, Source, dataset_names, task_name
from mnist_pipeline.task.spec import TASK_NAME, Pictures
from mnist_pipeline.variables import (
    ALERTS,
    STORES_OF_BEFORE,
    AlertNames,
    BearerToken,
    Cron,
    EmailAddresses,
    LocalFolder,
    Place,
    SmtpUrl,
    StoreAddress,
    TimeZone,
    Url,
    absolute,
)

PROJECT = Path(__file__).resolve().parents[1]


PLACES = (
    *("storage_root", "data_dir", "predictions_dir", "labelled_dir", "review_dir", "checkpoint_dir"),
    *("model_store", "prediction_input"),
)
"""The fields that name a folder or an address."""

DATASET_OF_BEFORE = {"mnist_source": "dataset_source", "mnist_dir": "dataset_dir"}
"""The names of before there was more than one data set; they are still read."""

BRANCHES = "branches"
"""The folder of experiments below the storage root."""

EXPERIMENT_NAME = r"^[a-z0-9][a-z0-9_-]{0,60}$"

TAKEN_NAMES = frozenset(("data", "models", "labelled", "predictions", "review", "checkpoints", BRANCHES))
"""The names of the places below the storage root."""

RENAMED = {"MODEL_RETRAIN": {"cron": "on_cron"}}
"""Values of earlier versions of the code that are still read."""


class EnvironmentInvalid(ValueError):
    """A variable has a value that it cannot have."""


class Environment(BaseModel):
    """Each field is the variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    storage_root: Place = Field(str(PROJECT / "storage"), description="Default place of all that follows.")
    data_dir: Place = Field("", description="Values between assets: folder or address.")
    predictions_dir: Place = Field("", description="Tables of predictions: folder or address.")
    labelled_dir: Place = Field("", description="Images that people labelled: folder or address.")
    review_dir: Place = Field("", description="Images to be looked at by people: folder or address.")
    checkpoint_dir: Place = Field("", description="Unfinished trainings: folder or address.")
    s3_endpoint_url: Url | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    experiment: str | None = Field(
        None, pattern=EXPERIMENT_NAME, description="An experiment of `make experiment`: all works in it."
    )

    dataset: str = Field(DEFAULT_DATASET, description="A data set by its name, or `folder`: files of your own.")
    dataset_source: Source = Field("auto", description="Of a data set with a name: where it comes from.")
    dataset_dir: LocalFolder = Field("", description="Folder of its files; downloads go there.")
    dataset_name: str | None = Field(
        None, pattern=TASK_NAME, description="With DATASET=folder: the name of the task; else the folder's."
    )
    image_size: str | None = Field(None, pattern=r"^\d{1,4}(x\d{1,4})?$", description="With DATASET=folder: 64, 48x64.")
    image_channels: Literal["1", "3"] | None = Field(None, description="With DATASET=folder: 1 grey, 3 colour.")
    pictures: Pictures | None = Field(None, description="With DATASET=folder: the kind of pictures; photos.")

    model_store: StoreAddress = Field("", description="The models: folder or address.")
    model_dir: LocalFolder = Field("", description="Of before: the folder of the models.")
    s3_model_bucket: str | None = Field(None, description="Of before: with MODEL_STORE=s3, the bucket of the models.")
    s3_model_prefix: str = "models"

    prediction_input: Place | None = Field(None, description="Images for the batch predictions: folder or address.")
    folder_links: Links = Field(
        "inside", description="Links in watched folders that are followed: to somewhere inside the folder, all, none."
    )

    automation: bool = Field(True, description="off leaves the sensors of automation stopped.")
    automation_seconds: int = Field(15, ge=5, le=3600, description="Between two looks at conditions, folders, alerts.")
    model_retrain: Literal["on_cron", "eager"] = "on_cron"
    pipeline_config: str | None = Field(None, description="A file of settings in place of the defaults, YAML.")
    retrain_cron: Cron = "0 3 * * 0"
    retrain_after_labels: int = Field(50, ge=0, description="New labels that do not wait for RETRAIN_CRON; 0: all do.")
    raw_data_cron: Cron = "0 2 * * *"
    predict_cron: Cron = "0 4 * * *"
    backtest_cron: Cron = "0 5 * * *"
    cron_timezone: TimeZone = "UTC"

    slack_bot_token: SecretStr | None = None
    slack_channel: str | None = None
    slack_alerts: AlertNames = Field(",".join(ALERTS), description="Which messages to send, with commas between them.")
    slack_api_url: Url = Field("https://slack.com/api/", description="Another one for GovSlack and for proxies.")
    alert_email_to: EmailAddresses | None = Field(None, description="Who gets the same alerts by e-mail.")
    smtp_url: SmtpUrl | None = Field(None, description="smtp://user:password@host, or smtps://; ?from= names a sender.")
    dagster_webserver_url: Url | None = None
    service_url: Url | None = Field(None, description="The inference service, for links on the pages of assets.")

    prediction_parts: int = Field(1, ge=1, le=1000, description="Steps that predict a part of the batch each.")
    executor: Literal["in_process", "multiprocess", "docker", "ray", "k8s"] = Field(
        "multiprocess", description="Where steps run."
    )
    executor_config: LocalFolder = Field("", description="A file of fields of Dagster's executor, YAML.")

    mlflow_tracking_uri: Url | None = Field(None, description="An MLflow server that is told of versions; no more.")

    serve_token: BearerToken | None = Field(None, description="Bearer token of the inference service.")
    feedback: bool = Field(True, description="off: the inference service takes no corrections.")
    second_opinion: bool = Field(False, description="on: labels that contradict the model wait to be confirmed.")

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Environment":
        """Read a process's environment; an empty variable counts as absent. With EXPERIMENT it is that experiment's.

        Raises EnvironmentInvalid with the variable's name and the allowed values.
        """
        names = (*cls.model_fields, *DATASET_OF_BEFORE)
        present = {name: variables[name.upper()] for name in names if variables.get(name.upper())}
        for name, renamed in RENAMED.items():
            if (value := present.get(name.lower())) in renamed:
                present[name.lower()] = renamed[value]
        try:
            found = cls(**present)
        except ValidationError as error:
            problems, given = [], {new: old for old, new in DATASET_OF_BEFORE.items() if old in present}
            for problem in error.errors():
                field = str(problem["loc"][0]) if problem["loc"] else ""
                field = given.get(field, field)
                name = f"{field}: ".upper() if field else ""
                expected = "Input should be 'on' or 'off'" if problem["type"] == "bool_parsing" else problem["msg"]
                problems.append(name + expected.removeprefix("Value error, "))
            raise EnvironmentInvalid("; ".join(problems)) from None
        if found.experiment:
            found._require_branch(found.experiment, variables.get("DAGSTER_HOME"))
            return found.in_branch(found.experiment)
        return found

    def _require_branch(self, name: str, dagster_home: str | None) -> None:
        folder, home = self.branch_folder(name), self.in_branch(name).experiment_home
        if not folder.is_dir():
            raise EnvironmentInvalid(f"EXPERIMENT: there is no {folder}: make experiment NAME={name}")
        if dagster_home and absolute(dagster_home) != home:
            raise EnvironmentInvalid(
                f"EXPERIMENT={name} has a DAGSTER_HOME of its own, {home}, but this one is {dagster_home}: "
                f"use `make ... EXPERIMENT={name}`, and set no DAGSTER_HOME in .env"
            )

    def in_branch(self, name: str) -> "Environment":
        """Return the environment of an experiment: what is written lies in its folder, and nothing acts by itself.

        What is only read, a folder of images and images to predict, stays where it is.
        """
        places = dict.fromkeys({*PLACES, "model_dir"} - {"prediction_input"}, "")
        return self.model_copy(
            update=places
            | {
                "experiment": name,
                "storage_root": str(self.branch_folder(name) / "storage"),
                "dataset_dir": self.dataset_settings().directory if self.dataset == "folder" else "",
                "prediction_input": self.input_folder(),
                "automation": False,
                "slack_bot_token": None,
                "smtp_url": None,
                "mlflow_tracking_uri": None,
            }
        )

    def branch_folder(self, name: str) -> Path:
        """Return the folder of an experiment: below the storage root, or below the project's if that is a bucket."""
        root = PROJECT / "storage" if "://" in self.storage_root else Path(absolute(self.storage_root))
        return root / self._task_folder / BRANCHES / name

    @property
    def experiment_home(self) -> str:
        """The DAGSTER_HOME of an experiment, of whose environment this is."""
        return str(Path(self.storage_root).parent / "home")

    @model_validator(mode="before")
    @classmethod
    def _names_of_before(cls, values: dict[str, Any]) -> dict[str, Any]:
        renamed = dict(values)
        for old, new in DATASET_OF_BEFORE.items():
            if old not in values:
                continue
            if (dataset := values.get("dataset", DEFAULT_DATASET)) != DEFAULT_DATASET:
                raise ValueError(f"{old.upper()} would be ignored with DATASET={dataset}: set {new.upper()} instead")
            if new in values:
                raise ValueError(f"{old.upper()} is the name of before of {new.upper()}: set one of them")
            renamed[new] = renamed.pop(old)
        return renamed

    @model_validator(mode="after")
    def _one_name_of_the_store(self) -> "Environment":
        if self.model_store == "s3" and not self.s3_model_bucket:
            raise ValueError(
                "MODEL_STORE=s3 needs S3_MODEL_BUCKET; or name both at once: MODEL_STORE=s3://bucket/prefix"
            )
        ignored = {"model_dir", "s3_model_bucket", "s3_model_prefix"} & self.model_fields_set
        if self.model_store not in ("", *STORES_OF_BEFORE) and ignored:
            name = ", ".join(sorted(ignored)).upper()
            raise ValueError(f"MODEL_STORE names the place of the models, and {name} would be ignored: unset it")
        if self.model_store == "s3":
            parse_address(self.model_address())
        return self

    @model_validator(mode="after")
    def _one_data_set(self) -> "Environment":
        if self.dataset == "folder" and not (self.dataset_dir or self.dataset_name):
            raise ValueError("DATASET=folder needs DATASET_DIR, a folder with a folder of images for each class")
        try:
            self.dataset_settings()
        except ValidationError as error:
            name, _, problem = error.errors()[0]["msg"].removeprefix("Value error, ").partition(" ")
            variable = "DATASET_NAME" if name == "name" else name.upper()
            raise ValueError(f"{variable if name in DatasetSettings.model_fields else name} {problem}") from None
        if self.dataset == "folder" and self.task_name in {*TAKEN_NAMES, *dataset_names()}:
            raise ValueError(f"the task cannot be called {self.task_name!r}, as other things are: set DATASET_NAME")
        return self

    def dataset_settings(self) -> DatasetSettings:
        """Return the data set, its directory absolute."""
        size = [int(side) for side in self.image_size.split("x")] if self.image_size else None
        directory = self.dataset_dir
        if not directory and self.dataset != "folder":
            directory = self.local_place("dataset_dir", "raw" if self._task_folder else "mnist")
        return DatasetSettings(
            dataset=self.dataset,
            source=self.dataset_source,
            directory=absolute(directory) if directory else "",
            name=self.task_name if self.dataset == "folder" else self.dataset_name,
            image_size=(size[0], size[-1]) if size else None,
            image_channels=int(self.image_channels) if self.image_channels else None,
            pictures=self.pictures,
            links=self.folder_links,
        )

    @property
    def _task_folder(self) -> str:
        """The part of places that tasks do not share; the one data set that there was before has none."""
        return "" if self.dataset == DEFAULT_DATASET else f"{self.task_name}/"

    @property
    def task_name(self) -> str:
        """The name of the task: models of another one are refused."""
        if self.dataset == "folder":
            return self.dataset_name or task_name(Path(absolute(self.dataset_dir)))
        return self.dataset

    def model_address(self) -> str:
        """Return the folder, absolute, or the address of the models."""
        if self.model_store == "s3":
            return f"s3://{self.s3_model_bucket}/{self.s3_model_prefix}"
        if self.model_store == "local" or self.model_dir:
            return self.local_place("model_dir", "models")
        return self.place("model_store", "models")

    def alert_kinds(self) -> frozenset[str]:
        """Return the kinds of alerts to send."""
        return frozenset(kind.strip() for kind in self.slack_alerts.split(","))

    def config_file(self) -> str | None:
        """Return PIPELINE_CONFIG as an absolute path."""
        return absolute(self.pipeline_config) if self.pipeline_config else None

    def input_folder(self) -> str | None:
        """Return PREDICTION_INPUT as an absolute path or an address."""
        return self.place("prediction_input", "") if self.prediction_input else None

    def in_memory(self) -> bool:
        """Return whether anything is kept in memory only, so that a run must be one process."""
        return any((getattr(self, name) or "").startswith(f"{MEMORY}://") for name in PLACES)

    def place(self, name: str, folder: str) -> str:
        """Return the variable `name`, or `folder` below the storage root. Local paths come out absolute."""
        root = self.storage_root if self.storage_root.endswith("/") else f"{self.storage_root}/"
        value = getattr(self, name) or f"{root}{self._task_folder}{folder}"
        return value if "://" in value else absolute(value)

    def local_place(self, name: str, folder: str) -> str:
        """Return the same as `place`, but a local folder even when the storage root is a bucket."""
        if not getattr(self, name) and "://" in self.storage_root:
            return str(PROJECT / "storage" / self._task_folder / folder)
        return self.place(name, folder)
