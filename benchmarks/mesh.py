"""How fast is an object meshed, and how much memory does that take, from the store to a file?

The object is a gyroid: one sheet-like object that runs through every block, with triangles in
proportion to its volume. It is written block by block at 1, 4 and 16 times one size, along z.

1. ``cvdask.mesh`` to a PLY file, one core, at each size.
2. zmesh and scikit-image's marching cubes at the smallest sizes, from the array in memory to
   vertices and triangles; reading, and writing a file, are left out of their time. Where they are
   the same marching cubes, the area must be equal.

Each figure is taken in a process of its own, after a first run that compiles; memory is the largest
resident set beyond what the imports take.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import report

import cvdask
from cvdask.engine.blockwise import peak_memory_bytes
from cvdask.engine.output import fill
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block
from cvdask.volume.store import create, describe, publish

PERIOD = 48  # voxels
VOXEL_NM = 10.0


def gyroid(block: Block) -> np.ndarray:
    """One side of the surface sin x cos y + sin y cos z + sin z cos x = 0."""
    z, y, x = (
        np.arange(a, b) * (2 * np.pi / PERIOD)
        for a, b in zip(block.write.start, block.write.stop, strict=True)
    )
    z, y = z[:, None, None], y[:, None]
    value = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    return (value > 0.4).astype(np.uint32) * 7


def write_gyroid(url: str, shape: tuple[int, ...], shard: int) -> None:
    """Write the object as a label image."""
    for labels in (None, "objects"):
        volume = describe(
            url, shape=shape, dtype="uint32" if labels else "uint8", voxel_size_nm=(VOXEL_NM,) * 3,
            labels=labels, chunk_shape=(32,) * 3, shard_shape=(shard,) * 3,
        )  # fmt: skip
        level = volume.levels[0]

        def write(block: Block, volume: Any = volume, level: Any = level) -> dict[str, Any]:
            data = gyroid(block).astype(level.dtype)
            return {"shards": {level.path: volume.write(block.write, data)}}

        create(volume, {"stage": "benchmark"})
        fill([volume], Plan("gyroid", level.shards, url), write)
        publish(volume)


def by_cvdask(url: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = {"labels": "objects", "ids": 7, "client": "serial", "overwrite": True}
        cvdask.mesh(url, out=folder + "/first", box="0:32,0:32,0:32", **options)
        before = peak_memory_bytes()
        started = time.perf_counter()
        table = cvdask.mesh(url, out=folder + "/all", **options)
        seconds = time.perf_counter() - started
        (row,) = table.to_pylist()
        n_bytes = Path(folder, "all", row["file"]).stat().st_size
    return {
        "seconds": seconds,
        "memory": peak_memory_bytes() - before,
        "triangles": row["n_triangles"],
        "area": row["mesh_surface_um2"],
        "file": n_bytes,
    }


def _by_array(url: str, mesh: Any) -> dict[str, float]:
    """Mesh the whole array in memory."""
    from skimage.measure import mesh_surface_area

    mesh(np.zeros((4, 4, 4), np.uint32))
    before = peak_memory_bytes()
    data = cvdask.open(url).label("objects").read()
    started = time.perf_counter()
    vertices, triangles = mesh(data)
    seconds = time.perf_counter() - started
    memory = peak_memory_bytes() - before
    vertices = np.asarray(vertices, float) * (VOXEL_NM / 1000)
    area = float(mesh_surface_area(vertices, triangles))
    return {"seconds": seconds, "memory": memory, "triangles": len(triangles), "area": area}


def by_zmesh(url: str) -> dict[str, float]:
    import zmesh

    def mesh(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mesher = zmesh.Mesher((1, 1, 1))
        mesher.mesh(data, close=True)
        if 7 not in mesher.ids():
            return np.zeros((0, 3)), np.zeros((0, 3), int)
        found = mesher.get(7, normals=False)
        return found.vertices, found.faces

    return _by_array(url, mesh)


def by_skimage(url: str) -> dict[str, float]:
    from skimage.measure import marching_cubes

    def mesh(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask = np.pad(data == 7, 1).astype(np.float32)
        if not mask.any():
            return np.zeros((0, 3)), np.zeros((0, 3), int)
        vertices, triangles, _, _ = marching_cubes(mask, 0.5, method="lorensen")
        return vertices, triangles

    return _by_array(url, mesh)


def measured(way: str, url: str) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--one", way, url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="voxels along each axis")
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(globals()[f"by_{arguments.one[0]}"](arguments.one[1])))
        return
    folder = Path(tempfile.mkdtemp(prefix="cvdask-mesh-"))
    rows = []
    try:
        for times in arguments.times:
            shape = (arguments.side * times, arguments.side, arguments.side)
            url = str(folder / f"{times}.zarr")
            write_gyroid(url, shape, arguments.shard)
            ours = measured("cvdask", url)
            ways = {"cvdask mesh, store to PLY": ours}
            if times == arguments.times[0]:
                ways["zmesh, array to arrays"] = measured("zmesh", url)
                ways["scikit-image, array to arrays"] = measured("skimage", url)
            for name, found in ways.items():
                rows.append(
                    (
                        " × ".join(map(str, shape)),
                        name,
                        f"{found['triangles'] / 1e6:.2f}",
                        f"{found['seconds']:.1f}",
                        f"{np.prod(shape) / found['seconds'] / 1e6:.1f}",
                        f"{found['seconds'] / ours['seconds']:.2f}",
                        f"{found['memory'] / 1e6:.0f}",
                        f"{found['area'] / ours['area'] - 1:.1e}",
                    )
                )
            shutil.rmtree(url)
    finally:
        shutil.rmtree(folder)
    report(
        "Meshes: one object through all blocks, one core",
        ("voxels", "way", "10⁶ triangles", "s", "Mvoxel/s", "× cvdask's time", "memory MB",
         "area against cvdask's"),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
