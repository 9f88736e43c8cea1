"""Which voxels do the myofibrils, their Z-discs and the nucleus hold?

Myofibrils fill the Voronoi cells of their sites, up to a gap, outside the discs of the
mitochondrial rows. They run along x, so that one look at every (z, y) **column** of a box decides
for all its voxels; Z-discs cross them at one period per cell, with a phase and a slant per fibril.
The nucleus, an ellipsoid in the middle of the volume, takes their place and keeps some room.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cvdask.compiled import compiled
from cvdask.volume.cell import chance
from cvdask.volume.cell.layout import LAYER, MARGIN, PITCH, SITES, Layout
from cvdask.volume.cell.voxels import voxel_range

FIBRIL_REACH = 0.95 * PITCH  # a fibril ends this far from its axis where no other one follows
FIBRIL_GAP = 70.0  # nm, between neighbouring fibrils
PERINUCLEAR = 150.0  # nm, free of fibrils around the nucleus


@compiled()
def fibril_columns(
    layout: Layout,
    sites: npt.NDArray[np.float64],
    first: tuple[int, ...],
    start: tuple[int, ...],
    shape: tuple[int, ...],
) -> npt.NDArray[np.float64]:
    """Return, per (z, y) column of a box, the x of one Z-disc of its fibril; NaN without one.

    Two sites around the nearest lattice point on every side are enough: whatever lies beyond
    neither holds the column nor comes near its Voronoi border. ``sites`` is the table of the
    super-cells from ``first`` on.
    """
    planes = np.full((shape[0], shape[1]), np.nan)
    i_first, j_first = first[0] * SITES - MARGIN, first[1] * SITES - MARGIN
    for dz in range(shape[0]):
        z = (start[0] + dz + 0.5) * layout.voxel[0]
        i0 = int(np.floor(z / LAYER + 0.5))
        for dy in range(shape[1]):
            y = (start[1] + dy + 0.5) * layout.voxel[1]

            # The nearest fibril, unless a mitochondrial row takes the place.
            nearest, owner_i, owner_j = FIBRIL_REACH**2, i0, i0
            found, taken = False, False
            for i in range(i0 - 2, i0 + 3):
                j0 = int(np.floor(y / PITCH - 0.5 * (i & 1) + 0.5))
                for j in range(j0 - 2, j0 + 3):
                    site = sites[i - i_first, j - j_first]
                    squared = (z - site[0]) ** 2 + (y - site[1]) ** 2
                    if site[2] > 0.0:
                        taken = taken or squared < site[2] * site[2]
                    elif squared < nearest:
                        nearest, owner_i, owner_j, found = squared, i, j, True
            if taken or not found:
                continue

            # Half a gap to the border with every other fibril.
            owner = sites[owner_i - i_first, owner_j - j_first]
            clear = True
            for i in range(i0 - 2, i0 + 3):
                j0 = int(np.floor(y / PITCH - 0.5 * (i & 1) + 0.5))
                for j in range(j0 - 2, j0 + 3):
                    site = sites[i - i_first, j - j_first]
                    if site[2] > 0.0 or (i == owner_i and j == owner_j):
                        continue
                    squared = (z - site[0]) ** 2 + (y - site[1]) ** 2
                    apart = np.sqrt((owner[0] - site[0]) ** 2 + (owner[1] - site[1]) ** 2)
                    clear = clear and squared - nearest >= FIBRIL_GAP * apart
            if clear:
                planes[dz, dy] = _disc_at(layout, owner_i, owner_j, z - owner[0], y - owner[1])
    return planes


@compiled()
def _disc_at(layout: Layout, i: int, j: int, dz: float, dy: float) -> float:
    """Return the x of a Z-disc of fibril (i, j), beside its axis by (dz, dy).

    A phase and a slight slant of its own leave the Z-lines nearly in register.
    """
    key = layout.key
    phase = 240.0 * (chance.uniform(key, chance.FIBRIL, i, j, 0) - 0.5)
    slant_z = 0.3 * (chance.uniform(key, chance.FIBRIL, i, j, 1) - 0.5)
    slant_y = 0.3 * (chance.uniform(key, chance.FIBRIL, i, j, 2) - 0.5)
    return layout.register + phase + slant_z * dz + slant_y * dy


@compiled()
def fill_fibrils(
    layout: Layout,
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
                x0, x1 = voxel_range(at - half, at + half, vx, start[2], start[2] + nx)
                classes[z, y, x0 - start[2] : x1 - start[2]] = 3


@compiled()
def fill_nucleus(layout: Layout, start: tuple[int, ...], classes: npt.NDArray[np.uint8]) -> None:
    """Draw the nucleus as class 4, and clear the fibrils around it."""
    (rz, ry, rx), (cz, cy, cx), (vz, vy, vx) = layout.nucleus, layout.center, layout.voxel
    smallest = min(rz, ry, rx)
    if smallest == 0.0:
        return
    outer = 1.0 + PERINUCLEAR / smallest
    nz, ny, nx = classes.shape
    z0, z1 = voxel_range(cz - outer * rz, cz + outer * rz, vz, start[0], start[0] + nz)
    y0, y1 = voxel_range(cy - outer * ry, cy + outer * ry, vy, start[1], start[1] + ny)
    x0, x1 = voxel_range(cx - outer * rx, cx + outer * rx, vx, start[2], start[2] + nx)
    for z in range(z0, z1):
        qz = ((z + 0.5) * vz - cz) / rz
        for y in range(y0, y1):
            qy = ((y + 0.5) * vy - cy) / ry
            row = classes[z - start[0], y - start[1]]
            for x in range(x0, x1):
                qx = ((x + 0.5) * vx - cx) / rx
                squared = qz * qz + qy * qy + qx * qx
                if squared <= 1.0:
                    row[x - start[2]] = 4
                elif squared <= outer * outer:
                    row[x - start[2]] = 0
