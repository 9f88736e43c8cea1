"""How fast, how flat in memory, and how true are the measures of objects?

1. ``cvdask measure`` and ``label`` on the three phantoms of ``object_phantoms.py``, from the store
   to the table or the labels, beside: cc3d, which labels the array in memory and counts voxels,
   bounds and centroids; cellmap-analyze, blockwise in one process, components and measures of the
   foreground as one class; and what one would do with dask-image and scikit-image: label each
   class, then ``regionprops`` and a mesh for each object. The last two get a part of the volume,
   from which the whole is extrapolated.
2. 1, 4 and 16 times one volume, in blocks of 256³ on two workers: memory, bytes read, time.
3. Surfaces of bodies of known area, at random places and in random poses.

Each way has a process of its own and a first run that compiles. The processor's time is that of
all threads of the process: wall time tells what else the machine did. Pictures of distributions are
not drawn. cellmap-analyze goes into an environment of its own below ``--cache``, made on first use;
what cannot be installed is left out and the reason told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from object_phantoms import KINDS, phantom, store
from report import report

import cvdask
from cvdask.engine.plan import watch_summaries

HERE = Path(__file__).parent
CELLMAP = "cellmap-analyze==0.6.2"
# Extents of the phantoms: 10⁶ specks take 1024³.
SIDES = {"sparse": 768, "dense": 768, "fragmented": 1024}
# Of the part that dask-image and scikit-image get: an object takes them milliseconds.
CROP = 160
# Of the part that cellmap-analyze gets, lest 10⁶ specks take it a quarter of an hour.
PART = 512
BLOCK = 256
POSES = 48

Figures = dict[str, Any]


# ---------------------------------------------------------------------------------------------
# Ways to measure; each in a process of its own


def timed(function: Callable[[], Any]) -> tuple[Figures, Any]:
    started, cpu = time.perf_counter(), time.process_time()
    result = function()
    figures = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    return figures, result


def by_cvdask(folder: Path, client: str) -> Figures:
    out = str(folder / f"{client}.parquet")
    options = {
        "out": out, "client": client, "workers": 2 if client == "threads" else None,
        "chart": False, "overwrite": True,
    }  # fmt: skip
    # Several blocks, so that their seams are compiled too.
    cvdask.measure(str(folder / "small.zarr"), block_shape=(40,) * 3, **options)
    figures, table = timed(lambda: cvdask.measure(str(folder / "cell.zarr"), **options))
    return {**figures, "objects": sum(len(batch) for batch in table.batches(["label"]))}


def by_label(folder: Path, client: str) -> Figures:
    options = {"class_": 1, "name": "objects", "overwrite": True, "client": client}
    cvdask.label(str(folder / "small.zarr"), block_shape=(40,) * 3, **options)
    figures, volume = timed(lambda: cvdask.label(str(folder / "cell.zarr"), **options))
    return {**figures, "objects": volume.attributes["objects"]}


def by_cc3d(folder: Path) -> Figures:
    import cc3d

    data = cvdask.open(str(folder / "cell.zarr")).label("classes").read()

    def counted() -> int:
        labels = cc3d.connected_components(data, connectivity=26)
        return len(cc3d.statistics(labels)["voxel_counts"]) - 1

    figures, n = timed(counted)
    return {**figures, "objects": n}


def by_dask_image(folder: Path) -> Figures:
    """Label with dask-image, then look at each object; on a part of the volume."""
    import dask
    import dask.array as da
    from dask_image.ndmeasure import label
    from skimage.measure import marching_cubes, mesh_surface_area, regionprops

    volume = cvdask.open(str(folder / "cell.zarr")).label("classes")
    side = min(CROP, *volume.shape)
    data = volume.read()[:side, :side, :side].copy()

    def of_class(value: int) -> int:
        blocks = da.from_array(data == value, chunks=side // 2)
        labels = np.asarray(label(blocks, structure=np.ones((3, 3, 3)))[0].compute())
        found = regionprops(labels)
        for one in found:
            mask = np.pad(one.image, 1).astype(np.float32)
            vertices, triangles, *_ = marching_cubes(mask, 0.5)
            area = mesh_surface_area(vertices, triangles)
            _ = one.area, one.centroid, one.bbox, one.inertia_tensor_eigvals, one.euler_number, area
        return len(found)

    with dask.config.set(scheduler="synchronous"):
        figures, n = timed(lambda: sum(map(of_class, range(1, int(data.max()) + 1))))
    scale = math.prod(volume.shape) / data.size
    return {**{key: value * scale for key, value in figures.items()}, "objects": n * scale}


def in_process(way: str, folder: Path) -> Figures:
    name, _, client = way.partition("-")
    ways: dict[str, Callable[..., Figures]] = {
        "cvdask": by_cvdask,
        "label": by_label,
        "cc3d": by_cc3d,
        "dask_image": by_dask_image,
        "flat": by_scale,
    }
    return ways[name](folder, client) if client else ways[name](folder)


# ---------------------------------------------------------------------------------------------
# Processes and environments


class LeftOut(Exception):
    """A peer that is not to be had here; says why."""


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def run_apart(command: list[str]) -> Figures:
    """Run a process that prints its figures in its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LeftOut(f"stopped with {done.returncode}: {last_line(done.stderr)}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def apart(way: str, folder: Path) -> Figures:
    return run_apart([sys.executable, __file__, "--one", way, str(folder)])


def cellmap_python(cache: Path) -> Path:
    """Return the interpreter of an environment with cellmap-analyze, made where there is none."""
    key = hashlib.sha256(f"{CELLMAP} {sys.version}".encode()).hexdigest()[:12]
    folder = cache / f"cellmap-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for command in (
            (sys.executable, "-m", "venv", str(folder)),
            (str(python), "-m", "pip", "install", "--quiet", CELLMAP),
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise LeftOut(f"not installed: {last_line(done.stderr)}")
        complete.touch()
    return python


def by_cellmap(folder: Path, cache: Path, scale: float) -> Figures:
    """Let cellmap-analyze measure a part of the volume; ``scale`` is the whole over the part."""
    array = str(folder / "part.zarr" / "labels" / "classes" / "0")
    out = tempfile.mkdtemp(dir=folder)
    try:
        peer = str(HERE / "cellmap_peer.py")
        found = run_apart([str(cellmap_python(cache)), peer, array, out, str(BLOCK)])
        return {key: value * scale for key, value in found.items()}
    finally:
        shutil.rmtree(out)


# ---------------------------------------------------------------------------------------------
# 1. Speed


def speed(name: str, side: int, folder: Path, cache: Path) -> None:
    data, part = phantom(name, (side,) * 3), min(side, PART)
    store(str(folder / "cell.zarr"), data)
    store(str(folder / "part.zarr"), data[:part, :part, :part])
    del data
    store(str(folder / "small.zarr"), phantom(name, (64,) * 3))
    ways: dict[str, Callable[[], Figures]] = {
        "cvdask measure, one core": lambda: apart("cvdask-serial", folder),
        "cvdask measure, two threads": lambda: apart("cvdask-threads", folder),
        "cc3d components + statistics, in memory": lambda: apart("cc3d", folder),
        f"cellmap-analyze components + measure, from {part}³": lambda: by_cellmap(
            folder, cache, (side / part) ** 3
        ),
        f"dask-image + scikit-image, from {CROP}³": lambda: apart("dask_image", folder),
        "cvdask label one class, store to store": lambda: apart("label-serial", folder),
    }
    rows, left_out, ours = [], [], math.nan
    for way, measured in ways.items():
        try:
            found = measured()
        except LeftOut as error:
            left_out.append(f"{way}: {error}")
            continue
        if not rows:
            ours = found["cpu"]
        mvoxel = side**3 / 1e6
        rows.append(
            (
                way,
                f"{found['objects']:,.0f}",
                f"{found['seconds']:.1f}",
                f"{mvoxel / found['seconds']:.1f}",
                f"{found['cpu']:.1f}",
                f"{mvoxel / found['cpu']:.1f}",
                f"{found['cpu'] / ours:.2f}",
            )
        )
    kind = KINDS[name]
    report(
        f"Objects of the {name} phantom: {side}³ voxels, classes: {kind.n_classes}",
        (
            "way",
            "objects",
            "s",
            "Mvoxel/s",
            "processor s",
            "Mvoxel per processor s",
            "× cvdask's processor time",
        ),
        rows,
    )
    for line in left_out:
        print(f"\nLeft out: {line}")


# ---------------------------------------------------------------------------------------------
# 2. Memory


def by_scale(folder: Path, client: str) -> Figures:
    """Measure on two workers and say what it took; ``client`` is the sample's name."""
    sample = folder / f"{client}.zarr"
    with cvdask_client() as opened:
        options = {"block_shape": (BLOCK,) * 3, "client": opened, "chart": False}
        small = str(folder / "small.zarr")
        warm = {**options, "block_shape": (40,) * 3, "overwrite": True}
        cvdask.measure(small, out=str(folder / "small.parquet"), **warm)
        before = peak_bytes()
        with watch_summaries() as summaries:
            figures, _ = timed(
                lambda: cvdask.measure(
                    str(sample), out=str(folder / f"{client}.parquet"), **options
                )
            )
    level = sample / "labels" / "classes" / "0"
    stored = sum(path.stat().st_size for path in level.rglob("*") if path.is_file())
    (scan,) = (one for one in summaries if one.stage == "scan")
    return {
        **figures,
        "client": peak_bytes() - before,
        "worker": max(one.peak_worker_bytes for one in summaries),
        "read": scan.bytes_read / stored,
        "blocks": scan.n_blocks,
        "voxels": scan.n_voxels,
    }


def cvdask_client() -> Any:
    from cvdask.engine.cluster import local_client

    return local_client(2)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def flatness(side: int, times: list[int], folder: Path) -> None:
    data = phantom("dense", (side,) * 3)
    store(str(folder / "small.zarr"), phantom("dense", (64,) * 3))
    rows = []
    for n in times:
        store(str(folder / f"{n}.zarr"), data, repeats=n)
        found = apart(f"flat-{n}", folder)
        shutil.rmtree(folder / f"{n}.zarr")
        rows.append(
            (
                f"{n} ×",
                f"{found['blocks']:,}",
                f"{found['worker'] / 2**20:.0f}",
                f"{found['client'] / 2**20:.1f}",
                f"{found['read']:.3f}",
                f"{found['seconds']:.1f}",
                f"{1e9 * found['seconds'] / found['voxels']:.1f}",
            )
        )
    report(
        f"measure on 2 workers in blocks of {BLOCK}³: dense phantom, {side}³ voxels, repeated in z",
        (
            "volume",
            "blocks",
            "peak of a worker (MiB)",
            "growth of the client (MiB)",
            "bytes read / stored",
            "s",
            "ns per voxel",
        ),
        rows,
    )


# ---------------------------------------------------------------------------------------------
# 3. Surfaces


def ellipsoid_area(a: float, b: float, c: float) -> float:
    """Surface of an ellipsoid with these semi-axes, by Simpson's rule over directions."""
    n = 2000
    u = (np.arange(n) + 0.5) / n * np.pi
    v = (np.arange(2 * n) + 0.5) / (2 * n) * 2 * np.pi
    sin_u, cos_u = np.sin(u)[:, None], np.cos(u)[:, None]
    element = sin_u * np.sqrt(
        (b * c * sin_u * np.cos(v)) ** 2 + (a * c * sin_u * np.sin(v)) ** 2 + (a * b * cos_u) ** 2
    )
    return float(element.sum() * (np.pi / n) ** 2)


@dataclass(frozen=True)
class Body:
    """A body of known surface, in units of the shortest voxel side.

    Parameters
    ----------
    name : str
    area : float
    reach : float
        No point is farther from the centre.
    inside : callable
        Takes coordinates (3, …) and tells which are inside.
    """

    name: str
    area: float
    reach: float
    inside: Callable[[np.ndarray], np.ndarray]


def ellipsoid(a: float, b: float, c: float) -> Body:
    axes = np.array([a, b, c])
    return Body(
        f"sphere, radius {a:g}" if a == b == c else f"ellipsoid, semi-axes {a:g}, {b:g}, {c:g}",
        ellipsoid_area(a, b, c),
        max(a, b, c),
        lambda p: np.einsum("i...,i->...", p**2, 1 / axes**2) <= 1,
    )


def sheet(half: float, radius: float) -> Body:
    """A disc with a rounded rim: all points within ``half`` of a flat disc."""
    rim = 2 * math.pi * half * (math.pi * radius + 2 * half)
    return Body(
        f"sheet, half thickness {half:g}, radius {radius + half:g}, rounded rim",
        2 * math.pi * radius**2 + rim,
        radius + half,
        lambda p: p[0] ** 2 + np.maximum(np.hypot(p[1], p[2]) - radius, 0) ** 2 <= half**2,
    )


def sharp_sheet(half: float, radius: float) -> Body:
    return Body(
        f"sheet, half thickness {half:g}, radius {radius:g}, sharp rim",
        2 * math.pi * radius**2 + 4 * math.pi * radius * half,
        math.hypot(half, radius),
        lambda p: (np.abs(p[0]) <= half) & (np.hypot(p[1], p[2]) <= radius),
    )


BODIES = (
    *(ellipsoid(r, r, r) for r in (5, 10, 20, 40)),
    ellipsoid(5, 10, 15),
    ellipsoid(6, 6, 24),
    ellipsoid(5, 24, 24),
    sheet(5, 25),
    sharp_sheet(5, 30),
)


def pose(body: Body, spacing: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a body at a random place within a voxel and in a random pose."""
    rng = np.random.default_rng(seed)
    rotation, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(upper))
    extents = [math.ceil(body.reach / step) + 2 for step in spacing]
    shift = rng.random(3) - 0.5
    places = np.meshgrid(
        *((np.arange(-n, n + 1) + d) * s for n, d, s in zip(extents, shift, spacing, strict=True)),
        indexing="ij",
    )
    return body.inside(np.tensordot(rotation, np.stack(places), 1)).astype(np.uint8)


def surfaces(folder: Path, poses: int) -> None:
    rows = []
    for spacing in ((1, 1, 1), (4, 1, 1)):
        for body in BODIES:
            drawn = [pose(body, spacing, seed) for seed in range(poses)]
            sample = str(folder / f"{len(rows)}.zarr")
            # Voxels of the body's units are micrometres; planes between the poses are empty.
            z, y, x = (1000.0 * step for step in spacing)
            store(sample, np.concatenate(drawn), voxel_size_nm=(z, y, x))
            table = cvdask.measure(sample, chart=False).to_pandas()
            assert len(table) == poses
            errors = {
                column: table[column] / body.area - 1
                for column in ("surface_um2", "surface_mc_um2", "surface_faces_um2")
            }
            crofton = errors["surface_um2"]
            rows.append(
                (
                    ":".join(map(str, spacing)),
                    body.name,
                    f"{table['n_voxels'].mean():,.0f}",
                    f"**{crofton.mean():+.2%}**",
                    f"{crofton.std():.2%}",
                    f"{errors['surface_mc_um2'].mean():+.2%}",
                    f"{errors['surface_faces_um2'].mean():+.2%}",
                )
            )
    report(
        f"Surfaces of known area: mean error over {poses} random poses",
        (
            "voxel",
            "body, in units of the shortest voxel side",
            "voxels",
            "Crofton, 13 directions",
            "its standard deviation",
            "marching cubes",
            "exposed faces",
        ),
        rows,
    )


# ---------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[*KINDS, "flatness", "surfaces"], nargs="+")
    parser.add_argument("--side", type=int, help="of all phantoms; by default 768, of specks 1024")
    parser.add_argument("--flat-side", type=int, default=512)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--poses", type=int, default=POSES)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cvdask-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where peers are installed")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(in_process(arguments.one[0], Path(arguments.one[1]))))
        return
    for part in arguments.only or [*KINDS, "flatness", "surfaces"]:
        folder = Path(tempfile.mkdtemp(prefix="cvdask-measure-"))
        try:
            if part in KINDS:
                speed(part, arguments.side or SIDES[part], folder, arguments.cache)
            elif part == "flatness":
                flatness(arguments.flat_side, arguments.times, folder)
            else:
                surfaces(folder, arguments.poses)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
