"""Distances: equal to closed forms, SciPy and brute force; one kind is near, other kinds far."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from cvdask.synthesis.frechet import (
    Reference,
    density_and_coverage,
    fit_reference,
    frechet_distance,
    halves,
    kernel_distance,
    reference_of,
)
from tests.synthesis.test_slices import opened, voxels, write_classes


def textures(n: int, width: float = 2.0, seed: int = 0, side: int = 32) -> np.ndarray:
    """Draw slices of four classes with structures of a certain width."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, 4))
    return gaussian_filter(noise, (0, width, width, 0)).argmax(-1).astype(np.uint8)


def clouds(seed: int, n: int = 30, m: int = 40, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    shear = chance.normal(size=(k, k))
    return chance.normal(size=(n, k)) @ shear + 1, chance.normal(size=(m, k))


@given(st.integers(0, 1000))
def test_frechet_distance_against_scipy(seed):
    points, reference = clouds(seed)
    first, second = np.cov(points.T), np.cov(reference.T)
    shift = points.mean(0) - reference.mean(0)
    expected = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(points, reference) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(reference, points) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_in_closed_form():
    # Two lines: (μ1 − μ2)² + (σ1 − σ2)².
    line = np.arange(10.0)[:, None]
    sd = np.std(line, ddof=1)
    assert frechet_distance(line, 3 * line + 1) == pytest.approx((4.5 - 14.5) ** 2 + (2 * sd) ** 2)


@given(st.integers(0, 1000))
def test_kernel_distance_by_pairs(seed):
    points, reference = clouds(seed, 6, 7)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b + 1) ** 3)

    within = [
        np.mean([kernel(a, b) for i, a in enumerate(cloud) for j, b in enumerate(cloud) if i != j])
        for cloud in (points, reference)
    ]
    between = np.mean([kernel(a, b) for a in points for b in reference])
    assert kernel_distance(points, reference) == pytest.approx(sum(within) - 2 * between)


@given(st.integers(0, 1000))
def test_density_and_coverage_by_pairs(seed):
    points, reference = clouds(seed, 9, 12)
    n_balls, covered = 0, 0
    for centre in reference:
        radius = sorted(np.linalg.norm(reference - centre, axis=1))[5]
        inside = np.linalg.norm(points - centre, axis=1) <= radius
        n_balls += inside.sum()
        covered += inside.any()
    density, coverage = density_and_coverage(points, reference)
    assert density == pytest.approx(n_balls / (5 * 9))
    assert coverage == pytest.approx(covered / 12)


def test_halves_are_blocks_in_turn():
    half = halves(64)
    np.testing.assert_array_equal(half.reshape(4, 16), np.repeat([[False], [True]] * 2, 16, 1))
    for n in range(4, 200):
        assert abs(int(halves(n).sum()) * 2 - n) <= max(2, n // 4), n
    two = halves(64, np.repeat([0, 1], [20, 44]))
    assert two[19] != two[20]  # a new volume, a new block
    assert 24 <= two.sum() <= 40


def test_the_same_kind_is_near_and_other_kinds_are_far():
    reference = fit_reference(textures(256), 4)
    same = reference.distance(textures(256, seed=1))
    wider = reference.distance(textures(256, 3.0, seed=1))
    noise = reference.distance(np.random.default_rng(0).integers(0, 4, (128, 32, 32), np.uint8))
    assert reference.ratio(same) < 1
    assert reference.ratio(wider) > 4
    assert reference.ratio(noise) > 5 * reference.ratio(wider)
    assert abs(same.kernel) < 0.1 * wider.kernel < 0.1 * noise.kernel
    assert (same.density > 0.8, same.coverage > 0.8) == (True, True)
    assert (noise.density, noise.coverage) == (0, 0)
    assert (same.n_slices, same.n_reference, reference.floor.n_slices) == (256, 256, 128)


def test_one_slice_again_and_again_covers_little():
    reference = fit_reference(textures(128), 4)
    collapsed = reference.distance(textures(1).repeat(64, axis=0))
    assert collapsed.density > 0
    assert collapsed.coverage < 0.2
    assert reference.ratio(collapsed) > 3


def test_a_kind_that_real_slices_never_show_is_seen():
    # Real slices have no class 3 at all: its share has no variance, yet its presence counts.
    real = np.minimum(textures(64), 2)
    generated = np.minimum(textures(64, seed=1), 2)
    reference = fit_reference(real, 4)
    before = reference.distance(generated)
    generated[:, :4, :4] = 3
    assert reference.distance(generated).frechet > 2 * before.frechet


def test_what_depends_on_the_real_slices_is_fitted_once():
    real = textures(40)
    first, second = fit_reference(real, 4), fit_reference(real, 4)
    samples = textures(20, 2.5, seed=3)
    assert first.distance(samples) == second.distance(samples)
    assert first.floor == second.floor
    assert set(first.floor.as_dict()) >= {"frechet", "kernel", "density", "coverage"}
    assert isinstance(first, Reference)


def test_few_slices_and_equal_slices_work():
    assert fit_reference(textures(4), 4).distance(textures(2, seed=1)).frechet > 0
    same = fit_reference(np.zeros((10, 8, 8), np.uint8), 2)
    assert (same.floor.frechet, same.ratio(same.floor)) == (0, np.inf)
    assert same.distance(np.ones((3, 8, 8), np.uint8)).frechet > 0
    with pytest.raises(ValueError, match=r"at least 4 real slices.*: 3"):
        fit_reference(textures(3), 4)
    with pytest.raises(ValueError, match=r"32 × 32.*\(5, 16, 16\)"):
        fit_reference(textures(4), 4).distance(textures(5, side=16))
    with pytest.raises(ValueError, match=r"\(1, 32, 32\)"):
        fit_reference(textures(4), 4).distance(textures(1))


def test_a_reference_of_slices_in_the_store(tmp_path):
    data = voxels()
    volume = write_classes(tmp_path / "cell.zarr", data)
    found = reference_of(opened(volume, resolution=16))
    cut = data[:, 3:19, 1:17]
    expected = fit_reference(np.searchsorted([0, 1, 2, 4], cut).astype(np.uint8), 4)
    np.testing.assert_array_equal(found.points, expected.points)
    assert found.floor == expected.floor
    assert len(reference_of(opened(volume, resolution=16), most=10).points) == 10


def test_another_part_of_a_tissue_is_nearer_than_another_section(real_data):
    """Real labels: the floor lies far below what a turned stack has."""
    import tifffile

    labels = tifffile.imread(real_data("urocell-labels-fib1-3-3-0") / "labels.tif")
    stack = np.ascontiguousarray(labels[:, :128:2, :128:2], np.uint8)
    turned = np.ascontiguousarray(labels.transpose(1, 0, 2)[:, :128:2, :128:2], np.uint8)
    reference = fit_reference(stack, 4)
    assert reference.floor.frechet < 1
    assert reference.ratio(reference.distance(turned)) > 5
    noise = np.random.default_rng(0).integers(0, 4, stack.shape, np.uint8)
    assert reference.ratio(reference.distance(noise)) > 100
