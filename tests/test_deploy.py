"""Do the files under ``deploy/`` say what the code does, and keep the rules of safety?"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvdask.engine.cluster_options import VARIABLE, read_options
from cvdask.engine.kubernetes import USER, manifests
from tests.engine.manifests import broken_rules, pods

DEPLOY = Path(__file__).parents[1] / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is in the checkout only")


def found(pattern: str) -> list[Path]:
    return sorted(DEPLOY.rglob(pattern))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", found("*.toml"), ids=str)
def test_options_are_accepted(path: Path) -> None:
    read_options({VARIABLE: str(path)})


def test_the_manifest_is_that_of_its_options() -> None:
    options = read_options({VARIABLE: str(DEPLOY / "kubernetes/cluster.toml")})
    described = manifests(options, "cvdask", "cvdask")
    assert documents(DEPLOY / "kubernetes/cluster.yaml") == described


def test_pods_keep_the_rules() -> None:
    described = [pod for path in found("*.yaml") for pod in pods(documents(path))]
    assert len(described) == 3  # scheduler, worker, worker with a GPU
    assert [broken_rules(pod) for pod in described] == [[], [], []]


def test_only_the_operator_reaches_in() -> None:
    namespace, policy = documents(DEPLOY / "kubernetes/network.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert policy["spec"]["podSelector"] == {}
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    within, operator = policy["spec"]["ingress"]
    assert within == {"from": [{"podSelector": {}}]}
    (source,) = operator["from"]
    assert list(source["namespaceSelector"]["matchLabels"].values()) == ["dask-operator"]


@pytest.mark.parametrize("path", found("Dockerfile.*"), ids=str)
def test_images_are_pinned_and_not_root(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+-", text, re.MULTILINE)
    assert "-c constraints.txt" in text
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users[-1].split(":") == [str(USER)] * 2
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (DEPLOY.parent / name).exists(), name


@pytest.mark.parametrize("path", found("*.sh"), ids=str)
def test_scripts_can_be_parsed(path: Path) -> None:
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_the_rule_of_the_bucket_ends_uploads() -> None:
    (rule,) = json.loads((DEPLOY / "cloud/lifecycle.json").read_text())["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*/README.md")), ids=str)
def test_every_part_is_explained(path: Path) -> None:
    text = path.read_text()
    headings = ["Needs", "Set up", "Run", "Check", "Clean up"]
    places = [text.index(f"**{heading}.**") for heading in headings]
    assert places == sorted(places)
