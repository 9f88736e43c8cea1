"""Stacks: neighbours and extents along z, against direct counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cvdask.synthesis import stacks as module
from cvdask.synthesis.stacks import (
    component_spans,
    extents,
    jaccard_distance,
    longest_run,
    neighbour_distance,
)
from tests.synthesis.test_slices import opened, voxels, write_classes


@given(st.integers(0, 1000))
def test_jaccard_distance_class_by_class(seed):
    a, b = np.random.default_rng(seed).integers(0, 3, (2, 3, 4), np.uint8)
    shared = sum(((a == c) & (b == c)).sum() for c in (1, 2))
    either = sum(((a == c) | (b == c)).sum() for c in (1, 2))
    # A pixel of two different classes lies in two unions.
    assert jaccard_distance(a, b) == pytest.approx(1 - shared / either if either else 0)


def test_empty_slices_are_equal():
    empty = np.zeros((4, 4), np.uint8)
    assert jaccard_distance(empty, empty) == 0
    assert jaccard_distance(empty, empty + 1) == 1


def test_neighbours_of_a_stack_with_gaps(tmp_path, monkeypatch):
    data = voxels()[:, 3:19, 1:17]
    volume = write_classes(tmp_path / "cell.zarr", data)
    found = opened([volume, volume], resolution=16, exclude={0: [7, 20]})
    pairs = [(z, z + 1) for z in range(36)]
    kept = [pair for pair in pairs if not {7, 20} & set(pair)]
    expected = np.mean([jaccard_distance(data[a], data[b]) for a, b in [*kept, *pairs]])
    assert neighbour_distance(found) == pytest.approx(expected)
    monkeypatch.setattr(module, "HELD", 3)
    assert neighbour_distance(found) == pytest.approx(expected)
    assert longest_run(found) == 37
    assert longest_run(opened(volume, resolution=16, exclude=[7, 20])) == 16
    assert np.isnan(neighbour_distance(opened(volume, resolution=16, z_range=(3, 4))))


@given(st.integers(0, 1000))
def test_spans_of_components(seed):
    mask = np.random.default_rng(seed).random((6, 5, 5)) < 0.12
    n_voxels, spans = component_spans(mask)
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    expected = sorted(
        ((labels == k).sum(), np.ptp(np.nonzero(labels == k)[0]) + 1) for k in range(1, n + 1)
    )
    assert sorted(zip(n_voxels.tolist(), spans.tolist(), strict=True)) == expected


def test_extents_of_known_columns(tmp_path):
    data = np.zeros((24, 8, 8), np.uint8)
    data[:, :2, :2] = 1  # through all
    data[3:6, 4:6, 4:6] = 1
    data[:, 4:8, 0:2] = np.array([2, 0] * 12, np.uint8)[:, None, None]
    volume = write_classes(tmp_path / "cell.zarr", data)
    found = opened(volume, resolution=8)
    spans = extents(found, 12, most=2)
    assert spans["mitochondria"] == pytest.approx((12 * 48 * 2 + 3 * 12) / (48 * 2 + 12))
    assert spans["myofibrils"] == 1
    assert np.isnan(spans["z_discs"])
    assert extents(found, 12, most=1)["mitochondria"] < 12  # the first stack alone
