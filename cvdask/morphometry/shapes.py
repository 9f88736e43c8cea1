"""What shape has an object, given its integers? The formulas, for a voxel size.

===================== =========================================================================
volume V              voxels · voxel volume
surface S             Crofton's formula in 13 directions; bias within 1 % for round objects
SA:V                  S / V
compactness           36 π V² / S³, 1 for a ball
sphericity            its cube root
discrete compactness  (n − A/6) / (n − n^⅔), with A exposed faces; no number for one voxel
radii R1 ≥ R2 ≥ R3    √(5 λ), λ the eigenvalues of the covariance of voxel centres, divided by n
elongation, flatness  R1 / R2, R2 / R3: infinite where the object is one voxel thick
sparseness            V / (4/3 π R1 R2 R3): infinite where it is one voxel thick
Euler number          objects − tunnels + cavities
===================== =========================================================================

Where both radii are 0 there is no quotient, but NaN: the flatness of a row of voxels, and both of a
single voxel.

Columns that end in ``_suite`` are what the 3D ImageJ Suite computes: S of exposed faces. Those that
end in ``_corrected`` take its corrected area, 0.894 n1 + 1.3409 n2 + 1.5879 n3 + 2 n4 + 8/3 n5 +
10/3 n6, over voxels by exposed faces (1; 2; 3 without an opposite pair; 3 with one; 4; 5 — a voxel
of 6 counts nowhere in it), in units of voxel faces.

Quotients are formed of exact integers: n Σab − Σa Σb does not depend on the origin, so neither do
radii, to the last bit.

References
----------
Ollion et al. 2013, *TANGO*, Bioinformatics 29 (3D ImageJ Suite). Bribiesca 2008, *An easy measure
of compactness for 2D and 3D shapes*, Pattern Recognition 41 (discrete compactness). Mullikin,
Verbeek 1993, *Surface area estimation of digitized planes*, Bioimaging 1 (corrected area).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cvdask.compiled import compiled
from cvdask.morphometry.configurations import (
    crofton_areas,
    euler_numbers,
    exposed_faces,
    marching_cubes_areas,
)
from cvdask.morphometry.partials import BOUNDS, CELLS, EXPOSED, N_VOXELS, PAIRS, fit_int64
from cvdask.volume.boxes import AXES, Box

CORRECTED = (0.894, 1.3409, 1.5879, 2.0, 8 / 3, 10 / 3, 0.0)
# An eigenvalue below this share of their sum is rounding: the voxels lie in a plane or on a line.
NO_THICKNESS = 1e-12


def shape_columns(
    rows: np.ndarray,
    moments: np.ndarray,
    voxel_size_um: tuple[float, float, float],
    region: Box,
    *,
    connectivity: int = 26,
    voxel_extent: bool = False,
) -> dict[str, np.ndarray]:
    """Compute the measures of objects.

    Parameters
    ----------
    rows : (N, width) int64
        Merged: one per object.
    moments : (N, 10) int64 or object
        See :func:`cvdask.morphometry.partials.merge_rows`.
    voxel_size_um : tuple of float
        Spacing z, y, x.
    region : Box
        What was measured; objects at its faces touch the border.
    connectivity : {6, 18, 26}
        Of the Euler number: 6, else 26.
    voxel_extent : bool
        Add to the covariance what the extent of the voxels themselves adds, v² / 12.

    Returns
    -------
    dict of str to (N,) array
        In the order of the table.
    """
    n = rows[:, N_VOXELS]
    volume_of_voxel = math.prod(voxel_size_um)
    volume = n * volume_of_voxel
    cells = np.ascontiguousarray(rows[:, CELLS])
    surface = weigh(cells, crofton_areas(voxel_size_um))
    faces = cells @ exposed_faces() // 4
    face_areas = volume_of_voxel / np.array(voxel_size_um)
    surface_faces = weigh(faces, face_areas)
    faces_px = faces.sum(1)
    corrected = weigh(np.ascontiguousarray(rows[:, EXPOSED]), np.array(CORRECTED))
    euler = cells @ euler_numbers(6 if connectivity == 6 else 26) // 8
    start, stop = rows[:, BOUNDS][:, :3], rows[:, BOUNDS][:, 3:]
    matrices = covariances(moments, stop - start, voxel_size_um, voxel_extent=voxel_extent)
    variances, axes = principal_axes(matrices)
    radii = np.sqrt(5 * variances)
    centroid = centroids(rows, moments, voxel_size_um)
    lower, upper = np.array(region.start), np.array(region.stop)
    touches = (start == lower).any(1) | (stop == upper).any(1)

    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "n_voxels": n,
            "volume_um3": volume,
            "surface_um2": surface,
            "sa_v_per_um": surface / volume,
            "compactness": compactness(volume, surface),
            "sphericity": np.cbrt(compactness(volume, surface)),
            "elongation": radii[:, 0] / radii[:, 1],
            "flatness": radii[:, 1] / radii[:, 2],
            "sparseness": volume / (4 / 3 * math.pi * radii.prod(1)),
            "euler_number": euler,
            "equivalent_diameter_um": np.cbrt(6 * volume / math.pi),
            **{f"centroid_{a}_um": centroid[:, i] for i, a in enumerate(AXES)},
            **{f"radius_{k + 1}_um": radii[:, k] for k in range(3)},
            **{f"axis_{k + 1}_{a}": axes[:, k, i] for k in range(3) for i, a in enumerate(AXES)},
            **{
                f"bbox_{a}_{end}": array[:, i]
                for i, a in enumerate(AXES)
                for end, array in (("start", start), ("stop", stop))
            },
            "touches_border": touches,
            "surface_faces_um2": surface_faces,
            "surface_faces_px": faces_px,
            "surface_corrected_px": corrected,
            "surface_mc_um2": weigh(cells, marching_cubes_areas(voxel_size_um)),
            "compactness_suite": compactness(volume, surface_faces),
            "sphericity_suite": np.cbrt(compactness(volume, surface_faces)),
            "compactness_corrected": compactness(n, corrected),
            "sphericity_corrected": np.cbrt(compactness(n, corrected)),
            "discrete_compactness": (n - faces_px / 6) / (n - np.cbrt(n) ** 2),
        }
        columns["discrete_compactness"][n == 1] = np.nan
    return columns


def compactness(volume: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Return 36 π V² / S³.

    >>> float(compactness(np.array([1.0]), np.array([6.0]))[0])  # a cube: π / 6
    0.5235987755982988
    """
    return 36 * math.pi * np.square(volume, dtype=float) / np.power(surface, 3, dtype=float)


