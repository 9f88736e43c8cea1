"""A comparison with figures, whose names would like to be more than names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import cvdask
from cvdask.comparison.compare import Comparison
from tests.comparison.cells import objects, write_cell

CLASS = '<img src=x onerror="alert(1)"> & $mito$'
GROUP = "<script>alert('group')</script>"
CLASSES = {1: CLASS, 2: "myofibrils"}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two groups of two and three samples with density and scores; every name is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    groups: dict[str, list[str]] = {GROUP: [], "</style> & co": []}
    for k, group in enumerate([GROUP, GROUP, "</style> & co", "</style> & co", "</style> & co"]):
        rng = np.random.default_rng(k)
        parts = [objects(rng, 30, name=CLASS), objects(rng, 12, name="myofibrils")]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        data = np.kron(rng.integers(0, 3, (5, 4, 4)), np.ones((2, 3, 4))).astype(np.uint8)
        url = folder / f"<script>cell {k}.zarr"
        write_cell(url, columns, classes=CLASSES, data=data)
        cvdask.density(
            str(url), numerator=1, denominator="myofibrils", kernel_um=0.3, stride_um=0.1
        )
        groups[group].append(str(url))
    scores = {"f1": 0.9, "jaccard": 0.8, "accuracy": 0.95, "v_rand": None}
    (folder / "scores.json").write_text(json.dumps({"classes": {CLASS: scores}}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        done = cvdask.compare(
            groups=groups, out=str(folder / "out"), scores=[str(folder / "scores.json")]
        )
    assert isinstance(done, Comparison)
    return done


@pytest.fixture(scope="session")
def hostile_folder(hostile: Comparison) -> Path:
    """Where it lies."""
    return Path(hostile.url)
