"""What is the truth about the mitochondria of a cell: volumes, surfaces, places?

Shapes are listed, never rendered: an object made of one capsule has closed forms for all of it, and
one look at the voxels of its bounding box tells whether it shows in a box at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import AXES, Box
from cvdask.volume.cell.description import Cell
from cvdask.volume.cell.layout import Layout, cells_meeting, site_table
from cvdask.volume.cell.mitochondria import find_shapes
from cvdask.volume.cell.voxels import have_voxels


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
    cell.check(wanted)
    if wanted.size == 0:
        return
    layout = cell.layout
    first, n_cells = cells_meeting(wanted, cell.voxel_size_nm)
    for layer in range(n_cells[0]):
        part = (first[0] + layer, *first[1:]), (1, *n_cells[1:])
        shapes, labels = find_shapes(layout, site_table(layout, *part), *part)
        batch = _describe(cell, layout, wanted, shapes, labels)
        if len(batch["label"]):
            yield batch


def _describe(
    cell: Cell,
    layout: Layout,
    wanted: Box,
    shapes: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint32],
) -> dict[str, npt.NDArray]:
    """Return the rows of the objects that have a voxel in the wanted box."""
    volume = Box.whole(cell.shape)
    seen = have_voxels(layout, shapes, wanted.start, wanted.stop)
    at_border = np.zeros(len(shapes), bool)
    for axis in range(len(AXES)):
        for plane in (0, cell.shape[axis] - 1):
            start, stop = list(volume.start), list(volume.stop)
            start[axis], stop[axis] = plane, plane + 1
            at_border |= have_voxels(layout, shapes, tuple(start), tuple(stop))

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
