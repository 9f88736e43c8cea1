"""The rules that every description for Kubernetes keeps, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def pods(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every description of a pod inside a manifest, however deep."""
    if isinstance(value, Mapping):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


def broken_rules(pod: Mapping[str, Any]) -> list[str]:
    """List the rules of safety that a pod breaks."""
    broken = []
    identity = pod.get("securityContext", {})
    if identity.get("runAsNonRoot") is not True or not identity.get("runAsUser"):
        broken.append("may be root")
    if identity.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        broken.append("may make any system call")
    if pod.get("automountServiceAccountToken") is not False:
        broken.append("holds a right on Kubernetes")
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        broken.append("sees the node's files")
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        broken.append("shares the node's names")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container.get("securityContext", {})
        if context.get("readOnlyRootFilesystem") is not True:
            broken.append("may write anywhere")
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            broken.append("may gain rights")
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            broken.append("keeps capabilities")
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get("limits", {})):
            broken.append("has no limits")
        for variable in container.get("env", []):
            secret = any(word in variable["name"] for word in ("SECRET", "PASSWORD", "TOKEN"))
            if secret and "value" in variable:
                broken.append(f"{variable['name']} is written out")
    return broken
