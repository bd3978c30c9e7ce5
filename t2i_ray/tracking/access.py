"""Whether MLflow answers, and lets us in."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from t2i_ray.config import UserError
from t2i_ray.storage.scratch import scratch
from t2i_ray.tracking.about import scrub
from t2i_ray.tracking.destination import Destination
from t2i_ray.tracking.server import connect, ensure_experiment

TIMEOUT = 5.0  # seconds
_PASSWORD = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def check_access(destination: Destination | None) -> str | None:
    """Why MLflow does not answer, with the remedy; None: it does, or it is a database.

    Asked before a run starts, so mlflow, which takes seconds to import, is left out if possible.

    Raises:
        UserError: it does not let us in.
    """
    if destination is None or not destination.uri.startswith("http"):
        return None
    named = f"MLflow at {destination.uri}"
    code, text = _ask(destination)
    if code in (401, 403):  # MLflow's own client knows more ways in: files, plugins, netrc
        code, text = _ask_as_mlflow_does(destination)
    if code == 401:
        given = os.environ.get("MLFLOW_TRACKING_USERNAME") or os.environ.get(
            "MLFLOW_TRACKING_TOKEN"
        )
        raise UserError(
            f"{named} refuses the user and password that it was given (401); mend {_PASSWORD}"
            if given
            else f"{named} asks for a password (401); set {_PASSWORD} in the environment, the "
            "workers' too"
        )
    if code == 403:
        raise UserError(
            f"{named} refuses experiment {destination.experiment!r} (403: {text}); ask for the "
            "right to read and edit it, or take another tracking.experiment"
        )
    if code == 200 or (code == 404 and "RESOURCE_DOES_NOT_EXIST" in text):
        return None
    what = f"answers {code}, which is not MLflow's" if code else f"does not answer ({text})"
    return (
        f"{named} {what}; start it, or mend tracking.uri; training goes on without, and "
        "sends its metrics when it answers"
    )


def try_out(destination: Destination) -> str:
    """Find or make the experiment, write a tag and an artifact; where that was, in a few words.

    No run is made. Raises whatever MLflow raises.
    """
    client = connect(destination)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    number = ensure_experiment(client, destination)
    client.set_experiment_tag(number, "t2i_ray.doctor", datetime.now(UTC).isoformat(" ", "seconds"))
    client.delete_experiment_tag(number, "t2i_ray.doctor")
    place = client.get_experiment(number).artifact_location
    artifacts = get_artifact_repository(place, tracking_uri=destination.uri)
    with scratch() as folder:
        probe = folder / "doctor.txt"
        probe.write_text("t2i-ray doctor looked whether artifacts can be written\n")
        artifacts.log_artifact(str(probe), "t2i_ray_doctor")
    with contextlib.suppress(Exception):  # who may write may yet not be allowed to delete
        artifacts.delete_artifacts("t2i_ray_doctor")
    return f"experiment {destination.experiment!r} ({number}) and {scrub(place)} are writable"


def _ask(destination: Destination) -> tuple[int, str]:
    """The status of asking for the experiment and the answer; 0 and why not if there is none."""
    name = quote(destination.experiment, safe="")
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    request = urllib.request.Request(destination.uri + path)
    if authorization := _authorization():  # not for whom a redirect names
        request.add_unredirected_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls()) as answer:
            return _status_of_json(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _one_line(error.read(2000).decode(errors="replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        late = isinstance(reason, TimeoutError)
        return 0, f"nothing in {TIMEOUT:.0f} s" if late else _one_line(str(reason))


def _status_of_json(status: int, body: bytes) -> tuple[int, str]:
    try:
        known = "experiment" in json.loads(body)
    except ValueError:
        known = False
    return (status, "") if known else (404, "")  # some other server that finds every page


def _authorization() -> str | None:
    """As MLflow's own client has it from the environment."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        both = base64.b64encode(f"{user}:{password}".encode()).decode()
        return f"Basic {both}"
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    return None


def _tls() -> ssl.SSLContext:
    names = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    given = next(filter(None, map(os.environ.get, names)), None)
    folder = given is not None and Path(given).is_dir()
    context = ssl.create_default_context(
        cafile=None if folder else given, capath=given if folder else None
    )
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _ask_as_mlflow_does(destination: Destination) -> tuple[int, str]:
    try:
        connect(destination).get_experiment_by_name(destination.experiment)
    except Exception as error:  # whatever MLflow or its transport may raise
        status = getattr(error, "get_http_status_code", lambda: 0)()
        return (status if status in (401, 403) else 0), _one_line(str(error))
    return 200, ""


def _one_line(text: str) -> str:
    return scrub(" ".join(text.split()))[:200]
