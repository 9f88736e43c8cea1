"""The network between a cluster's processes is cut: is it as if nothing had happened?

One process lives in a network namespace of its own, whose only cable is pulled: nothing arrives and
nobody is told, as where a switch fails. Only who may make namespaces can run this.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.test_kill import (
    Cluster,
    completed,
    finish,
    n_files,
    stack,
    start,
    undisturbed,
    wait_for_files,
)
from tests.trees import tree_digest

__all__ = ["stack", "undisturbed"]  # fixtures

pytestmark = pytest.mark.faults

NAMESPACE, CABLE = "cvdask-cut", ("cvdask-a", "cvdask-b")
HERE, THERE = "10.213.77.1", "10.213.77.2"
INSIDE = ("ip", "netns", "exec", NAMESPACE)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Cable:
    """What connects the namespace with the rest."""

    def pull(self) -> None:
        ip("link", "set", CABLE[0], "down")

    def plug_in(self) -> None:
        ip("link", "set", CABLE[0], "up")


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    # How long silence is borne; by default half a minute, and five.
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", "12s")
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "12s")
    try:
        ip("netns", "add", NAMESPACE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1], "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/30", "dev", CABLE[0])
        ip("link", "set", CABLE[0], "up")
        ip("-n", NAMESPACE, "addr", "add", f"{THERE}/30", "dev", CABLE[1])
        for device in ("lo", CABLE[1]):
            ip("-n", NAMESPACE, "link", "set", device, "up")
        yield Cable()
    finally:
        ip("netns", "del", NAMESPACE)  # and the cable with it


@pytest.fixture
def cut_off(
    cable: Cable, tmp_path: Path, stack: ExitStack, undisturbed: dict[str, str]
) -> subprocess.Popen[str]:
    """A command under way, one of whose two workers has just been cut off."""
    cluster = Cluster(tmp_path, stack, HERE, (THERE, INSIDE))
    process = start(tmp_path / "cell.zarr", cluster.address)
    wait_for_files(process, tmp_path / "cell.zarr", len(undisturbed) // 8)
    cable.pull()
    return process


def test_a_worker_is_never_heard_of_again(
    cut_off: subprocess.Popen[str], tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    said = finish(cut_off)
    assert cut_off.returncode == 0, said
    assert tree_digest(tmp_path / "cell.zarr") == undisturbed


@pytest.mark.slow
def test_a_worker_is_silent_for_a_while(
    cut_off: subprocess.Popen[str], cable: Cable, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    url = tmp_path / "cell.zarr"
    wait_for_files(cut_off, url, n_files(url) + 2)  # the other one goes on
    cable.plug_in()
    said = finish(cut_off)
    assert cut_off.returncode == 0, said
    assert tree_digest(url) == undisturbed


@pytest.mark.slow
def test_the_command_no_longer_hears_of_its_cluster(
    cable: Cable, tmp_path: Path, stack: ExitStack, undisturbed: dict[str, str]
) -> None:
    cluster = Cluster(tmp_path, stack, HERE, (HERE, ()))
    url = tmp_path / "cell.zarr"
    process = start(url, cluster.address, INSIDE)
    wait_for_files(process, url, len(undisturbed) // 8)
    cable.pull()
    said = finish(process)
    assert process.returncode == 1
    assert "ConnectionError: the connection to the Dask scheduler was lost" in said
    cluster.wait_until_idle()
    completed(url)
    assert tree_digest(url) == undisturbed
