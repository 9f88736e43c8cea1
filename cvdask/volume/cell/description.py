"""What cell is meant? Its shape, voxel size, seed and kind, checked; nothing is computed yet."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from cvdask.volume.boxes import AXES, Box
from cvdask.volume.cell.layout import CAPSULES, KINDS, Layout, cells_meeting, lay_out

CLASSES: dict[int, str] = {1: "mitochondria", 2: "myofibrils", 3: "z_discs", 4: "nucleus"}

# Four colours of Okabe and Ito's palette, told apart with any colour vision.
CLASS_COLORS: dict[int, str] = {1: "#d55e00", 2: "#56b4e9", 3: "#f0e442", 4: "#009e73"}

COARSEST_DIAGONAL = 300.0  # nm, of a voxel; beyond it the gaps leave no room for mitochondria


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
        if self.kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(map(repr, KINDS))}. Received: {self.kind!r}"
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
        n_ids = math.prod(cells_meeting(Box.whole(shape), voxel)[1]) * CAPSULES
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
        radii = self.layout.nucleus
        return radii if any(radii) else None

    @property
    def sarcomere_nm(self) -> float:
        """Distance between Z-discs, 1800 to 2000, one value per seed."""
        return self.layout.sarcomere

    @property
    def gap_nm(self) -> float:
        """Distance that two mitochondrial objects keep at least: 60, or two voxel diagonals."""
        return self.layout.gap

    @property
    def layout(self) -> Layout:
        """The numbers that the kernels share."""
        return lay_out(self.shape, self.voxel_size_nm, self.seed, self.kind)

    def check(self, box: Box) -> None:
        """Refuse a box that is not one of this cell's volume.

        Raises
        ------
        ValueError
            When the box has not three axes or leaves the volume.
        """
        if len(box.start) != len(AXES):
            raise ValueError(f"a box of a cell needs three axes, z, y, x. Received: {box}")
        for name, low, high, extent in zip(AXES, box.start, box.stop, self.shape, strict=True):
            if low < 0 or high > extent:
                raise ValueError(
                    f"the box must lie inside the cell. Received along {name}: {low}:{high}, the "
                    f"cell has {extent} voxels there"
                )
