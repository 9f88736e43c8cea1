"""Mesh files: what is written is what other programs read, and what a reader of our own finds."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

from cvdask.morphometry.mesh_files import FORMATS, Surface, mesh_format, whole_surface

# A tetrahedron with its outer sides anticlockwise; x, y, z in nm.
VERTICES = np.array([[0, 0, 0], [1000, 0, 0], [0, 500, 0], [0, 0, 250.5]])
TRIANGLES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def in_parts() -> Surface:
    """The same surface, handed out in two parts."""
    return Surface(
        4,
        4,
        lambda: iter([VERTICES[:3], VERTICES[3:]]),
        lambda: iter([TRIANGLES[:1], TRIANGLES[1:1], TRIANGLES[1:]]),
        lambda: iter([VERTICES[TRIANGLES[:3]], VERTICES[TRIANGLES[3:]]]),
    )


def read_precomputed(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a fragment of Neuroglancer's legacy format: nm, and vertices of triangles."""
    (n_vertices,) = struct.unpack_from("<I", data)
    vertices = np.frombuffer(data, "<f4", 3 * n_vertices, 4).reshape(-1, 3)
    triangles = np.frombuffer(data, "<u4", offset=4 + 12 * n_vertices).reshape(-1, 3)
    return vertices, triangles


@pytest.mark.parametrize("name", FORMATS)
def test_parts_do_not_show(name):
    encode = FORMATS[name].encode
    assert b"".join(encode(in_parts())) == b"".join(encode(whole_surface(VERTICES, TRIANGLES)))


@pytest.mark.parametrize("name", ["ply", "stl", "obj"])
def test_trimesh_reads_it_in_micrometres(name):
    data = b"".join(FORMATS[name].encode(in_parts()))
    found = trimesh.load_mesh(io.BytesIO(data), file_type=name, process=False)
    corners = found.vertices[found.faces].astype(np.float32)
    np.testing.assert_array_equal(corners, (VERTICES[TRIANGLES] / 1000).astype(np.float32))
    found.merge_vertices()
    assert found.is_watertight
    assert found.volume == pytest.approx(0.5 * 0.2505 / 6)
    if name == "stl":
        normals = [[0, 0, -1], [0, -1, 0], None, [-1, 0, 0]]
        for normal, expected in zip(found.face_normals, normals, strict=True):
            assert expected is None or normal == pytest.approx(expected)


def test_a_ply_byte_by_byte():
    data = b"".join(FORMATS["ply"].encode(in_parts()))
    header, _, body = data.partition(b"end_header\n")
    assert header.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "comment x y z in micrometres",
        "element vertex 4",
        "property float x",
        "property float y",
        "property float z",
        "element face 4",
        "property list uchar int vertex_indices",
    ]
    assert struct.unpack_from("<12f", body) == (
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0.5,
        0,
        0,
        0,
        0.25049999356269836,
    )
    assert body[48:] == b"".join(struct.pack("<B3i", 3, *one) for one in TRIANGLES.tolist())


def test_an_stl_byte_by_byte():
    data = b"".join(FORMATS["stl"].encode(in_parts()))
    assert not data.startswith(b"solid")  # or it would be taken for text
    assert struct.unpack_from("<I", data, 80) == (4,)
    assert struct.unpack_from("<12fH", data, 84) == (0, 0, -1, 0, 0, 0, 0, 0.5, 0, 1, 0, 0, 0)
    assert len(data) == 84 + 4 * 50


def test_an_obj_line_by_line():
    text = b"".join(FORMATS["obj"].encode(in_parts())).decode().splitlines()
    assert text[1:6] == ["v 0 0 0", "v 1 0 0", "v 0 0.5 0", "v 0 0 0.250499994", "f 1 3 2"]


def test_a_fragment_of_neuroglancer():
    format = FORMATS["precomputed"]
    vertices, triangles = read_precomputed(b"".join(format.encode(in_parts())))
    np.testing.assert_array_equal(vertices, VERTICES)
    np.testing.assert_array_equal(triangles, TRIANGLES)
    assert format.file(12) == "12:0:0"
    assert {k: json.loads(v) for k, v in format.manifest(12).items()} == {
        "12:0": {"fragments": ["12:0:0"]}
    }
    assert json.loads(format.index["info"]) == {"@type": "neuroglancer_legacy_mesh"}


def test_a_triangle_without_area_has_no_normal():
    flat = whole_surface(VERTICES, np.array([[0, 1, 1]]))
    data = b"".join(FORMATS["stl"].encode(flat))
    assert struct.unpack_from("<3f", data, 84) == (0, 0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_told_beforehand(name, tmp_path: Path):
    format = FORMATS[name]
    data = b"".join(format.encode(in_parts()))
    assert len(data) <= format.size(4, 4) <= len(data) + 1024 + 4 * 72


def test_an_unknown_format():
    with pytest.raises(ValueError, match=r"ply, stl, obj, precomputed.*'glb'"):
        mesh_format("glb")
