"""Does a cluster of Kubernetes carry the work, and is it gone in the end?

Kubernetes is ``kubernetes_api``: the API on loopback, pods as processes of this machine. Commands
are run as a user runs them, and find it by ``KUBECONFIG``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvdask.engine.cluster_options import VARIABLE, ClusterOptions
from cvdask.engine.launch import security_of
from tests.engine.kubernetes_api import NAMESPACE, Kubernetes, cluster
from tests.engine.manifests import broken_rules, pods
from tests.engine.test_slurm import work, write_grains
from tests.trees import tree_digest

CHECK = (
    str(Path(sys.executable).parent / "cvdask"), "cluster", "check", "--client", "kubernetes",
)  # fmt: skip
WORK = """
import sys
from pathlib import Path
from tests.engine.test_slurm import work

work(Path(sys.argv[1]), "kubernetes")
"""
Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("dask_kubernetes") is None, reason="needs the extra 'cluster'"
    ),
]

OPTIONS = """
[cluster]
image = "registry/cvdask:1"
n_workers = 2
cores = 1
memory = "1 GB"
start_seconds = {start_seconds}
tls_secret = "cvdask-tls"
tls_ca_file = "{tls}/ca.crt"
tls_cert = "{tls}/tls.crt"
tls_key = "{tls}/tls.key"
{more}
"""


@pytest.fixture
def kubernetes(tmp_path: Path) -> Kubernetes:
    tls = tmp_path / "tls"
    tls.mkdir()
    made = security_of(ClusterOptions())
    (tls / "ca.crt").write_text(made.tls_ca_file)
    (tls / "tls.crt").write_text(made.tls_client_cert)
    (tls / "tls.key").write_text(made.tls_client_key)
    folder = tmp_path / "kubernetes"
    folder.mkdir()
    return Kubernetes(folder, tls)


@pytest.fixture
def command(kubernetes: Kubernetes, tmp_path: Path) -> Iterator[Command]:
    """Run a command with the cluster at hand, and with more lines of options."""
    with cluster(kubernetes) as config:

        def run(
            *arguments: str, more: str = "", start_seconds: int = 120
        ) -> subprocess.CompletedProcess[str]:
            options = tmp_path / "cluster.toml"
            options.write_text(
                OPTIONS.format(start_seconds=start_seconds, tls=kubernetes.tls, more=more)
            )
            return subprocess.run(
                arguments,
                env={**os.environ, "KUBECONFIG": str(config), VARIABLE: str(options)},
                capture_output=True,
                text=True,
            )

        yield run


def test_objects_as_in_one_process(
    command: Command, kubernetes: Kubernetes, tmp_path: Path
) -> None:
    alone, together = (write_grains(tmp_path / name / "cell.zarr") for name in ("a", "b"))
    work(alone, None)
    done = command(sys.executable, "-c", WORK, str(together))
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree_digest(together) == tree_digest(alone)
    assert [one["kind"] for one in kubernetes.created] == ["DaskCluster"] * 2
    # Two commands, two clusters: nobody works on another's.
    assert len({one["metadata"]["name"] for one in kubernetes.created}) == 2
    assert not kubernetes.objects
    assert not kubernetes.pods


def test_both_groups_are_checked(command: Command, kubernetes: Kubernetes) -> None:
    done = command(*CHECK, more='[cluster.gpu]\ncores = 1\nmemory = "2 GB"')
    shown = done.stdout + done.stderr
    # One worker of each group is enough to begin with.
    assert all(f"({group}) on " in done.stdout for group in ("cpu", "gpu")), shown
    # The pods are processes of this machine, which may have no GPU: then that is what is found.
    wrong = [line for line in done.stdout.splitlines() if line.startswith("wrong: ")]
    assert all("GPU" in line for line in wrong)
    assert done.returncode == (1 if wrong else 0)
    assert [one["kind"] for one in kubernetes.created] == ["DaskCluster", "DaskWorkerGroup"]
    assert [one["metadata"]["namespace"] for one in kubernetes.created] == [NAMESPACE] * 2
    assert [broken_rules(pod) for one in kubernetes.created for pod in pods(one)] == [[]] * 3
    assert not kubernetes.objects
    assert not kubernetes.pods


def test_without_the_operator(command: Command, kubernetes: Kubernetes) -> None:
    kubernetes.operator = False
    done = command(*CHECK, start_seconds=1)
    assert done.returncode != 0
    assert re.search(r"not ready within 1.* s.*operator installed", " ".join(done.stderr.split()))
    assert "Traceback" not in done.stderr
    assert not kubernetes.objects
