"""Are parallel writes right, and how far is writing and reading from the bare codec?

1. Wrong voxels after writing a sharded array in parallel: ``dask.array.store`` with blocks smaller
   than a shard, against the engine with blocks made of shards; and what an unaligned write does.
2. Throughput on one core, against the codec alone (compression and checksum of the same chunks,
   output thrown away) and against zarr-python writing the same array.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, Zstd
from report import report

from cvdask.engine.blockwise import run
from cvdask.engine.cluster import local_client
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.cell import Cell, render
from cvdask.volume.store import Level, create, describe, publish, read_box, write_box

SHAPE = (256, 512, 512)
REPEATS = 5


def write_known(url: str, level: Level, block: Block) -> None:
    """Write voxels that tell their own place."""
    write_box(url, level, block.write, known(block.write))


def known(box: Box) -> np.ndarray:
    z, y, x = np.ogrid[box.slices]
    return ((z * 7 + y * 5 + x * 3) % 251 + 1).astype(np.uint8)


def wrong_voxels(folder: Path) -> list[tuple[str, str]]:
    """Count voxels that differ after parallel writes in any order."""
    truth = known(Box.whole(SHAPE))
    rows = []
    with local_client(2) as client:
        for name, scheduler in (("threads", "threads"), ("processes", client)):
            array = zarr.create_array(
                folder / f"dask-{name}",
                shape=SHAPE,
                dtype="u1",
                chunks=(64,) * 3,
                shards=(128,) * 3,
            )
            source = da.from_array(truth, chunks=(64, 64, 64))
            stored = da.store(source, array, lock=False, compute=False)
            if scheduler == "threads":
                stored.compute(scheduler="threads")
            else:
                client.compute(stored, sync=True)
            wrong = np.count_nonzero(array[...] != truth) / truth.size
            rows.append((f"dask.array.store, blocks 64³ in shards 128³, {name}", f"{wrong:.1%}"))
        for name, where in (("threads", "threads"), ("processes", client)):
            volume = describe(
                folder / f"cvdask-{name}", shape=SHAPE, dtype="u1", voxel_size_nm=(5, 5, 5),
                shard_shape=(128,) * 3, chunk_shape=(64,) * 3,
            )  # fmt: skip
            create(volume, {"stage": "benchmark"})
            level = volume.levels[0]
            plan = Plan("write", Grid(SHAPE, level.shard_shape), volume.url)
            run(partial(write_known, volume.url, level), plan, client=where, workers=2)
            wrong = np.count_nonzero(publish(volume).read() != truth) / truth.size
            rows.append((f"cvdask, blocks made of shards, {name}", f"{wrong:.1%}"))
        try:
            box = Box((0, 0, 0), (64, 64, 64))
            write_box(volume.url, level, box, known(box))
            rows.append(("cvdask, blocks 64³ in shards 128³", "written"))
        except ValueError as error:
            rows.append(("cvdask, blocks 64³ in shards 128³", f"refused: {str(error)[:60]}…"))
    return rows


def seconds(work: Callable[[], Any]) -> float:
    """Take the median of several runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[REPEATS // 2]


def codec_alone(codec: Any, data: np.ndarray) -> list[bytes]:
    out = []
    for chunk in Grid(data.shape, (64, 64, 64)):
        encoded = codec.encode(np.ascontiguousarray(data[chunk.write.slices]))
        google_crc32c.value(encoded)
        out.append(encoded)
    return out


def throughput(folder: Path) -> list[tuple[str, str, str, str, str]]:
    cell = Cell(SHAPE, (20.0, 20.0, 20.0))
    rendered = render(cell, Box.whole(SHAPE))
    assert rendered.image is not None
    cases: dict[str, tuple[np.ndarray, str | None, Any]] = {
        "image uint8": (rendered.image, None, Zstd(3)),
        "image uint16": (
            rendered.image.astype(np.uint16) * 257, None, Blosc("zstd", 3, Blosc.BITSHUFFLE)
        ),
        "classes uint8": (rendered.classes, "classes", Zstd(3)),
        "objects uint32": (rendered.instances, "objects", Zstd(3)),
    }  # fmt: skip
    rows = []
    for name, (data, labels, codec) in cases.items():
        volume = describe(
            folder / name.replace(" ", "-"), shape=SHAPE, dtype=data.dtype, labels=labels,
            voxel_size_nm=(20, 20, 20), chunk_shape=(64,) * 3, shard_shape=SHAPE,
        )  # fmt: skip
        create(volume, {"stage": "benchmark"})
        level = volume.levels[0]
        array = zarr.open_array(f"{volume.url}/{level.path}", mode="r+")
        zarr.config.set({"threading.max_workers": 1})

        def write_by_zarr(array: Any = array, data: np.ndarray = data) -> None:
            array[...] = data

        floor = seconds(partial(codec_alone, codec, data))
        theirs = seconds(write_by_zarr)
        ours = seconds(partial(write_box, volume.url, level, level.box, data))
        encoded = codec_alone(codec, data)
        decode = seconds(
            partial(lambda codec, parts: [codec.decode(p) for p in parts], codec, encoded)
        )
        read_theirs = seconds(lambda array=array: array[...])
        read_ours = seconds(partial(read_box, volume.url, level, level.box))
        rate = data.nbytes / 1e6
        rows.append(
            (
                name,
                f"{rate / floor:.0f} / {rate / theirs:.0f} / {rate / ours:.0f}",
                f"{floor / ours:.2f} ({theirs / ours:.1f} × zarr-python)",
                f"{rate / decode:.0f} / {rate / read_theirs:.0f} / {rate / read_ours:.0f}",
                f"{decode / read_ours:.2f} ({read_theirs / read_ours:.1f} × zarr-python)",
            )
        )
    return rows


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="cvdask-store-"))
    try:
        report("Store: wrong voxels after parallel writes", ("way", "wrong"), wrong_voxels(folder))
        report(
            "Store: throughput of one core, MB/s of voxels (codec alone / zarr-python / cvdask)",
            ("voxels", "write", "of the codec", "read", "of the codec"),
            throughput(folder),
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
