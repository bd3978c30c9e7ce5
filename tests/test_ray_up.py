"""``ray up``, ``ray exec``, ``ray down`` of cluster/on_prem.yaml on real sshd hosts (ray_up.py)."""

from __future__ import annotations

from typing import Any

import machines
import pytest
import ray_up


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := machines.lacking():
        pytest.skip(reason)
    return ray_up.run(tmp_path_factory.mktemp("lab"))


def test_a_job_runs_on_the_worker_and_its_driver_on_the_head(seen: dict[str, Any]) -> None:
    assert seen["job"]["driver"] == "head"
    assert seen["job"]["task"] == ["worker", "token"]
    assert seen["job"]["cpus_of_head"] == 0


def test_node_env_reaches_jobs(seen: dict[str, Any]) -> None:
    assert seen["job"]["stop_wait"] == "120"
    assert seen["job"]["secret"] == len(ray_up.SECRET)


def test_jobs_api_wants_the_token_and_listens_on_loopback(seen: dict[str, Any]) -> None:
    assert seen["asked"] == [401, 200]
    dashboard = [port for port in seen["head_ports"] if port.endswith(":8265")]
    assert dashboard == ["127.0.0.1:8265"]


def test_secrets_are_files_of_their_owner_and_nowhere_else(seen: dict[str, Any]) -> None:
    assert seen["head_modes"] == ["600", "600"]
    assert seen["worker_modes"] == ["600", "600"]
    assert seen["leaks"] == []


def test_down_leaves_nothing_running(seen: dict[str, Any]) -> None:
    assert seen["left"] == []


def test_nodes_speak_tls(seen: dict[str, Any]) -> None:
    tls = seen["tls"]
    assert (tls["task"], tls["total"]) == ("worker", 64 * 2**20)
    kinds = {port.split()[0]: kind for port, kind in tls["ports"].items()}
    assert kinds["6379"] == "TLSv1.3"  # Ray's GCS
    assert tls["without"] != 0


def test_a_spot_machines_notice_drains_its_node(seen: dict[str, Any]) -> None:
    assert seen["tls"]["left"] is True
