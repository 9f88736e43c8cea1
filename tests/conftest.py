"""What all tests share: hypothesis profiles and the ways a stage can be run.

``pytest --hypothesis-profile nightly`` draws many more examples than the default, ``dev``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from distributed import Client, LocalCluster

# No deadlines: the first call of a compiled kernel compiles it.
hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("dev")


@pytest.fixture(scope="session")
def distributed_client() -> Iterator[Client]:
    """A client of two worker processes with one thread each, on loopback, shared by all tests.

    A test that harms its workers starts a cluster of its own.
    """
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


# Session scope, so that hypothesis may draw many examples under one client.
@pytest.fixture(scope="session", params=["serial", "threads", "distributed"])
def client(request: pytest.FixtureRequest) -> Any:
    """Every way to run a stage: ``None`` (the reference), ``"threads"``, a distributed client."""
    if request.param == "serial":
        return None
    if request.param == "threads":
        return "threads"
    return request.getfixturevalue("distributed_client")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Find a set of real data by name; a test that asks for one that is absent is skipped.

    Looked for below ``CVDASK_DATA``, by default ``shared/data`` beside the checkout.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("CVDASK_DATA", beside))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real data {name!r} is not there; set CVDASK_DATA to its folder")
        return root / name

    return find
