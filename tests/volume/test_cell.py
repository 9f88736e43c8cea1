"""The synthetic cell: a pure function of voxel coordinates, with the truth it claims."""

from __future__ import annotations

import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area

from cvdask.volume.boxes import Box, Grid
from cvdask.volume.cell import CLASS_COLORS, CLASSES, Cell, Rendering, render, true_objects
from cvdask.volume.cell.layout import JITTER, LAYER, PITCH, place_site, site_table
from cvdask.volume.cell.mitochondria import find_shapes
from tests.strategies import boxes

COARSE = (100.0, 100.0, 100.0)
KINDS = ("healthy", "diabetic")


def render_whole(cell: Cell, *, image: bool = False) -> Rendering:
    return render(cell, Box.whole(cell.shape), image=image)


def table_of(cell: Cell, box: Box | None = None) -> dict[str, npt.NDArray[Any]]:
    batches = list(true_objects(cell, box))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def shapes_of(cell: Cell) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint32]]:
    layout = cell.layout
    everywhere = layout.first_cell, layout.n_cells
    return find_shapes(layout, site_table(layout, *everywhere), *everywhere)


def voxel_centers_um(cell: Cell) -> tuple[npt.NDArray[np.float64], ...]:
    axes = [
        (np.arange(n) + 0.5) * v / 1e3 for n, v in zip(cell.shape, cell.voxel_size_nm, strict=True)
    ]
    return tuple(np.meshgrid(*axes, indexing="ij", sparse=True))


# --- Small cases --------------------------------------------------------------------------------


def test_first_slice_of_a_small_cell() -> None:
    # A row of mitochondria above (m), a fibril (#) with two Z-discs (|) below, sarcoplasm between.
    expected = [
        "mmmmmmmmmmmmmmmmmmmmmmmm...mmmmmmmmmmmmm",
        "mmmmmmmmmmmmmmmmmmmmmmmm...mmmmmmmmmmmmm",
        "mmmmmmmmmmmmmmmmmmmmmmm.....mmmmmmmmmmmm",
        ".mmmmmmmmmmmmmmmmmmmmmm.....mmmmmmmmmmmm",
        "........................................",
        "........................................",
        *["###|#################|##################"] * 10,
    ]
    classes = render_whole(Cell((12, 16, 40), COARSE)).classes[0]
    assert ["".join(".m#|N"[v] for v in row) for row in classes] == expected


def test_a_seed_means_the_same_cell_for_ever() -> None:
    # Every class and all noise are in here; another digest is another cell,
    # and every volume, table and benchmark made from a seed before would no longer compare.
    rendering = render_whole(Cell((40, 40, 42), COARSE, seed=1, kind="diabetic"), image=True)
    assert rendering.image is not None
    arrays = (rendering.classes, rendering.instances, rendering.image)
    assert [array.dtype for array in arrays] == [np.uint8, np.uint32, np.uint8]
    assert [zlib.crc32(array.tobytes()) for array in arrays] == [0x664B21D9, 0xC63D5F2F, 0x8EF20164]


def test_classes_have_names_and_colours() -> None:
    assert CLASSES == {1: "mitochondria", 2: "myofibrils", 3: "z_discs", 4: "nucleus"}
    assert CLASS_COLORS.keys() == CLASSES.keys()
    assert len(set(CLASS_COLORS.values())) == 4
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in CLASS_COLORS.values())


def test_without_image_the_labels_are_the_same() -> None:
    cell = Cell((12, 16, 40), COARSE)
    with_image, without = render_whole(cell, image=True), render_whole(cell)
    assert without.image is None
    np.testing.assert_array_equal(with_image.classes, without.classes)
    np.testing.assert_array_equal(with_image.instances, without.instances)


def test_an_empty_box_renders_and_lists_nothing() -> None:
    cell, box = Cell((12, 16, 40), COARSE), Box((3, 4, 5), (3, 8, 9))
    rendering = render(cell, box)
    assert rendering.image is not None
    assert rendering.image.shape == rendering.classes.shape == rendering.instances.shape
    assert rendering.classes.shape == (0, 4, 4)
    assert list(true_objects(cell, box)) == []


