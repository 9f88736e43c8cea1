"""Meshes: closed, equal to scikit-image's, and the same bytes from any blocks, client and kill."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fast_simplification
import numpy as np
import pyarrow as pa
import pytest
import tifffile
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from cvdask.engine import plan as plan_module
from cvdask.engine.plan import Plan
from cvdask.errors import BlocksFailed
from cvdask.morphometry import mesh as mesh_module
from cvdask.morphometry import mesh_pieces
from cvdask.morphometry.mesh import mesh
from cvdask.volume.boxes import Box
from cvdask.volume.parquet import table_metadata
from cvdask.volume.store import Level, Volume, open_volume
from tests.morphometry.surfaces import (
    area_by_skimage,
    assert_closed,
    blobs,
    signed_volume,
    sphere,
    torus,
)
from tests.morphometry.test_mesh_files import read_precomputed
from tests.samples import write_sample
from tests.strategies import block_shapes
from tests.trees import tree_digest

SIZE = (40.0, 10.0, 20.0)


def write_objects(
    folder: Path, data: np.ndarray, size: Sequence[float] = SIZE, **options: Any
) -> Volume:
    url = folder / "cell.zarr"
    write_sample(url, np.zeros(data.shape, np.uint8), voxel_size_nm=size)
    write_sample(url, data, labels="mitochondria", voxel_size_nm=size, **options)
    return open_volume(url)


def made(volume: Volume, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Mesh, by default all objects, and return the rows of the table."""
    if not {"ids", "class_", "min_voxels"} & set(options):
        options["min_voxels"] = 1
    table = mesh(volume, out=str(out), **{"labels": "mitochondria", **options})
    assert isinstance(table, pa.Table)
    assert not (out / ".cvdask").exists()
    return table.to_pylist()


