"""What MLflow's registered models came from: roots of garbage collection that people set in MLflow.

A model version leads to its logged model and to its source run; the first of these that carries the tag
`orch.fingerprint` names the artifact, a submission's own run (`orch.run`) all of its artifacts. Versions that were not
made here carry neither and are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchError
from orchestrator.tracking.spool import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 200
RETRIES = "2"
"""Of requests to an MLflow server that does not answer; its default of 7 takes minutes."""


def registered(store_url: str) -> dict[str, str]:
    """Fingerprint, or run id, -> "MLflow's model NAME, version N" of every registered version made here.

    OrchError if MLflow cannot be asked. A SQLite file that does not exist has no registered models.
    """
    uri = tracking_uri(store_url)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return {}
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found: dict[str, str] = {}
        for version in _versions(client):
            made_by = _made_by(client, version)
            if made_by is not None:
                found.setdefault(made_by, f"MLflow's model {version.name}, version {version.version}")
        return found
    except Exception as error:  # the clients raise many types; all mean that nothing is known
        raise OrchError(
            f"MLflow cannot be asked which models are registered: {type(error).__name__}: {error}",
            "start its server or correct MLFLOW_TRACKING_URI; `--no-mlflow` leaves registered models out of account",
        ) from None


def _versions(client: MlflowClient) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_model_versions(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _made_by(client: MlflowClient, version: Any) -> str | None:
    """The fingerprint or the run that a version came from; None if it was not made here."""
    tags = dict(version.tags or {})
    model_id = getattr(version, "model_id", None) or _model_id(version.source)
    if "orch.fingerprint" not in tags and model_id:
        tags |= _asked(lambda: client.get_logged_model(model_id).tags)
    if "orch.fingerprint" not in tags and version.run_id:
        tags |= _asked(lambda: client.get_run(version.run_id).data.tags)
    return tags.get("orch.fingerprint") or tags.get("orch.run")


def _asked(ask: Any) -> dict[str, str]:
    """The tags of something that may have been deleted for good."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(ask())
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _model_id(source: str | None) -> str | None:
    """Of `models:/m-...`, a logged model's address."""
    return source.removeprefix("models:/") if source and source.startswith("models:/m-") else None