# --- Blocks -------------------------------------------------------------------------------------


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    """Draw cells of some µm, isotropic or not, with and without a nucleus."""
    voxel = draw(st.sampled_from([(100.0, 100.0, 100.0), (150.0, 50.0, 60.0), (40.0, 90.0, 120.0)]))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 44), st.integers(1, 48)))
    return Cell(shape, voxel, draw(st.integers(0, 2**63 - 1)), draw(st.sampled_from(KINDS)))


@given(st.data())
def test_any_box_is_that_part_of_the_whole(data: st.DataObject) -> None:
    cell = data.draw(cells())
    box = data.draw(boxes(cell.shape))
    whole, part = render_whole(cell, image=True), render(cell, box)
    assert whole.image is not None
    assert part.image is not None
    assert part.classes.tobytes() == whole.classes[box.slices].tobytes()
    assert part.instances.tobytes() == whole.instances[box.slices].tobytes()
    assert part.image.tobytes() == whole.image[box.slices].tobytes()


@pytest.mark.parametrize("block_shape", [(7, 13, 64), (64, 5, 11), (1, 64, 64), (16, 16, 16)])
def test_blocks_give_the_whole_also_from_threads(block_shape: tuple[int, ...]) -> None:
    cell = Cell((44, 48, 50), (90.0, 90.0, 100.0), seed=5, kind="diabetic")  # with a nucleus
    whole = render_whole(cell, image=True)
    assert set(np.unique(whole.classes)) == {0, 1, 2, 3, 4}
    boxes = [block.write for block in Grid(cell.shape, block_shape)]
    with ThreadPoolExecutor(2) as pool:
        for box, part in zip(boxes, pool.map(lambda box: render(cell, box), boxes), strict=True):
            for name in ("image", "classes", "instances"):
                expected = getattr(whole, name)[box.slices]
                np.testing.assert_array_equal(getattr(part, name), expected)


def test_a_block_of_a_cell_beyond_any_memory() -> None:
    cell = Cell((10**5, 10**5, 10**5), (10.0, 10.0, 10.0), seed=3)  # 10^15 voxels
    corner = Box((10**5 - 64,) * 3, (10**5,) * 3)
    inner = Box((10**5 - 40,) * 3, (10**5 - 10,) * 3)
    outer, part = render(cell, corner), render(cell, inner)
    assert outer.image is not None
    np.testing.assert_array_equal(part.image, outer.image[inner.within(corner)])
    np.testing.assert_array_equal(part.instances, outer.instances[inner.within(corner)])


def test_seeds_and_kinds_give_different_cells() -> None:
    shape, voxel = (20, 40, 60), (60.0, 60.0, 60.0)
    digests = {
        zlib.crc32(array.tobytes())
        for cell in (
            Cell(shape, voxel),
            Cell(shape, voxel, seed=1),
            Cell(shape, voxel, seed=2**63 - 1),
            Cell(shape, voxel, kind="diabetic"),
        )
        for array in (render_whole(cell, image=True).classes, render_whole(cell, image=True).image)
        if array is not None
    }
    assert len(digests) == 8


# --- Objects ------------------------------------------------------------------------------------

ISOTROPIC = Cell((110, 120, 200), (45.0, 45.0, 45.0), seed=2)
FUSED = Cell((110, 120, 200), (45.0, 45.0, 45.0), seed=2, kind="diabetic")
FLAT = Cell((50, 130, 150), (100.0, 40.0, 50.0), seed=4, kind="diabetic")
TALL = Cell((150, 90, 110), (30.0, 60.0, 90.0), seed=6)
CASES = [
    pytest.param(ISOTROPIC, id="healthy, isotropic"),
    pytest.param(FUSED, id="diabetic, isotropic"),
    pytest.param(FLAT, id="diabetic, thick slices"),
    pytest.param(TALL, id="healthy, thin slices"),
]


@pytest.mark.parametrize("cell", CASES)
def test_objects_are_the_connected_components(cell: Cell) -> None:
    instances = render_whole(cell).instances
    components = cc3d.connected_components(instances > 0, connectivity=26)
    pairs = np.unique(np.stack([instances.ravel(), components.ravel()]), axis=1)
    pairs = pairs[:, pairs[0] > 0]
    # No component holds two objects, wherever it lies.
    assert len(np.unique(pairs[1])) == pairs.shape[1]
    # An object is one component, unless the volume's border may have cut it into several.
    table = table_of(cell)
    whole = table["label"][~table["touches_border"]]
    ids, n_components = np.unique(pairs[0], return_counts=True)
    assert np.all(n_components[np.isin(ids, whole)] == 1)
    assert np.count_nonzero(n_components == 1) > 0.8 * len(ids)
    assert len(whole) > 3


