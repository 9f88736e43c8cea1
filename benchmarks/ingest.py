"""How fast does a TIFF stack become a volume, beside its floor and beside other converters?

1. A stack of at least 2 GB (a synthetic cell, whose noise compresses like an image's) is written
   uncompressed and deflated.
2. The floor decodes the same slabs with the same reader and compresses the same chunks with the
   same codec on the same cores, and throws the result away. Beside it: what it takes just to write
   as many bytes to the same disk.
3. Peers write the same chunks (64³, zstd 3) with their own readers and dask; level 0 alone, since
   the levels cost everybody the same decisions. A second table has the levels.
4. Peak memory, all processes together, on the stack and on one four times as long.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
from report import report

N_WORKERS = 2
SIDE = 1024
DEPTH = 2048


def write_stacks(folder: Path, depth: int) -> dict[str, Path]:
    """Write the stack uncompressed, deflated, and four times as long."""
    from cvdask.volume.boxes import Box
    from cvdask.volume.cell import Cell, render

    paths = {name: folder / f"{name}.tif" for name in ("uncompressed", "deflate", "long")}
    slab = 64
    cell = Cell((depth, SIDE, SIDE), (20.0, 20.0, 20.0))
    with (
        tifffile.TiffWriter(paths["uncompressed"], bigtiff=True) as plain,
        tifffile.TiffWriter(paths["deflate"], bigtiff=True) as deflated,
        tifffile.TiffWriter(paths["long"], bigtiff=True) as long,
    ):
        for first in range(0, depth, slab):
            box = Box((first, 0, 0), (min(depth, first + slab), SIDE, SIDE))
            image = render(cell, box).image
            assert image is not None
            for page in image:
                options: dict[str, Any] = {"photometric": "minisblack", "metadata": None}
                plain.write(page, contiguous=True, **options)
                deflated.write(page, compression="zlib", rowsperstrip=64, **options)
                for _ in range(4):
                    long.write(page, contiguous=True, **options)
    return paths


def by_cvdask(source: Path, out: Path, levels: int | None) -> float:
    from cvdask.volume.ingest import ingest

    started = time.perf_counter()
    ingest(
        source, out, voxel_nm=20, n_levels=levels, check=False, client="threads", workers=N_WORKERS
    )
    return time.perf_counter() - started


def _decode_and_compress(source: Any, chunk: Sequence[int], boxes: Sequence[Any]) -> int:
    import google_crc32c
    from numcodecs import Zstd

    from cvdask.volume.boxes import Grid
    from cvdask.volume.sources import read

    codec = Zstd(3)
    total = 0
    for box in boxes:
        data, _ = read(source, box)
        for part in Grid(data.shape, tuple(chunk)):
            encoded = codec.encode(np.ascontiguousarray(data[part.write.slices]))
            google_crc32c.value(encoded)
            total += len(encoded)
    return total


def by_floor(source: Path, out: Path, levels: int | None) -> float:
    """Decode and compress as :func:`cvdask.ingest` does; no store, no checks."""
    from cvdask.volume.boxes import Grid
    from cvdask.volume.ingest import SLAB_BYTES
    from cvdask.volume.sources import examine
    from cvdask.volume.store import storage_shapes

    examined = examine(source)
    chunk, shard = storage_shapes(examined.shape, 1, slab_bytes=SLAB_BYTES)
    boxes = [b.write for b in Grid(examined.shape, (shard[0], *examined.shape[1:]))]
    with ProcessPoolExecutor(N_WORKERS, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(_decode_and_compress, examined, chunk, []) for _ in range(4)]:
            job.result()  # processes have started and imported
        started = time.perf_counter()
        jobs = [pool.submit(_decode_and_compress, examined, chunk, [box]) for box in boxes]
        assert all(job.result() > 0 for job in jobs)
        return time.perf_counter() - started


def _as_dask(source: Path) -> Any:
    """Open the stack lazily the way tifffile offers: one dask chunk per page."""
    import dask.array as da
    import zarr

    return da.from_zarr(zarr.open(tifffile.imread(source, aszarr=True), mode="r"))


def by_ngff_zarr(source: Path, out: Path, levels: int | None) -> float:
    import dask
    import ngff_zarr

    started = time.perf_counter()
    dask.config.set(scheduler="threads", num_workers=N_WORKERS)
    image = ngff_zarr.to_ngff_image(
        _as_dask(source), dims=("z", "y", "x"), scale={"z": 20.0, "y": 20.0, "x": 20.0}
    )
    factors = [] if levels == 1 else [2, 4, 8, 16]
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=factors, chunks=64)
    ngff_zarr.to_ngff_zarr(str(out), multiscales, version="0.5")
    return time.perf_counter() - started


def by_ome_zarr(source: Path, out: Path, levels: int | None) -> float:
    import dask
    import zarr
    from ome_zarr.writer import write_image
    from zarr.codecs import ZstdCodec

    started = time.perf_counter()
    dask.config.set(scheduler="threads", num_workers=N_WORKERS)
    write_image(
        _as_dask(source).rechunk(64),
        zarr.open_group(str(out), mode="w"),
        scale_factors=[] if levels == 1 else [2, 4, 8, 16],
        axes="zyx",
        storage_options={"chunks": (64, 64, 64), "compressors": [ZstdCodec(level=3)]},
    )
    return time.perf_counter() - started


def by_bioio(source: Path, out: Path, levels: int | None) -> float:
    from bioio_conversion.converters import OmeZarrConverter
    from zarr.codecs import BloscCodec

    started = time.perf_counter()
    OmeZarrConverter(
        source=str(source),
        destination=str(out.parent),
        name=out.name,
        chunk_shape=(64, 64, 64),
        compressor=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
        num_levels=levels or 5,
        downsample_z=True,
        n_workers=N_WORKERS,
    ).convert()
    return time.perf_counter() - started


def by_plain_write(source: Path, out: Path, levels: int | None) -> float:
    """Write as many bytes as cvdask stores of this stack, in as many files, and nothing else."""
    from cvdask.volume.ingest import ingest

    volume = ingest(source, out, voxel_nm=20, n_levels=1, check=False, client="threads").volume
    sizes = [one.stat().st_size for one in Path(volume.url, "0", "c").rglob("*") if one.is_file()]
    buffer = np.random.default_rng(0).bytes(max(sizes))
    plain = out.with_name("out.zarr.plain")
    plain.mkdir()
    started = time.perf_counter()
    with ThreadPoolExecutor(N_WORKERS) as pool:
        for number, size in enumerate(sizes):
            pool.submit((plain / str(number)).write_bytes, memoryview(buffer)[:size])
    return time.perf_counter() - started


WAYS = {
    "floor": by_floor,
    "plain write of the output": by_plain_write,
    "cvdask": by_cvdask,
    "ngff-zarr": by_ngff_zarr,
    "ome-zarr-py + dask": by_ome_zarr,
    "bioio-conversion": by_bioio,
}


def peak_of_tree(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Follow the resident memory of a process and all its children until it ends."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            everyone = [root, *root.children(recursive=True)]
            now = sum(one.memory_info().rss for one in everyone)
        except psutil.Error:
            continue
        peak[0] = max(peak[0], now)
        time.sleep(0.05)


def timed(way: str, source: Path, folder: Path, levels: int | None) -> dict[str, float]:
    """Run one way in a process of its own; its own clock starts after its imports."""
    out = folder / "out.zarr"
    for earlier in folder.glob("out.zarr*"):  # bioio-conversion adds an ending of its own
        shutil.rmtree(earlier)
    command = [sys.executable, __file__, "--one", way, str(source), str(out), str(levels or 0)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=peak_of_tree, args=(process, peak))
    watcher.start()
    text, _ = process.communicate()
    watcher.join()
    if process.returncode:
        return {"seconds": float("nan"), "peak": peak[0]}
    return {"seconds": json.loads(text.splitlines()[-1])["seconds"], "peak": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where stacks and outputs go (15 GB)")
    parser.add_argument("--depth", type=int, default=DEPTH, help="slices of the stack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-peers", action="store_true", help="floor, plain write and cvdask only"
    )
    arguments = parser.parse_args()
    if arguments.one:
        way, source, out, levels = arguments.one
        seconds = WAYS[way](Path(source), Path(out), int(levels) or None)
        print(json.dumps({"seconds": seconds}))
        return
    folder = Path(tempfile.mkdtemp(prefix="cvdask-ingest-", dir=arguments.folder))
    try:
        stacks = write_stacks(folder, arguments.depth)
        n_bytes = arguments.depth * SIDE * SIDE
        rows = []
        for stack in ("uncompressed", "deflate"):
            best: dict[str, float] = {}
            for way in list(WAYS)[: 3 if arguments.no_peers else None]:
                repeats = arguments.repeats if way in ("floor", "cvdask") else 1
                runs = [timed(way, stacks[stack], folder, 1) for _ in range(repeats)]
                best[way] = float(np.median([run["seconds"] for run in runs]))
                rows.append(
                    (
                        stack,
                        way,
                        f"{best[way]:.1f}",
                        f"{n_bytes / best[way] / 1e6:.0f}",
                        f"{best['floor'] / best[way]:.2f}",
                        f"{best[way] / best['cvdask']:.1f}" if "cvdask" in best else "",
                        f"{max(run['peak'] for run in runs) / 1e9:.2f}",
                    )
                )
        columns = ("stack", "way", "s", "MB/s", "of the floor", "time / cvdask", "peak GB")
        report(f"Ingest of {n_bytes / 1e9:.1f} GB, level 0, 2 workers", columns, rows)
        rows = [
            (way, f"{run['seconds']:.1f}", f"{n_bytes / run['seconds'] / 1e6:.0f}")
            for way in ("cvdask", "ome-zarr-py + dask")[: 1 if arguments.no_peers else None]
            for run in [timed(way, stacks["uncompressed"], folder, None)]
        ]
        report("The same with its levels", ("way", "s", "MB/s"), rows)
        rows = [
            (f"{factor} ×", f"{run['seconds']:.1f}", f"{run['peak'] / 1e9:.2f}")
            for factor, stack in ((1, "uncompressed"), (4, "long"))
            for run in [timed("cvdask", stacks[stack], folder, 1)]
        ]
        report("Peak memory of all processes against length", ("length", "s", "peak GB"), rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
