"""Whether a Ray cluster can be joined, asked with a time limit: ray.init takes minutes to give up.

What is asked here is not part of Ray's public interface. Should a part of it go away, ray.init says
the same, later.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError

from t2i_ray.config import UserError

TIMEOUT = 6.0  # seconds for an answer
FIRST_REPORT = 60.0  # seconds for that of an autoscaler that has just been started
TOKEN = "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH (a file)"
MODE = "RAY_AUTH_MODE=token"
START_WITH_TOKEN = (
    "stop the cluster; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node and here "
    "('ray get-auth-token --generate' makes one); start it again"
)


def join(address: str, *, timeout: float = TIMEOUT) -> None:
    """Join the cluster at an address, as ray.init takes it.

    Raises:
        UserError: nothing answers there, it is not a Ray cluster's head, it runs another Ray or
            Python, or it wants another token.
    """
    named = f"cluster.address={address}"
    if address == "auto":  # as ray.init does: the token of this machine is taken then
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if "://" not in address:
        _ask(_host_and_port(address), named, timeout)
    try:
        ray.init(address, logging_level="error")
    except AuthenticationError as error:
        raise _no_token(error) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{named}: can't be joined: {reason}; mend it, or leave it out") from None


def start_own(**settings: Any) -> None:
    """Start a cluster of this machine. Raises UserError: it does not start."""
    try:
        ray.init("local", logging_level="error", **settings)
    except AuthenticationError as error:
        raise _no_token(error) from None
    except Exception as error:  # what Ray raises here it does not say
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"Ray does not start on this machine: {reason}; mend it, or give the address of a "
            "cluster as cluster.address"
        ) from None


def _host_and_port(address: str) -> str:
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die(address))
    except ConnectionError:
        raise UserError(
            f"cluster.address={address}: no Ray cluster runs on this machine; start one with "
            "'ray start --head', or leave the address out"
        ) from None
    except (ValueError, OSError):
        raise UserError(
            f"cluster.address={address}: write it as host:port, where the port is that of "
            "'ray start --head' (6379), or auto"
        ) from None


def _ask(address: str, named: str, timeout: float) -> None:
    """Ask the head for the versions that it runs, with our token. Raises UserError."""
    try:
        import grpc
        from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
        from ray._private.grpc_utils import init_grpc_channel
        from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
        from ray.core.generated import gcs_service_pb2 as messages
        from ray.core.generated import gcs_service_pb2_grpc as services
    except ImportError:
        return
    request = messages.InternalKVGetRequest(
        namespace=KV_NAMESPACE_CLUSTER, key=CLUSTER_METADATA_KEY
    )
    try:
        with closing(init_grpc_channel(address)) as channel:
            stub = services.InternalKVGcsServiceStub(channel)
            answer = stub.InternalKVGet(request, timeout=timeout)
    except AuthenticationError as error:
        raise _no_token(error) from None
    except grpc.RpcError as error:
        if problem := _refusal(error.code().name, str(error.details()), named, timeout):
            raise UserError(problem) from None
        return
    _compare(answer.value, named)


def _refusal(code: str, details: str, named: str, timeout: float) -> str | None:
    """What a failed request tells, with the remedy; None if ray.init may know better."""
    if code == "UNAUTHENTICATED":
        remedy = (
            f"{TOKEN} must hold the token that its head was started with"
            if os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
            else f"set {MODE} and {TOKEN}"
        )
        return f"{named}: the cluster refuses us: its token is missing or wrong; {remedy}"
    if code == "DEADLINE_EXCEEDED":
        return (
            f"{named}: no answer in {timeout:.0f} s; mend the address, or look at the head ('ray "
            "status' there); with TLS, set RAY_USE_TLS and its files here as there"
        )
    if code == "UNIMPLEMENTED" or "http" in details.lower():
        return (
            f"{named}: what answers there is not the head of a Ray cluster; give the port of "
            "'ray start --head' (6379), not the dashboard's (8265)"
        )
    if code == "UNAVAILABLE":
        return (
            f"{named}: no Ray cluster answers there; start one with 'ray start --head', or leave "
            "the address out"
        )
    return None


def _compare(metadata: bytes, named: str) -> None:
    """The cluster's versions and ours. Raises UserError if Ray would refuse to work together."""
    from ray._private.utils import check_version_info, compute_version_info

    try:
        cluster = json.loads(metadata)
        theirs = cluster["ray_version"], cluster["python_version"]
        check_version_info(cluster, "the driver")
    except (ValueError, KeyError):
        return
    except RuntimeError:
        ours = compute_version_info()
        raise UserError(
            f"{named}: it runs Ray {theirs[0]} and Python {theirs[1]}, and this process Ray "
            f"{ours[0]} and Python {ours[1]}; run this from the same image or environment as the "
            "cluster's"
        ) from None


def _no_token(error: Exception) -> UserError:
    reason = str(error).partition(". ")[0]
    return UserError(f"{reason}; set {TOKEN} to the cluster's token")


def refuses_strangers(timeout: float = 3.0) -> bool | None:
    """Whether the head of our cluster refuses whoever has no token; None: it is unclear."""
    try:
        import grpc
        from ray.core.generated import gcs_service_pb2 as messages
        from ray.core.generated import gcs_service_pb2_grpc as services
    except ImportError:
        return None
    try:
        with closing(grpc.insecure_channel(ray.get_runtime_context().gcs_address)) as channel:
            stub = services.NodeInfoGcsServiceStub(channel)
            stub.GetClusterId(messages.GetClusterIdRequest(), timeout=timeout)
    except grpc.RpcError as error:
        return True if error.code().name == "UNAUTHENTICATED" else None
    return False


def most(have: Mapping[str, float]) -> dict[str, float] | None:
    """The most that the cluster can ever have, by resource; None if its autoscaler does not say.

    A cluster whose nodes were all started by hand has what it has.
    """
    try:
        from ray._private.state import state
        from ray.autoscaler.v2.utils import is_autoscaler_v2
        from ray.experimental.internal_kv import _internal_kv_get

        if limits := state.get_max_resources_from_cluster_config():
            return {name: max(have.get(name, 0), limit) for name, limit in limits.items()}
        # v2 never reports there; v1 not yet, if the cluster has just been started.
        deadline = time.monotonic() + (0 if is_autoscaler_v2() else FIRST_REPORT)
        while not (report := _internal_kv_get(b"__autoscaling_status")):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)
        kinds = set(json.loads(report)["autoscaler_report"]["active_nodes"])
    except Exception:  # none of it is public
        return None
    # Each node a kind of its own, named by its id: there is nobody to start more of a kind.
    by_hand = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return dict(have) if kinds and kinds <= by_hand else None
