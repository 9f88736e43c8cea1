"""Marching cubes: closed for every neighbourhood there is, and scikit-image's triangles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import marching_cubes

from cvdask.morphometry.marching_cubes import (
    Cells,
    cell_table,
    corners_of,
    join_triangles,
    surface_cells,
    vertices_of,
)
from tests.morphometry.surfaces import (
    area_by_skimage,
    assert_closed,
    blobs,
    signed_volume,
    sphere,
)


def meshed(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mesh a whole object: vertices z, y, x in half voxels, and triangles."""
    padded = np.pad(mask, 1).astype(np.uint8)
    _, places, configurations = surface_cells(padded, np.array([1], np.uint8))
    places = places.astype(np.int64) - 1
    cells = Cells(mask.shape)
    numbers = cells.number(places)
    triangles = join_triangles(numbers, configurations, len(numbers), cells.steps, 0)
    return vertices_of(places, configurations), triangles


def test_a_single_voxel_is_an_octahedron():
    vertices, triangles = meshed(np.ones((1, 1, 1), bool))
    assert vertices.tolist() == [
        [-1, 0, 0], [0, -1, 0], [0, 0, -1], [1, 0, 0], [0, 1, 0], [0, 0, 1],
    ]  # fmt: skip
    assert len(triangles) == 8
    assert_closed(vertices, triangles)
    assert signed_volume(vertices[:, ::-1] / 2, triangles) == pytest.approx(1 / 6)


def edges_of(configuration: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    table = cell_table()
    triangles = table.corners[configuration, : table.n_triangles[configuration]].tolist()
    return [
        (tuple(one[a]), tuple(one[b])) for one in triangles for a, b in ((0, 1), (1, 2), (2, 0))
    ]


def test_no_two_cells_leave_a_gap_between_them():
    """Every pair of configurations that can share a face, along each axis."""
    n_pairs = 0
    for axis in range(3):
        shift = np.eye(3, dtype=int)[axis] * 2
        upper, lower = [], []
        for configuration in range(256):
            voxels = np.array([configuration >> k & 1 for k in range(8)]).reshape(2, 2, 2)
            edges = edges_of(configuration)
            on_upper = sorted(e for e in edges if e[0][axis] == e[1][axis] == 2)
            on_lower = sorted(
                (tuple(b + shift), tuple(a + shift)) for a, b in edges if a[axis] == b[axis] == 0
            )
            upper.append((voxels.take(1, axis).tolist(), on_upper))
            lower.append((voxels.take(0, axis).tolist(), on_lower))
        for (face, edges), (other_face, other_edges) in itertools.product(upper, lower):
            if face == other_face:
                assert edges == other_edges
                n_pairs += 1
    assert n_pairs == 3 * 16 * 16 * 16


@pytest.mark.parametrize("configuration", range(1, 255))
def test_edges_inside_a_cell_have_two_triangles(configuration):
    edges = edges_of(configuration)
    assert len(set(edges)) == len(edges)
    for a, b in edges:
        on_a_face = any(p == q and p != 1 for p, q in zip(a, b, strict=True))
        assert ((b, a) in edges) != on_a_face


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.tuples(*[st.integers(1, 6)] * 3))
def test_any_voxels_have_a_closed_surface(seed, share, shape):
    mask = np.random.default_rng(seed).random(shape) < share
    vertices, triangles = meshed(mask)
    assert_closed(vertices, triangles)
    assert (len(vertices) > 0) == mask.any()
    spacing = np.array((0.04, 0.01, 0.02))
    table = cell_table()
    _, places, configurations = surface_cells(
        np.pad(mask, 1).astype(np.uint8), np.array([1], np.uint8)
    )
    area = table.areas(spacing)[configurations].sum()
    if mask.any():
        assert area == pytest.approx(area_by_skimage(mask, spacing), rel=1e-9)
    a, b = table.columns()
    volume = ((places[:, 0] - 1) * a[configurations] + b[configurations]).sum() / 48
    assert volume == pytest.approx(signed_volume(vertices[:, ::-1] / 2, triangles), abs=1e-9)