@pytest.mark.parametrize(
    "cell",
    [
        Cell((60, 70, 100), (45.0, 45.0, 45.0), 8),
        Cell((60, 70, 100), (45.0, 45.0, 45.0), 8, "diabetic"),
        Cell(
            (24, 24, 30), (140.0, 140.0, 140.0), 2, "diabetic"
        ),  # one bridge has to give way to a third row
    ],
)
def test_objects_keep_their_gap(cell: Cell) -> None:
    assert cell.gap_nm == pytest.approx(2 * cell.voxel_size_nm[0] * 3**0.5)
    instances = render_whole(cell).instances
    ids = np.unique(instances)[1:]
    assert len(ids) > 3
    for label in ids:
        distance = ndimage.distance_transform_edt(instances != label, sampling=cell.voxel_size_nm)
        others = (instances > 0) & (instances != label)
        assert distance[others].min() >= cell.gap_nm


@pytest.mark.parametrize(
    "cell",
    [
        Cell((110, 120, 200), (45.0, 45.0, 45.0), 2),
        Cell((110, 120, 200), (45.0, 45.0, 45.0), 2, "diabetic"),
        # Coarse voxels, wide gaps: here bridges have to give way to third rows.
        Cell((24, 24, 30), (140.0, 140.0, 140.0), 2, "diabetic"),
    ],
)
def test_shapes_keep_the_gap_also_between_voxel_centres(cell: Cell) -> None:
    shapes, labels = shapes_of(cell)
    along = np.linspace(0, 1, 25)[:, None, None]
    points = shapes[:, :3] + along * (shapes[:, 3:6] - shapes[:, :3])  # point, shape, axis
    middles = points.mean(0)
    nearest = np.inf
    for one in range(len(shapes)):
        near = np.linalg.norm(middles - middles[one], axis=1) < 4000
        others = np.flatnonzero(near & (labels != labels[one]))
        apart = np.linalg.norm(points[:, None, None, one] - points[None][:, :, others], axis=-1)
        if len(others):
            between = apart.min((0, 1)) - shapes[others, 6] - shapes[one, 6]
            nearest = min(nearest, between.min())
    assert cell.gap_nm * (1 - 1e-9) <= nearest < 2 * cell.gap_nm


@pytest.mark.parametrize("cell", CASES)
def test_mitochondria_are_the_points_near_the_segments(cell: Cell) -> None:
    # All points of a part of the volume against all shapes, in NumPy.
    shapes, labels = shapes_of(cell)
    box = Box((10, 20, 30), (26, 60, 74))
    centers = [
        (np.arange(a, b) + 0.5) * v
        for a, b, v in zip(box.start, box.stop, cell.voxel_size_nm, strict=True)
    ]
    points = np.stack(np.meshgrid(*centers, indexing="ij"), axis=-1)  # z, y, x, 3
    expected = np.zeros(box.shape, np.uint32)
    for shape, label in zip(shapes, labels, strict=True):
        a, b, radius = shape[:3], shape[3:6], shape[6]
        t = np.clip((points - a) @ (b - a) / max((b - a) @ (b - a), 1e-9), 0, 1)
        nearest = a + t[..., None] * (b - a)
        expected[np.linalg.norm(points - nearest, axis=-1) <= radius] = label
    rendering = render(cell, box, image=False)
    assert np.count_nonzero(expected) > 0.03 * box.size
    np.testing.assert_array_equal(rendering.instances, expected)
    np.testing.assert_array_equal(rendering.classes == 1, expected > 0)


