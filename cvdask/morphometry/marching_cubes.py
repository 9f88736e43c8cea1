"""Which triangles does a cell of eight voxels have, and how do those of all cells make one mesh?

A *cell* lies between the centres of 2 × 2 × 2 voxels and is named by its lowest voxel. Which of the
eight are in the object is its *configuration*, one of 256; voxel ``(dz, dy, dx)`` is bit ``4·dz +
2·dy + dx``. A vertex lies midway between two neighbours of which one is in the object, and belongs
to the cell of the lower one. Along one axis, for a volume of three voxels::

    voxels          ( · )    0        1        2     ( · )      outside is background
    cells                -1  |   0    |   1    |   2            from centre to centre
    may have a vertex    ^       ^        ^        ^

1. :func:`cell_table` takes the triangles of each configuration from scikit-image, once. Equal cells
   then have equal triangles wherever they lie.
2. :func:`surface_cells` finds the cells that the surfaces of chosen objects pass through: all that
   is to be kept of a block of voxels.
3. Cells are numbered in z, y, x order by :class:`Cells`, vertices in the order of their cells, then
   along z, y, x. :func:`join_triangles` looks each vertex up by what it belongs to: pieces are
   joined exactly, and the mesh does not depend on how it was cut.

The triangulation is the one of Lorensen and Cline with faces resolved the same way from both sides
(scikit-image's ``method="lorensen"``): every edge of a mesh has two triangles, whatever the object.
Lewiner's, scikit-image's default, has the same area where voxels touch by whole faces; where they
touch by edges it leaves edges with four triangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cvdask.compiled import compiled

N_CONFIGURATIONS = 256
MOST_TRIANGLES = 5


@dataclass(frozen=True)
class CellTable:
    """The triangles of every configuration, anticlockwise seen from outside, in x, y, z.

    Parameters
    ----------
    corners : (256, 5, 3, 3) int64
        Triangle, corner, axis z, y, x: half voxels from the lowest voxel; unused ones are 0.
    edges : (256, 5, 3) int8
        Triangle, corner: ``3·(4·dz + 2·dy + dx) + axis`` where the vertex belongs to the cell
        ``dz, dy, dx`` behind, and lies along ``axis`` of it.
    n_triangles : (256,) int64
    owned : (256, 3) bool
        Whether a vertex lies behind the lowest voxel along z, y, x.
    """

    corners: np.ndarray
    edges: np.ndarray
    n_triangles: np.ndarray
    owned: np.ndarray

    @property
    def n_vertices(self) -> np.ndarray:
        """Vertices that belong to a cell: (256,) int64."""
        return self.owned.sum(axis=1)

    def areas(self, spacing: Sequence[float]) -> np.ndarray:
        """Return the area of each configuration's triangles: (256,) float64.

        Parameters
        ----------
        spacing : sequence of float
            Size of a voxel, z, y, x.
        """
        placed = self.corners * (np.asarray(spacing) / 2)
        normals = np.cross(placed[:, :, 1] - placed[:, :, 0], placed[:, :, 2] - placed[:, :, 0])
        return np.linalg.norm(normals, axis=-1).sum(axis=1) / 2

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the volume inside a surface is added up from, in integers.

        Below each triangle stands a column, negative where the triangle faces down. Those of a
        cell whose lowest voxel is ``z`` add up to ``(a·z + b) / 48`` voxels.

        Returns
        -------
        a, b : (256,) int64
        """
        along = self.corners[:, :, 1:] - self.corners[:, :, :1]  # from the first corner
        facing_z = along[:, :, 0, 2] * along[:, :, 1, 1] - along[:, :, 0, 1] * along[:, :, 1, 2]
        heights = self.corners[..., 0].sum(axis=2)
        return 6 * facing_z.sum(axis=1), (heights * facing_z).sum(axis=1)


@lru_cache(maxsize=1)
def cell_table() -> CellTable:
    """Take the triangles of each configuration from scikit-image.

    Examples
    --------
    >>> table = cell_table()
    >>> table.corners[1, : table.n_triangles[1]].tolist()  # the lowest voxel alone
    [[[0, 1, 0], [1, 0, 0], [0, 0, 1]]]
    """
    # Late: it takes longer to load than all else here.
    from skimage.measure import marching_cubes

    corners = np.zeros((N_CONFIGURATIONS, MOST_TRIANGLES, 3, 3), np.int64)
    n_triangles = np.zeros(N_CONFIGURATIONS, np.int64)
    bits = (np.arange(N_CONFIGURATIONS)[:, None] >> np.arange(8)) & 1
    for configuration in range(1, N_CONFIGURATIONS - 1):
        voxels = bits[configuration].reshape(2, 2, 2).astype(np.float32)
        places, triangles, _, _ = marching_cubes(voxels, 0.5, method="lorensen")
        found = np.rint(2 * places).astype(np.int64)[triangles]
        corners[configuration, : len(found)] = found
        n_triangles[configuration] = len(found)
    behind = (corners == 2) @ np.array([4, 2, 1])
    edges = (3 * behind + (corners == 1).argmax(axis=-1)).astype(np.int8)
    owned = np.stack([bits[:, 0] != bits[:, corner] for corner in (4, 2, 1)], axis=1)
    return CellTable(corners, edges, n_triangles, owned)


