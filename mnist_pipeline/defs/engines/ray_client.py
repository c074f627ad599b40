"""The client of a Ray cluster: it waits for an answer so long and no longer."""

from typing import Any

import dagster as dg
import requests
from dagster_ray.core.executor import RayExecutorConfig
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""The cluster of this host, where it is not said otherwise; Ray itself would look for one, and find several or none."""

MOST_HOSTS = 10_000
"""Ray's own bound of what it lists."""

MOST_CHARACTERS = 500
"""So much of an answer that is an error is told: it may be the page of a proxy."""

ANSWER_SECONDS = 15
"""Longer than a cluster at work needs for an answer; run monitoring waits for it."""

UNREACHABLE = (ConnectionError, RuntimeError, requests.RequestException, AuthenticationError)
"""The errors of a client whose cluster is gone, busy, or refuses to answer."""


class Client(JobSubmissionClient):
    """Ray's client with an end to its waiting, and with what the executor asks besides."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS} | options)

    def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts that are there: `node_ip`, `resources_total` and more of each.

        Raises one of UNREACHABLE if the cluster cannot be asked.
        """
        alive = {"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"}
        wanted = alive | {"detail": "1", "limit": str(MOST_HOSTS), "timeout": str(ANSWER_SECONDS)}
        answer = self._do_request("GET", "/api/v0/nodes", params=wanted)
        answer.raise_for_status()
        try:
            found: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        except (KeyError, TypeError) as error:
            said = answer.text[:MOST_CHARACTERS]
            raise RuntimeError(f"the hosts of {self.get_address()} cannot be listed: {said}") from error
        return found

    def _raise_error(self, r: requests.Response) -> None:
        raise RuntimeError(f"Request failed with status code {r.status_code}: {r.text[:MOST_CHARACTERS]}")

    def find_job(self, job: str) -> JobDetails | None:
        """Return a job with its state, None if the cluster does not know it.

        Raises one of UNREACHABLE if the cluster cannot be asked.
        """
        try:
            return self.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise


def connect(config: RayExecutorConfig, file: str) -> tuple[Client, list[str]]:
    """Return a client of the cluster that the configuration in `file` names, and the IP addresses of its hosts.

    Raises DagsterInvariantViolationError, with where the address comes from, if it cannot be reached.
    """
    address = config.address or DEFAULT_ADDRESS
    try:
        client = Client(address, metadata=config.metadata, headers=config.headers, cookies=config.cookies)
        return client, [str(host["node_ip"]) for host in client.hosts()]
    except AuthenticationError:
        raise dg.DagsterInvariantViolationError(
            f"the Ray cluster {address} refuses to answer: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to that of "
            "`ray start` on its hosts"
        ) from None
    except UNREACHABLE as error:
        raise dg.DagsterInvariantViolationError(
            f"{str(error).rstrip('.')}. Is its head up (`ray start --head`)? The address, of the dashboard, is "
            f"`ray: address` in EXECUTOR_CONFIG ({file or 'not set: deploy/ray.yaml is one'}), or RAY_ADDRESS"
        ) from None
