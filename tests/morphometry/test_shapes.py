"""Shapes: formulas against direct computations from the definitions; surfaces against truth."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from scipy.spatial.transform import Rotation
from skimage.measure import euler_number, marching_cubes, mesh_surface_area

from cvdask.morphometry.configurations import crofton_areas
from cvdask.morphometry.partials import BOUNDS, N_VOXELS, Layout, merge_rows
from cvdask.morphometry.shapes import (
    COLUMN_NOTES,
    covariances,
    principal_axes,
    shape_columns,
    weigh,
)
from cvdask.volume.boxes import Box
from tests.morphometry.by_hand import (
    cells_of,
    class_volumes,
    components,
    exposed_faces_of,
    rows_of,
    table_of,
)
from tests.morphometry.test_block_objects import examined

SIZE = (0.04, 0.01, 0.015)
LINE, PLANE, VOXEL = np.ones((1, 1, 4)), np.ones((1, 3, 4)), np.ones((1, 1, 1))


def columns_of(data: np.ndarray, size=SIZE, **options) -> dict[str, np.ndarray]:
    """Measure all objects of a volume of classes, from one block."""
    rows, moments = merge_rows(examined(data).rows, Layout())
    return shape_columns(rows, moments, size, Box.whole(data.shape), **options)


@given(data=class_volumes(most=8))
def test_columns_by_their_definitions(data):
    found = columns_of(data)
    labels = components(data, 26)
    voxel = math.prod(SIZE)
    for k, label in enumerate(range(1, labels.max() + 1)):
        own = {name: column[k] for name, column in found.items()}
        mask = labels == label
        points = np.argwhere(mask)
        n = len(points)
        assert own["n_voxels"] == n
        assert own["volume_um3"] == pytest.approx(n * voxel)
        assert own["equivalent_diameter_um"] == pytest.approx((6 * n * voxel / math.pi) ** (1 / 3))
        micrometres = points * SIZE
        centre = [own[f"centroid_{a}_um"] for a in "zyx"]
        np.testing.assert_allclose(centre, micrometres.mean(0), atol=1e-12)
        covariance = np.cov(micrometres.T, bias=True)
        radii = np.sqrt(5 * np.clip(np.linalg.eigvalsh(covariance)[::-1], 0, None))
        np.testing.assert_allclose([own[f"radius_{r}_um"] for r in (1, 2, 3)], radii, atol=1e-7)
        axes = np.array([[own[f"axis_{r}_{a}"] for a in "zyx"] for r in (1, 2, 3)])
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(np.diag(axes @ covariance @ axes.T), radii**2 / 5, atol=1e-9)
        faces = [face.sum() for face in exposed_faces_of(mask)]
        area = sum(voxel / SIZE[side // 2] * count for side, count in enumerate(faces))
        assert own["surface_faces_px"] == sum(faces)
        assert own["surface_faces_um2"] == pytest.approx(area)
        assert own["compactness_suite"] == pytest.approx(36 * math.pi * (n * voxel) ** 2 / area**3)
        assert own["sphericity_suite"] == pytest.approx(own["compactness_suite"] ** (1 / 3))
        assert own["sphericity"] == pytest.approx(
            (36 * math.pi * own["volume_um3"] ** 2) ** (1 / 3) / own["surface_um2"]
        )
        assert own["compactness"] == pytest.approx(own["sphericity"] ** 3)
        assert own["sa_v_per_um"] == pytest.approx(own["surface_um2"] / own["volume_um3"])
        if n > 1:
            discrete = (n - sum(faces) / 6) / (n - n ** (2 / 3))
            assert own["discrete_compactness"] == pytest.approx(discrete)
        assert own["surface_corrected_px"] == pytest.approx(corrected_area(mask))
        if own["surface_corrected_px"]:
            expected = 36 * math.pi * n**2 / corrected_area(mask) ** 3
            assert own["compactness_corrected"] == pytest.approx(expected)
            assert own["sphericity_corrected"] == pytest.approx(expected ** (1 / 3))
        padded = np.pad(mask, 1)
        vertices, triangles, _, _ = marching_cubes(padded.astype(np.float32), 0.5)
        meshed = mesh_surface_area(vertices.astype(float) * SIZE, triangles)
        assert own["surface_mc_um2"] == pytest.approx(meshed, rel=1e-6)
        assert own["euler_number"] == euler_number(padded, 3)
        box = [own[f"bbox_{a}_{end}"] for end in ("start", "stop") for a in "zyx"]
        assert box == [*points.min(0), *(points.max(0) + 1)]
        at_border = (points == 0).any() or (points == np.array(data.shape) - 1).any()
        assert own["touches_border"] == at_border


def corrected_area(mask: np.ndarray) -> float:
    """The corrected area of the 3D ImageJ Suite, voxel by voxel."""
    faces = np.stack([*exposed_faces_of(mask)], axis=-1).reshape(-1, 3, 2)
    total = 0.0
    for voxel in faces[faces.any((1, 2))]:
        n, opposite = int(voxel.sum()), bool(voxel.all(1).any())
        total += {
            1: 0.894, 2: 1.3409, 3: 2.0 if opposite else 1.5879, 4: 8 / 3, 5: 10 / 3, 6: 0.0
        }[n]  # fmt: skip
    return total


def test_euler_number_of_six_neighbours():
    data = np.zeros((4, 4, 4), np.uint8)
    data[0, 0, 0] = data[0, 1, 1] = data[0, 0, 1] = 1
    rows, moments = merge_rows(examined(data, 6).rows, Layout())
    for connectivity, theirs in ((6, 1), (18, 3), (26, 3)):
        found = shape_columns(rows, moments, SIZE, Box.whole((4, 4, 4)), connectivity=connectivity)
        assert found["euler_number"].tolist() == [euler_number(np.pad(data, 1), theirs)]


def ring() -> np.ndarray:
    data = np.ones((1, 3, 3), np.uint8)
    data[0, 1, 1] = 0
    return data


def hollow() -> np.ndarray:
    data = np.ones((3, 3, 3), np.uint8)
    data[1, 1, 1] = 0
    return data


@pytest.mark.parametrize(("data", "number"), [(ring(), 0), (hollow(), 2), (VOXEL, 1)])
def test_tunnels_and_cavities(data, number):
    assert columns_of(data.astype(np.uint8))["euler_number"].tolist() == [number]


def test_objects_one_voxel_thick_have_documented_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plane = columns_of(PLANE.astype(np.uint8))
        line = columns_of(LINE.astype(np.uint8))
        voxel = columns_of(VOXEL.astype(np.uint8))
    # Slanted by one voxel, a plane is one voxel thick all the same.
    slanted = columns_of(np.eye(5, dtype=np.uint8)[:, :, None].repeat(3, axis=2))
    names = ("elongation", "flatness", "sparseness", "discrete_compactness")
    assert [plane[name][0] for name in names[1:3]] == [math.inf, math.inf]
    assert math.isfinite(plane["elongation"][0])
    assert [slanted[name][0] for name in names[1:3]] == [math.inf, math.inf]
    assert [line[name][0] for name in names[:3:2]] == [math.inf, math.inf]
    assert math.isnan(line["flatness"][0])
    for name in ("elongation", "flatness", "discrete_compactness"):
        assert math.isnan(voxel[name][0])
    assert voxel["sparseness"].tolist() == [math.inf]
    assert voxel["compactness_corrected"].tolist() == [math.inf]


def test_the_extent_of_voxels_is_added_on_request():
    found = columns_of(VOXEL.astype(np.uint8), voxel_extent=True)
    radii = [found[f"radius_{k}_um"][0] for k in (1, 2, 3)]
    np.testing.assert_allclose(radii, np.sqrt(5 / 12) * np.array([0.04, 0.015, 0.01]))
    assert found["flatness"] == pytest.approx(1.5)


def test_no_objects_have_all_columns():
    found = columns_of(np.zeros((2, 2, 2), np.uint8))
    assert {len(column) for column in found.values()} == {0}
    assert set(found) <= set(COLUMN_NOTES)


@given(st.data())
def test_a_million_voxels_a_side(data):
    """Covariances of objects too large for 64 bits, against fractions."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    points = generator.integers(0, 10**6, (6, 3)).astype(object)
    weight = 10 ** int(generator.integers(0, 15))
    z, y, x = points.T
    sums = [sum(column) * weight for column in (z, y, x, z * z, y * y, x * x, z * y, z * x, y * x)]
    n = 6 * weight
    moments = np.array([[n, *sums]], object)
    found = covariances(moments, np.array([[10**6] * 3]), (1.0, 1.0, 1.0))[0]
    for a in range(3):
        for b in range(3):
            mean = Fraction(sum(points[:, a] * points[:, b]), 6)
            exact = mean - Fraction(sum(points[:, a]), 6) * Fraction(sum(points[:, b]), 6)
            assert found[a, b] == pytest.approx(float(exact), rel=1e-12)


