"""J(k): against the mean of distances taken one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cvdask.synthesis import continuity
from cvdask.synthesis.continuity import mean_distances, open_real, stack_distances
from cvdask.synthesis.jaccard import jaccard_matrix
from cvdask.volume.store import Volume
from tests.samples import write_sample

CLASSES = {1: "mitochondria", 4: "myofibrils"}


def stack(n: int = 20, side: int = 16, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice(np.array([0, 1, 4], np.uint8), (n, side, side))


def written(folder, data: np.ndarray, name: str = "cell.zarr", **options) -> Volume:
    write_sample(folder / name, data, **options)
    options = {"classes": CLASSES, **options}
    return write_sample(folder / name, data, labels="classes", **options)


def test_means_of_any_order():
    distances = jaccard_matrix(stack(7))
    order = np.array([3, 0, 6, 2, 1, 5, 4])
    found = mean_distances(distances, order)
    assert len(found) == 6
    for k, value in enumerate(found, start=1):
        pairs = [distances[order[i], order[i + k]] for i in range(7 - k)]
        assert value == pytest.approx(np.mean(pairs))
    assert mean_distances(distances, n_lags=2) == mean_distances(distances)[:2]
    assert mean_distances(distances[:1, :1]) == []


@pytest.mark.parametrize("at_once", [3, 64])
def test_a_stack_in_the_store(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(continuity, "REAL_SLICES", at_once)
    data = stack()
    image = written(tmp_path, data)
    slices = open_real(str(tmp_path / "cell.zarr"), "classes", image)
    expected = mean_distances(jaccard_matrix(data))
    np.testing.assert_allclose(stack_distances(slices), expected)
    np.testing.assert_allclose(stack_distances(slices, 4), expected[:4])


def test_a_real_stack_is_reduced_to_the_voxels_of_the_other(tmp_path):
    fine = stack(6, 32)
    generated = written(tmp_path, stack(6, 16), "made.zarr", voxel_size_nm=(40, 20, 20))
    written(tmp_path, fine)
    slices = open_real(str(tmp_path / "cell.zarr"), "classes", generated)
    assert (slices.resolution, slices.reduction) == (16, 2)
    expected = mean_distances(jaccard_matrix(slices.read(range(6))))
    np.testing.assert_allclose(stack_distances(slices), expected)


def test_distances_count_in_z_where_slices_are_left_out(tmp_path):
    data = stack(8)
    image = written(tmp_path, data)
    slices = open_real(str(tmp_path / "cell.zarr"), "classes", image)
    kept = np.array([0, 1, 2, 5, 6, 7])
    slices.z, slices.volume = slices.z[kept], slices.volume[kept]
    channels = np.searchsorted([0, 1, 4], data[kept]).astype(np.uint8)
    slices.read = lambda index: channels[list(index)]  # type: ignore[method-assign]
    distances = jaccard_matrix(data)
    expected = [
        np.mean([distances[a, b] for a in kept for b in kept if b - a == k] or [math.nan])
        for k in range(1, 8)
    ]
    np.testing.assert_allclose(stack_distances(slices), expected)


@pytest.mark.parametrize("shape", [(6, 16, 8), (6, 12, 12)])
def test_slices_that_no_network_sees_are_refused(tmp_path, shape):
    data = np.ones(shape, np.uint8)
    image = written(tmp_path, data)
    with pytest.raises(ValueError, match=f"{shape[1]} × {shape[2]}"):
        open_real(str(tmp_path / "cell.zarr"), "classes", image)
