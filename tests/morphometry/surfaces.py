"""Objects to be meshed, and what holds for any closed surface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area


def sphere(shape: Sequence[int], radius: float) -> np.ndarray:
    """A ball in the middle."""
    away = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    return (away**2).sum(axis=0) < radius**2


def torus(shape: Sequence[int], radius: float, thickness: float) -> np.ndarray:
    """A ring in the middle, around z."""
    z, y, x = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    return (np.hypot(y, x) - radius) ** 2 + z**2 < thickness**2


def blobs(shape: Sequence[int], seed: int = 0, share: float = 0.3) -> np.ndarray:
    """Smooth random shapes, labelled: (Z, Y, X) int32."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.2)
    return ndimage.label(noise > np.quantile(noise, 1 - share))[0]


def area_by_skimage(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """The area of scikit-image's mesh of a whole object."""
    vertices, triangles, _, _ = marching_cubes(
        np.pad(mask, 1).astype(np.float32), 0.5, method="lorensen"
    )
    return float(mesh_surface_area(vertices.astype(float) * spacing, triangles))


def assert_closed(vertices: np.ndarray, triangles: np.ndarray) -> None:
    """Assert that each edge has two triangles, that turn the same way, and no vertex is twice."""
    assert len(np.unique(vertices, axis=0)) == len(vertices)
    assert np.array_equal(np.unique(triangles), np.arange(len(vertices)))
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    there = np.unique(edges, axis=0)
    assert len(there) == len(edges)
    assert np.array_equal(there, np.unique(edges[:, ::-1], axis=0))


def signed_volume(vertices: np.ndarray, triangles: np.ndarray) -> float:
    """The volume inside, positive where triangles turn anticlockwise seen from outside."""
    a, b, c = np.moveaxis(vertices[triangles].astype(float), 1, 0)
    return float((np.cross(a, b) * c).sum() / 6)