@pytest.mark.parametrize("cell", CASES)
def test_the_table_lists_what_is_rendered(cell: Cell) -> None:
    instances, table = render_whole(cell).instances, table_of(cell)
    np.testing.assert_array_equal(table["label"], np.unique(instances)[1:])
    assert set(table["class"]) == {1}
    inner = instances[1:-1, 1:-1, 1:-1]
    outside = np.concatenate(
        [face.ravel() for n in range(3) for face in (instances.take(i, n) for i in (0, -1))]
    )
    np.testing.assert_array_equal(table["touches_border"], np.isin(table["label"], outside))
    assert np.isin(table["label"][~table["touches_border"]], inner).all()
    assert np.all(table["n_shapes"][table["isolated"]] == 1)
    closed_forms = ("volume_um3", "surface_um2", "length_um", "radius_um", "centroid_x_um")
    for name in closed_forms:
        np.testing.assert_array_equal(np.isfinite(table[name]), table["isolated"])
    assert 0 < np.count_nonzero(table["isolated"]) < len(table["label"])


@given(box=boxes(FLAT.shape))
def test_the_table_of_a_box_lists_what_is_rendered_there(box: Box) -> None:
    ids = np.unique(render(FLAT, box, image=False).instances)
    batches = list(true_objects(FLAT, box))
    listed = [label for batch in batches for label in batch["label"]]
    assert listed == [label for label in ids if label]
    everything = table_of(FLAT)
    for batch in batches:
        rows = np.searchsorted(everything["label"], batch["label"])
        for name, values in batch.items():
            np.testing.assert_array_equal(values, everything[name][rows])


@pytest.mark.parametrize("cell", CASES)
def test_volumes_and_centroids_of_isolated_objects(cell: Cell) -> None:
    instances, table = render_whole(cell).instances, table_of(cell)
    labels = table["label"][table["isolated"]]
    voxel_um3 = np.prod(cell.voxel_size_nm) / 1e9
    volumes = ndimage.sum_labels(np.ones(cell.shape), instances, labels) * voxel_um3
    np.testing.assert_allclose(volumes, table["volume_um3"][table["isolated"]], rtol=0.03)
    centers = np.array(ndimage.center_of_mass(instances > 0, instances, labels)) + 0.5
    for axis, name in enumerate("zyx"):
        measured = centers[:, axis] * cell.voxel_size_nm[axis] / 1e3
        expected = table[f"centroid_{name}_um"][table["isolated"]]
        np.testing.assert_allclose(measured, expected, atol=0.2 * cell.voxel_size_nm[axis] / 1e3)


