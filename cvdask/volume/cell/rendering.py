"""What is at the voxels of a box: classes, objects, and the image that a microscope would show?

Fibrils first, the nucleus over them, the mitochondria last; the image follows from these labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import Box
from cvdask.volume.cell.description import Cell
from cvdask.volume.cell.fibrils import fibril_columns, fill_fibrils, fill_nucleus
from cvdask.volume.cell.image import expose, paint_texture
from cvdask.volume.cell.layout import Layout, cells_meeting, site_table
from cvdask.volume.cell.mitochondria import find_shapes
from cvdask.volume.cell.voxels import fill_capsules


@dataclass(frozen=True)
class Rendering:
    """The voxels of one box; all arrays have the shape of the box and belong to the caller.

    Parameters
    ----------
    image : (Z, Y, X) uint8, or None
        What a microscope would show; None when it was not asked for.
    classes : (Z, Y, X) uint8
        Keys of :data:`~cvdask.volume.cell.description.CLASSES`, and 0 for sarcoplasm.
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
    cell.check(box)
    if box.size == 0:
        empty = np.zeros(box.shape, np.uint8)
        return Rendering(empty.copy() if image else None, empty, empty.astype(np.uint32))
    layout = cell.layout
    if not image:
        classes, instances, _ = _render_labels(layout, box)
        return Rendering(None, classes, instances)
    around = box.grow((1, 1, 1), (1, 1, 1)).intersect(Box.whole(cell.shape))
    classes, instances, planes = _render_labels(layout, around)
    textured = paint_texture(layout, around.start, planes, classes, instances)
    inner = box.within(around)
    picture = expose(layout, around.start, box.start, box.shape, textured)
    return Rendering(
        picture, np.ascontiguousarray(classes[inner]), np.ascontiguousarray(instances[inner])
    )


def _render_labels(
    layout: Layout, box: Box
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Render classes and instances, and the x of a Z-disc per (z, y) column (NaN: no fibril)."""
    first, n_cells = cells_meeting(box, layout.voxel)
    sites = site_table(layout, first, n_cells)
    shapes, labels = find_shapes(layout, sites, first, n_cells)
    planes = fibril_columns(layout, sites, first, box.start, box.shape)
    classes = np.zeros(box.shape, np.uint8)
    instances = np.zeros(box.shape, np.uint32)
    fill_fibrils(layout, box.start, planes, classes)
    fill_nucleus(layout, box.start, classes)
    fill_capsules(layout, box.start, shapes, labels, classes, instances)
    return classes, instances, planes