def test_small_and_large_objects_side_by_side():
    small = [2, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    large = [2, 0, 0, 2**40, 0, 0, 2**80, 0, 0, 0]
    extents = np.array([[1, 1, 2], [1, 1, 2**40 + 1]])
    found = covariances(np.array([small, large], object), extents, (1.0, 1.0, 1.0))
    assert found[0, 2, 2] == 0.25
    assert found[1, 2, 2] == 2.0**78
    alone = covariances(np.array([small]), extents[:1], (1.0, 1.0, 1.0))
    assert np.array_equal(alone[0], found[0])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6]))
def test_axes_equal_those_of_lapack(seed, scale):
    generator = np.random.default_rng(seed)
    factors = generator.normal(size=(20, 3, 3)) * [1, generator.random(), 1e-3]
    matrices = scale * factors @ factors.transpose(0, 2, 1)
    values, vectors = principal_axes(matrices)
    expected = np.linalg.eigvalsh(matrices)[:, ::-1]
    np.testing.assert_allclose(values, expected, atol=1e-11 * scale)
    remade = np.einsum("nk,nki,nkj->nij", values, vectors, vectors)
    np.testing.assert_allclose(remade, matrices, atol=1e-11 * scale)
    first = np.take_along_axis(vectors, (np.abs(vectors) > 1e-12).argmax(2)[..., None], 2)
    assert (first > 0).all()