def test_volume_and_surface_at_fine_voxels() -> None:
    voxel_nm = (10.0, 10.0, 12.0)
    cell = Cell((300, 400, 700), voxel_nm, seed=1)
    table = table_of(cell)
    row = int(np.flatnonzero(table["isolated"])[0])
    truth = {name: float(values[row]) for name, values in table.items()}
    assert truth["volume_um3"] == pytest.approx(
        np.pi * truth["radius_um"] ** 2 * (truth["length_um"] - 2 / 3 * truth["radius_um"])
    )
    # A box around it: tilted by little, it reaches no further than its length and two radii.
    margin = np.array([2 * truth["radius_um"]] * 2 + [0.6 * truth["length_um"]])
    center = np.array([truth[f"centroid_{name}_um"] for name in "zyx"])
    low = np.maximum((center - margin) * 1e3 // voxel_nm, 0)
    high = np.minimum((center + margin) * 1e3 // voxel_nm, cell.shape)
    box = Box(tuple(low.astype(int)), tuple(high.astype(int)))
    mask = render(cell, box, image=False).instances == truth["label"]

    volume_um3 = np.count_nonzero(mask) * np.prod(voxel_nm) / 1e9
    assert volume_um3 == pytest.approx(truth["volume_um3"], rel=0.003)
    # Smoothed by 1.5 voxels, so that the mesh has no steps; the radius is some 40 voxels.
    smooth = ndimage.gaussian_filter(np.pad(mask, 8).astype(np.float32), 1.5)
    vertices, faces, _, _ = marching_cubes(smooth, 0.5, spacing=tuple(v / 1e3 for v in voxel_nm))
    assert mesh_surface_area(vertices, faces) == pytest.approx(truth["surface_um2"], rel=0.01)


def test_diabetic_cells_have_larger_clusters() -> None:
    shape, voxel = (160, 160, 200), (60.0, 60.0, 60.0)
    healthy = table_of(Cell(shape, voxel, seed=7))
    diabetic = table_of(Cell(shape, voxel, seed=7, kind="diabetic"))
    assert diabetic["n_shapes"].mean() > 2 * healthy["n_shapes"].mean()
    assert diabetic["n_shapes"].max() > healthy["n_shapes"].max()
    assert diabetic["isolated"].mean() < healthy["isolated"].mean()
    spread = [np.nanstd(t["radius_um"]) / np.nanmean(t["radius_um"]) for t in (healthy, diabetic)]
    assert spread[1] > spread[0]


# --- Tissue -------------------------------------------------------------------------------------


def test_healthy_tissue_has_the_shares_of_heart_muscle() -> None:
    shares = [
        np.bincount(render_whole(cell).classes.ravel(), minlength=5) / np.prod(cell.shape)
        for cell in (Cell((150, 150, 150), (40.0, 40.0, 40.0), seed) for seed in (0, 1, 2))
    ]
    _, mitochondria, myofibrils, z_discs, nucleus = np.mean(shares, axis=0)
    assert 0.20 < mitochondria < 0.35
    assert 0.40 < myofibrils < 0.60  # the nucleus has taken a twentieth
    assert 0.02 < z_discs < 0.05
    assert nucleus == pytest.approx(4 / 3 * np.pi * 0.22 * 0.22 * 0.25, rel=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_z_discs_come_once_per_sarcomere(seed: int) -> None:
    cell = Cell((2, 40, 1000), (60.0, 60.0, 20.0), seed)
    assert 1800 <= cell.sarcomere_nm <= 2000
    classes = render_whole(cell).classes
    column = classes[0][(classes[0] == 2).sum(1) > 900][0]  # a fibril's, free of mitochondria
    assert set(column) == {2, 3}
    starts = np.flatnonzero((column[1:] == 3) & (column[:-1] == 2)) + 1
    stops = np.flatnonzero((column[1:] == 2) & (column[:-1] == 3)) + 1
    assert len(starts) >= 9
    steps_nm = np.diff(starts) * 20.0
    assert np.abs(steps_nm - cell.sarcomere_nm).max() <= 20
    thickness = [b - a for a in starts for b in stops if 0 < b - a < 20]
    assert set(thickness) <= {4, 5, 6}  # 100 nm


def test_z_discs_survive_voxels_thicker_than_they_are() -> None:
    cell = Cell((1, 60, 100), (60.0, 60.0, 160.0))
    classes = render_whole(cell).classes[0]
    column = classes[(classes == 2).sum(1) > 85][0]
    expected = 100 * 160 / cell.sarcomere_nm
    assert np.count_nonzero(column == 3) == pytest.approx(expected, abs=2)


def test_the_nucleus_is_an_ellipsoid_and_stays_alone() -> None:
    cell = Cell((80, 90, 100), (60.0, 60.0, 60.0), seed=1, kind="diabetic")
    radii_um = [0.22 * 4.8, 0.22 * 5.4, 0.25 * 6.0]
    assert cell.nucleus_radii_nm == pytest.approx([1e3 * r for r in radii_um])
    squared = sum(
        ((p - n * 0.03) / r) ** 2
        for p, n, r in zip(voxel_centers_um(cell), cell.shape, radii_um, strict=True)
    )
    rendering = render_whole(cell)
    np.testing.assert_array_equal(rendering.classes == 4, squared <= 1)
    distance = ndimage.distance_transform_edt(rendering.classes != 4, sampling=cell.voxel_size_nm)
    assert distance[rendering.classes == 1].min() >= cell.gap_nm
    assert distance[(rendering.classes == 2) | (rendering.classes == 3)].min() >= 150


@pytest.mark.parametrize(
    ("shape", "radii_nm"),
    [
        ((36, 100, 100), None),  # 0.22 x 3.6 µm = 0.79 µm
        ((37, 100, 100), (814.0, 2200.0, 2500.0)),
        ((200, 200, 400), (2500.0, 2500.0, 6000.0)),  # no larger than a nucleus is
    ],
)
def test_radii_of_the_nucleus(shape: tuple[int, int, int], radii_nm: Any) -> None:
    expected = radii_nm if radii_nm is None else pytest.approx(radii_nm)
    assert Cell(shape, COARSE).nucleus_radii_nm == expected


# --- Image --------------------------------------------------------------------------------------


def test_brightness_tells_the_classes_apart() -> None:
    cell = Cell((80, 80, 80), (50.0, 50.0, 50.0), seed=1)
    rendering = render_whole(cell, image=True)
    assert rendering.image is not None
    mean = ndimage.mean(rendering.image, rendering.classes, index=range(5))
    sarcoplasm, mitochondria, myofibrils, z_discs, nucleus = mean
    assert z_discs < mitochondria < myofibrils < sarcoplasm
    assert nucleus > myofibrils + 10
    # Nothing is cut off, and noise is everywhere.
    assert np.count_nonzero(np.isin(rendering.image, (0, 255))) < 1e-3 * rendering.image.size
    inside = rendering.classes == 1
    assert 10 < rendering.image[inside].std() < 30


def test_noise_differs_from_slice_to_slice() -> None:
    image = render_whole(Cell((20, 64, 64), (20.0, 20.0, 20.0)), image=True).image
    assert image is not None
    # What two neighbouring slices do not share is the noise: standard deviation 0.075 x 148 each.
    difference = image[1:].astype(int) - image[:-1]
    assert 0.075 * 148 < difference.std() / 2**0.5 < 1.5 * 0.075 * 148


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "old"}, ["healthy", "diabetic", "old"]),
        ({"shape": (4, 5)}, ["shape", r"\(4, 5\)"]),
        ({"shape": (4, 0, 6)}, ["shape", "along y: 0"]),
        ({"shape": (4, 5, -6)}, ["shape", "along x: -6"]),
        ({"voxel_size_nm": (20.0, 20.0)}, ["voxel_size_nm", r"\(20.0, 20.0\)"]),
        ({"voxel_size_nm": (0.0, 20.0, 20.0)}, ["voxel_size_nm", "along z: 0.0"]),
        ({"voxel_size_nm": (20.0, float("nan"), 20.0)}, ["voxel_size_nm", "along y: nan"]),
        ({"voxel_size_nm": (20.0, 20.0, float("inf"))}, ["voxel_size_nm", "along x: inf"]),
        ({"voxel_size_nm": (200.0, 200.0, 200.0)}, ["300 nm", "diagonal 346 nm"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**63}, ["seed", str(2**63)]),
        ({"shape": (10**6,) * 3}, [str(2**32 - 1), "1000000", r"up to \d{11,}"]),
    ],
)
def test_a_cell_that_cannot_be(arguments: dict[str, Any], words: list[str]) -> None:
    good: dict[str, Any] = {"shape": (4, 5, 6), "voxel_size_nm": (20.0, 20.0, 20.0)}
    with pytest.raises(ValueError, match=".*".join(words)):
        Cell(**{**good, **arguments})


