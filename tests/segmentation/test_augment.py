"""Augmentation: image and target stay together, and the same numbers draw the same crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cvdask.segmentation import augment as module
from cvdask.segmentation.augment import (
    add_bands,
    alter_intensity,
    augment,
    cut,
    sample,
    sampling_grid,
)
from cvdask.volume.colors import UNANNOTATED


def picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, and where they are bright."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    smooth = ndimage.gaussian_filter(noise, 3)
    image = (smooth / smooth.std()).astype(np.float32)
    return image, (image > 0).astype(np.uint8)


def test_a_crop_is_moved_inside():
    image = np.arange(30, dtype=np.float32).reshape(5, 6)
    crop, target = cut(image, image.astype(np.uint8), (0.0, 5.9), 2)
    np.testing.assert_array_equal(crop, [[4, 5], [10, 11]])
    np.testing.assert_array_equal(target, [[4, 5], [10, 11]])


def test_a_crop_larger_than_its_patch_is_refused():
    image, target = picture(8, 6)
    with pytest.raises(ValueError, match=r"crop of 7.*\(8, 6\)"):
        cut(image, target, (4, 3), 7)


def test_pixels_are_taken_from_where_the_grid_says():
    image = np.array([[0, 10], [20, 30], [40, 50]], np.float32)
    target = np.array([[0, 1], [2, 3], [4, 5]], np.uint8)
    rows = np.array([[0, 0.5, 2.0], [-0.4, -1.0, 2.75]], np.float32)
    columns = np.array([[0, 0.25, 1.0], [0, 0, 1.0]], np.float32)
    values, labels = sample(image, target, rows, columns)
    # mirrored at the outer pixels: -0.4 is 0.4, -1 is 1, 2.75 is 1.25
    np.testing.assert_allclose(values, [[0, 12.5, 50], [8, 20, 35]], rtol=1e-5)
    np.testing.assert_array_equal(labels, [[0, 0, 5], [0, UNANNOTATED, UNANNOTATED]])


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 99))
def test_sampling_equals_scipy(height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((height, width), dtype=np.float32)
    rows = rng.uniform(-height, 2 * height, (7, 7)).astype(np.float32)
    columns = rng.uniform(-width, 2 * width, (7, 7)).astype(np.float32)
    expected = ndimage.map_coordinates(image, [rows, columns], order=1, mode="mirror")
    got, _ = sample(image, np.zeros(image.shape, np.uint8), rows, columns)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_target_stay_together(seed, monkeypatch):
    monkeypatch.setattr(module, "alter_intensity", lambda image, rng: image)
    monkeypatch.setattr(module, "SHARE_BANDED", 0.0)
    image, target = picture(96, 80)
    crop, labels = augment(image, target, (40.0, 30.0), 48, np.random.default_rng(seed))
    clear = (np.abs(crop) > 0.4) & (labels != UNANNOTATED)
    assert clear.sum() > 500
    np.testing.assert_array_equal(labels[clear], crop[clear] > 0)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_crops_have_their_size_and_types(size):
    image, target = picture(64, 70)
    for seed in range(6):
        crop, labels = augment(image, target, (5.0, 69.0), size, np.random.default_rng(seed))
        assert crop.shape == labels.shape == (size, size)
        assert (crop.dtype, labels.dtype) == (np.float32, np.uint8)
        assert np.isfinite(crop).all()
        assert set(np.unique(labels)) <= {0, 1, UNANNOTATED}
        assert (labels != UNANNOTATED).any()


def test_the_same_generator_draws_the_same_crop_and_leaves_the_patch():
    image, target = picture(64, 64)
    before = image.copy(), target.copy()
    crops = [
        augment(image, target, (30.0, 30.0), 32, np.random.default_rng((1, 2, number)))
        for number in (0, 0, 1)
    ]
    np.testing.assert_array_equal(crops[0][0], crops[1][0])
    np.testing.assert_array_equal(crops[0][1], crops[1][1])
    assert not np.array_equal(crops[0][0], crops[2][0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(target, before[1])


def test_unwarped_crops_are_exact_pixels_in_all_eight_positions(monkeypatch):
    monkeypatch.setattr(module, "SHARE_WARPED", 0.0)
    monkeypatch.setattr(module, "SHARE_BANDED", 0.0)
    monkeypatch.setattr(module, "alter_intensity", lambda image, rng: image)
    image, target = picture(16, 16)

    def seen(upright: bool) -> set[bytes]:
        rngs = (np.random.default_rng(seed) for seed in range(100))
        crops = (augment(image, target, (8, 8), 16, rng, upright=upright)[0] for rng in rngs)
        return {crop.tobytes() for crop in crops}

    mirrored = (image, image[:, ::-1])
    assert seen(upright=False) == {np.rot90(m, k).tobytes() for m in mirrored for k in range(4)}
    assert seen(upright=True) == {np.rot90(m, k).tobytes() for m in mirrored for k in (0, 2)}


def test_upright_grids_keep_the_direction_of_rows():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows, columns = sampling_grid((100.0, 100.0), 64, (200, 200), rng, upright=True)
        along = columns[:, -1] - columns[:, 0], rows[:, -1] - rows[:, 0]
        slope = np.degrees(np.arctan2(along[1].mean(), np.abs(along[0].mean())))
        assert abs(slope) < 35  # five standard deviations


def test_bands_are_straight_and_even(monkeypatch):
    flat = np.zeros((40, 50), np.float32)
    monkeypatch.setattr(module, "MOST_BANDS", 1)
    monkeypatch.setattr(module, "SHARE_BANDED", 1.0)
    widths = set()
    for seed in range(50):
        banded = add_bands(flat, np.random.default_rng(seed))
        values = set(np.unique(banded)) - {0}
        assert len(values) <= 1
        marked = np.argwhere(banded != 0)
        widths.add(len(marked))
        if len(marked) > 1:
            # The band holds every pixel between any two of its own: it is convex.
            middle = np.rint(marked[[0, -1]].mean(0)).astype(int)
            assert banded[tuple(middle)] != 0
    assert len(widths) > 20
    assert not flat.any()


def test_most_crops_have_no_band():
    image, _ = picture(16, 16)
    untouched = [add_bands(image, np.random.default_rng(seed)) is image for seed in range(400)]
    assert 0.65 < np.mean(untouched) < 0.85


def test_grids_turn_scale_and_bend():
    steps, bends = [], []
    for seed in range(200):
        rows, columns = sampling_grid((100.0, 100.0), 64, (200, 200), np.random.default_rng(seed))
        along = np.hypot(rows[:, -1] - rows[:, 0], columns[:, -1] - columns[:, 0]) / 63
        steps.append(along.mean())
        straight = np.linspace(rows[:, 0], rows[:, -1], 64, axis=1)
        bends.append(np.abs(rows - straight).max())
        assert abs(rows.mean() - 100) < 5  # the control points move by a few voxels
    assert 0.75 < min(steps) < 0.9
    assert 1.1 < max(steps) < 1.35
    assert 1 < max(bends) < 10


def test_intensity_changes_but_not_where_things_are():
    image, _ = picture(64, 64)
    spread = []
    for seed in range(30):
        altered = alter_intensity(image, np.random.default_rng(seed))
        assert altered is not image
        spread.append(altered.mean())
        ranks = np.corrcoef(image.ravel(), altered.ravel())[0, 1]
        assert ranks > 0.85
    assert np.std(spread) > 0.1


def test_a_flat_image_stays_finite():
    for seed in range(10):
        altered = alter_intensity(np.zeros((8, 8), np.float32), np.random.default_rng(seed))
        assert np.isfinite(altered).all()