@compiled()
def weigh(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum counts times weights along each row, in the order of the columns.

    A matrix product would add in an order that depends on how many rows there are.

    Parameters
    ----------
    counts : (N, K) int64
    weights : (K,) float64

    Returns
    -------
    (N,) float64
    """
    sums = np.zeros(len(counts))
    for row in range(len(counts)):
        for column in range(len(weights)):
            sums[row] += counts[row, column] * weights[column]
    return sums


def centroids(rows: np.ndarray, moments: np.ndarray, voxel_size_um: Sequence[float]) -> np.ndarray:
    """Return the mean voxel centre z, y, x, from the centre of voxel (0, 0, 0): (N, 3) in µm."""
    start = rows[:, BOUNDS][:, :3]
    within = moments[:, 1:4].astype(float) / rows[:, N_VOXELS, None]
    return (start + within) * np.array(voxel_size_um)


def covariances(
    moments: np.ndarray,
    extents: np.ndarray,
    voxel_size_um: Sequence[float],
    *,
    voxel_extent: bool = False,
) -> np.ndarray:
    """Return the covariance of the voxel centres, divided by n: (N, 3, 3) float64 in µm².

    Parameters
    ----------
    moments : (N, 10) int64 or object
    extents : (N, 3) int64
        Of the bounds: objects that are large take Python's integers, which do not overflow.
    voxel_size_um : sequence of float
    voxel_extent : bool
        Add v² / 12 along each axis.
    """
    result = np.empty((len(moments), 3, 3))
    small = fit_int64(moments[:, 0], extents)
    for chosen, kind in ((small, np.int64), (~small, object)):
        own = moments[chosen].astype(kind)
        n = own[:, 0]
        for column, (a, b) in enumerate(PAIRS, start=4):
            exact = n * own[:, column] - own[:, 1 + a] * own[:, 1 + b]
            scaled = exact.astype(float) / n.astype(float) ** 2
            result[chosen, a, b] = scaled * (voxel_size_um[a] * voxel_size_um[b])
            result[chosen, b, a] = result[chosen, a, b]
    if voxel_extent:
        for axis, size in enumerate(voxel_size_um):
            result[:, axis, axis] += size**2 / 12
    return result


@compiled()
def principal_axes(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find eigenvalues and eigenvectors of symmetric 3 × 3 matrices, by Jacobi's rotations.

    Parameters
    ----------
    matrices : (N, 3, 3) float64
        Positive semidefinite.

    Returns
    -------
    values : (N, 3) float64
        Descending; exactly 0 where they are rounding.
    vectors : (N, 3, 3) float64
        ``[:, k]`` is the k-th, its first component that is not 0 positive.
    """
    values = np.empty((len(matrices), 3))
    vectors = np.empty((len(matrices), 3, 3))
    # Kept for all objects: most are small, and arrays of their own would cost as much as they do.
    a, v = np.empty((3, 3)), np.empty((3, 3))
    order = np.empty(3, np.int64)
    for item in range(len(matrices)):
        for row in range(3):
            order[row] = row
            for column in range(3):
                a[row, column] = matrices[item, row, column]
                v[row, column] = 1.0 if row == column else 0.0
        for _ in range(32):
            off = abs(a[0, 1]) + abs(a[0, 2]) + abs(a[1, 2])
            if off <= 1e-17 * (abs(a[0, 0]) + abs(a[1, 1]) + abs(a[2, 2])):
                break
            for p in range(2):
                for q in range(p + 1, 3):
                    if a[p, q] == 0:
                        continue
                    theta = (a[q, q] - a[p, p]) / (2 * a[p, q])
                    sign = 1.0 if theta >= 0 else -1.0
                    t = sign / (abs(theta) + math.sqrt(theta * theta + 1))
                    c = 1 / math.sqrt(t * t + 1)
                    s = t * c
                    for k in range(3):
                        x, y = a[k, p], a[k, q]
                        a[k, p], a[k, q] = c * x - s * y, s * x + c * y
                    for k in range(3):
                        x, y = a[p, k], a[q, k]
                        a[p, k], a[q, k] = c * x - s * y, s * x + c * y
                    for k in range(3):
                        x, y = v[k, p], v[k, q]
                        v[k, p], v[k, q] = c * x - s * y, s * x + c * y
        total = a[0, 0] + a[1, 1] + a[2, 2]
        for first in (0, 1, 0):  # three exchanges of neighbours sort three
            if a[order[first + 1], order[first + 1]] > a[order[first], order[first]]:
                order[first], order[first + 1] = order[first + 1], order[first]
        for k in range(3):
            value = a[order[k], order[k]]
            values[item, k] = value if value > NO_THICKNESS * total else 0.0
            sign = 1.0
            for row in range(3):
                component = v[row, order[k]]
                if abs(component) > 1e-12:
                    sign = 1.0 if component > 0 else -1.0
                    break
            for axis in range(3):
                vectors[item, k, axis] = sign * v[axis, order[k]]
    return values, vectors


def _column_notes() -> dict[str, str]:
    """Say of each column what it is and how it was estimated."""
    crofton = "Crofton's formula, 13 directions, over 2×2×2 configurations (Lehmann, Legland 2012)"
    faces = "area of exposed voxel faces, as the 3D ImageJ Suite takes it"
    notes = {
        "label": "number in its class, by first voxel in z, y, x order; of instances, their value",
        "class": "name of the class, or its value; of instances, the label image",
        "n_voxels": "voxels",
        "volume_um3": "voxels times voxel volume",
        "surface_um2": crofton,
        "sa_v_per_um": "surface_um2 / volume_um3",
        "compactness": "36 π V² / S³ with surface_um2",
        "sphericity": "cube root of compactness",
        "elongation": "radius_1 / radius_2; infinite for rows of voxels, NaN for one voxel",
        "flatness": "radius_2 / radius_3; infinite for objects one voxel thick, NaN for rows",
        "sparseness": "V / (4/3 π R1 R2 R3); infinite for objects one voxel thick",
        "euler_number": "objects − tunnels + cavities",
        "equivalent_diameter_um": "diameter of the ball of that volume",
        "touches_border": "whether the object reaches a face of what was measured",
        "surface_faces_um2": faces,
        "surface_faces_px": "number of exposed voxel faces",
        "surface_corrected_px": "0.894 n1 + 1.3409 n2 + 1.5879 n3 + 2 n4 + 8/3 n5 + 10/3 n6",
        "surface_mc_um2": "marching cubes at 0.5 of the binary object, as scikit-image's mesh",
        "compactness_suite": f"36 π V² / S³ with the {faces}",
        "sphericity_suite": "cube root of compactness_suite",
        "compactness_corrected": "36 π n² / A³ with surface_corrected_px",
        "sphericity_corrected": "cube root of compactness_corrected",
        "discrete_compactness": "(n − A/6) / (n − n^⅔) with surface_faces_px",
        "intensity_mean": "mean grey value of its voxels",
        "intensity_sd": "standard deviation of the grey values, divided by n",
        "intensity_min": "lowest grey value",
        "intensity_max": "highest grey value",
        "angle_to_fibre_deg": "angle of axis 1 to the direction of the fibre, 0 to 90",
    }
    for k in (1, 2, 3):
        notes[f"radius_{k}_um"] = "√(5 λ) of the covariance of voxel centres"
        notes |= {f"axis_{k}_{a}": "unit vector of principal axis" for a in AXES}
    for axis in AXES:
        notes[f"centroid_{axis}_um"] = "mean voxel centre, from the centre of voxel (0, 0, 0)"
        notes[f"bbox_{axis}_start"] = "first voxel"
        notes[f"bbox_{axis}_stop"] = "one past the last voxel"
    return notes


COLUMN_NOTES = _column_notes()
# Of the columns contact_<class>_um2.
CONTACT_NOTE = "area of the voxel faces shared with the class"
