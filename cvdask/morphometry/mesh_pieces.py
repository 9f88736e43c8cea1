"""What do blocks leave of an object's surface, and how does it become one again?

A *piece* is what one block has found of one object: its surface cells and their configurations,
nine bytes each before compression. Pieces lie in a scratch folder, an object's in a folder of their
own, by the number of their block.

1. :func:`write_pieces` stores the pieces of a block.
2. :func:`read_cells` gives an object's cells in their order, whole slices at a time: it reads the
   pieces of one row of blocks, those with the same z, and keeps no more than that.
3. :func:`joined_surface` makes vertices and triangles of them, a part at a time: see
   ``marching_cubes`` for how they are numbered. :func:`measure_surface` gives area and volume.
4. :func:`simplified` replaces a surface by one of fewer triangles; it needs all of it at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cvdask.errors import DamagedData
from cvdask.morphometry.marching_cubes import (
    N_CONFIGURATIONS,
    Cells,
    cell_table,
    corners_of,
    join_triangles,
    vertices_of,
)
from cvdask.morphometry.mesh_files import Surface, whole_surface
from cvdask.volume.boxes import Grid
from cvdask.volume.objects import list_objects, redact
from cvdask.volume.scratch import read_checked, write_checked

# Goes through the cells of an object and their configurations, whole slices at a time.
Parts = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
# Cells that are turned into triangles at once, if a slice does not hold more.
PART_CELLS = 2**19
# Bytes for each: two triangles of three numbers, and the three corners of each when they are asked
# for; and what a piece is while it is read and put in order.
PART_BYTES, ROW_BYTES = 400, 40
# For each triangle that is simplified: quadrics, neighbours, and its vertices twice.
SIMPLIFY_BYTES = 400
# The library keeps the mesh in variables that all threads of a process share, and lets go of
# Python's lock meanwhile: without this, objects would get one another's triangles.
SIMPLIFYING = threading.Lock()


@dataclass(frozen=True)
class Pieces:
    """Where pieces lie, and what numbers mean in them.

    Parameters
    ----------
    url, prefix : str
        The scratch folder.
    grid : Grid
        The blocks that leave them.
    cells : Cells
        Of the volume.
    spacing_nm, origin_nm : tuple of float
        Size of a voxel and centre of voxel (0, 0, 0), z, y, x.
    """

    url: str
    prefix: str
    grid: Grid
    cells: Cells
    spacing_nm: tuple[float, ...]
    origin_nm: tuple[float, ...]

    def folder(self, label: int) -> str:
        """Return where the pieces of an object lie."""
        return f"{self.prefix}/{label}/"


def write_pieces(
    pieces: Pieces,
    block: int,
    labels: Sequence[int],
    number: np.ndarray,
    cells: np.ndarray,
    configurations: np.ndarray,
) -> dict[str, list[int]]:
    """Store what a block has found of each object.

    Parameters
    ----------
    pieces : Pieces
    block : int
        Number of the block.
    labels : sequence of int
    number : (n,) int
        Which of them; ascending.
    cells : (n,) int64
        Ascending for each object.
    configurations : (n,) uint8

    Returns
    -------
    dict of label to list
        Cells, vertices and triangles of each object that has any.
    """
    table = cell_table()
    bounds = np.searchsorted(number, np.arange(len(labels) + 1))
    found = {}
    for k in np.unique(number):
        own = slice(bounds[k], bounds[k + 1])
        key = f"{pieces.folder(labels[k])}{block:012d}"
        # Neighbouring cells differ by little, and that compresses.
        steps = np.diff(cells[own], prepend=0).astype("<i8")
        write_checked(pieces.url, key, steps.tobytes() + configurations[own].tobytes())
        n_vertices = table.n_vertices[configurations[own]].sum()
        n_triangles = table.n_triangles[configurations[own]].sum()
        found[str(labels[k])] = [len(steps), int(n_vertices), int(n_triangles)]
    return found


def _read_piece(pieces: Pieces, key: str) -> tuple[np.ndarray, np.ndarray]:
    data = read_checked(pieces.url, key)
    n_cells = len(data) // 9
    steps = np.frombuffer(data, "<i8", n_cells)
    return np.cumsum(steps), np.frombuffer(data, np.uint8, n_cells, 8 * n_cells)


def read_cells(pieces: Pieces, label: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the cells of an object in their order, parts of whole slices.

    Yields
    ------
    cells : (n,) int64
    configurations : (n,) uint8
    """
    keys = sorted(list_objects(pieces.url, pieces.folder(label)))

    def row_of(key: str) -> int:
        return pieces.grid[int(key.rpartition("/")[2])].write.start[0]

    for _, row in groupby(keys, row_of):
        parts = [_read_piece(pieces, key) for key in row]
        cells = np.concatenate([part[0] for part in parts])
        configurations = np.concatenate([part[1] for part in parts])
        order = np.argsort(cells, kind="stable")
        cells, configurations = cells[order], configurations[order]
        del parts, order
        step = pieces.cells.steps[0]
        first = 0
        while first < len(cells):
            last = min(first + PART_CELLS, len(cells)) - 1
            stop = int(np.searchsorted(cells, (cells[last] // step + 1) * step))
            yield cells[first:stop], configurations[first:stop]
            first = stop


def open_cells(pieces: Pieces, label: int, n_cells: int) -> Parts:
    """Return a way to go through the cells of an object, as often as needed.

    Where they are few, they are read once and held.

    Parameters
    ----------
    pieces : Pieces
    label : int
    n_cells : int
        Of all its pieces together; others are damage.
    """

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        n_read = 0
        for part in read_cells(pieces, label):
            n_read += len(part[0])
            yield part
        if n_read != n_cells:
            raise DamagedData(
                f"{redact(pieces.url)}/{pieces.folder(label)} holds {n_read} cells of a surface "
                f"of {n_cells}: run the same command with --overwrite"
            )

    if n_cells > PART_CELLS:
        return read
    held = list(read())
    return lambda: iter(held)


def joined_surface(pieces: Pieces, parts: Parts, counts: tuple[int, int]) -> Surface:
    """Describe the surface that cells make.

    Parameters
    ----------
    pieces : Pieces
    parts : callable
        See :func:`open_cells`.
    counts : tuple of int
        Vertices and triangles.
    """

    def vertices() -> Iterator[np.ndarray]:
        for cells, configurations in parts():
            yield _place_nm(pieces, vertices_of(pieces.cells.place(cells), configurations))

    def corners() -> Iterator[np.ndarray]:
        for cells, configurations in parts():
            yield _place_nm(pieces, corners_of(pieces.cells.place(cells), configurations))

    return Surface(*counts, vertices, lambda: _joined_triangles(pieces, parts), corners)


def _place_nm(pieces: Pieces, halves: np.ndarray) -> np.ndarray:
    """Turn half voxels z, y, x into nm x, y, z."""
    return (halves * (np.array(pieces.spacing_nm) / 2) + np.array(pieces.origin_nm))[..., ::-1]


def _joined_triangles(pieces: Pieces, parts: Parts) -> Iterator[np.ndarray]:
    """Yield the triangles; those of a part's last slice wait for the slice behind it."""
    n_vertices = cell_table().n_vertices
    steps = pieces.cells.steps
    cells, configurations = np.empty(0, np.int64), np.empty(0, np.uint8)
    first = 0
    for part in parts():
        cells = np.concatenate([cells, part[0]])
        configurations = np.concatenate([configurations, part[1]])
        n_ready = int(np.searchsorted(cells, cells[-1] // steps[0] * steps[0]))
        yield join_triangles(cells, configurations, n_ready, steps, first)
        first += int(n_vertices[configurations[:n_ready]].sum())
        cells, configurations = cells[n_ready:], configurations[n_ready:]
    yield join_triangles(cells, configurations, len(cells), steps, first)


def measure_surface(pieces: Pieces, parts: Parts) -> tuple[float, float]:
    """Return the area of a surface in µm², and the volume inside in µm³.

    Whole numbers are added up, so that neither depends on how the surface was cut.
    """
    table = cell_table()
    a, b = table.columns()
    histogram = np.zeros(N_CONFIGURATIONS, np.int64)
    columns = 0
    for cells, configurations in parts():
        histogram += np.bincount(configurations, minlength=N_CONFIGURATIONS)
        z = cells // pieces.cells.steps[0] - 1
        columns += int((z * a[configurations] + b[configurations]).sum())
    spacing_um = [size / 1000 for size in pieces.spacing_nm]
    area = math.fsum(histogram * table.areas(spacing_um))
    return area, columns / 48 * math.prod(spacing_um)


def simplified(surface: Surface, factor: float) -> tuple[Surface, float, float]:
    """Replace a surface by one of about ``factor`` times fewer triangles.

    Edges are collapsed in the order of the error that this makes (quadric edge collapse, Garland
    and Heckbert 1997, by fast-simplification). All of the surface is held.

    Returns
    -------
    surface, area in µm², volume inside in µm³
    """
    # Late: an extra.
    import fast_simplification

    vertices = np.concatenate(list(surface.vertices()))
    triangles = np.concatenate(list(surface.triangles()))
    corner = vertices.min(axis=0)
    target = max(4, round(len(triangles) / factor))
    with SIMPLIFYING:
        places, faces = fast_simplification.simplify(
            vertices - corner, triangles.astype(np.int32), target_count=min(target, len(triangles))
        )
    places, faces = np.asarray(places, np.float64), np.asarray(faces, np.int64)
    first, second, third = np.moveaxis(places[faces] / 1000, 1, 0)
    normals = np.cross(second - first, third - first)
    area = math.fsum(np.linalg.norm(normals, axis=1)) / 2
    volume = math.fsum((normals * first).sum(axis=1)) / 6
    return whole_surface(places + corner, faces), area, volume