@pytest.mark.parametrize("mask", [sphere((15, 17, 16), 6.6), blobs((14, 15, 16)) > 0])
def test_triangles_are_those_of_scikit_image(mask):
    vertices, triangles = meshed(mask)
    places, theirs, _, _ = marching_cubes(
        np.pad(mask, 1).astype(np.float32), 0.5, method="lorensen"
    )
    halves = np.rint(places * 2).astype(int) - 2

    def as_set(corners: np.ndarray) -> set:
        """Triangles whichever corner they begin with."""
        found = set()
        for one in corners.tolist():
            first = one.index(min(one))
            found.add(tuple(map(tuple, one[first:] + one[:first])))
        return found

    assert as_set(vertices[triangles]) == as_set(halves[theirs])
    assert len(vertices) == len(np.unique(halves, axis=0))


def test_corners_are_the_vertices_of_triangles():
    mask = blobs((9, 10, 11)) > 0
    vertices, triangles = meshed(mask)
    _, places, configurations = surface_cells(
        np.pad(mask, 1).astype(np.uint8), np.array([1], np.uint8)
    )
    corners = corners_of(places.astype(np.int64) - 1, configurations)
    np.testing.assert_array_equal(corners, vertices[triangles])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_cells_of_several_objects(dtype):
    largest = np.iinfo(dtype).max
    choice = np.array([0, 3, 5, largest - 1, largest], dtype)
    data = np.random.default_rng(1).choice(choice, (5, 6, 7))
    ids = np.array([3, 4, largest - 1, largest], dtype)
    number, places, configurations = surface_cells(data, ids)
    expected = []
    for k, label in enumerate(ids):
        for z, y, x in itertools.product(range(4), range(5), range(6)):
            inside = (data[z : z + 2, y : y + 2, x : x + 2] == label).ravel()
            if 0 < inside.sum() < 8:
                expected.append((k, z, y, x, int((inside << np.arange(8)).sum())))
    found = np.column_stack([number, places, configurations]).tolist()
    assert list(map(tuple, found)) == expected


def test_more_cells_than_expected():
    data = np.indices((16, 16, 16)).sum(axis=0).astype(np.uint8)  # 46 labels, two cells in three
    number, _, _ = surface_cells(data, np.arange(1, 47, dtype=np.uint8))
    assert len(number) > data.size // 16 + 1024


def test_nothing_to_find():
    assert len(surface_cells(np.zeros((4, 4, 4), np.uint8), np.array([1], np.uint8))[0]) == 0
    assert len(surface_cells(np.ones((1, 4, 4), np.uint8), np.array([1], np.uint8))[0]) == 0
    assert len(surface_cells(np.ones((4, 4, 4), np.uint8), np.array([], np.uint8))[0]) == 0


@given(st.tuples(*[st.integers(1, 10**6)] * 3), st.data())
def test_cells_are_numbered_in_order(shape, data):
    cells = Cells(shape)
    places = sorted(
        data.draw(st.lists(st.tuples(*[st.integers(-1, n - 1) for n in shape]), min_size=1))
    )
    numbers = cells.number(np.array(places))
    assert (np.diff(numbers) >= 0).all()
    assert list(map(tuple, cells.place(numbers).tolist())) == places


def test_more_cells_than_numbers():
    assert Cells((2_000_000, 2_000_000, 2_000_000)).steps[0] > 0
    with pytest.raises(ValueError, match=r"\(4000000, 4000000, 4000000\)"):
        Cells((4_000_000, 4_000_000, 4_000_000))


def test_a_surface_with_a_hole_is_an_error():
    mask = sphere((7, 7, 7), 2.9)
    _, places, configurations = surface_cells(
        np.pad(mask, 1).astype(np.uint8), np.array([1], np.uint8)
    )
    cells = Cells(mask.shape)
    numbers = cells.number(places - 1)
    owners = np.flatnonzero(cell_table().n_vertices[configurations])
    keep = np.arange(len(numbers)) != owners[len(owners) // 2]
    with pytest.raises(LookupError, match="not closed"):
        join_triangles(numbers[keep], configurations[keep], keep.sum(), cells.steps, 0)
