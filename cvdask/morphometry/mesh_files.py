"""How is a surface written so that other programs read it?

============ ============================== ===== ======== ==================================
format       files of object 7              unit  order    read by
============ ============================== ===== ======== ==================================
ply          ``7.ply``, binary              µm    x, y, z  MeshLab, Blender, ParaView, trimesh
stl          ``7.stl``, binary              µm    x, y, z  all of them, and printers
obj          ``7.obj``, text                µm    x, y, z  all of them
precomputed  ``7:0``, ``7:0:0``, ``info``   nm    x, y, z  Neuroglancer
============ ============================== ===== ======== ==================================

1. A :class:`Surface` hands out its vertices and triangles in parts, as often as it is asked.
2. A :class:`Format` turns them into bytes, part by part; what comes first, the numbers of both, is
   known beforehand.

Coordinates are of 32 bits: exact to the half voxel up to a million voxels along an axis.

References
----------
Neuroglancer, *Precomputed mesh format: legacy single-resolution*: a directory with an ``info``
file, a manifest ``ID:0`` for each object, and the fragments that it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

NM_PER_UM = 1000.0
# The largest numbers that 31 and 32 bits hold.
INT32, UINT32 = 2**31 - 1, 2**32 - 1

PLY_FACE = np.dtype([("n_corners", "u1"), ("vertices", "<i4", (3,))])
STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


@dataclass(frozen=True)
class Surface:
    """A closed surface of triangles, anticlockwise seen from outside.

    Parameters
    ----------
    n_vertices, n_triangles : int
    vertices : callable
        Yields (n, 3) float64: x, y, z in nm.
    triangles : callable
        Yields (m, 3) int64: numbers of vertices, from 0.
    corners : callable
        Yields (m, 3, 3) float64: triangle, corner, x y z in nm; the same triangles.
    """

    n_vertices: int
    n_triangles: int
    vertices: Callable[[], Iterator[np.ndarray]]
    triangles: Callable[[], Iterator[np.ndarray]]
    corners: Callable[[], Iterator[np.ndarray]]


def whole_surface(vertices: np.ndarray, triangles: np.ndarray) -> Surface:
    """Make a surface of arrays, in one part.

    Parameters
    ----------
    vertices : (n, 3) float64
        x, y, z in nm.
    triangles : (m, 3) int64
    """
    return Surface(
        len(vertices),
        len(triangles),
        lambda: iter([vertices]),
        lambda: iter([triangles]),
        lambda: iter([vertices[triangles]]),
    )


@dataclass(frozen=True)
class Format:
    """A way to write surfaces.

    Parameters
    ----------
    name : str
    ending : str
        What follows the object's number in the name of its file.
    most : int
        Largest number of vertices or triangles that the format can count.
    vertex_bytes, triangle_bytes : int
        What each takes; about, for text.
    encode : callable
        Turns a surface into the bytes of its file.
    manifest : callable, optional
        Turns the object's number into further files: bytes by name.
    index : mapping
        Files of the folder: bytes by name. Written last, when all objects are there.
    """

    name: str
    ending: str
    most: int
    vertex_bytes: int
    triangle_bytes: int
    encode: Callable[[Surface], Iterator[bytes]]
    manifest: Callable[[int], Mapping[str, bytes]]
    index: Mapping[str, bytes]

    def file(self, label: int) -> str:
        """Return the name of an object's file."""
        return f"{label}{self.ending}"

    def size(self, n_vertices: int, n_triangles: int) -> int:
        """Return about how many bytes a file takes."""
        return 1024 + self.vertex_bytes * n_vertices + self.triangle_bytes * n_triangles


def _micrometres(nanometres: np.ndarray) -> np.ndarray:
    return (nanometres / NM_PER_UM).astype("<f4")


def ply_parts(surface: Surface) -> Iterator[bytes]:
    """Yield a PLY file, binary little endian: float x, y, z in µm, then lists of three vertices."""
    header = (
        "ply",
        "format binary_little_endian 1.0",
        "comment x y z in micrometres",
        f"element vertex {surface.n_vertices}",
        *(f"property float {axis}" for axis in "xyz"),
        f"element face {surface.n_triangles}",
        "property list uchar int vertex_indices",
        "end_header",
    )
    yield "".join(f"{line}\n" for line in header).encode()
    for vertices in surface.vertices():
        yield _micrometres(vertices).tobytes()
    for triangles in surface.triangles():
        faces = np.empty(len(triangles), PLY_FACE)
        faces["n_corners"] = 3
        faces["vertices"] = triangles
        yield faces.tobytes()


def stl_parts(surface: Surface) -> Iterator[bytes]:
    """Yield a binary STL file: outer normal and three corners of each triangle, x, y, z in µm."""
    yield b"binary STL, x y z in micrometres".ljust(80)
    yield np.array(surface.n_triangles, "<u4").tobytes()
    for corners in surface.corners():
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        faces = np.zeros(len(corners), STL_FACE)
        # Simplified surfaces may have triangles without area: their normal stays 0.
        np.divide(normals, lengths, out=normals, where=lengths > 0)
        faces["normal"] = normals
        faces["corners"] = _micrometres(corners)
        yield faces.tobytes()


def obj_parts(surface: Surface) -> Iterator[bytes]:
    """Yield a Wavefront OBJ file: ``v x y z`` in µm, then ``f`` with vertices counted from 1."""
    yield b"# x y z in micrometres\n"
    for vertices in surface.vertices():
        numbers = _micrometres(vertices).ravel().tolist()
        # Nine digits tell any two 32-bit numbers apart.
        yield ("v %.9g %.9g %.9g\n" * len(vertices) % tuple(numbers)).encode()
    for triangles in surface.triangles():
        yield ("f %d %d %d\n" * len(triangles) % tuple((triangles + 1).ravel().tolist())).encode()


def precomputed_parts(surface: Surface) -> Iterator[bytes]:
    """Yield a Neuroglancer fragment: number of vertices, float x, y, z in nm, uint32 triangles."""
    yield np.array(surface.n_vertices, "<u4").tobytes()
    for vertices in surface.vertices():
        yield vertices.astype("<f4").tobytes()
    for triangles in surface.triangles():
        yield triangles.astype("<u4").tobytes()


def _manifest(label: int) -> dict[str, bytes]:
    return {f"{label}:0": json.dumps({"fragments": [f"{label}:0:0"]}).encode()}


def _no_manifest(label: int) -> dict[str, bytes]:
    return {}


INFO = json.dumps({"@type": "neuroglancer_legacy_mesh"}).encode()

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("ply", ".ply", INT32, 12, 13, ply_parts, _no_manifest, {}),
        Format("stl", ".stl", UINT32, 0, 50, stl_parts, _no_manifest, {}),
        Format("obj", ".obj", INT32, 40, 32, obj_parts, _no_manifest, {}),
        Format("precomputed", ":0:0", UINT32, 12, 12, precomputed_parts, _manifest, {"info": INFO}),
    )
}


def mesh_format(name: Any) -> Format:
    """Return a format by name.

    Raises
    ------
    ValueError
        When there is none of that name.

    Examples
    --------
    >>> mesh_format("ply").file(7), mesh_format("precomputed").file(7)
    ('7.ply', '7:0:0')
    """
    if name not in FORMATS:
        raise ValueError(f"meshes are written as {', '.join(FORMATS)}. Received: {name!r}")
    return FORMATS[name]
