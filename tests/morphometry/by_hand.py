"""What objects measure, counted over the whole array: slow, and without any block."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage

from cvdask.morphometry.configurations import KIND_OF_CELL, N_KINDS_OF_CELL
from cvdask.morphometry.partials import BOUNDS, CELLS, EXPOSED, KEY, KIND, Layout
from cvdask.morphometry.surfaces import EXPOSURE, N_EXPOSURES
from cvdask.volume.store import Volume, open_volume
from tests.samples import write_sample

NAMES = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
STRUCTURE = {6: 1, 18: 2, 26: 3}


def table_of(*values: int) -> np.ndarray:
    """Number classes from 1 in the order given; all else is background."""
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    return table


def write_cell(
    folder: Path,
    classes: np.ndarray,
    image: np.ndarray | None = None,
    *,
    names: Mapping[int, str] | None = NAMES,
    voxel_size_nm: Sequence[float] = (40.0, 10.0, 10.0),
    labels: str = "classes",
) -> Volume:
    """Write a sample with a label image."""
    url = folder / "cell.zarr"
    grey = image if image is not None else np.zeros(classes.shape, np.uint8)
    write_sample(url, grey, voxel_size_nm=voxel_size_nm)
    write_sample(url, classes, labels=labels, classes=names, voxel_size_nm=voxel_size_nm)
    return open_volume(url)


@st.composite
def class_volumes(draw: st.DrawFn, most: int = 7, n_classes: int = 2) -> np.ndarray:
    """Draw small volumes of classes, from sparse to full."""
    shape = draw(st.tuples(*[st.integers(1, most)] * 3))
    share = draw(st.sampled_from([0.15, 0.35, 0.6, 0.95]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = generator.integers(1, n_classes + 1, shape)
    return np.where(generator.random(shape) < share, classes, 0).astype(np.uint8)


def canonical(labels: np.ndarray) -> np.ndarray:
    """Number labels anew, in the order of their first voxels along z, y, x."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    first[values == 0] = -1
    numbers = np.argsort(np.argsort(first)) + (values[0] != 0)
    return numbers[inverse].reshape(labels.shape)


def components(data: np.ndarray, connectivity: int) -> np.ndarray:
    """Label the components of all classes by SciPy, in canonical order: (Z, Y, X) int64."""
    labels = np.zeros(data.shape, np.int64)
    n = 0
    for value in np.unique(data[data > 0]):
        structure = ndimage.generate_binary_structure(3, STRUCTURE[connectivity])
        own, n_own = ndimage.label(data == value, structure)
        labels[own > 0] = own[own > 0] + n
        n += n_own
    return canonical(labels)


def large_ones(labels: np.ndarray, min_voxels: int) -> np.ndarray:
    """Leave objects out that are small, and number the others anew."""
    counts = np.bincount(labels.ravel())
    return canonical(np.where(counts[labels] >= min_voxels, labels, 0))


def cells_of(mask: np.ndarray) -> np.ndarray:
    """Count the cells of each kind of one object: (44,) int64."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros(tuple(n - 1 for n in padded.shape), np.uint8)
    for bit, corner in enumerate(itertools.product((0, 1), repeat=3)):
        cut = tuple(slice(c, n - 1 + c) for c, n in zip(corner, padded.shape, strict=True))
        codes |= padded[cut] << bit
    kinds = KIND_OF_CELL[codes]
    return np.bincount(kinds[kinds < N_KINDS_OF_CELL], minlength=N_KINDS_OF_CELL)


def exposed_faces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Tell which faces of an object's voxels are exposed, lower and upper z, y, x."""
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * 3
    return [mask & ~np.roll(padded, -step, axis)[inner] for axis in range(3) for step in (-1, 1)]


def exposures_of(mask: np.ndarray) -> np.ndarray:
    """Count the voxels of an object by exposed faces: (7,) int64."""
    faces = sum(face.astype(np.int64) << side for side, face in enumerate(exposed_faces_of(mask)))
    return np.bincount(EXPOSURE[faces[faces > 0]], minlength=N_EXPOSURES)


def moments_of(points: np.ndarray) -> list[int]:
    """Sum positions and their products about the lower corner, in Python's integers."""
    z, y, x = (points - points.min(0)).astype(object).T
    sums = [z, y, x, z * z, y * y, x * x, z * y, z * x, y * x]
    return [len(points), *(int(column.sum()) for column in sums)]


def rows_of(data: np.ndarray, labels: np.ndarray, table: np.ndarray) -> tuple[Any, list[list[int]]]:
    """Return merged rows and moments of all objects of a label image."""
    objects = range(1, labels.max() + 1)
    rows = Layout().empty(len(objects))
    moments = []
    for row, label in zip(rows, objects, strict=True):
        mask = labels == label
        points = np.argwhere(mask)
        row[KEY] = np.flatnonzero(mask)[0]
        row[KIND] = table[data[mask][0]]
        row[2] = len(points)
        row[BOUNDS] = [*points.min(0), *(points.max(0) + 1)]
        row[EXPOSED], row[CELLS] = exposures_of(mask), cells_of(mask)
        moments.append(moments_of(points))
    return rows, moments


def comb(n_teeth: int = 4, depth: int = 7) -> np.ndarray:
    """Teeth that meet at the far end only, in two planes: many objects until the last block."""
    data = np.zeros((3, depth, 2 * n_teeth), np.uint8)
    data[0, :, ::2] = 1
    data[2, :, ::2] = 1
    data[:, -1] = 1
    return data


def spiral(extent: int = 11) -> np.ndarray:
    """One line, wound up: a chain of merges as long as it is."""
    data = np.zeros((2, extent, extent), np.uint8)
    low, high = 0, extent - 1
    while low <= high:
        data[0, low, max(low - 2, 0) : high + 1] = 1
        data[0, low : high + 1, high] = 1
        data[0, high, low : high + 1] = 1
        data[0, low + 2 : high + 1, low] = 1
        low, high = low + 2, high - 2
    return data