# ---------------------------------------------------------------------------------------------
# Cells of a block


def surface_cells(data: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the cells that the surfaces of chosen objects pass through.

    Parameters
    ----------
    data : (Z, Y, X) integer
        Labels. Cells lie between them: one fewer along each axis.
    ids : (n,) of the same type
        Labels of the chosen objects, ascending.

    Returns
    -------
    number : (m,) int32
        Which of the objects; ascending.
    cell : (m, 3) int32
        Lowest voxel z, y, x; ascending for each object.
    configuration : (m,) uint8

    Examples
    --------
    >>> data = np.zeros((2, 2, 3), np.uint8)
    >>> data[0, 0, 1] = 7
    >>> number, cell, configuration = surface_cells(data, np.array([3, 7], np.uint8))
    >>> number.tolist(), cell.tolist(), configuration.tolist()
    ([1, 1], [[0, 0, 0], [0, 0, 1]], [2, 1])
    """
    if min(data.shape) < 2 or not len(ids):
        return np.empty(0, np.int32), np.empty((0, 3), np.int32), np.empty(0, np.uint8)
    room = data.size // 16 + 1024
    while True:
        number = np.empty(room, np.int32)
        cell = np.empty((room, 3), np.int32)
        configuration = np.empty(room, np.uint8)
        n_found = _scan(data, ids, number, cell, configuration)
        if n_found <= room:
            order = np.argsort(number[:n_found], kind="stable")
            return number[order], cell[order], configuration[order]
        room = n_found  # more mixed than tissue is: look once more


@compiled()
def _place(ids: np.ndarray, label: int) -> int:
    """Return where a label stands among ascending ones, -1 where it is not there."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low if low < len(ids) and ids[low] == label else -1


@compiled()
def _scan(
    data: np.ndarray,
    ids: np.ndarray,
    number: np.ndarray,
    cell: np.ndarray,
    configuration: np.ndarray,
) -> int:
    """List cells as far as there is room, and return how many there are."""
    found = 0
    around = np.empty(8, data.dtype)
    known, place = ids[0], 0
    for z in range(data.shape[0] - 1):
        for y in range(data.shape[1] - 1):
            # The four voxels at x, from two rows of two slices.
            a, b = data[z, y, 0], data[z, y + 1, 0]
            c, d = data[z + 1, y, 0], data[z + 1, y + 1, 0]
            plain = (a == b) & (a == c) & (a == d)
            for x in range(data.shape[2] - 1):
                e, f = data[z, y, x + 1], data[z, y + 1, x + 1]
                g, h = data[z + 1, y, x + 1], data[z + 1, y + 1, x + 1]
                was_plain = plain
                plain = (e == f) & (e == g) & (e == h)
                if not (was_plain and plain and a == e):
                    around[0], around[1], around[2], around[3] = a, e, b, f
                    around[4], around[5], around[6], around[7] = c, g, d, h
                    rest = 255  # bits of the voxels whose label has not had its turn
                    for k in range(8):
                        if not rest >> k & 1:
                            continue
                        bits = 0
                        for j in range(8):
                            bits |= (around[j] == around[k]) << j
                        rest &= ~bits
                        if around[k] != known:
                            known = around[k]
                            place = _place(ids, known)
                        if place >= 0:
                            if found < len(number):
                                number[found] = place
                                cell[found, 0], cell[found, 1], cell[found, 2] = z, y, x
                                configuration[found] = bits
                            found += 1
                        if not rest:
                            break
                a, b, c, d = e, f, g, h
    return found


# ---------------------------------------------------------------------------------------------
# Cells of a volume


@dataclass(frozen=True)
class Cells:
    """Numbers for the cells of a volume, ascending with z, then y, then x.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the volume z, y, x. Cells begin one voxel before it.

    Raises
    ------
    ValueError
        When there are too many for 63 bits: beyond two million voxels along each axis.

    Examples
    --------
    >>> cells = Cells((1, 2, 3))
    >>> cells.number(np.array([[-1, -1, -1], [0, 1, 2]])).tolist()
    [0, 23]
    >>> cells.place(np.array([23])).tolist()
    [[0, 1, 2]]
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        z, y, x = self.shape
        if (z + 1) * (y + 1) * (x + 1) >= 2**63:
            raise ValueError(
                f"a volume of at most 2⁶³ voxels is meshed. Received: {self.shape}. Choose a "
                f"coarser level"
            )

    @property
    def steps(self) -> tuple[int, int, int]:
        """From one cell to the next along z, y, x."""
        _, y, x = self.shape
        return (y + 1) * (x + 1), x + 1, 1

    def number(self, places: np.ndarray) -> np.ndarray:
        """Number cells given by their lowest voxels: (n, 3) integer to (n,) int64."""
        return (places.astype(np.int64) + 1) @ np.array(self.steps)

    def place(self, numbers: np.ndarray) -> np.ndarray:
        """Return the lowest voxels of cells: (n,) int64 to (n, 3) int64."""
        z, rest = np.divmod(numbers, self.steps[0])
        y, x = np.divmod(rest, self.steps[1])
        return np.stack([z, y, x], axis=-1) - 1


def vertices_of(places: np.ndarray, configurations: np.ndarray) -> np.ndarray:
    """Return the vertices that belong to cells, in their order.

    Parameters
    ----------
    places : (n, 3) int64
        Lowest voxels.
    configurations : (n,) uint8

    Returns
    -------
    (vertices, 3) int64
        z, y, x in half voxels from the centre of voxel (0, 0, 0).
    """
    owner, axis = np.nonzero(cell_table().owned[configurations])
    found = 2 * places[owner]
    found[np.arange(len(found)), axis] += 1
    return found


def corners_of(places: np.ndarray, configurations: np.ndarray) -> np.ndarray:
    """Return the corners of the triangles of cells, in their order.

    Parameters
    ----------
    places, configurations
        As for :func:`vertices_of`.

    Returns
    -------
    (triangles, 3, 3) int64
        Triangle, corner, axis: half voxels from the centre of voxel (0, 0, 0).
    """
    table = cell_table()
    n_triangles = table.n_triangles[configurations]
    owner = np.repeat(np.arange(len(places)), n_triangles)
    before = np.cumsum(n_triangles) - n_triangles
    within = np.arange(len(owner)) - before[owner]
    return 2 * places[owner, None] + table.corners[configurations[owner], within]


def join_triangles(
    cells: np.ndarray,
    configurations: np.ndarray,
    n_cells: int,
    steps: Sequence[int],
    first_vertex: int,
) -> np.ndarray:
    """Return the triangles of cells by the numbers of their vertices.

    Parameters
    ----------
    cells : (n,) int64
        Numbers, ascending: those whose triangles are wanted, and behind them all of the object
        that lie up to one slice further.
    configurations : (n,) uint8
    n_cells : int
        How many have their triangles returned.
    steps : three of int
        See :class:`Cells`.
    first_vertex : int
        Number of the first vertex of the first cell.

    Returns
    -------
    (triangles, 3) int64

    Raises
    ------
    LookupError
        When a cell is not there that a vertex belongs to.
    """
    table = cell_table()
    first = np.cumsum(table.n_vertices[configurations]) - table.n_vertices[configurations]
    out = np.empty((int(table.n_triangles[configurations[:n_cells]].sum()), 3), np.int64)
    shifts = np.array([[4, 2, 1]]) & np.arange(8)[:, None] != 0
    behind = shifts @ np.asarray(steps, np.int64)
    if not _join(
        cells, configurations, n_cells, behind, first + first_vertex, table.edges,
        table.n_triangles, table.owned, out,
    ):  # fmt: skip
        raise LookupError("a surface is not closed: a piece of it is missing")
    return out


@compiled()
def _join(
    cells: np.ndarray,
    configurations: np.ndarray,
    n_cells: int,
    behind: np.ndarray,
    first: np.ndarray,
    edges: np.ndarray,
    n_triangles: np.ndarray,
    owned: np.ndarray,
    out: np.ndarray,
) -> bool:
    """Fill in the triangles; False where a vertex belongs to a cell that is not there.

    The cell behind another, in any of the eight ways, moves on as the other does: eight places are
    kept, and nothing is searched for.
    """
    found = 0
    at = np.zeros(8, np.int64)
    for i in range(n_cells):
        configuration = configurations[i]
        for t in range(n_triangles[configuration]):
            for corner in range(3):
                edge = edges[configuration, t, corner]
                way, axis = edge // 3, edge % 3
                wanted = cells[i] + behind[way]
                place = at[way]
                while place < len(cells) and cells[place] < wanted:
                    place += 1
                at[way] = place
                if place == len(cells) or cells[place] != wanted:
                    return False
                owner = configurations[place]
                if not owned[owner, axis]:
                    return False
                vertex = first[place]
                for before in range(axis):
                    vertex += owned[owner, before]
                out[found, corner] = vertex
            found += 1
    return True