@pytest.mark.parametrize("arguments", [{"shape": (4.0, 5, 6)}, {"seed": 0.5}])
def test_integers_are_asked_for(arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"shape": (4, 5, 6), "voxel_size_nm": (20.0, 20.0, 20.0)}
    with pytest.raises(TypeError, match="float"):
        Cell(**{**good, **arguments})


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box((0, 0, 0), (4, 6, 6)), "along y: 0:6, the cell has 5"),
        (Box((-1, 0, 0), (4, 5, 6)), "along z: -1:4, the cell has 4"),
        (Box((0, 0), (4, 5)), "three axes.*0:4,0:5"),
    ],
)
def test_a_box_outside_the_cell(box: Box, words: str) -> None:
    cell = Cell((4, 5, 6), (20.0, 20.0, 20.0))
    with pytest.raises(ValueError, match=words):
        render(cell, box)
    with pytest.raises(ValueError, match=words):
        list(true_objects(cell, box))


@settings(max_examples=200)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(0, 2**63 - 1))
def test_sites_stay_near_their_lattice_points(i: int, j: int, seed: int) -> None:
    # The neighbourhoods that are searched are only as wide as this allows.
    z, y = place_site(Cell((4, 5, 6), (20.0, 20.0, 20.0), seed).layout, i, j)
    away = np.hypot(z - i * LAYER, y - (j + 0.5 * (i % 2)) * PITCH)
    assert away <= JITTER * (1 + 1e-6)
