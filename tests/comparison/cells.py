"""Small samples with tables, drawn from a known distribution."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvdask.volume.store import Volume, open_volume
from tests.samples import write_sample

CLASSES = {1: "mitochondria", 2: "myofibrils"}
SHAPE = (10, 8, 8)
VOXEL_NM = (100.0, 50.0, 50.0)


def objects(
    rng: np.random.Generator,
    n: int,
    *,
    shift: float = 0.0,
    between: float = 0.0,
    along_z: float = 0.0,
    depth_um: float = 1.0,
    name: str = "mitochondria",
) -> dict[str, Any]:
    """Draw the columns of a table of objects.

    Parameters
    ----------
    n : int
        Objects.
    shift : float
        Of the logarithm of volumes, in standard deviations of objects.
    between : float
        Standard deviation of what all objects of one volume share.
    along_z : float
        … and of what those of a tenth of its depth share.
    """
    z = rng.uniform(0, depth_um, n)
    tenth = np.minimum((z / depth_um * 10).astype(int), 9)
    common = shift + between * rng.normal() + along_z * rng.normal(size=10)[tenth]
    volume = np.exp(0.4 * (common + rng.normal(size=n)) - 2)
    sphericity = np.clip(0.7 - 0.05 * common + 0.08 * rng.normal(size=n), 0.05, 1)
    surface = (36 * np.pi * volume**2) ** (1 / 3) / sphericity
    elongation = 1 + rng.gamma(2, 0.5, n)
    flatness = 1 + rng.gamma(2, 0.3, n)
    radii = np.cbrt(volume)
    return {
        "label": np.arange(1, n + 1),
        "class": [name] * n,
        "n_voxels": np.maximum(1, volume / 0.00025).astype(np.int64),
        "volume_um3": volume,
        "surface_um2": surface,
        "sa_v_per_um": surface / volume,
        "compactness": sphericity**3,
        "sphericity": sphericity,
        "elongation": elongation,
        "flatness": flatness,
        "sparseness": 0.5 + 0.1 * rng.random(n),
        "euler_number": np.ones(n, np.int64),
        "centroid_z_um": z,
        "centroid_y_um": rng.uniform(0, 0.4, n),
        "centroid_x_um": rng.uniform(0, 0.4, n),
        "radius_1_um": radii * elongation,
        "radius_2_um": radii,
        "radius_3_um": radii / flatness,
        "touches_border": rng.random(n) < 0.1,
    }


def write_table(
    path: Path, columns: Mapping[str, Any], *, parts: int = 1, metadata: Any = None
) -> None:
    """Write a table as one parquet file, or as a folder of parts."""
    table = pa.table(dict(columns))
    if metadata is not None:
        table = table.replace_schema_metadata({"cvdask": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    if parts == 1:
        pq.write_table(table, path)
        return
    path.mkdir()
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for k in range(parts):
        part = table.slice(bounds[k], bounds[k + 1] - bounds[k])
        pq.write_table(part, path / f"part-{k:05d}.parquet")


def write_cell(
    url: Path,
    columns: Mapping[str, Any] | None = None,
    *,
    parts: int = 1,
    classes: Mapping[int, str] | None = None,
    voxel_size_nm: Sequence[float] = VOXEL_NM,
    data: np.ndarray | None = None,
) -> Volume:
    """Write an image, its classes and, if given, its table of objects."""
    if data is None:
        rng = np.random.default_rng(len(str(url)))
        data = rng.integers(0, 3, SHAPE).astype(np.uint8)
    named = dict(CLASSES if classes is None else classes)
    write_sample(url, data * 80, voxel_size_nm=voxel_size_nm)
    write_sample(url, data, voxel_size_nm=voxel_size_nm, labels="classes", classes=named)
    if columns is not None:
        write_table(url / "tables" / "objects.parquet", columns, parts=parts)
    return open_volume(url)


def write_cells(folder: Path, name: str, n: int, seed: int = 0, **drawn: Any) -> list[str]:
    """Write several samples ``<name>0.zarr`` … with 40 mitochondria and 30 myofibrils each."""
    urls = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        mitochondria = objects(rng, 40, **drawn)
        myofibrils = objects(rng, 30, name="myofibrils")
        columns = {
            key: np.concatenate([mitochondria[key], myofibrils[key]]) for key in mitochondria
        }
        url = folder / f"{name}{k}.zarr"
        write_cell(url, columns)
        urls.append(str(url))
    return urls
