"""A Kubernetes of this machine alone: its API, Dask's operator, and pods that are processes.

1. :func:`cluster` serves the API on loopback: what is created, looked up and deleted, and the
   forwarding of a port, by the paths, fields and frames of Kubernetes.
2. What the operator does follows: a ``DaskCluster`` gets a scheduler, its service and workers, a
   ``DaskWorkerGroup`` more workers, named and labelled as the operator names and labels them.
3. A pod runs the very command of its manifest, with its variables. Only what a process of this
   machine cannot have is replaced: its address, its ports, the folder of the mounted secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.tcpclient import TCPClient
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

NAMESPACE = "heart"
PORTS = {"tcp-comm": "8786", "http-dashboard": "8787"}
TLS_FOLDER = "/etc/cvdask/tls"
# How much of a forwarded connection is handed on at once.
PIECE = 2**16


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Pod:
    """A container's command, run as a process."""

    manifest: dict[str, Any]
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it and what it has started, as the end of a container does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Kubernetes:
    """What one namespace holds.

    Parameters
    ----------
    folder : Path
        For the files and the output of pods.
    tls : Path
        ``ca.crt``, ``tls.crt`` and ``tls.key``: the secret that pods mount.
    operator : bool
        Whether Dask's operator is installed: without it nothing starts.
    """

    folder: Path
    tls: Path
    operator: bool = True
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    pods: dict[str, Pod] = field(default_factory=dict)
    ports: dict[str, dict[str, int]] = field(default_factory=dict)

    def create(self, plural: str, manifest: dict[str, Any]) -> None:
        """Store an object and do what the operator does about it."""
        name = manifest["metadata"]["name"]
        if (plural, name) in self.objects:
            raise HTTPError(409)
        self.objects[plural, name] = manifest
        self.created.append(manifest)
        if not self.operator:
            return
        if plural == "daskclusters":
            described = manifest["spec"]["scheduler"]
            self.ports[name] = {port: free_port() for port in PORTS}
            service = f"{name}-scheduler"
            self.objects["services", service] = self._object(
                "Service", "v1", service, {}, spec=described["service"]
            )
            self._start(service, name, "scheduler", described["spec"])
            self._start_workers(f"{name}-default", name, manifest["spec"]["worker"])
        else:
            self._start_workers(name, manifest["spec"]["cluster"], manifest["spec"]["worker"])

    def delete(self, plural: str, name: str) -> dict[str, Any]:
        """Remove an object, and with a cluster all that belongs to it."""
        try:
            found = self.objects.pop((plural, name))
        except KeyError:
            raise HTTPError(404) from None
        if plural == "daskclusters":
            self.objects.pop(("services", f"{name}-scheduler"), None)
            for key in [k for k, o in self.objects.items() if o["spec"].get("cluster") == name]:
                del self.objects[key]
            for pod in [p for p, one in self.pods.items() if self._cluster_of(one) == name]:
                self.pods.pop(pod).stop()
        return found

    def found(self, plural: str, labels: Mapping[str, str], name: str | None) -> list[Any]:
        """List objects by labels and name."""
        if plural == "pods":
            there = [self._with_status(pod) for pod in list(self.pods.values())]
        else:
            there = [one for (kind, _), one in list(self.objects.items()) if kind == plural]
        return [
            one
            for one in there
            if labels.items() <= one["metadata"].get("labels", {}).items()
            and name in (None, one["metadata"]["name"])
        ]

    def port_of(self, pod: str, port: str) -> int:
        """Return the port of this machine that stands for a pod's."""
        (name,) = [name for name, number in PORTS.items() if number == port]
        return self.ports[self._cluster_of(self.pods[pod])][name]

    def stop(self) -> None:
        for pod in self.pods.values():
            pod.stop()

    def _start_workers(self, group: str, cluster: str, worker: Mapping[str, Any]) -> None:
        for number in range(worker["replicas"]):
            name = f"{group}-worker-{number}"
            variables = {"DASK_WORKER_NAME": name}
            self._start(name, cluster, "worker", worker["spec"], variables)

    def _start(
        self,
        name: str,
        cluster: str,
        component: str,
        spec: Mapping[str, Any],
        more: Mapping[str, str] | None = None,
    ) -> None:
        (container,) = spec["containers"]
        (self.folder / name).mkdir()
        ports = self.ports[cluster]
        replaced = {
            f"{cluster}-scheduler.{NAMESPACE}.svc:{PORTS['tcp-comm']}": (
                f"127.0.0.1:{ports['tcp-comm']}"
            ),
            "0.0.0.0": "127.0.0.1",
            PORTS["tcp-comm"]: str(ports["tcp-comm"]),
            TLS_FOLDER: str(self.tls),
            "/tmp": str(self.folder / name),
        }

        theirs = re.compile("|".join(map(re.escape, replaced)))

        def here(text: str) -> str:
            return theirs.sub(lambda match: replaced[match[0]], text)

        environment = {one["name"]: here(one["value"]) for one in container["env"]} | (more or {})
        # What this machine has compiled before is not compiled again by every pod.
        del environment["NUMBA_CACHE_DIR"]
        command = [here(part) for part in container["command"]]
        for variable, value in environment.items():
            command = [part.replace(f"$({variable})", value) for part in command]
        if component == "scheduler":
            command += ["--dashboard-address", f"127.0.0.1:{ports['http-dashboard']}"]
        else:
            command += ["--host", "127.0.0.1"]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                env={"PATH": os.environ["PATH"], **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        labels = {"dask.org/cluster-name": cluster, "dask.org/component": component}
        manifest = self._object("Pod", "v1", name, labels, spec=dict(spec))
        self.pods[name] = Pod(manifest, process)

    def _with_status(self, pod: Pod) -> dict[str, Any]:
        ready = pod.process.poll() is None
        if ready and self._labels(pod)["component"] == "scheduler":
            ready = self._answers(pod)
        state = "True" if ready else "False"
        conditions = [{"type": kind, "status": state} for kind in ("Ready", "ContainersReady")]
        return {**pod.manifest, "status": {"phase": "Running", "conditions": conditions}}

    def _answers(self, pod: Pod) -> bool:
        """Ask what the manifest's probe asks."""
        probe = pod.manifest["spec"]["containers"][0]["readinessProbe"]["httpGet"]
        port = self.ports[self._cluster_of(pod)][probe["port"]]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe['path']}", timeout=1):
                return True
        except OSError:
            return False

    def _labels(self, pod: Pod) -> dict[str, str]:
        labels = pod.manifest["metadata"]["labels"]
        return {key.removeprefix("dask.org/"): value for key, value in labels.items()}

    def _cluster_of(self, pod: Pod) -> str:
        return self._labels(pod)["cluster-name"]

    @staticmethod
    def _object(
        kind: str, version: str, name: str, labels: Mapping[str, str], **more: Any
    ) -> dict[str, Any]:
        metadata = {"name": name, "namespace": NAMESPACE, "labels": dict(labels)}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


