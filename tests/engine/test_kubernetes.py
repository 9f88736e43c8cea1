"""Is a cluster on Kubernetes described safely, and as asked for?"""

from __future__ import annotations

import copy
from typing import Any

import dask
import pytest
from dask.config import collect_env
from distributed.security import Security

from cvdask.engine.cluster_options import ClusterOptions, GpuGroup
from cvdask.engine.kubernetes import check_options, manifests
from tests.engine.manifests import broken_rules, pods

REQUIRED = {
    "image": "registry/cvdask:1",
    "tls_secret": "cvdask-tls",
    "tls_ca_file": "ca.crt",
    "tls_cert": "tls.crt",
    "tls_key": "tls.key",
}


def options(**more: Any) -> ClusterOptions:
    return ClusterOptions(**REQUIRED, **more)


def arguments(pod: Any) -> list[str]:
    (container,) = pod["containers"]
    return container["command"]


def test_a_cluster_keeps_the_rules() -> None:
    found = list(pods(manifests(options(gpu=GpuGroup()), "cell", "heart")))
    assert len(found) == 3  # scheduler, worker, worker with a GPU
    assert [broken_rules(pod) for pod in found] == [[], [], []]


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("pod", "securityContext", {"runAsNonRoot": True}),
        ("pod", "automountServiceAccountToken", True),
        ("pod", "hostNetwork", True),
        ("pod", "volumes", [{"name": "root", "hostPath": {"path": "/"}}]),
        ("container", "securityContext", {"readOnlyRootFilesystem": True}),
        ("container", "resources", {}),
        ("container", "env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]),
    ],
)
def test_the_rules_refuse(where: str, name: str, value: Any) -> None:
    pod = copy.deepcopy(next(pods(manifests(options(), "cell", "heart"))))
    (pod if where == "pod" else pod["containers"][0])[name] = value
    assert broken_rules(pod)


def test_a_group_with_a_gpu() -> None:
    group = GpuGroup(n_workers=3, cores=6, memory="24 GB")
    cluster, gpu = manifests(options(n_workers=5, cores=4, gpu=group), "cell", "heart")
    assert cluster["spec"]["worker"]["replicas"] == 5
    assert (gpu["spec"]["cluster"], gpu["spec"]["worker"]["replicas"]) == ("cell", 3)
    (plain,) = [cluster["spec"]["worker"]["spec"]]
    pod = gpu["spec"]["worker"]["spec"]
    assert "nvidia.com/gpu" not in plain["containers"][0]["resources"]["limits"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert arguments(pod)[-2:] == ["--resources", "GPU=1"]
    text = " ".join(arguments(plain))
    assert "--nworkers 4 --nthreads 1 --memory-limit 900000000" in text
    assert "--nworkers 1 --nthreads 6 --memory-limit 21600000000" in " ".join(arguments(pod))


def test_all_talk_is_encrypted() -> None:
    for pod in pods(manifests(options(gpu=GpuGroup()), "cell", "heart")):
        (container,) = pod["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment["DASK_SCHEDULER_ADDRESS"] == "tls://cell-scheduler.heart.svc:8786"
        assert environment["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
        assert " ".join(arguments(pod)).count("--protocol tls") == 1
        assert [v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v] == [
            "cvdask-tls"
        ]


def test_variables_are_those_that_distributed_reads() -> None:
    pod = next(pods(manifests(options(), "cell", "heart")))
    environment = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    with dask.config.set(dask.config.merge(dask.config.config, collect_env(environment))):
        security = Security()
    assert security.require_encryption
    assert security.get_tls_config_for_role("worker") == {
        "ca_file": "/etc/cvdask/tls/ca.crt",
        "cert": "/etc/cvdask/tls/tls.crt",
        "key": "/etc/cvdask/tls/tls.key",
        "ciphers": None,
    }


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="Missing: image, tls_secret, tls_ca_file"):
        check_options(ClusterOptions())
    check_options(options())


def test_a_changing_number_is_refused() -> None:
    with pytest.raises(ValueError, match="minimum 1, maximum 4"):
        check_options(options(minimum=1, maximum=4))