def test_sums_are_in_the_order_of_columns():
    counts = np.array([[1, 1, 1], [0, 0, 1]])
    assert weigh(counts, np.array([1e16, 1.0, -1e16])).tolist() == [0.0, -1e16]


# ---------------------------------------------------------------------------------------------
# Crofton's surface against truth, in voxels, over random poses


def quadric(radii, spacing, rotation, shift) -> np.ndarray:
    """An ellipsoid, turned, in voxels of a spacing."""
    reach = max(radii)
    extents = [2 * math.ceil(reach / s) + 3 for s in spacing]
    grid = np.indices(extents).reshape(3, -1).T
    points = (grid - (np.array(extents) - 1) / 2 - shift) * spacing
    inside = ((points @ rotation / radii) ** 2).sum(1) <= 1
    return inside.reshape(extents)


def ellipsoid_area(radii) -> float:
    """The exact area, by incomplete elliptic integrals (Legendre)."""
    a, b, c = sorted(radii, reverse=True)
    if a == c:
        return 4 * math.pi * a**2
    phi = math.acos(c / a)
    m = a**2 * (b**2 - c**2) / (b**2 * (a**2 - c**2))
    e, f = special.ellipeinc(phi, m), special.ellipkinc(phi, m)
    mixed = e * math.sin(phi) ** 2 + f * math.cos(phi) ** 2
    return 2 * math.pi * (c**2 + a * b / math.sin(phi) * mixed)


