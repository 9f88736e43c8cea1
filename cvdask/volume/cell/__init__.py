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

Imports among the modules go one way: ``chance``, ``layout``, ``voxels``, then ``mitochondria``,
``fibrils`` and ``image``, then ``rendering`` and ``truth``.
"""

from cvdask.volume.cell.description import CLASS_COLORS, CLASSES, Cell
from cvdask.volume.cell.rendering import Rendering, render
from cvdask.volume.cell.truth import true_objects

__all__ = ["CLASSES", "CLASS_COLORS", "Cell", "Rendering", "render", "true_objects"]
