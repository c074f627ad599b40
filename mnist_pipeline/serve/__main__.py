"""`python -m mnist_pipeline.serve`: predictions with what is deployed, over HTTP."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dotenv import load_dotenv
from pydantic import ValidationError

from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.files.cloud import MEMORY, parse_address
from mnist_pipeline.serve.processes import log_to_stderr, serve
from mnist_pipeline.serve.settings import GONE, LOOPBACK, ServeSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is told to stop. Returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    load_dotenv(Path.cwd() / ".env", override=True)  # as Dagster's own commands do
    checked, expected = options.pop("check"), options.pop("expected")
    store, gone = options.pop("store"), {name: options.pop(name) for name in GONE}
    for name in (name for name, value in gone.items() if value is not None):
        print(f"error: --{name.replace('_', '-')} is gone: {GONE[name]}. Leave it out", file=sys.stderr)
        return 1
    try:
        environment = Environment.read(os.environ | (_store_variables(store) if store else {}))
        if environment.experiment and store:
            raise EnvironmentInvalid(f"--store: EXPERIMENT={environment.experiment} has a store of its own; name one")
        if environment.model_address().startswith(f"{MEMORY}://"):
            raise EnvironmentInvalid("MODEL_STORE: memory:// lives in one process, and another finds no model in it")
        settings = ServeSettings(**{name: value for name, value in options.items() if value is not None})
    except (EnvironmentInvalid, ValidationError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1
    if checked:
        from mnist_pipeline.serve.check import main as check
        from mnist_pipeline.stores import store_from_environment

        return check(store_from_environment(environment), checked, expected)
    log_to_stderr()
    if settings.host not in LOOPBACK and not environment.serve_token:
        logging.warning("listening on %s without SERVE_TOKEN: anybody who reaches it may use it", settings.host)
    try:
        serve(settings, environment)
    except KeyboardInterrupt:  # while it starts, or again by uvicorn when it has stopped
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_pipeline.serve",
        description="Serve what is deployed: an API (see /docs) and a page to draw on. "
        "Environment: SERVE_TOKEN (bearer token that callers must send), FEEDBACK=off (take no corrections), "
        "SECOND_OPINION=on (labels that contradict the model wait to be confirmed), and the variables of the model "
        "store, LABELLED_DIR and REVIEW_DIR; see .env.example.",
    )
    parser.add_argument(
        "--store",
        help="the models: folder, or s3://, gs:// or az:// with bucket and prefix (s3:// without one: models); "
        "default: from the environment",
    )
    parser.add_argument(
        "--check",
        metavar="VERSION",
        help="serve nothing: look whether this version answers real requests, say how quickly, and end",
    )
    parser.add_argument("--expected", metavar="FILE", help="with --check: safetensors with `images` and their `labels`")
    for name, field in ServeSettings.model_fields.items():
        help = f"{field.description} (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=help)
    for name in GONE:
        parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS)
    return parser


def _store_variables(store: str) -> dict[str, str]:
    """The variables that name the store, in place of all that may name another one. Raises EnvironmentInvalid."""
    address = store if "/" in store else f"./{store}"
    try:
        scheme, bucket, prefix = parse_address(address)
    except ValueError as error:
        raise EnvironmentInvalid(f"--store: {error}") from None
    if scheme == "s3" and not prefix:
        address = f"s3://{bucket}/models"  # as ever
    return {"MODEL_STORE": address, "MODEL_DIR": "", "S3_MODEL_BUCKET": ""}


def _sentence(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    if not problem["loc"]:  # of several settings together
        return str(problem["msg"].removeprefix("Value error, "))
    return f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']} (got {problem['input']!r})"


if __name__ == "__main__":
    sys.exit(main())
