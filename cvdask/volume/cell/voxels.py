"""Which voxels does a shape hold?

A voxel belongs to a shape when its centre does; voxel i has its centre at (i + 0.5) times the voxel
size. A **capsule** is all points within ``radius`` of a segment, kept as seven numbers: both ends
of the segment, z, y, x each, and the radius, nm. Boxes are given by ``start`` and ``stop``, voxels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cvdask.compiled import compiled
from cvdask.volume.cell.layout import Layout


@compiled()
def voxel_range(low: float, high: float, voxel: float, start: int, stop: int) -> tuple[int, int]:
    """Return the voxels of [start, stop) whose centres lie in [low, high], as such a range."""
    begin = max(start, int(np.ceil(low / voxel - 0.5)))
    end = min(stop, int(np.floor(high / voxel - 0.5)) + 1)
    return begin, max(begin, end)


@compiled()
def _bounds(
    layout: Layout,
    shape: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return, per axis, the voxels of a box that a capsule's bounding box covers."""
    az, ay, ax, bz, by, bx, r = shape
    vz, vy, vx = layout.voxel
    return (
        voxel_range(min(az, bz) - r, max(az, bz) + r, vz, start[0], stop[0]),
        voxel_range(min(ay, by) - r, max(ay, by) + r, vy, start[1], stop[1]),
        voxel_range(min(ax, bx) - r, max(ax, bx) + r, vx, start[2], stop[2]),
    )


@compiled()
def _prepare(shape: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return what :func:`_holds` needs: start and vector of the segment, 1/length², radius²."""
    az, ay, ax, bz, by, bx, r = shape
    dz, dy, dx = bz - az, by - ay, bx - ax
    squared = dz * dz + dy * dy + dx * dx
    return az, ay, ax, dz, dy, dx, 1.0 / squared if squared > 0.0 else 0.0, r * r


@compiled()
def _holds(capsule: tuple[float, ...], z: float, y: float, x: float) -> bool:
    """Tell whether a point is within the radius of the capsule's segment."""
    az, ay, ax, dz, dy, dx, per_squared, radius_squared = capsule
    pz, py, px = z - az, y - ay, x - ax
    t = min(1.0, max(0.0, (pz * dz + py * dy + px * dx) * per_squared))
    qz, qy, qx = pz - t * dz, py - t * dy, px - t * dx
    return qz * qz + qy * qy + qx * qx <= radius_squared


@compiled()
def fill_capsules(
    layout: Layout,
    start: tuple[int, ...],
    shapes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint32],
) -> None:
    """Draw every capsule into its bounding box: class 1 and its label, over what is there."""
    nz, ny, nx = classes.shape
    vz, vy, vx = layout.voxel
    stop = (start[0] + nz, start[1] + ny, start[2] + nx)
    for s in range(len(shapes)):
        capsule = _prepare(shapes[s])
        (z0, z1), (y0, y1), (x0, x1) = _bounds(layout, shapes[s], start, stop)
        for z in range(z0, z1):
            for y in range(y0, y1):
                class_row = classes[z - start[0], y - start[1]]
                instance_row = instances[z - start[0], y - start[1]]
                for x in range(x0, x1):
                    if _holds(capsule, (z + 0.5) * vz, (y + 0.5) * vy, (x + 0.5) * vx):
                        class_row[x - start[2]] = 1
                        instance_row[x - start[2]] = labels[s]


@compiled()
def _has_voxel(
    layout: Layout,
    shape: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> bool:
    """Tell whether a voxel of the box belongs to a capsule."""
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
    capsule = _prepare(shape)
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if _holds(capsule, (z + 0.5) * vz, (y + 0.5) * vy, (x + 0.5) * vx):
                    return True
    return False


@compiled()
def have_voxels(
    layout: Layout,
    shapes: npt.NDArray[np.float64],
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> npt.NDArray[np.bool_]:
    """Tell of each capsule whether a voxel of the box belongs to it."""
    found = np.zeros(len(shapes), np.bool_)
    for s in range(len(shapes)):
        found[s] = _has_voxel(layout, shapes[s], start, stop)
    return found
