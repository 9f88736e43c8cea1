"""Whole volumes compared: against the arrays in memory, however they are cut into blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvdask.errors import BlocksFailed
from cvdask.synthesis import volume_jaccard
from cvdask.synthesis.jaccard import jaccard_matrix
from cvdask.synthesis.volume_jaccard import volume_jaccard_matrix
from cvdask.volume import classes as volume_classes
from cvdask.volume.ensemble import create_ensemble, publish_ensemble
from cvdask.volume.store import Volume
from tests.samples import write_sample

SHAPE = (9, 10, 13)
CLASSES = {1: "mitochondria", 2: "myofibrils"}


def voxels(seed: int, values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice(np.array(values, np.uint8), SHAPE)


def written(folder: Path, name: str, data: np.ndarray, classes: Any = CLASSES) -> Volume:
    sample = write_sample(folder / name, data)
    write_sample(folder / name, data, labels="classes", classes=classes)
    return sample


@pytest.mark.parametrize("bits", [1, 2**26])
def test_as_in_memory(tmp_path, monkeypatch, client, bits):
    monkeypatch.setattr(volume_jaccard, "BLOCK_BYTES", bits)
    monkeypatch.setattr(volume_classes, "FEWEST_BLOCK_VOXELS", 1)
    data = [voxels(k) for k in range(4)]
    data[3][:] = 0
    samples = [written(tmp_path, f"{k}.zarr", one) for k, one in enumerate(data)]
    expected = jaccard_matrix(np.stack(data).reshape(4, 1, -1))
    np.testing.assert_array_equal(volume_jaccard_matrix(samples, client=client), expected)


def test_an_ensemble_and_a_single_volume(tmp_path):
    ensemble = create_ensemble(tmp_path / "all.zarr", 2, {"stage": "generate"})
    for number in range(2):
        written(tmp_path, f"all.zarr/{number:04d}", voxels(number))
    found = volume_jaccard_matrix(publish_ensemble(ensemble))
    expected = jaccard_matrix(np.stack([voxels(0), voxels(1)]).reshape(2, 1, -1))
    np.testing.assert_array_equal(found, expected)
    assert volume_jaccard_matrix([ensemble.member_url(1)]).tolist() == [[0]]


def test_classes_are_the_same_where_their_names_are(tmp_path):
    a = written(tmp_path, "a.zarr", voxels(0))
    swapped = np.array([0, 2, 1], np.uint8)[voxels(0)]
    swapped[0, 0] = 255
    b = written(tmp_path, "b.zarr", swapped, {1: "myofibrils", 2: "mitochondria"})
    lost = np.count_nonzero(voxels(0)[0, 0])
    expected = 1 - (np.count_nonzero(voxels(0)) - lost) / np.count_nonzero(voxels(0))
    assert volume_jaccard_matrix([a, b])[0, 1] == pytest.approx(expected)


def test_without_names_values_are_classes(tmp_path):
    data = [voxels(k, (0, 3, 77, 200, 255)) for k in range(3)]
    samples = [written(tmp_path, f"{k}.zarr", one, None) for k, one in enumerate(data)]
    stack = np.stack(data).reshape(3, 1, -1)
    stack[stack == 255] = 0
    np.testing.assert_array_equal(volume_jaccard_matrix(samples), jaccard_matrix(stack))


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = written(tmp_path, "a.zarr", voxels(0))
    b = written(tmp_path, "b.zarr", voxels(0)[:5])
    c = written(tmp_path, "c.zarr", voxels(0), None)
    with pytest.raises(ValueError, match=r"\(9, 10, 13\).*\(5, 10, 13\)"):
        volume_jaccard_matrix([a, b])
    with pytest.raises(ValueError, match=r"'classes' of .*c\.zarr"):
        volume_jaccard_matrix([a, c])
    with pytest.raises(ValueError, match="none"):
        volume_jaccard_matrix([])
    d = written(tmp_path, "d.zarr", voxels(0, (0, 9)))
    with pytest.raises(BlocksFailed, match="the value 9"):
        volume_jaccard_matrix([a, d])


def test_blocks_shrink_with_the_number_of_volumes(tmp_path, monkeypatch):
    sample = written(tmp_path, "a.zarr", voxels(0))
    sources, n_classes = volume_jaccard._open([sample], "classes")
    monkeypatch.setattr(volume_jaccard, "BLOCK_BYTES", 2**14)
    few, many = (volume_jaccard.plan_volumes(sources * n, n_classes) for n in (1, 500))
    assert np.prod(many.grid.block_shape) < np.prod(few.grid.block_shape)
    assert all(b % c == 0 for b, c in zip(many.grid.block_shape, (4, 4, 4), strict=True))