class _Said(RequestHandler):
    """Say always the same: the version, and which kinds of objects there are."""

    def initialize(self, said: dict[str, Any]) -> None:
        self.said = said

    def get(self) -> None:
        self.write(self.said)


VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
KINDS = [
    {"name": f"{kind.lower()}s", "singularName": kind.lower(), "kind": kind, "namespaced": True}
    for kind in ("Pod", "Service")
]


class _Objects(RequestHandler):
    """Create, list and delete."""

    def initialize(self, kubernetes: Kubernetes) -> None:
        self.kubernetes = kubernetes

    async def get(self, plural: str, name: str | None = None) -> None:
        labels, fields = (
            dict(part.split("=", 1) for part in self.get_argument(key, "").split(",") if part)
            for key in ("labelSelector", "fieldSelector")
        )
        wanted = name or fields.get("metadata.name")
        # The probe of a pod asks another server, perhaps for a second; meanwhile pods come and go.
        found = await asyncio.to_thread(self.kubernetes.found, plural, labels, wanted)
        if name and not found:
            raise HTTPError(404)
        self.write(found[0] if name else {"kind": "List", "apiVersion": "v1", "items": found})

    def post(self, plural: str, name: str | None = None) -> None:
        assert name is None
        manifest = json.loads(self.request.body)
        self.kubernetes.create(plural, manifest)
        self.set_status(201)
        self.write(manifest)

    def delete(self, plural: str, name: str | None = None) -> None:
        assert name is not None
        self.write(self.kubernetes.delete(plural, name))


class _PortForward(WebSocketHandler):
    """Hand on bytes between a web socket and a port: channel 0 is data, channel 1 errors."""

    def initialize(self, kubernetes: Kubernetes) -> None:
        self.kubernetes = kubernetes

    async def open(self, pod: str) -> None:
        port = self.get_argument("ports")
        self.stream = await TCPClient().connect("127.0.0.1", self.kubernetes.port_of(pod, port))
        for channel in (b"\x00", b"\x01"):
            await self.write_message(channel + struct.pack("<H", int(port)), binary=True)
        self.handing_on = asyncio.create_task(self._hand_on())

    async def _hand_on(self) -> None:
        with contextlib.suppress(StreamClosedError, WebSocketClosedError):
            while True:
                piece = await self.stream.read_bytes(PIECE, partial=True)
                await self.write_message(b"\x00" + piece, binary=True)
        self.close()

    async def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        with contextlib.suppress(StreamClosedError):
            await self.stream.write(message[1:])

    def on_close(self) -> None:
        self.stream.close()


@contextlib.contextmanager
def cluster(kubernetes: Kubernetes) -> Iterator[Path]:
    """Serve the API; yield the file by which users find it, which ``KUBECONFIG`` names."""
    known = {"kubernetes": kubernetes}
    of_namespace = rf"/(?:api/v1|apis/kubernetes\.dask\.org/v1)/namespaces/{NAMESPACE}"
    application = Application(
        [
            (r"/version/?", _Said, {"said": VERSION}),
            (r"/api/?", _Said, {"said": {"versions": ["v1"]}}),
            (r"/api/v1/?", _Said, {"said": {"groupVersion": "v1", "resources": KINDS}}),
            (r"/apis/?", _Said, {"said": {"groups": []}}),
            (rf"{of_namespace}/pods/([^/]+)/portforward", _PortForward, known),
            (rf"{of_namespace}/([^/]+)(?:/([^/]+))?", _Objects, known),
        ]
    )
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(application)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> None:
        server.add_sockets(sockets)

    async def stop() -> None:
        server.stop()
        await server.close_all_connections()

    config = kubernetes.folder / "kubeconfig"  # YAML, of which JSON is a part
    config.write_text(json.dumps(_kubeconfig(sockets[0].getsockname()[1])))
    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield config
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        kubernetes.stop()


def _kubeconfig(port: int) -> dict[str, Any]:
    context = {"cluster": "here", "user": "somebody", "namespace": NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "somebody", "user": {}}],
        "contexts": [{"name": "here", "context": context}],
    }