def mean_ratio(radii, spacing, n_poses: int = 24) -> float:
    """Crofton's area over the true one, over random poses."""
    generator = np.random.default_rng(0)
    turns = Rotation.random(n_poses, random_state=generator).as_matrix()
    weights = crofton_areas(spacing)
    areas = [
        cells_of(quadric(radii, spacing, turn, generator.random(3) - 0.5)) @ weights
        for turn in turns
    ]
    return float(np.mean(areas) / ellipsoid_area(radii))


def test_the_area_of_an_ellipsoid_by_numbers():
    """Against an integral over the sphere."""
    radii = (3.0, 2.0, 1.0)
    theta, phi = np.meshgrid(*[(np.arange(400) + 0.5) / 400] * 2)
    cos, turn = 2 * theta - 1, 2 * math.pi * phi
    sin = np.sqrt(1 - cos**2)
    normal = np.stack([sin * np.cos(turn), sin * np.sin(turn), cos])
    element = np.linalg.norm(normal * (math.prod(radii) / np.array(radii))[:, None, None], axis=0)
    assert element.mean() * 4 * math.pi == pytest.approx(ellipsoid_area(radii), rel=1e-4)


@pytest.mark.parametrize("radii", [(5, 5, 5), (8, 8, 8), (12, 6, 6), (10, 10, 5), (11, 8, 5)])
def test_surfaces_are_within_one_percent(radii):
    assert mean_ratio(radii, (1.0, 1.0, 1.0)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("radii", [(20, 20, 20), (40, 20, 20), (30, 30, 20)])
def test_surfaces_of_flat_voxels(radii):
    """At 4:1 voxels; radii are five voxels along z."""
    assert mean_ratio(radii, (4.0, 1.0, 1.0), 12) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("spacing", "bound"), [((1.0, 1.0, 1.0), 0.01), ((4.0, 1.0, 1.0), 0.03)])
def test_sheets_are_within_their_bounds(spacing, bound):
    """Thick discs in all directions: the faces of the slab inside a ball, far from its rim."""
    generator = np.random.default_rng(1)
    weights, ratios = crofton_areas(spacing), []
    for turn in Rotation.random(40, random_state=generator).as_matrix():
        inner, outer = 20.0, 26.0
        extents = [2 * math.ceil(outer / s) + 3 for s in spacing]
        points = (np.indices(extents).reshape(3, -1).T - (np.array(extents) - 1) / 2) * spacing
        along = points @ turn[0] + generator.random()
        across = np.linalg.norm(points - np.outer(points @ turn[0], turn[0]), axis=1)
        slab = np.abs(along) <= 5
        small, large = ((slab & (across <= r)).reshape(extents) for r in (inner, outer))
        # The difference of two discs: two rings of flat face, and rims that nearly cancel.
        rims = 2 * math.pi * 10 * (outer - inner)
        faces = 2 * math.pi * (outer**2 - inner**2)
        ratios.append((cells_of(large) - cells_of(small)) @ weights / (faces + rims))
    assert np.mean(ratios) == pytest.approx(1, abs=bound)


def test_a_far_object_is_measured_as_one_at_the_origin():
    data = np.zeros((4, 5, 6), np.uint8)
    data[1:3, 1:4, 2:5] = 1
    data[2, 4, 5] = 1
    rows, moments = rows_of(data, components(data, 26), table_of(1, 2))
    sums = np.array(moments, np.int64)
    here = shape_columns(rows, sums, SIZE, Box.whole(data.shape))
    far = rows.copy()
    far[:, BOUNDS] += 10**6
    there = shape_columns(far, sums, SIZE, Box((0, 0, 0), (2 * 10**6,) * 3))
    moved = {name for name in here if name.startswith(("bbox", "centroid", "touches"))}
    for name in set(here) - moved:
        assert here[name].tolist() == there[name].tolist(), name
    assert there["n_voxels"][0] == rows[0, N_VOXELS]
