"""What is at this voxel of a synthetic heart cell, and what is the truth about its objects?

A :class:`Cell` is a description: shape, voxel size, seed, kind. Every voxel of it is a pure
function of its global index, so that any box can be rendered alone, on any worker, in any order,
and a terabyte never exists at once. Lengths are nm, the fibre runs along x.

1. **Sites.** A jittered hexagonal lattice in the cross-section (z, y). A site is the axis of a
   myofibril or of a row of mitochondria. All chance comes from a hash of (seed, lattice index).
2. **Myofibrils** fill the Voronoi cells of their sites, up to a gap, outside the discs of the
   mitochondrial rows; Z-discs cross them at one period per cell, with a phase per fibril.
3. **Mitochondria** are capsules (all points within ``radius`` of a segment), one per slot of a
   row. Some neighbours are joined by a thinner capsule, a *bridge*: along the row, or sideways to
   an adjacent row. Links stay inside a *super-cell* of 3 x 3 sites x 4 slots, so that a tiny
   union-find there gives every object its id.
4. **Nucleus**: an ellipsoid in the middle of volumes that have room for one. Capsules that come
   too near are cut back or left out, bridges left out.
5. **Image**: brightness by class with bands, cristae and chromatin, blurred by one voxel, under
   noise, curtaining and slow drift.

Cross-section, ``o`` mitochondrial rows, ``#`` myofibrils; along a row, capsules and a bridge::

    z  # # o # #          |  slot 0   |  slot 1   |  slot 2   |
    |   o # # o #         | (=======) | (====)----|-(=====)   |  -> x
    v  # # o # #          |           |      one object       |

Why objects are what they claim to be. The surfaces of two objects are at least ``gap`` apart, and
``gap`` is two voxel diagonals or more, so that voxels of two objects are never 26-neighbours:

* a capsule stays inside the disc of its row, less half a gap, and inside its slot, less half a
  gap; the discs of two rows do not overlap;
* a bridge along a row lies between the two capsules that it joins, in the same disc;
* a bridge sideways lies in one x-plane inside both slots, is no thicker than its capsules, and is
  dropped where it comes within a gap of the disc of a third row. Two such bridges without a common
  row cannot cross, because lattice edges are planar under this jitter, and so are nearest at an
  end, which lies in the disc of a third row.

A capsule of radius at least half a voxel diagonal holds every voxel that its segment passes, and
from each of its voxels one walks there by steps that come nearer; bridges start on the segments
they join. Hence an object is one 26-connected component, except where the volume's border cuts it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from cvdask.volume.boxes import AXES, Box

CLASSES: dict[int, str] = {1: "mitochondria", 2: "myofibrils", 3: "z_discs", 4: "nucleus"}

# Four colours of Okabe and Ito's palette, told apart with any colour vision.
CLASS_COLORS: dict[int, str] = {1: "#d55e00", 2: "#56b4e9", 3: "#f0e442", 4: "#009e73"}

# --- Measures of the cell, nm ------------------------------------------------------------------

PITCH = 1100.0  # between neighbouring sites
LAYER = PITCH * math.sqrt(3) / 2  # between rows of sites along z
JITTER = 0.12 * PITCH  # a site leaves its lattice point by at most this
WIDEST_ROW = 580.0  # radius of a mitochondrial row, at most
ROW_SHARE = 0.62  # of the way to a neighbouring fibril's axis that a row may take
FIBRIL_REACH = 0.95 * PITCH  # a fibril ends this far from its axis where no other one follows
FIBRIL_GAP = 70.0  # between neighbouring fibrils
SLOT = 2400.0  # along x, on average
Z_DISC = 100.0  # thickness
SHORTEST_SARCOMERE, LONGEST_SARCOMERE = 1800.0, 2000.0
NARROWEST_GAP = 60.0  # between mitochondrial objects
THINNEST_MITOCHONDRION = 80.0  # radius
COARSEST_DIAGONAL = 300.0  # of a voxel; beyond it the gaps leave no room for mitochondria

NUCLEUS_SHARE = (0.22, 0.22, 0.25)  # radii as a share of the volume's extent
LARGEST_NUCLEUS = (2500.0, 2500.0, 6000.0)
SMALLEST_NUCLEUS = 800.0
PERINUCLEAR = 150.0  # free of fibrils around the nucleus

SITES, SLOTS = 3, 4  # a super-cell is SITES x SITES sites x SLOTS slots
CAPSULES = SITES * SITES * SLOTS
# Capsules, bridges along the rows, and sideways on the 6 + 10 lattice edges at most.
MOST_SHAPES = CAPSULES + SITES * SITES * (SLOTS - 1) + 16 * SLOTS


class _Kind(NamedTuple):
    """What distinguishes one kind of cell: chances, and the spread of radii."""

    row_on_sublattice: float  # every third site, each with six others around it
    row_elsewhere: float
    clustering: float  # how far slow noise moves the two chances above
    filled: float  # slots that hold a capsule
    fused: float  # neighbours along a row that are joined
    lateral: float  # neighbours in adjacent rows that are joined
    thinnest: float  # radius, as a share of what the row has room for


_KINDS = {
    "healthy": _Kind(0.98, 0.25, 0.0, 0.98, 0.15, 0.04, 0.90),
    "diabetic": _Kind(0.62, 0.62, 1.6, 0.98, 0.40, 0.30, 0.80),
}


class _Layout(NamedTuple):
    """All that the kernels need to know of a cell: numbers only."""

    key: np.uint64
    kind: _Kind
    voxel: tuple[float, ...]
    gap: float
    thinnest: float
    thinnest_bridge: float
    sarcomere: float
    z_disc: float
    register: float  # where the first Z-disc would be without a fibril's own phase
    center: tuple[float, ...]
    nucleus: tuple[float, ...]  # radii; zeros without a nucleus
    first_cell: tuple[int, ...]  # super-cells that can reach into the volume
    n_cells: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """Describe a synthetic heart cell; nothing is computed until a box of it is rendered.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    voxel_size_nm : tuple of float
        Voxel size (z, y, x). Its diagonal may be 300 nm at most: the gap between mitochondria is
        two diagonals, and wider gaps leave no room for them. Because of the gap the same seed
        gives thinner mitochondria at coarser voxels.
    seed : int
        Any integer from 0 to 2**63 - 1.
    kind : str
        ``"healthy"``, or ``"diabetic"``: mitochondrial rows in clusters, more fusion, more
        bridges between rows, radii more varied.

    Raises
    ------
    TypeError
        When shape or seed is not made of integers.
    ValueError
        When the kind is unknown, the shape is not three positive numbers, the voxel size is not
        three positive finite numbers or too coarse, the seed is out of range, or the volume may
        hold more objects than a uint32 can number.

    Examples
    --------
    >>> cell = Cell((200, 500, 500), (20.0, 20.0, 20.0))
    >>> cell.nucleus_radii_nm
    (880.0, 2200.0, 2500.0)
    """

    shape: tuple[int, int, int]
    voxel_size_nm: tuple[float, float, float]
    seed: int = 0
    kind: str = "healthy"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(map(repr, _KINDS))}. Received: {self.kind!r}"
            )
        shape = tuple(operator.index(v) for v in self.shape)
        voxel = tuple(float(v) for v in self.voxel_size_nm)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "voxel_size_nm", voxel)
        object.__setattr__(self, "seed", operator.index(self.seed))
        for what, values in (("shape", shape), ("voxel_size_nm", voxel)):
            if len(values) != len(AXES):
                raise ValueError(f"{what} needs three values, z, y, x. Received: {values}")
            for name, value in zip(AXES, values, strict=True):
                if not 0 < value < math.inf:
                    raise ValueError(
                        f"{what} must be positive and finite. Received along {name}: {value}"
                    )
        diagonal = math.hypot(*voxel)
        if diagonal > COARSEST_DIAGONAL:
            raise ValueError(
                f"voxels must resolve mitochondria: their diagonal may be {COARSEST_DIAGONAL:g} nm "
                f"at most. Received: voxel_size_nm={voxel}, diagonal {diagonal:.0f} nm; choose "
                f"smaller voxels"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1. Received: {self.seed}")
        n_ids = math.prod(_cells_meeting(Box.whole(shape), voxel)[1]) * CAPSULES
        if n_ids >= 2**32:
            raise ValueError(
                f"ids are uint32, which numbers {2**32 - 1} mitochondria. Received: shape {shape} "
                f"at {voxel} nm with up to {n_ids}; choose a smaller volume"
            )

    @property
    def extent_nm(self) -> tuple[float, ...]:
        """Size of the volume (z, y, x)."""
        return tuple(n * v for n, v in zip(self.shape, self.voxel_size_nm, strict=True))

    @property
    def nucleus_radii_nm(self) -> tuple[float, ...] | None:
        """Radii (z, y, x) of the nucleus in the volume's middle, or None.

        They are 0.22, 0.22 and 0.25 of the volume's extent, at most 2.5, 2.5 and 6 µm. A volume
        in which one of them would be below 0.8 µm has no nucleus.
        """
        radii = tuple(
            min(share * extent, most)
            for share, extent, most in zip(
                NUCLEUS_SHARE, self.extent_nm, LARGEST_NUCLEUS, strict=True
            )
        )
        return radii if min(radii) >= SMALLEST_NUCLEUS else None

    @property
    def sarcomere_nm(self) -> float:
        """Distance between Z-discs, 1800 to 2000, one value per seed."""
        return _layout(self).sarcomere

    @property
    def gap_nm(self) -> float:
        """Distance that two mitochondrial objects keep at least: 60, or two voxel diagonals."""
        return max(NARROWEST_GAP, 2 * math.hypot(*self.voxel_size_nm))


@dataclass(frozen=True)
class Rendering:
    """The voxels of one box; all arrays have the shape of the box and belong to the caller.

    Parameters
    ----------
    image : (Z, Y, X) uint8, or None
        What a microscope would show; None when it was not asked for.
    classes : (Z, Y, X) uint8
        Keys of :data:`CLASSES`, and 0 for sarcoplasm.
    instances : (Z, Y, X) uint32
        Id of the mitochondrial object, 0 elsewhere.
    """

    image: npt.NDArray[np.uint8] | None
    classes: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint32]


def render(cell: Cell, box: Box, *, image: bool = True) -> Rendering:
    """Render the voxels of a box.

    A voxel belongs to a shape when its centre does; voxel i has its centre at (i + 0.5) times the
    voxel size. The values do not depend on the box: boxes of any shape fit together byte for byte.
    The kernels release the GIL, so that threads may render at the same time. Memory follows the
    box: 5 bytes a voxel, with the image 12.

    Parameters
    ----------
    cell : Cell
    box : Box
        Inside the cell's volume; may be empty.
    image : bool
        Also render the image. It needs the labels one voxel around the box, made here.

    Raises
    ------
    ValueError
        When the box leaves the volume.

    Examples
    --------
    >>> cell = Cell((64, 64, 64), (20.0, 20.0, 20.0))
    >>> rendering = render(cell, Box((0, 0, 0), (8, 16, 32)), image=False)
    >>> rendering.classes.shape, rendering.instances.dtype
    ((8, 16, 32), dtype('uint32'))
    """
    _check_inside(cell, box)
    if box.size == 0:
        empty = np.zeros(box.shape, np.uint8)
        return Rendering(empty.copy() if image else None, empty, empty.astype(np.uint32))
    layout = _layout(cell)
    if not image:
        classes, instances, _ = _labels(layout, box)
        return Rendering(None, classes, instances)
    around = box.grow((1, 1, 1), (1, 1, 1)).intersect(Box.whole(cell.shape))
    classes, instances, planes = _labels(layout, around)
    textured = _paint_texture(layout, around.start, planes, classes, instances)
    inner = box.within(around)
    picture = _expose(layout, around.start, box.start, box.shape, textured)
    return Rendering(
        picture, np.ascontiguousarray(classes[inner]), np.ascontiguousarray(instances[inner])
    )


def true_objects(cell: Cell, box: Box | None = None) -> Iterator[dict[str, npt.NDArray]]:
    """Yield the truth about the mitochondria, batch after batch, in the order of their ids.

    A batch covers one layer of super-cells along z (about 3 µm), so that memory follows the
    volume's cross-section and not its depth. Nothing is rendered: values are closed forms.

    Parameters
    ----------
    cell : Cell
    box : Box, optional
        Only objects with at least one voxel in it. None is the whole volume, whose table lists
        exactly the ids that rendering it would show. An object that spans several boxes is in the
        table of each, with the same values.

    Yields
    ------
    dict of str to (n,) array
        ``label`` (uint32), ``class`` (uint8), ``n_shapes`` (int64; capsules and bridges),
        ``isolated`` (bool; one single capsule, whole inside the volume), ``volume_um3``,
        ``surface_um2``, ``length_um`` (end to end), ``radius_um``, ``centroid_{z,y,x}_um``
        (float64; NaN where not isolated, as a union of capsules has no closed form), and
        ``touches_border`` (bool; has a voxel in an outermost plane of the volume).

    Raises
    ------
    ValueError
        When the box leaves the volume.
    """
    wanted = Box.whole(cell.shape) if box is None else box
    _check_inside(cell, wanted)
    if wanted.size == 0:
        return
    layout = _layout(cell)
    first, n_cells = _cells_meeting(wanted, cell.voxel_size_nm)
    for layer in range(n_cells[0]):
        shapes, labels = _shapes(layout, (first[0] + layer, *first[1:]), (1, *n_cells[1:]))
        batch = _describe(cell, layout, wanted, shapes, labels)
        if len(batch["label"]):
            yield batch


def _describe(
    cell: Cell,
    layout: _Layout,
    wanted: Box,
    shapes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint32],
) -> dict[str, npt.NDArray]:
    """Return the rows of the objects that have a voxel in the wanted box."""
    volume = Box.whole(cell.shape)
    seen = _have_voxels(layout, shapes, wanted.start, wanted.stop)
    at_border = np.zeros(len(shapes), bool)
    for axis in range(len(AXES)):
        for plane in (0, cell.shape[axis] - 1):
            start, stop = list(volume.start), list(volume.stop)
            start[axis], stop[axis] = plane, plane + 1
            at_border |= _have_voxels(layout, shapes, tuple(start), tuple(stop))

    ids, first, of_shape, n_shapes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    keep = np.bincount(of_shape, weights=seen, minlength=len(ids)) > 0
    border = np.bincount(of_shape, weights=at_border, minlength=len(ids)) > 0
    ends = shapes[first, :6].reshape(-1, 2, 3)  # n, end, axis
    radius = shapes[first, 6]
    reach = radius[:, None]
    inside = (ends.min(1) - reach >= 0).all(1) & (ends.max(1) + reach <= cell.extent_nm).all(1)
    isolated = (n_shapes == 1) & inside

    def closed_form(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(isolated, values, np.nan)[keep]

    radius_um = radius / 1e3
    segment_um = np.sqrt(((ends[:, 1] - ends[:, 0]) ** 2).sum(1)) / 1e3
    middle_um = ends.mean(1) / 1e3
    return {
        "label": ids[keep],
        "class": np.ones(np.count_nonzero(keep), np.uint8),
        "n_shapes": n_shapes[keep],
        "isolated": isolated[keep],
        "volume_um3": closed_form(np.pi * radius_um**2 * (segment_um + 4 / 3 * radius_um)),
        "surface_um2": closed_form(2 * np.pi * radius_um * (segment_um + 2 * radius_um)),
        "length_um": closed_form(segment_um + 2 * radius_um),
        "radius_um": closed_form(radius_um),
        **{
            f"centroid_{name}_um": closed_form(middle_um[:, axis]) for axis, name in enumerate(AXES)
        },
        "touches_border": border[keep],
    }


def _check_inside(cell: Cell, box: Box) -> None:
    if len(box.start) != len(AXES):
        raise ValueError(f"a box of a cell needs three axes, z, y, x. Received: {box}")
    for name, low, high, extent in zip(AXES, box.start, box.stop, cell.shape, strict=True):
        if low < 0 or high > extent:
            raise ValueError(
                f"the box must lie inside the cell. Received along {name}: {low}:{high}, the cell "
                f"has {extent} voxels there"
            )


def _layout(cell: Cell) -> _Layout:
    """Derive the numbers that the kernels share; cheap enough for every call."""
    voxel = cell.voxel_size_nm
    diagonal = math.hypot(*voxel)
    key = _hash(np.uint64(cell.seed), _S_CELL, 0, 0, 0)
    spread = LONGEST_SARCOMERE - SHORTEST_SARCOMERE
    first, n_cells = _cells_meeting(Box.whole(cell.shape), voxel)
    # A hair above half a diagonal, so that rounding cannot open a capsule.
    thinnest_bridge = 0.5001 * diagonal
    return _Layout(
        key=np.uint64(key),
        kind=_KINDS[cell.kind],
        voxel=voxel,
        gap=cell.gap_nm,
        thinnest=max(THINNEST_MITOCHONDRION, thinnest_bridge),
        thinnest_bridge=thinnest_bridge,
        sarcomere=SHORTEST_SARCOMERE + spread * _uniform(np.uint64(key), _S_SARCOMERE, 0, 0, 0),
        z_disc=max(Z_DISC, voxel[2]),  # no thinner than a voxel, or some would vanish
        register=LONGEST_SARCOMERE * _uniform(np.uint64(key), _S_SARCOMERE, 1, 0, 0),
        center=tuple(v / 2 for v in cell.extent_nm),
        nucleus=cell.nucleus_radii_nm or (0.0, 0.0, 0.0),
        first_cell=first,
        n_cells=n_cells,
    )


def _cells_meeting(box: Box, voxel: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return first and number, per axis, of the super-cells whose shapes can reach into a box.

    Slot k of a row leaves [k, k + 1] slots by less than half a slot; super-cells start at any of
    SLOTS slots, see :func:`_stagger`.
    """
    low = [a * v for a, v in zip(box.start, voxel, strict=True)]
    high = [b * v for b, v in zip(box.stop, voxel, strict=True)]
    reach = JITTER + WIDEST_ROW
    sites = (
        (math.ceil((low[0] - reach) / LAYER), math.floor((high[0] + reach) / LAYER)),
        (math.ceil((low[1] - reach) / PITCH - 0.5), math.floor((high[1] + reach) / PITCH)),
        (
            math.floor(low[2] / SLOT - 1.5) - (SLOTS - 1),
            math.floor(high[2] / SLOT + 0.5),
        ),
    )
    first = tuple(a // n for (a, _), n in zip(sites, (SITES, SITES, SLOTS), strict=True))
    last = tuple(b // n for (_, b), n in zip(sites, (SITES, SITES, SLOTS), strict=True))
    count = tuple(b - a + 1 for a, b in zip(first, last, strict=True))
    return first, count


def _labels(
    layout: _Layout, box: Box
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Render classes and instances, and the x of a Z-disc per (z, y) column (NaN: no fibril)."""
    first, n_cells = _cells_meeting(box, layout.voxel)
    shapes, labels = _shapes(layout, first, n_cells)
    sites, corner = _site_table(layout, first, n_cells)
    planes = _fibril_columns(layout, sites, corner, box.start, box.shape)
    classes = np.zeros(box.shape, np.uint8)
    instances = np.zeros(box.shape, np.uint32)
    _fill_fibrils(layout, box.start, planes, classes)
    _fill_nucleus(layout, box.start, classes)
    _fill_mitochondria(layout, box.start, shapes, labels, classes, instances)
    return classes, instances, planes


# --- Chance: a counter-based hash ---------------------------------------------------------------
# The finaliser of splitmix64 (Steele, Lea and Flood 2014) over seed, purpose and lattice index.
# Integers and + - * / sqrt only: the same bits on every machine, where sin and cos may differ.

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))
_LOW_32 = np.uint64(0xFFFFFFFF)

# Purposes: draws for different ones are independent.
_S_CELL, _S_SARCOMERE, _S_SITE, _S_ROW, _S_CLUSTER, _S_FIBRIL, _S_STAGGER = range(1, 8)
_S_SLOT, _S_FILLED, _S_RADIUS, _S_ENDS, _S_FUSED, _S_LATERAL = range(8, 14)
_S_CRISTAE, _S_FILAMENT, _S_CHROMATIN, _S_GRAIN, _S_BLOTCH = range(14, 19)
_S_CURTAIN, _S_STREAK, _S_DRIFT, _S_NOISE = range(19, 23)


@njit(cache=True, nogil=True)
def _mix(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _U30)) * _MIX_1
    h = (h ^ (h >> _U27)) * _MIX_2
    return h ^ (h >> _U31)


@njit(cache=True, nogil=True)
def _hash(key: np.uint64, purpose: int, i: int, j: int, k: int) -> np.uint64:
    h = _mix(key + np.uint64(purpose) * _GOLDEN)
    h = _mix(h + np.uint64(i) * _GOLDEN)
    h = _mix(h + np.uint64(j) * _GOLDEN)
    return _mix(h + np.uint64(k) * _GOLDEN)


@njit(cache=True, nogil=True)
def _uniform(key: np.uint64, purpose: int, i: int, j: int, k: int) -> float:
    """Draw from [0, 1)."""
    return float(_hash(key, purpose, i, j, k) >> _U11) * 2.0**-53


@njit(cache=True, nogil=True)
def _in_disc(key: np.uint64, purpose: int, i: int, j: int, k: int) -> tuple[float, float]:
    """Draw a point of the unit disc, by rejection from the square around it."""
    h = _hash(key, purpose, i, j, k)
    while True:
        a = float(h >> _U32) * 2.0**-31 - 1.0
        b = float(h & _LOW_32) * 2.0**-31 - 1.0
        if a * a + b * b <= 1.0:
            return a, b
        h = _mix(h + _GOLDEN)


@njit(cache=True, nogil=True)
def _value_noise(key: np.uint64, purpose: int, z: float, y: float, x: float) -> float:
    """Interpolate random values of the integer lattice, in [0, 1)."""
    i, j, k = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
    f, g, h = z - i, y - j, x - k
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                weight = (f if a else 1.0 - f) * (g if b else 1.0 - g) * (h if c else 1.0 - h)
                total += weight * _uniform(key, purpose, i + a, j + b, k + c)
    return total


# --- Sites --------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _site(layout: _Layout, i: int, j: int) -> tuple[float, float]:
    """Return where site (i, j) is: odd layers are shifted by half a pitch, then all jittered."""
    dz, dy = _in_disc(layout.key, _S_SITE, i, j, 0)
    return i * LAYER + JITTER * dz, (j + 0.5 * (i & 1)) * PITCH + JITTER * dy


@njit(cache=True, nogil=True)
def _is_row(layout: _Layout, i: int, j: int) -> bool:
    """Tell whether a site carries mitochondria."""
    # Three colours on a hexagonal lattice, no two neighbours alike; column in axial coordinates.
    on_sublattice = (j - (i - (i & 1)) // 2 - i) % 3 == 0
    kind = layout.kind
    chance = kind.row_on_sublattice if on_sublattice else kind.row_elsewhere
    if kind.clustering:
        slow = _value_noise(layout.key, _S_CLUSTER, i / 3.0, (j + 0.5 * (i & 1)) / 3.0, 0.0)
        chance += kind.clustering * (slow - 0.5)
    return _uniform(layout.key, _S_ROW, i, j, 0) < chance


@njit(cache=True, nogil=True)
def _row_radius(layout: _Layout, i: int, j: int) -> float:
    """Return the radius of a mitochondrial row's disc, 0 for a fibril's site.

    Only the nearest sites can be in the way: all others are further than twice the widest disc.
    """
    if not _is_row(layout, i, j):
        return 0.0
    z, y = _site(layout, i, j)
    radius = WIDEST_ROW
    for di in range(-1, 2):
        for dj in range(-1, 2):
            if di == 0 and dj == 0:
                continue
            oz, oy = _site(layout, i + di, j + dj)
            distance = np.sqrt((oz - z) ** 2 + (oy - y) ** 2)
            share = 0.5 if _is_row(layout, i + di, j + dj) else ROW_SHARE
            radius = min(radius, share * distance)
    return radius


@njit(cache=True, nogil=True)
def _site_table(
    layout: _Layout, first: tuple[int, ...], n_cells: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Tabulate z, y and disc radius of the sites of super-cells and of three sites around them.

    Returns
    -------
    sites : (n, m, 3) float64
    corner : lattice index (i, j) of ``sites[0, 0]``
    """
    i0, j0 = first[0] * SITES - 3, first[1] * SITES - 3
    sites = np.empty((n_cells[0] * SITES + 6, n_cells[1] * SITES + 6, 3))
    for i in range(sites.shape[0]):
        for j in range(sites.shape[1]):
            sites[i, j, 0], sites[i, j, 1] = _site(layout, i0 + i, j0 + j)
            sites[i, j, 2] = _row_radius(layout, i0 + i, j0 + j)
    return sites, (i0, j0)


# --- Mitochondria -------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _stagger(layout: _Layout, cell_z: int, cell_y: int) -> int:
    """Return by how many slots a column of super-cells is shifted, so that their ends scatter."""
    return int(_hash(layout.key, _S_STAGGER, cell_z, cell_y, 0) % np.uint64(SLOTS))


@njit(cache=True, nogil=True)
def _slot_start(layout: _Layout, i: int, j: int, k: int) -> float:
    """Return the x where slot k of a row begins: within 0.45 slots of k slots."""
    phase = 0.6 * (_uniform(layout.key, _S_SLOT, i, j, 2**40) - 0.5)
    return (k + phase + 0.3 * (_uniform(layout.key, _S_SLOT, i, j, k) - 0.5)) * SLOT


@njit(cache=True, nogil=True)
def _clear_of_nucleus(layout: _Layout, shape: npt.NDArray[np.float64]) -> bool:
    """Tell whether a capsule certainly keeps a gap from the nucleus.

    The segment's distance from the centre, q, is measured in radii of the ellipsoid; its distance
    from the surface is then (q - 1) times the smallest radius at least.
    """
    radii = layout.nucleus
    smallest = min(radii[0], radii[1], radii[2])
    if smallest == 0.0:
        return True
    along = squared = start = 0.0
    for axis in range(3):
        a = (shape[axis] - layout.center[axis]) / radii[axis]
        d = (shape[3 + axis] - shape[axis]) / radii[axis]
        along -= a * d
        squared += d * d
        start += a * a
    t = min(1.0, max(0.0, along / squared)) if squared > 0.0 else 0.0
    nearest = np.sqrt(max(0.0, start - 2.0 * t * along + t * t * squared))
    return (nearest - 1.0) * smallest > shape[6] + layout.gap


@njit(cache=True, nogil=True)
def _place_capsule(
    layout: _Layout,
    site: npt.NDArray[np.float64],
    i: int,
    j: int,
    k: int,
    capsule: npt.NDArray[np.float64],
) -> bool:
    """Write the capsule of slot k of row (i, j) into ``capsule``; False where there is none."""
    key = layout.key
    room = site[2] - layout.gap / 2
    if _uniform(key, _S_FILLED, i, j, k) >= layout.kind.filled:
        return False
    thinnest = layout.kind.thinnest
    radius = room * (thinnest + (1.0 - thinnest) * _uniform(key, _S_RADIUS, i, j, k))
    if radius < layout.thinnest:
        return False
    x0 = _slot_start(layout, i, j, k) + layout.gap / 2 + radius
    x1 = _slot_start(layout, i, j, k + 1) - layout.gap / 2 - radius
    if x1 < x0:
        return False
    for end in range(2):
        dz, dy = _in_disc(key, _S_ENDS, i, j, 2 * k + end)
        capsule[3 * end] = site[0] + dz * (room - radius)
        capsule[3 * end + 1] = site[1] + dy * (room - radius)
        capsule[3 * end + 2] = x1 if end else x0
    capsule[6] = radius
    return _clear_of_nucleus(layout, capsule) or _shorten(layout, capsule)


@njit(cache=True, nogil=True)
def _shorten(layout: _Layout, capsule: npt.NDArray[np.float64]) -> bool:
    """Cut a capsule back at one end until the nucleus is clear of it; False where none is left.

    Without this the volume around the nucleus would lack as many mitochondria as a slot is long.
    """
    whole = capsule.copy()
    for quarters in range(3, -1, -1):
        for end in range(2):
            for axis in range(3):
                kept = whole[3 * end + axis]
                lost = whole[3 * (1 - end) + axis]
                capsule[3 * end + axis] = kept
                capsule[3 * (1 - end) + axis] = kept + quarters / 4 * (lost - kept)
            if _clear_of_nucleus(layout, capsule):
                return True
    return False


@njit(cache=True, nogil=True)
def _bridge_radius(layout: _Layout, one: float, other: float) -> float:
    """Return the radius of a bridge: never more than that of either capsule."""
    return max(layout.thinnest_bridge, 0.4 * min(one, other))


@njit(cache=True, nogil=True)
def _bridge_along(
    layout: _Layout,
    before: npt.NDArray[np.float64],
    behind: npt.NDArray[np.float64],
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Join the end of one capsule with the start of the next; False where the nucleus is near."""
    for axis in range(3):  # slices would cost two seconds of compilation
        bridge[axis] = before[3 + axis]
        bridge[3 + axis] = behind[axis]
    bridge[6] = _bridge_radius(layout, before[6], behind[6])
    return _clear_of_nucleus(layout, bridge)


@njit(cache=True, nogil=True)
def _bridge_sideways(
    layout: _Layout,
    one: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    where: float,
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Join two capsules in one x-plane, ``where`` in [0, 1) of the x range that they share."""
    low, high = max(one[2], other[2]), min(one[5], other[5])
    if low >= high:
        return False
    x = low + where * (high - low)
    for end in range(2):
        capsule = other if end else one
        t = (x - capsule[2]) / (capsule[5] - capsule[2])
        for axis in range(2):
            bridge[3 * end + axis] = capsule[axis] + t * (capsule[3 + axis] - capsule[axis])
        bridge[3 * end + 2] = x
    bridge[6] = _bridge_radius(layout, one[6], other[6])
    return _clear_of_nucleus(layout, bridge)


@njit(cache=True, nogil=True)
def _clear_of_rows(
    layout: _Layout,
    sites: npt.NDArray[np.float64],
    one: tuple[int, int],
    other: tuple[int, int],
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Tell whether a bridge between two rows keeps a gap from whatever a third row may hold."""
    dz, dy = bridge[3] - bridge[0], bridge[4] - bridge[1]
    for i in range(one[0] - 2, one[0] + 3):
        for j in range(one[1] - 2, one[1] + 3):
            radius = sites[i, j, 2]
            if radius == 0.0 or (i, j) == one or (i, j) == other:
                continue
            az, ay = sites[i, j, 0] - bridge[0], sites[i, j, 1] - bridge[1]
            t = min(1.0, max(0.0, (az * dz + ay * dy) / (dz * dz + dy * dy)))
            distance = np.sqrt((az - t * dz) ** 2 + (ay - t * dy) ** 2)
            # The row's own shapes end half a gap inside its disc.
            if distance < radius + layout.gap / 2 + bridge[6]:
                return False
    return True


@njit(cache=True, nogil=True)
def _find(parent: npt.NDArray[np.int64], member: int) -> int:
    while parent[member] != member:
        member = parent[member]
    return member


@njit(cache=True, nogil=True)
def _join(parent: npt.NDArray[np.int64], one: int, other: int) -> None:
    """Unite two objects under their first capsule."""
    a, b = _find(parent, one), _find(parent, other)
    parent[max(a, b)] = min(a, b)


@njit(cache=True, nogil=True)
def _shapes(
    layout: _Layout, first: tuple[int, ...], n_cells: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint32]]:
    """Make all shapes of a range of super-cells; the first shape of an object is a capsule.

    Returns
    -------
    shapes : (n, 7) float64
        Both ends of the segment, z, y, x each, and the radius.
    labels : (n,) uint32
        Id of the object: 1 + number of the super-cell x CAPSULES + its first capsule.
    """
    sites, corner = _site_table(layout, first, n_cells)
    most = n_cells[0] * n_cells[1] * n_cells[2] * MOST_SHAPES
    shapes = np.empty((most, 7))
    labels = np.empty(most, np.uint32)
    n = 0
    for cell_z in range(first[0], first[0] + n_cells[0]):
        for cell_y in range(first[1], first[1] + n_cells[1]):
            shift = _stagger(layout, cell_z, cell_y)
            for cell_x in range(first[2], first[2] + n_cells[2]):
                i0, j0 = cell_z * SITES, cell_y * SITES
                k0 = cell_x * SLOTS + shift
                n = _shapes_of_cell(layout, sites, corner, i0, j0, k0, shapes, labels, n)
    return shapes[:n].copy(), labels[:n].copy()


@njit(cache=True, nogil=True)
def _shapes_of_cell(
    layout: _Layout,
    sites: npt.NDArray[np.float64],
    corner: tuple[int, int],
    i0: int,
    j0: int,
    k0: int,
    shapes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint32],
    n: int,
) -> int:
    """Append the shapes of the super-cell that starts at site (i0, j0), slot k0; return the count.

    Labels are local first, the index of a capsule in its super-cell, until all links are known.
    """
    begin = n
    present = np.zeros(CAPSULES, np.bool_)
    capsules = np.empty((CAPSULES, 7))
    parent = np.arange(CAPSULES)

    # Capsules.
    for di in range(SITES):
        for dj in range(SITES):
            site = sites[i0 + di - corner[0], j0 + dj - corner[1]]
            for slot in range(SLOTS):
                c = (di * SITES + dj) * SLOTS + slot
                if site[2] > 0.0 and _place_capsule(
                    layout, site, i0 + di, j0 + dj, k0 + slot, capsules[c]
                ):
                    present[c] = True
                    for value in range(7):
                        shapes[n, value] = capsules[c, value]
                    labels[n] = c
                    n += 1

    # Bridges along the rows.
    for c in range(CAPSULES - 1):
        if c % SLOTS == SLOTS - 1 or not (present[c] and present[c + 1]):
            continue
        i, j, k = i0 + c // SLOTS // SITES, j0 + c // SLOTS % SITES, k0 + c % SLOTS
        if _uniform(layout.key, _S_FUSED, i, j, k) < layout.kind.fused and _bridge_along(
            layout, capsules[c], capsules[c + 1], shapes[n]
        ):
            _join(parent, c, c + 1)
            labels[n] = c
            n += 1

    # Bridges sideways: to the next site of the layer, and to the two of the layer below.
    for c in range(CAPSULES):
        di, dj, slot = c // SLOTS // SITES, c // SLOTS % SITES, c % SLOTS
        i, j, k = i0 + di, j0 + dj, k0 + slot
        for direction in range(3):
            ei = di + (0 if direction == 0 else 1)
            ej = dj + (1 if direction == 0 else direction - 2 + (i & 1))
            if ei >= SITES or not 0 <= ej < SITES:
                continue
            e = (ei * SITES + ej) * SLOTS + slot
            if not (present[c] and present[e]):
                continue
            if _uniform(layout.key, _S_LATERAL, i, j, 6 * k + direction) >= layout.kind.lateral:
                continue
            where = _uniform(layout.key, _S_LATERAL, i, j, 6 * k + 3 + direction)
            one = (i - corner[0], j - corner[1])
            other = (i0 + ei - corner[0], j0 + ej - corner[1])
            if _bridge_sideways(
                layout, capsules[c], capsules[e], where, shapes[n]
            ) and _clear_of_rows(layout, sites, one, other, shapes[n]):
                _join(parent, c, e)
                labels[n] = c
                n += 1

    # The number of the super-cell among all that can reach into the volume.
    shift = _stagger(layout, i0 // SITES, j0 // SITES)
    number = i0 // SITES - layout.first_cell[0]
    number = number * layout.n_cells[1] + j0 // SITES - layout.first_cell[1]
    number = number * layout.n_cells[2] + (k0 - shift) // SLOTS - layout.first_cell[2]
    for s in range(begin, n):
        labels[s] = 1 + number * CAPSULES + _find(parent, int(labels[s]))
    return n


@njit(cache=True, nogil=True)
def _voxel_range(low: float, high: float, voxel: float, start: int, stop: int) -> tuple[int, int]:
    """Return the voxels of [start, stop) whose centres lie in [low, high]."""
    begin = max(start, int(np.ceil(low / voxel - 0.5)))
    end = min(stop, int(np.floor(high / voxel - 0.5)) + 1)
    return begin, max(begin, end)


@njit(cache=True, nogil=True)
def _bounds(
    layout: _Layout,
    shape: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return, per axis, the voxels of a box that a capsule's bounding box covers."""
    az, ay, ax, bz, by, bx, r = shape
    vz, vy, vx = layout.voxel
    return (
        _voxel_range(min(az, bz) - r, max(az, bz) + r, vz, start[0], stop[0]),
        _voxel_range(min(ay, by) - r, max(ay, by) + r, vy, start[1], stop[1]),
        _voxel_range(min(ax, bx) - r, max(ax, bx) + r, vx, start[2], stop[2]),
    )


@njit(cache=True, nogil=True)
def _capsule(shape: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return what :func:`_holds` needs: start and vector of the segment, 1/length², radius²."""
    az, ay, ax, bz, by, bx, r = shape
    dz, dy, dx = bz - az, by - ay, bx - ax
    squared = dz * dz + dy * dy + dx * dx
    return az, ay, ax, dz, dy, dx, 1.0 / squared if squared > 0.0 else 0.0, r * r


@njit(cache=True, nogil=True)
def _holds(capsule: tuple[float, ...], z: float, y: float, x: float) -> bool:
    """Tell whether a point is within the radius of the capsule's segment."""
    az, ay, ax, dz, dy, dx, per_squared, radius_squared = capsule
    pz, py, px = z - az, y - ay, x - ax
    t = min(1.0, max(0.0, (pz * dz + py * dy + px * dx) * per_squared))
    qz, qy, qx = pz - t * dz, py - t * dy, px - t * dx
    return qz * qz + qy * qy + qx * qx <= radius_squared


@njit(cache=True, nogil=True)
def _fill_mitochondria(
    layout: _Layout,
    start: tuple[int, ...],
    shapes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint32],
) -> None:
    """Draw every capsule and bridge into its bounding box: class 1, over what is there."""
    nz, ny, nx = classes.shape
    vz, vy, vx = layout.voxel
    stop = (start[0] + nz, start[1] + ny, start[2] + nx)
    for s in range(len(shapes)):
        capsule = _capsule(shapes[s])
        (z0, z1), (y0, y1), (x0, x1) = _bounds(layout, shapes[s], start, stop)
        for z in range(z0, z1):
            for y in range(y0, y1):
                class_row = classes[z - start[0], y - start[1]]
                instance_row = instances[z - start[0], y - start[1]]
                for x in range(x0, x1):
                    if _holds(capsule, (z + 0.5) * vz, (y + 0.5) * vy, (x + 0.5) * vx):
                        class_row[x - start[2]] = 1
                        instance_row[x - start[2]] = labels[s]


@njit(cache=True, nogil=True)
def _has_voxel(
    layout: _Layout,
    shape: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> bool:
    """Tell whether a voxel of the box from start to stop belongs to a capsule."""
    vz, vy, vx = layout.voxel
    (z0, z1), (y0, y1), (x0, x1) = _bounds(layout, shape, start, stop)
    # 1. No voxel of the box is near.
    if z0 == z1 or y0 == y1 or x0 == x1:
        return False
    # 2. The voxel around the segment's middle always belongs: the common case, at once.
    z = int(np.floor((shape[0] + shape[3]) / 2 / vz))
    y = int(np.floor((shape[1] + shape[4]) / 2 / vy))
    x = int(np.floor((shape[2] + shape[5]) / 2 / vx))
    if z0 <= z < z1 and y0 <= y < y1 and x0 <= x < x1:
        return True
    # 3. Look at the voxels in both boxes until one belongs.
    capsule = _capsule(shape)
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if _holds(capsule, (z + 0.5) * vz, (y + 0.5) * vy, (x + 0.5) * vx):
                    return True
    return False


@njit(cache=True, nogil=True)
def _have_voxels(
    layout: _Layout,
    shapes: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> npt.NDArray[np.bool_]:
    """Tell of each capsule whether a voxel of the box from start to stop belongs to it."""
    found = np.zeros(len(shapes), np.bool_)
    for s in range(len(shapes)):
        found[s] = _has_voxel(layout, shapes[s], start, stop)
    return found


# --- Myofibrils, Z-discs, nucleus ---------------------------------------------------------------


@njit(cache=True, nogil=True)
def _fibril_columns(
    layout: _Layout,
    sites: npt.NDArray[np.float64],
    corner: tuple[int, int],
    start: tuple[int, ...],
    shape: tuple[int, ...],
) -> npt.NDArray[np.float64]:
    """Return, per (z, y) column of a box, the x of one Z-disc of its fibril; NaN without one.

    Two sites around the nearest lattice point on every side are enough: whatever lies beyond
    neither holds the column nor comes near its Voronoi border.
    """
    planes = np.full((shape[0], shape[1]), np.nan)
    for dz in range(shape[0]):
        z = (start[0] + dz + 0.5) * layout.voxel[0]
        i0 = int(np.floor(z / LAYER + 0.5))
        for dy in range(shape[1]):
            y = (start[1] + dy + 0.5) * layout.voxel[1]

            # The nearest fibril, unless a mitochondrial row takes the place.
            nearest, owner_i, owner_j = FIBRIL_REACH**2, 0, 0
            found, taken = False, False
            for i in range(i0 - 2, i0 + 3):
                j0 = int(np.floor(y / PITCH - 0.5 * (i & 1) + 0.5))
                for j in range(j0 - 2, j0 + 3):
                    site = sites[i - corner[0], j - corner[1]]
                    squared = (z - site[0]) ** 2 + (y - site[1]) ** 2
                    if site[2] > 0.0:
                        taken = taken or squared < site[2] * site[2]
                    elif squared < nearest:
                        nearest, owner_i, owner_j, found = squared, i, j, True
            if taken or not found:
                continue

            # Half a gap to the border with every other fibril.
            owner = sites[owner_i - corner[0], owner_j - corner[1]]
            clear = True
            for i in range(i0 - 2, i0 + 3):
                j0 = int(np.floor(y / PITCH - 0.5 * (i & 1) + 0.5))
                for j in range(j0 - 2, j0 + 3):
                    site = sites[i - corner[0], j - corner[1]]
                    if site[2] > 0.0 or (i == owner_i and j == owner_j):
                        continue
                    squared = (z - site[0]) ** 2 + (y - site[1]) ** 2
                    apart = np.sqrt((owner[0] - site[0]) ** 2 + (owner[1] - site[1]) ** 2)
                    clear = clear and squared - nearest >= FIBRIL_GAP * apart
            if clear:
                # A phase and a slight slant of its own, so that Z-lines are nearly in register.
                key = layout.key
                phase = 240.0 * (_uniform(key, _S_FIBRIL, owner_i, owner_j, 0) - 0.5)
                slant_z = 0.3 * (_uniform(key, _S_FIBRIL, owner_i, owner_j, 1) - 0.5)
                slant_y = 0.3 * (_uniform(key, _S_FIBRIL, owner_i, owner_j, 2) - 0.5)
                planes[dz, dy] = (
                    layout.register + phase + slant_z * (z - owner[0]) + slant_y * (y - owner[1])
                )
    return planes


@njit(cache=True, nogil=True)
def _fill_fibrils(
    layout: _Layout,
    start: tuple[int, ...],
    planes: npt.NDArray[np.float64],
    classes: npt.NDArray[np.uint8],
) -> None:
    """Draw fibrils as whole rows of class 2, then their Z-discs as short runs of class 3."""
    nz, ny, nx = classes.shape
    vx, period, half = layout.voxel[2], layout.sarcomere, layout.z_disc / 2
    low, high = start[2] * vx - half, (start[2] + nx) * vx + half
    for z in range(nz):
        for y in range(ny):
            plane = planes[z, y]
            if np.isnan(plane):
                continue
            classes[z, y, :] = 2
            first = int(np.ceil((low - plane) / period))
            last = int(np.floor((high - plane) / period))
            for m in range(first, last + 1):
                at = plane + m * period
                x0, x1 = _voxel_range(at - half, at + half, vx, start[2], start[2] + nx)
                classes[z, y, x0 - start[2] : x1 - start[2]] = 3


@njit(cache=True, nogil=True)
def _fill_nucleus(layout: _Layout, start: tuple[int, ...], classes: npt.NDArray[np.uint8]) -> None:
    """Draw the nucleus as class 4, and clear the fibrils around it."""
    radii, center = layout.nucleus, layout.center
    smallest = min(radii[0], radii[1], radii[2])
    if smallest == 0.0:
        return
    outer = 1.0 + PERINUCLEAR / smallest
    nz, ny, nx = classes.shape
    vz, vy, vx = layout.voxel
    reach = outer * radii[0]
    z0, z1 = _voxel_range(center[0] - reach, center[0] + reach, vz, start[0], start[0] + nz)
    reach = outer * radii[1]
    y0, y1 = _voxel_range(center[1] - reach, center[1] + reach, vy, start[1], start[1] + ny)
    reach = outer * radii[2]
    x0, x1 = _voxel_range(center[2] - reach, center[2] + reach, vx, start[2], start[2] + nx)
    for z in range(z0, z1):
        qz = ((z + 0.5) * vz - center[0]) / radii[0]
        for y in range(y0, y1):
            qy = ((y + 0.5) * vy - center[1]) / radii[1]
            row = classes[z - start[0], y - start[1]]
            for x in range(x0, x1):
                qx = ((x + 0.5) * vx - center[2]) / radii[2]
                squared = qz * qz + qy * qy + qx * qx
                if squared <= 1.0:
                    row[x - start[2]] = 4
                elif squared <= outer * outer:
                    row[x - start[2]] = 0


# --- Image --------------------------------------------------------------------------------------

# Brightness 0-255, as in a section stained with osmium and imaged in back-scatter, inverted.
SARCOPLASM, MATRIX, CRISTA, A_BAND, I_BAND, M_LINE, Z_LINE = 168, 92, 126, 138, 186, 112, 52
NUCLEOPLASM, CHROMATIN = 182, 112
CRISTAE_PERIOD = 90.0  # nm


@njit(cache=True, nogil=True)
def _paint_texture(
    layout: _Layout,
    start: tuple[int, ...],
    planes: npt.NDArray[np.float64],
    classes: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint8]:
    """Turn labels into brightness with the texture of each class, before blur and noise."""
    nz, ny, nx = classes.shape
    vz, vy, vx = layout.voxel
    key, period = layout.key, layout.sarcomere
    # Stripes finer than about four voxels would alias.
    stripe = max(CRISTAE_PERIOD, 4.0 * max(vz, vy, vx))
    out = np.empty(classes.shape, np.uint8)
    for z in range(nz):
        pz = (start[0] + z + 0.5) * vz
        for y in range(ny):
            py = (start[1] + y + 0.5) * vy
            filament = 16.0 * (_uniform(key, _S_FILAMENT, start[0] + z, start[1] + y, 0) - 0.5)
            label = np.uint32(0)
            across = along = bend = 0.0
            for x in range(nx):
                px = (start[2] + x + 0.5) * vx
                tissue = classes[z, y, x]
                value = float(SARCOPLASM)
                if tissue == 1:
                    if instances[z, y, x] != label:
                        # Sheets of a direction of its own, mostly across the fibre.
                        label = instances[z, y, x]
                        a, b = _in_disc(key, _S_CRISTAE, int(label), 0, 0)
                        across, along = a * py + b * pz, 0.6 + 0.4 * abs(a)
                        bend = 3.0 * stripe
                    # Bent sheets: a triangle wave shifts the stripes as one goes along.
                    wave = (across + 0.35 * px) / (4.0 * bend)
                    wave = abs(wave - np.floor(wave) - 0.5)
                    at = (along * px + across) / stripe + 2.0 * wave
                    share = 2.0 * abs(at - np.floor(at) - 0.5)
                    value = MATRIX + (CRISTA - MATRIX) * share
                elif tissue == 2:
                    t = (px - planes[z, y]) / period
                    t = t - np.floor(t)
                    from_z = min(t, 1.0 - t)
                    if from_z < 0.14:
                        value = I_BAND
                    elif from_z > 0.48:
                        value = M_LINE
                    else:
                        value = A_BAND
                    value += filament
                elif tissue == 3:
                    value = float(Z_LINE)
                elif tissue == 4:
                    clump = _value_noise(key, _S_CHROMATIN, pz / 350.0, py / 350.0, px / 350.0)
                    value = float(CHROMATIN if clump > 0.62 else NUCLEOPLASM)
                out[z, y, x] = int(value)
    return out


@njit(cache=True, nogil=True)
def _add_noise(
    row: npt.NDArray[np.float64],
    key: np.uint64,
    purpose: int,
    at: tuple[int, ...],
    steps: tuple[int, ...],
    amplitude: float,
) -> None:
    """Add value noise in [-amplitude, amplitude] to a row of voxels along x.

    The noise has a random value at every ``steps``-th voxel and is linear between them. ``at`` is
    the global index of the row's first voxel.
    """
    i, j = at[0] // steps[0], at[1] // steps[1]
    f = (at[0] - i * steps[0]) / steps[0]
    g = (at[1] - j * steps[1]) / steps[1]
    node = at[2] // steps[2] - 1
    left = right = 0.0
    for x in range(len(row)):
        k = (at[2] + x) // steps[2]
        while node < k:
            node += 1
            left = right
            right = 0.0
            for a in range(2):
                for b in range(2):
                    weight = (f if a else 1.0 - f) * (g if b else 1.0 - g)
                    right += weight * _uniform(key, purpose, i + a, j + b, node + 1)
            if x == 0:
                left = 0.0
                for a in range(2):
                    for b in range(2):
                        weight = (f if a else 1.0 - f) * (g if b else 1.0 - g)
                        left += weight * _uniform(key, purpose, i + a, j + b, node)
        h = (at[2] + x - k * steps[2]) / steps[2]
        row[x] += amplitude * (2.0 * (left + h * (right - left)) - 1.0)


@njit(cache=True, nogil=True)
def _steps(layout: _Layout, length: float) -> tuple[int, ...]:
    """Return a length as whole voxels per axis, 2 at least."""
    vz, vy, vx = layout.voxel
    return (
        max(2, int(length / vz + 0.5)),
        max(2, int(length / vy + 0.5)),
        max(2, int(length / vx + 0.5)),
    )


@njit(cache=True, nogil=True)
def _expose(
    layout: _Layout,
    around: tuple[int, ...],
    start: tuple[int, ...],
    shape: tuple[int, ...],
    textured: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Blur the texture by one voxel and add what a microscope adds.

    The blur is binomial, (1, 2, 1)/4 per axis, summed in integers. ``textured`` starts at
    ``around``, one voxel before ``start`` except at the volume's bounds, where it is continued.
    """
    nz, ny, nx = shape
    key = layout.key
    hz, hy, hx = textured.shape
    oz, oy, ox = start[0] - around[0], start[1] - around[1], start[2] - around[2]
    grain, blotch, streak = _steps(layout, 70.0), _steps(layout, 600.0), _steps(layout, 900.0)
    out = np.empty((nz, ny, nx), np.uint8)
    sums = np.empty(hx, np.int32)
    row, curtain, drift = np.empty(nx), np.empty(nx), np.empty(2)
    for z in range(nz):
        # Per slice: contrast and offset drift over about 60 slices; curtains, which run along y,
        # keep their place for about 25.
        gz = start[0] + z
        drift[:] = 0.0
        _add_noise(drift[:1], key, _S_DRIFT, (gz, 0, 0), (60, 1, 1), 0.12)
        _add_noise(drift[1:], key, _S_DRIFT, (gz, 1, 0), (60, 1, 1), 10.0)
        gain, offset = 1.0 + drift[0], drift[1]
        curtain[:] = 0.0
        _add_noise(curtain, key, _S_CURTAIN, (gz, 0, start[2]), (25, 1, 2), 3.0)
        _add_noise(curtain, key, _S_STREAK, (gz, 0, start[2]), (25, 1, streak[2]), 6.0)
        for y in range(ny):
            gy = start[1] + y
            for x in range(nx):
                row[x] = curtain[x]
            _add_noise(row, key, _S_GRAIN, (gz, gy, start[2]), grain, 9.0)
            _add_noise(row, key, _S_BLOTCH, (gz, gy, start[2]), blotch, 6.0)

            sums[:] = 0
            for a in range(-1, 2):
                tz = min(max(oz + z + a, 0), hz - 1)
                for b in range(-1, 2):
                    ty = min(max(oy + y + b, 0), hy - 1)
                    weight = (2 - abs(a)) * (2 - abs(b))
                    for x in range(hx):
                        sums[x] += weight * textured[tz, ty, x]

            row_key = _hash(key, _S_NOISE, gz, gy, 0)
            for x in range(nx):
                tx = ox + x
                blurred = sums[max(tx - 1, 0)] + 2 * sums[tx] + sums[min(tx + 1, hx - 1)]
                # Four bytes of a hash sum up to nearly a Gaussian of standard deviation 148.
                h = _mix(row_key + np.uint64(start[2] + x) * _GOLDEN)
                bell = -510
                for byte in range(4):
                    bell += int((h >> np.uint64(8 * byte)) & np.uint64(255))
                value = 128.0 + gain * (blurred / 64.0 - 128.0) + offset + row[x] + 0.075 * bell
                out[z, y, x] = int(min(255.0, max(0.0, value + 0.5)))
    return out
