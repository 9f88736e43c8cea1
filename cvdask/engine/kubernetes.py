"""How is a cluster started on Kubernetes, through Dask's operator?

1. :func:`manifests` describes it: a ``DaskCluster`` of a scheduler and workers, and a
   ``DaskWorkerGroup`` for workers with a GPU. Nobody is root in them, nothing can be written but
   scratch folders, no right is held on Kubernetes itself.
2. :func:`kubernetes_client` has the operator make it, waits for the scheduler, forwards its port
   to this machine, connects with TLS and deletes it in the end.

TLS has a secret of its own in the namespace, with ``ca.crt``, ``tls.crt`` and ``tls.key``: the
scheduler and the workers read it from a mounted folder, so no key stands in a manifest.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dask.utils import parse_bytes

from cvdask.engine.cluster_options import ClusterOptions
from cvdask.engine.launch import WORKER_ENVIRONMENT, open_client

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

API = "kubernetes.dask.org/v1"
TLS_FOLDER = "/etc/cvdask/tls"
PORT = 8786
USER = 10001  # of the images in deploy/docker
SCHEDULER_CORES, SCHEDULER_MEMORY = 1, "4Gi"


def check_options(options: ClusterOptions) -> None:
    """Refuse options without which there is no cluster on Kubernetes, or not a safe one.

    Raises
    ------
    ValueError
    """
    needed = ("image", "tls_secret", "tls_ca_file", "tls_cert", "tls_key")
    missing = [name for name in needed if not getattr(options, name)]
    if missing:
        raise ValueError(
            f"--client kubernetes needs {', '.join(needed)} in the [cluster] table that "
            f"CVDASK_CLUSTER names; deploy/kubernetes makes the certificates. Missing: "
            f"{', '.join(missing)}"
        )
    if options.minimum is not None:
        raise ValueError(
            "on Kubernetes the number of workers is fixed, n_workers: leave minimum and maximum "
            f"out. Received: minimum {options.minimum}, maximum {options.maximum}"
        )


def manifests(options: ClusterOptions, name: str, namespace: str) -> list[dict[str, Any]]:
    """Describe the cluster: what is handed to the operator.

    Parameters
    ----------
    options : ClusterOptions
    name, namespace : str

    Returns
    -------
    list of dict
        The ``DaskCluster``, and the ``DaskWorkerGroup`` of the workers with a GPU if any.
    """
    address = f"tls://{name}-scheduler.{namespace}.svc:{PORT}"
    selector = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    ports = {"tcp-comm": PORT, "http-dashboard": 8787}
    scheduler = _container(
        "scheduler",
        options,
        ["dask", "scheduler", "--protocol", "tls", "--host", "0.0.0.0", "--port", str(PORT)],
        {"cpu": str(SCHEDULER_CORES), "memory": SCHEDULER_MEMORY},
        address,
    )
    scheduler["ports"] = [{"name": key, "containerPort": port} for key, port in ports.items()]
    # The operator waits for this page before it starts workers.
    scheduler["readinessProbe"] = {"httpGet": {"path": "/health", "port": "http-dashboard"}}
    service = {
        "type": "ClusterIP",
        "selector": selector,
        "ports": [
            {"name": key, "protocol": "TCP", "port": port, "targetPort": key}
            for key, port in ports.items()
        ],
    }
    plain = _worker(options, options.cores, options.memory, address, gpu=False)
    cluster = {
        "apiVersion": API,
        "kind": "DaskCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "worker": {"replicas": options.n_workers, "spec": plain},
            "scheduler": {"spec": _pod(scheduler, options), "service": service},
        },
    }
    if options.gpu is None:
        return [cluster]
    group = options.gpu
    with_gpu = _worker(options, group.cores, group.memory, address, gpu=True)
    return [
        cluster,
        {
            "apiVersion": API,
            "kind": "DaskWorkerGroup",
            "metadata": {"name": f"{name}-gpu", "namespace": namespace},
            "spec": {"cluster": name, "worker": {"replicas": group.n_workers, "spec": with_gpu}},
        },
    ]


def _worker(
    options: ClusterOptions, cores: int, memory: str, address: str, *, gpu: bool
) -> dict[str, Any]:
    """Describe the pod of a worker: processes of one thread, or one process with a GPU."""
    n_bytes = int(parse_bytes(memory))
    n_processes = 1 if gpu else cores
    command = [
        *("dask", "worker", "--protocol", "tls", "--name", "$(DASK_WORKER_NAME)"),
        *("--nworkers", str(n_processes), "--nthreads", str(cores // n_processes)),
        *("--memory-limit", str(int(0.9 * n_bytes / n_processes))),
        *("--local-directory", "/tmp", "--no-dashboard", *options.worker_extra),
    ]
    resources = {"cpu": str(cores), "memory": str(n_bytes)}
    if gpu:
        command += ["--resources", "GPU=1"]
        resources["nvidia.com/gpu"] = "1"
    pod = _pod(_container("worker", options, command, resources, address), options)
    if gpu:
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    return pod


def _container(
    name: str,
    options: ClusterOptions,
    command: list[str],
    resources: dict[str, str],
    address: str,
) -> dict[str, Any]:
    roles = ("CLIENT", "SCHEDULER", "WORKER")
    prefix = "DASK_DISTRIBUTED__COMM__"
    environment = {
        "DASK_SCHEDULER_ADDRESS": address,
        "HOME": "/tmp",
        "NUMBA_CACHE_DIR": "/tmp/numba",
        **WORKER_ENVIRONMENT,
        f"{prefix}REQUIRE_ENCRYPTION": "True",
        f"{prefix}TLS__CA_FILE": f"{TLS_FOLDER}/ca.crt",
        **{f"{prefix}TLS__{role}__CERT": f"{TLS_FOLDER}/tls.crt" for role in roles},
        **{f"{prefix}TLS__{role}__KEY": f"{TLS_FOLDER}/tls.key" for role in roles},
    }
    described: dict[str, Any] = {
        "name": name,
        "image": options.image,
        "command": command,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True},
        ],
    }
    if options.store_secret:
        described["envFrom"] = [{"secretRef": {"name": options.store_secret}}]
    return described


def _pod(container: dict[str, Any], options: ClusterOptions) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "tls", "secret": {"secretName": options.tls_secret, "defaultMode": 0o440}},
        ],
    }


@contextlib.contextmanager
def kubernetes_client(options: ClusterOptions, security: Security) -> Iterator[Client]:
    """Have the operator make a cluster, connect to it, and delete it in the end."""
    import kr8s
    from kr8s.objects import Service, object_from_spec

    namespace = options.namespace or kr8s.api().namespace
    # Two people, or two commands of one, do not take each other's cluster for their own.
    name = f"cvdask-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as made:
        for manifest in manifests(options, name, namespace):
            resource = object_from_spec(manifest, allow_unknown_type=True)
            resource.create()
            # The group goes with its cluster as well, so it may be gone already.
            made.callback(_delete, resource)
        service = _wait_for(Service, f"{name}-scheduler", namespace, options.start_seconds)
        local_port = made.enter_context(service.portforward(PORT, local_port="auto"))
        yield made.enter_context(
            open_client(f"tls://127.0.0.1:{local_port}", security, options.start_seconds)
        )


def _delete(resource: Any) -> None:
    import kr8s

    with contextlib.suppress(kr8s.NotFoundError):
        resource.delete()


def _wait_for(kind: Any, name: str, namespace: str, seconds: float) -> Any:
    """Wait until the operator has made a service, and a pod behind it is ready."""
    import time

    import kr8s

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(kr8s.NotFoundError):
            service = kind.get(name, namespace=namespace)
            if service.ready_pods():
                return service
        time.sleep(1)
    raise ConnectionError(
        f"the scheduler {name} was not ready within {seconds} s. Is Dask's operator installed? "
        f"Look at: kubectl -n {namespace} get daskclusters,pods,events"
    )
