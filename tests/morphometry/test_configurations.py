"""Configurations: 2×2×2 voxels, their areas and Euler numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import euler_number, marching_cubes, mesh_surface_area

from cvdask.morphometry.configurations import (
    EXAMPLES,
    KIND_OF_CELL,
    NO_KIND,
    PATTERNS,
    crofton_areas,
    euler_numbers,
    exposed_faces,
    marching_cubes_areas,
)
from cvdask.morphometry.directions import DIRECTIONS, direction_weights
from tests.morphometry.by_hand import cells_of

SIZES = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (2.0, 1.0, 1.5)]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.random(shape) < draw(st.sampled_from([0.2, 0.5, 0.8]))


def test_mirror_images_are_of_one_kind():
    assert (len(EXAMPLES), PATTERNS.shape) == (44, (44, 2, 2, 2))
    assert (KIND_OF_CELL[0], KIND_OF_CELL[255]) == (NO_KIND, NO_KIND)
    assert np.array_equal(np.unique(KIND_OF_CELL[1:255]), np.arange(44))
    for code in range(1, 255):
        cell = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        for axes in itertools.chain.from_iterable(
            itertools.combinations(range(3), k) for k in (1, 2, 3)
        ):
            mirrored = (np.flip(cell, axes).ravel() << np.arange(8)).sum()
            assert KIND_OF_CELL[mirrored] == KIND_OF_CELL[code]
    # One voxel along the diagonal of a face, and of the same face turned, are two kinds.
    assert KIND_OF_CELL[0b0000_1001] != KIND_OF_CELL[0b0010_0001]
    for kind, example in enumerate(EXAMPLES):
        assert KIND_OF_CELL[example] == kind
        assert np.array_equal(PATTERNS[kind].ravel(), [example >> bit & 1 for bit in range(8)])


def test_a_cube_of_one_voxel():
    cells = cells_of(np.ones((1, 1, 1), bool))
    assert (cells @ exposed_faces()).tolist() == [8, 8, 8]
    assert cells @ euler_numbers(26) == cells @ euler_numbers(6) == 8
    # An octahedron around it.
    assert cells @ marching_cubes_areas((1, 1, 1)) == pytest.approx(math.sqrt(3))
    # 13 directions, each with two crossings of area v / d.
    expected = sum(
        4 * weight / math.hypot(*step) * 2
        for step, weight in zip(
            DIRECTIONS.tolist(), direction_weights((1.0, 1.0, 1.0)), strict=True
        )
    )
    assert cells @ crofton_areas((1.0, 1.0, 1.0)) == pytest.approx(expected)


def test_a_face_across_an_axis():
    """A plane through the whole cell, wound by four cells per voxel."""
    faces = {
        axis: KIND_OF_CELL[
            sum(1 << (4 * z + 2 * y + x) for z, y, x in np.ndindex(2, 2, 2) if (z, y, x)[axis] == 0)
        ]
        for axis in range(3)
    }
    for axis, kind in faces.items():
        assert exposed_faces()[kind].tolist() == [4 * (axis == other) for other in range(3)]
        size = (4.0, 1.0, 2.0)
        area = math.prod(size) / size[axis]
        assert marching_cubes_areas(size)[kind] == pytest.approx(area)
        assert euler_numbers(26)[kind] == euler_numbers(6)[kind] == 0


@pytest.mark.parametrize("size", SIZES)
@given(mask=masks())
def test_areas_of_scikit_image(size, mask):
    cells = cells_of(mask)
    if not cells.any():
        return
    vertices, triangles, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    expected = mesh_surface_area(vertices.astype(float) * size, triangles)
    assert cells @ marching_cubes_areas(size) == pytest.approx(expected, rel=1e-6)


@given(mask=masks())
def test_euler_numbers_of_scikit_image(mask):
    cells = cells_of(mask)
    for ours, theirs in ((26, 3), (6, 1)):
        total = int(cells @ euler_numbers(ours))
        assert total % 8 == 0
        assert total // 8 == euler_number(np.pad(mask, 1), theirs)


@given(mask=masks())
def test_faces_are_counted_four_times(mask):
    padded = np.pad(mask, 1).astype(int)
    expected = [int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in range(3)]
    assert (cells_of(mask) @ exposed_faces()).tolist() == [4 * n for n in expected]


@pytest.mark.parametrize("size", SIZES)
@given(mask=masks())
def test_crofton_counts_crossings_along_lines(size, mask):
    """Over the whole array: neighbours in each direction of which one is the object's."""
    expected = 0.0
    padded = np.pad(mask, 1)
    for step, weight in zip(DIRECTIONS.tolist(), direction_weights(size), strict=True):
        crossings = (padded != np.roll(padded, [-s for s in step], (0, 1, 2))).sum()
        length = math.hypot(*(s * v for s, v in zip(step, size, strict=True)))
        expected += 4 * weight * math.prod(size) / length * crossings
    assert cells_of(mask) @ crofton_areas(size) == pytest.approx(expected)