def blocks_of(patch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """Let blocks have this shape."""

    def chosen(level: Level) -> tuple[int, ...]:
        return shape

    patch.setattr(mesh_module, "block_shape", chosen)


def load(path: Path) -> trimesh.Trimesh:
    found = trimesh.load_mesh(path, process=False)
    assert isinstance(found, trimesh.Trimesh)
    return found


SHAPES = {
    "sphere": sphere((13, 14, 15), 5.7),
    "torus": torus((11, 20, 19), 6.5, 2.4),
    "through all blocks": np.ones((9, 10, 11), bool),
    "at the border": sphere((16, 16, 16), 9.5),
    "diagonal": np.eye(8, dtype=bool)[:, :, None] & np.eye(8, dtype=bool)[None],
    "noise": np.random.default_rng(0).random((9, 8, 7)) < 0.4,
}


# ---------------------------------------------------------------------------------------------
# What comes out


@pytest.mark.parametrize("name", SHAPES)
def test_a_mesh_is_closed_and_that_of_the_whole_object(tmp_path, monkeypatch, name):
    mask = SHAPES[name]
    blocks_of(monkeypatch, (6, 7, 5))
    volume = write_objects(tmp_path, mask.astype(np.uint16) * 7)
    (row,) = made(volume, tmp_path / "out", ids=7)
    assert row["n_voxels"] == mask.sum()
    area = area_by_skimage(mask, [size / 1000 for size in SIZE])
    assert row["mesh_surface_um2"] == pytest.approx(area, rel=1e-9)
    found = load(tmp_path / "out/7.ply")
    assert (len(found.vertices), len(found.faces)) == (row["n_vertices"], row["n_triangles"])
    assert_closed(found.vertices, found.faces)
    assert found.is_watertight
    assert found.is_winding_consistent
    assert found.area == pytest.approx(area, rel=1e-5)
    inside = row["mesh_volume_um3"]
    assert signed_volume(found.vertices, found.faces) == pytest.approx(inside, rel=1e-4)
    if name in ("sphere", "torus", "at the border"):
        assert inside == pytest.approx(mask.sum() * np.prod(SIZE) / 1e9, rel=0.03)


def test_vertices_lie_midway_in_x_y_z(tmp_path):
    data = np.zeros((4, 5, 6), np.uint8)
    data[1, 2, 3] = 1
    (row,) = made(write_objects(tmp_path, data), tmp_path / "out")
    found = load(tmp_path / "out" / row["file"])
    centre = np.array([3 * 0.02, 2 * 0.01, 1 * 0.04])
    half = np.array([0.01, 0.005, 0.02])
    expected = [centre + sign * half * axis for sign in (-1, 1) for axis in np.eye(3)]
    expected = sorted(np.round(expected, 6).tolist())
    assert sorted(np.round(found.vertices, 6).tolist()) == expected


def test_two_objects_that_touch_share_their_wall(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (3, 3, 3))
    data = np.zeros((6, 6, 8), np.uint32)
    data[1:5, 1:5, 1:4], data[1:5, 1:5, 4:7] = 4, 2**31
    rows = made(write_objects(tmp_path, data), tmp_path / "out")
    assert [row["label"] for row in rows] == [4, 2**31]
    for row, mask in zip(rows, (data == 4, data == 2**31), strict=True):
        found = load(tmp_path / "out" / row["file"])
        assert_closed(found.vertices, found.faces)
        assert found.area == pytest.approx(area_by_skimage(mask, [s / 1000 for s in SIZE]))
    # Between voxels 3 and 4, as far as edges are not rounded: on both.
    walls = [
        {tuple(v) for v in load(tmp_path / "out" / r["file"]).vertices if v[0] == np.float32(0.07)}
        for r in rows
    ]
    assert walls[0] == walls[1]
    assert len(walls[0]) == 16


@settings(max_examples=10)
@given(st.data())
def test_blocks_do_not_show(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    seed, share = data.draw(st.integers(0, 100)), data.draw(st.floats(0.1, 0.9))
    voxels = np.random.default_rng(seed).choice(
        np.array([0, 1, 2], np.uint8), shape, p=(1 - share, share / 2, share / 2)
    )
    folder = tmp_path_factory.mktemp("blocks")
    volume = write_objects(folder, voxels)
    format = data.draw(st.sampled_from(["ply", "stl", "obj", "precomputed"]))
    with pytest.MonkeyPatch.context() as patch:
        if not voxels.any():
            return
        made(volume, folder / "a", format=format)
        blocks_of(patch, data.draw(block_shapes(shape)))
        # So few that triangles of a part wait for cells of the next.
        patch.setattr(mesh_pieces, "PART_CELLS", data.draw(st.integers(1, 9)))
        made(volume, folder / "b", format=format)
    assert tree_digest(folder / "a") == tree_digest(folder / "b")


def test_every_client_writes_the_same_bytes(tmp_path, monkeypatch, client):
    data = blobs((15, 18, 17), share=0.4).astype(np.uint16)
    assert data.max() >= 3
    volume = write_objects(tmp_path, data)
    made(volume, tmp_path / "whole")
    blocks_of(monkeypatch, (7, 8, 9))
    rows = made(volume, tmp_path / "out", client=client)
    assert [row["label"] for row in rows] == list(range(1, data.max() + 1))
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "whole")


def test_neuroglancer_finds_manifests_fragments_and_nanometres(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (4, 5, 6))
    data = np.zeros((10, 11, 12), np.uint64)
    data[2:6, 3:8, 1:9] = 2**40 + 3
    volume = write_objects(tmp_path, data)
    out = tmp_path / "cell.zarr/labels/mitochondria/mesh"
    (row,) = made(volume, out, format="precomputed")
    assert json.loads((out / "info").read_text()) == {"@type": "neuroglancer_legacy_mesh"}
    manifest = json.loads((out / f"{2**40 + 3}:0").read_text())
    assert manifest == {"fragments": [row["file"]]}
    vertices, triangles = read_precomputed((out / row["file"]).read_bytes())
    assert_closed(vertices, triangles)
    # Half a voxel around the centres of voxels 1 … 8, 3 … 7, 2 … 5.
    np.testing.assert_array_equal(vertices.min(axis=0), [10, 25, 60])
    np.testing.assert_array_equal(vertices.max(axis=0), [170, 75, 220])
    assert signed_volume(vertices, triangles) / 1e9 == pytest.approx(row["mesh_volume_um3"])
    # The label image beside it is still what it was.
    np.testing.assert_array_equal(open_volume(volume.url).label("mitochondria").read(), data)


def test_a_whole_class_is_one_mesh(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (4, 4, 4))
    data = np.zeros((8, 9, 10), np.uint8)
    data[1:3, 1:3, 1:3] = data[5:7, 5:8, 5:9] = 1
    data[3:5, 3:5, 3:5] = 2
    data[0] = 255
    names = {1: "mitochondria", 2: "z_discs", 3: "nucleus"}
    volume = write_objects(tmp_path, data, classes=names)
    (row,) = made(volume, tmp_path / "one", class_="mitochondria")
    assert (row["label"], row["name"], row["n_voxels"]) == (1, "mitochondria", 8 + 24)
    found = load(tmp_path / "one/1.ply")
    assert len(found.split()) == 2
    with pytest.warns(UserWarning, match="nucleus has no voxel"):
        rows = made(volume, tmp_path / "more", class_="nucleus,z_discs")
    assert [row["name"] for row in rows] == ["z_discs"]
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == [
        "2.ply",
        "meshes.parquet",
    ]


def test_real_mitochondria_are_closed(tmp_path, monkeypatch, real_data):
    blocks_of(monkeypatch, (48, 40, 56))
    data = tifffile.imread(real_data("urocell-labels-fib1-3-3-0") / "mito_instances.tif")
    data = data[:80, 60:140, 100:200]
    size = (15, 16, 16)
    volume = write_objects(tmp_path, data, size, chunk_shape=(16,) * 3, shard_shape=(128,) * 3)
    rows = made(volume, tmp_path / "out", client="threads")
    assert [row["label"] for row in rows] == np.unique(data[data > 0]).tolist()
    for row in rows:
        found = load(tmp_path / "out" / row["file"])
        assert found.is_watertight
        area = area_by_skimage(data == row["label"], [s / 1000 for s in size])
        assert row["mesh_surface_um2"] == pytest.approx(area, rel=1e-9)


def test_objects_are_chosen_by_size_and_id(tmp_path):
    data = np.zeros((4, 6, 8), np.uint16)
    data[0, 0, :3], data[2, 2, :5], data[3, 4:, :] = 1, 2, 30
    volume = write_objects(tmp_path, data)
    assert [row["label"] for row in made(volume, tmp_path / "a", min_voxels=4)] == [2, 30]
    assert [row["label"] for row in made(volume, tmp_path / "b", ids="30, 1")] == [1, 30]
    assert [row["n_voxels"] for row in made(volume, tmp_path / "c", ids=[2])] == [5]
    with pytest.warns(UserWarning, match="has 17 voxels, the largest has 16"):
        assert made(volume, tmp_path / "d", min_voxels=17) == []
    table = mesh(volume, labels="mitochondria", min_voxels=17, out=str(tmp_path / "d"))
    assert "n_triangles" in table.column_names
    assert len(table_metadata(table.schema)["warnings"]) == 1


def test_a_box_closes_surfaces_at_its_sides(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (4, 4, 4))
    volume = write_objects(tmp_path, np.ones((9, 10, 11), np.uint8))
    (row,) = made(volume, tmp_path / "out", box="2:6,1:9,3:8")
    assert row["n_voxels"] == 4 * 8 * 5
    found = load(tmp_path / "out/1.ply")
    assert_closed(found.vertices, found.faces)
    np.testing.assert_allclose(found.bounds, [[0.05, 0.005, 0.06], [0.15, 0.085, 0.22]], rtol=1e-6)


def test_a_coarser_level_keeps_its_place(tmp_path):
    from cvdask.volume.pyramid import pyramid

    data = np.zeros((16, 16, 16), np.uint8)
    data[4:12, 4:12, 4:12] = 9
    volume = write_objects(tmp_path, data, size=(10, 10, 10))
    pyramid(volume.url, labels="mitochondria", n_levels=2)
    made(open_volume(volume.url), tmp_path / "fine")
    (row,) = made(open_volume(volume.url), tmp_path / "coarse", level=1)
    assert row["n_voxels"] == 4**3
    for level in ("fine", "coarse"):
        bounds = load(tmp_path / level / "9.ply").bounds
        np.testing.assert_allclose(bounds, [[0.035] * 3, [0.115] * 3], rtol=1e-6)


@pytest.mark.parametrize("format", ["ply", "stl", "precomputed"])
def test_simplified_meshes_are_closed_and_smaller(tmp_path, monkeypatch, format):
    mask = sphere((24, 24, 24), 10.5)
    volume = write_objects(tmp_path, mask.astype(np.uint8), size=(10, 10, 10))
    (whole,) = made(volume, tmp_path / "whole")
    (row,) = made(volume, tmp_path / "a", simplify=8, format=format)
    assert row["n_triangles"] == pytest.approx(whole["n_triangles"] / 8, rel=0.05)
    assert row["mesh_volume_um3"] == pytest.approx(whole["mesh_volume_um3"], rel=0.05)
    blocks_of(monkeypatch, (7, 5, 9))
    made(volume, tmp_path / "b", simplify=8, format=format)
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    if format == "ply":
        found = load(tmp_path / "a/1.ply")
        assert found.is_watertight
        assert found.volume == pytest.approx(row["mesh_volume_um3"], rel=1e-4)
        assert found.area == pytest.approx(row["mesh_surface_um2"], rel=1e-4)


def test_objects_are_simplified_one_by_one(tmp_path, monkeypatch):
    """The library has one mesh for all threads: large objects once got each other's triangles."""
    under_way = threading.Semaphore(1)

    def alone_or_not_at_all(*mesh: Any, **options: Any) -> Any:
        assert under_way.acquire(blocking=False), "another object is being simplified"
        try:
            # Let other threads come by.
            for _ in range(100):
                os.sched_yield()
            return simplify(*mesh, **options)
        finally:
            under_way.release()

    simplify = fast_simplification.simplify
    monkeypatch.setattr(fast_simplification, "simplify", alone_or_not_at_all)
    data = np.zeros((16, 16, 16 * 12), np.uint8)
    for k in range(12):
        data[:, :, 16 * k : 16 * (k + 1)][sphere((16, 16, 16), 4 + k / 4)] = k + 1
    volume = write_objects(tmp_path, data)
    rows = made(volume, tmp_path / "serial", simplify=4)
    made(volume, tmp_path / "threads", simplify=4, client="threads", workers=4)
    assert tree_digest(tmp_path / "threads") == tree_digest(tmp_path / "serial")
    (alone,) = made(volume, tmp_path / "alone", simplify=4, ids=9)
    assert alone == rows[8]
    assert (tmp_path / "alone/9.ply").read_bytes() == (tmp_path / "serial/9.ply").read_bytes()


# ---------------------------------------------------------------------------------------------
# Bounds


def test_a_part_holds_no_more_than_asked(tmp_path, monkeypatch):
    """A long object: what is made triangles of at once does not grow with it."""
    blocks_of(monkeypatch, (4, 16, 16))
    data = np.zeros((40, 8, 8), np.uint8)
    data[:, 2:6, 2:6] = 1
    volume = write_objects(tmp_path, data)
    sizes = []

    def note(cells: np.ndarray, *rest: Any) -> np.ndarray:
        sizes.append(len(cells))
        return join(cells, *rest)

    join = mesh_pieces.join_triangles
    monkeypatch.setattr(mesh_pieces, "PART_CELLS", 30)
    monkeypatch.setattr(mesh_pieces, "join_triangles", note)
    (row,) = made(volume, tmp_path / "out")
    assert row["n_triangles"] > 1000
    # A slice has 16 cells; two make a part, one more waits.
    assert max(sizes) <= 3 * 25
    assert len(sizes) > 15


def test_only_blocks_that_the_object_reaches_are_read_again(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (4, 4, 4))
    data = np.zeros((16, 16, 16), np.uint8)
    data[5:7, 9:11, 1:3], data[0, 0, 0], data[15, 15, 15] = 1, 2, 2
    volume = write_objects(tmp_path, data)
    read: list[Box] = []

    def note(url: str, level: Level, box: Box) -> np.ndarray:
        read.append(box)
        return read_box(url, level, box)

    read_box = mesh_module.read_box
    monkeypatch.setattr(mesh_module, "read_box", note)
    made(volume, tmp_path / "out", ids=1)
    assert sum(box.size for box in read[:64]) == 16**3
    # Its voxels and one around.
    assert read[64:] == [Box((4, 8, 0), (8, 12, 4))]


def test_the_plan_reads_nothing_and_writes_nothing(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (4, 4, 4))
    volume = write_objects(tmp_path, np.ones((9, 10, 11), np.uint32))
    monkeypatch.setattr(mesh_module, "read_box", lambda *_: 1 / 0)
    plans = mesh(
        volume, labels="mitochondria", min_voxels=1, out=str(tmp_path / "out"), dry_run=True
    )
    assert isinstance(plans, list)
    assert all(isinstance(plan, Plan) for plan in plans)
    assert [(plan.stage, len(plan.grid)) for plan in plans] == [
        ("mesh objects", 27), ("mesh surfaces", 27),
    ]  # fmt: skip
    assert plans[0].read_bytes == 9 * 10 * 11 * 4
    assert all(plan.task_bytes > 4**3 * 4 for plan in plans)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("breaks_at", ["_extents_block", "_pieces_block", "_file_block"])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, monkeypatch, breaks_at):
    blocks_of(monkeypatch, (6, 7, 8))
    volume = write_objects(tmp_path, blobs((12, 14, 16), share=0.4).astype(np.uint16))
    made(volume, tmp_path / "undisturbed")
    function = getattr(mesh_module, breaks_at)
    again = []

    def break_some(job: Any, block: Any) -> Any:
        if block.index % 3 == 1:
            raise OSError("no answer")
        return function(job, block)

    def note(job: Any, block: Any) -> Any:
        again.append(block.index)
        return function(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(mesh_module, breaks_at, break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            made(volume, tmp_path / "out")
    assert not (tmp_path / "out/meshes.parquet").exists()
    monkeypatch.setattr(mesh_module, breaks_at, note)
    made(volume, tmp_path / "out")
    assert again
    assert all(index % 3 == 1 for index in again)
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "undisturbed")
    again.clear()
    made(volume, tmp_path / "out")
    assert again == []


def test_killed_after_the_last_file(tmp_path, monkeypatch):
    volume = write_objects(tmp_path, blobs((8, 9, 10)).astype(np.uint8))
    made(volume, tmp_path / "undisturbed", format="precomputed")
    with monkeypatch.context() as patch:
        patch.setattr(mesh_module, "write_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(volume, tmp_path / "out", format="precomputed")
    with monkeypatch.context() as patch:
        patch.setattr(mesh_module, "_file_block", lambda *_: 1 / 0)
        patch.setattr(mesh_module, "_sweep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(volume, tmp_path / "out", format="precomputed")
    (tmp_path / "out/1:0.0123.partial").write_bytes(b"")
    made(volume, tmp_path / "out", format="precomputed")
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("kills_at", ["_write_pieces", "_file_block", "delete_object"])
def test_a_killed_overwrite_leaves_nothing_of_what_it_replaces(tmp_path, monkeypatch, kills_at):
    volume = write_objects(tmp_path, blobs((8, 9, 10)).astype(np.uint8))
    made(volume, tmp_path / "undisturbed", ids=1)
    out = tmp_path / "out"
    made(volume, out, format="obj")
    (out / "notes.txt").write_text("of somebody")
    with pytest.raises(FileExistsError, match="obj → ply"):
        made(volume, out, ids=1)
    assert (out / "1.obj").exists()
    with monkeypatch.context() as patch:
        patch.setattr(mesh_module, kills_at, lambda *_: 1 / 0)
        with pytest.raises((ZeroDivisionError, BlocksFailed)):
            made(volume, out, ids=1, overwrite=True)
    made(volume, out, ids=1)
    assert (out / "notes.txt").read_text() == "of somebody"
    (out / "notes.txt").unlink()
    assert tree_digest(out) == tree_digest(tmp_path / "undisturbed")


def test_a_mistyped_id_costs_no_meshes(tmp_path):
    volume = write_objects(tmp_path, blobs((8, 9, 10)).astype(np.uint8))
    made(volume, tmp_path / "out")
    before = tree_digest(tmp_path / "out")
    with pytest.raises(ValueError, match="not: 77"):
        made(volume, tmp_path / "out", ids="1,77", overwrite=True)
    assert tree_digest(tmp_path / "out") == before


def test_damaged_scratch_is_an_error_and_no_mesh(tmp_path, monkeypatch):
    blocks_of(monkeypatch, (6, 7, 8))
    volume = write_objects(tmp_path, np.ones((12, 14, 16), np.uint8))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(mesh_module, "_write_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(volume, out)
    piece = out / mesh_module.SCRATCH / f"pieces/1/{3:012d}"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    with pytest.raises(BlocksFailed, match=r"DamagedData.*000000000003"):
        made(volume, out)
    piece.unlink()
    with pytest.raises(BlocksFailed, match=r"DamagedData.*cells of a surface.*--overwrite"):
        made(volume, out)
    assert len(made(volume, out, overwrite=True)) == 1


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": "1,9,12"}, r"labels from 1 to 5.*not: 9, 12"),
        ({"ids": 2**50}, rf"not: {2**50}"),
        ({"ids": ""}, r"at least one.*''"),
        ({"ids": []}, r"at least one.*\[\]"),
        ({"ids": "1,x"}, r"'1,x'"),
        ({"ids": [0, 1]}, r"from 1.*\[0, 1\]"),
        ({"ids": 1, "min_voxels": 2}, r"ids, min-voxels"),
        ({"min_voxels": 0}, r"Received: 0"),
        ({"format": "glb"}, r"precomputed.*'glb'"),
        ({"level": 1}, r"levels 0 to 0.*1"),
        ({"simplify": 1.0}, r"1\.0"),
        ({"simplify": float("nan")}, r"nan"),
        ({"labels": "nuclei"}, r"mitochondria.*'nuclei'"),
        ({"box": "0:9,:,:"}, r"z.*0:9.*4 voxels"),
        ({"class_": "fat"}, r"values from 0.*'fat'"),
        ({"class_": 0}, r"background.*0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    data = np.zeros((4, 5, 6), np.uint16)
    data[0], data[2] = 1, 5
    volume = write_objects(tmp_path, data)
    with pytest.raises(ValueError, match=message):
        made(volume, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_it_has_to_be_said_which_objects(tmp_path):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"--ids.*--class.*--min-voxels.*none"):
        mesh(volume, labels="mitochondria", out=str(tmp_path / "out"))


def test_no_object_at_all(tmp_path):
    volume = write_objects(tmp_path, np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no object at all"):
        made(volume, tmp_path / "out", ids=3)
    with pytest.warns(UserWarning, match="the largest has 0"):
        assert made(volume, tmp_path / "out") == []


def test_an_image_of_classes_is_no_image_of_objects(tmp_path):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8), classes={1: "fat"})
    for options in ({"ids": 1}, {"min_voxels": 5}):
        with pytest.raises(ValueError, match=r"classes.*'fat'.*--class"):
            made(volume, tmp_path / "out", **options)


def test_a_voxel_size_is_needed(tmp_path):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))
    path = Path(volume.url, "labels/mitochondria/zarr.json")
    metadata = json.loads(path.read_text())
    for axis in metadata["attributes"]["ome"]["multiscales"][0]["axes"]:
        axis.pop("unit", None)
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"no voxel size.*--voxel-nm"):
        made(volume, tmp_path / "out")


def test_negative_labels_are_refused(tmp_path):
    data = np.ones((4, 4, 4), np.int32)
    data[0, 0, 0] = -3
    with pytest.raises(BlocksFailed, match=r"not negative.*-3"):
        made(write_objects(tmp_path, data), tmp_path / "out")


def test_only_a_folder_of_meshes_is_replaced(tmp_path):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("words")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="thesis"):
            made(volume, tmp_path / "thesis", **options)
    (tmp_path / "file").write_text("words")
    with pytest.raises(FileExistsError, match="file"):
        made(volume, tmp_path / "file", overwrite=True)
    (tmp_path / "thesis/meshes.parquet").write_text("words")
    with pytest.raises(FileExistsError, match="thesis"):
        made(volume, tmp_path / "thesis")


def test_more_triangles_than_a_format_can_count(tmp_path, monkeypatch):
    from dataclasses import replace

    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))
    formats = mesh_module.mesh_format.__globals__["FORMATS"]
    monkeypatch.setitem(formats, "ply", replace(formats["ply"], most=100))
    with pytest.raises(ValueError, match=r"ply counts to 100.*Object 1.*coarser"):
        made(volume, tmp_path / "out")
    assert [path for path in (tmp_path / "out").iterdir() if path.suffix == ".ply"] == []


def test_a_disk_without_room_is_refused_before_the_first_file(tmp_path, monkeypatch):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))

    class Usage:
        free = 2000

    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match=r"mesh files.*2\.0 kB free"):
        made(volume, tmp_path / "out")
    assert not (tmp_path / "out/1.ply").exists()
    monkeypatch.undo()
    assert len(made(volume, tmp_path / "out")) == 1


def test_simplify_without_its_extra(tmp_path, monkeypatch):
    volume = write_objects(tmp_path, np.ones((4, 4, 4), np.uint8))
    monkeypatch.setattr(mesh_module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"cvdask\[mesh\]"):
        made(volume, tmp_path / "out", simplify=2)
