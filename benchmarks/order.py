"""How fast are slices compared and put in order, and is there a shorter path?

1. *Distances* of all pairs: ``jaccard_matrix``, beside NumPy pair by pair (some pairs,
   extrapolated) and the product of one-hot matrices in float32. All must agree.
2. *Paths* through the same matrices: the slices of a stack of real labels, shuffled, where one is
   given; those of a synthetic cell, shuffled; and hard ones, independent of one another. Beside
   ours fast-tsp and OR-tools, each as long as ours took and four times that, each in an environment
   of its own below ``--cache``; a peer that cannot be installed is left out.
3. *Large*: ``cvdask order`` from store to store, with the memory of the whole process.
4. *Volumes*: mutual Jaccard of many volumes, in bytes of bits that pairs look at, beside the bytes
   that this machine's memory delivers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from report import report
from scipy.ndimage import gaussian_filter

import cvdask
from cvdask.engine.blockwise import peak_memory_bytes
from cvdask.synthesis.jaccard import count_common, jaccard_matrix, pack
from cvdask.synthesis.tour import shortest_path

HERE = Path(__file__).parent
PEERS = {"fast-tsp": ("fast-tsp==0.2.2", "numpy"), "ortools": ("ortools==9.15.6755", "numpy")}
PAIRS = 2000
N_CLASSES = 3


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - started, result


def hard_slices(n: int, side: int, seed: int = 0, n_latent: int = 6) -> Iterator[np.ndarray]:
    """Yield independent slices, each cut out of a mixture of the same few smooth fields."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((2 * n_latent, side, side))
    fields = [gaussian_filter(one, side / 16, mode="wrap") for one in noise]
    basis = np.stack([one / one.std() for one in fields]).astype(np.float32)
    for _ in range(n):
        weights = generator.standard_normal(2 * n_latent).astype(np.float32) / n_latent**0.5
        f = np.tensordot(weights[:n_latent], basis[:n_latent], 1)
        g = np.tensordot(weights[n_latent:], basis[n_latent:], 1)
        yield np.select([f > 0.5, g > 0.7, g < -1.2], [1, 2, 3], 0).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Distances


def pair_by_pair(slices: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Compare some pairs by the definition; return seconds, the pairs and their distances."""
    pairs = np.random.default_rng(0).integers(0, len(slices), (PAIRS, 2))
    found = np.empty(PAIRS)
    started = time.perf_counter()
    for k, (i, j) in enumerate(pairs):
        a, b = slices[i], slices[j]
        shared = sum(np.count_nonzero((a == c) & (b == c)) for c in range(1, N_CLASSES + 1))
        either = sum(np.count_nonzero((a == c) | (b == c)) for c in range(1, N_CLASSES + 1))
        found[k] = 1 - shared / either if either else 0.0
    return time.perf_counter() - started, pairs, found


def by_matrix_product(slices: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the seconds of the product alone, and what pairs have in common."""
    flat = slices.reshape(len(slices), -1)
    one_hot = np.concatenate([flat == c for c in range(1, N_CLASSES + 1)], axis=1)
    one_hot = one_hot.astype(np.float32)
    return timed(lambda: one_hot @ one_hot.T)


def distances(n: int, side: int) -> None:
    slices = np.stack(list(hard_slices(n, side)))
    jaccard_matrix(slices[:, ::8, ::8])  # compiles
    seconds, matrix = timed(jaccard_matrix, slices)
    one_by_one, pairs, found = pair_by_pair(slices)
    n_pairs = n * (n - 1) / 2
    by_pairs = one_by_one / PAIRS * n_pairs
    product, common = by_matrix_product(slices)
    n_pixels = np.diagonal(common)
    union = n_pixels[:, None] + n_pixels - common
    rows = (
        ("cvdask jaccard_matrix, packing included", seconds, ""),
        (
            f"NumPy, pair by pair ({PAIRS} pairs, extrapolated)",
            by_pairs,
            f"{abs(matrix[pairs[:, 0], pairs[:, 1]] - found).max():.1e}",
        ),
        (
            "float32 product of one-hot matrices, alone",
            product,
            f"{abs(1 - common / union - matrix).max():.1e}",
        ),
    )
    report(
        f"Distances: {n} slices of {side}², {N_CLASSES} classes, all pairs",
        ("way", "s", "× cvdask's time", "largest difference"),
        [(name, f"{s:.2f}", f"{s / seconds:.1f}", d) for name, s, d in rows],
    )


# ---------------------------------------------------------------------------------------------
# Paths


def peer_python(name: str, cache: Path) -> Path | None:
    """Return the Python of a peer's environment, made on first use; None where that fails."""
    folder = cache / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.exists():
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PEERS[name]],
    ):
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            print(f"{name} cannot be installed: it is left out", file=sys.stderr)
            return None
    ready.touch()
    return python


def by_peer(python: Path, name: str, matrix: np.ndarray, seconds: float) -> tuple[float, Any]:
    """Return seconds and order of a peer; None in place of an order where it found none."""
    with tempfile.TemporaryDirectory(prefix="cvdask-order-") as folder:
        given, told = Path(folder) / "distances.npy", Path(folder) / "order.json"
        np.save(given, matrix)
        command = [str(python), str(HERE / "order_peer.py"), name, str(given), str(seconds)]
        done = subprocess.run([*command, str(told)], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            return 0.0, None
        found = json.loads(told.read_text())
    return found["seconds"], found["order"] or None


def paths(title: str, matrix: np.ndarray, natural: np.ndarray | None, cache: Path) -> None:
    """Compare paths through one matrix; ``natural`` says where each slice truly lies."""
    shortest_path(matrix[:20, :20])  # compiles
    seconds, path = timed(shortest_path, matrix)
    rows = [row("cvdask", seconds, path.order, matrix, path.bound, natural)]
    for name in PEERS:
        python = peer_python(name, cache)
        for factor in (1, 4) if python is not None else ():
            assert python is not None
            taken, order = by_peer(python, name, matrix, max(0.5, factor * seconds))
            if order is None:
                rows.append((name, f"{taken:.1f}", "none found", "", "", ""))
            else:
                rows.append(row(name, taken, np.array(order), matrix, path.bound, natural))
    report(
        f"Path: {title}, {len(matrix)} slices",
        ("way", "s", "length", "gap to the bound", "worst step", "natural order"),
        rows,
    )


def row(
    name: str,
    seconds: float,
    order: np.ndarray,
    matrix: np.ndarray,
    bound: float,
    natural: np.ndarray | None,
) -> tuple[str, ...]:
    steps = matrix[order[:-1], order[1:]]
    found = ""
    if natural is not None:
        apart = np.diff(natural[order])
        found = "yes" if (apart == 1).all() or (apart == -1).all() else "no"
    gap = f"{max(0.0, (steps.sum() - bound) / bound):.3%}"
    return name, f"{seconds:.1f}", f"{steps.sum():.4f}", gap, f"{steps.max():.4f}", found


def shuffled_path(title: str, stack: np.ndarray, cache: Path) -> None:
    places = np.random.default_rng(0).permutation(len(stack))
    paths(title, jaccard_matrix(stack[places]), places, cache)


def phantom_stack(n: int, folder: Path) -> np.ndarray:
    """Return the classes of a synthetic cell, n slices of 256²."""
    size = (n * 0.01, 5.12, 5.12)
    url = str(folder / "cell.zarr")
    cell = cvdask.phantom(url, size_um=size, voxel_nm=(10, 20, 20), client="threads")
    return np.asarray(cell.label("truth").read()[:n])


# ---------------------------------------------------------------------------------------------
# Large, and whole volumes


def write_slices(url: str, n: int, side: int) -> None:
    """Write a sample of independent slices, 64 at a time."""
    from cvdask.engine.output import fill
    from cvdask.engine.plan import Plan
    from cvdask.volume.boxes import Block
    from cvdask.volume.store import create, describe, publish

    slices = hard_slices(n, side)
    chunk = (min(32, n), min(128, side), min(128, side))
    shard = (-(-min(64, n) // chunk[0]) * chunk[0], side, side)
    common: dict[str, Any] = {
        "shape": (n, side, side),
        "dtype": "uint8",
        "voxel_size_nm": (10,) * 3,
    }
    common |= {"chunk_shape": chunk, "shard_shape": shard}
    names = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
    image = describe(url, **common)
    labels = describe(url, labels="classes", classes=names, **common)

    def write(block: Block) -> dict[str, Any]:
        data = np.stack([next(slices) for _ in range(block.write.shape[0])])
        return {
            "shards": {one.levels[0].path: one.write(block.write, data) for one in (labels, image)}
        }

    for one in (image, labels):
        create(one, {"stage": "benchmark"})
    fill([labels, image], Plan("slices", labels.levels[0].shards, labels.url), write)
    publish(labels)
    publish(image)


def large(n: int, side: int, folder: Path) -> None:
    """Order in a process of its own, so that its peak of memory is that of the stage."""
    url = str(folder / "large.zarr")
    write_slices(url, n, side)
    code = (
        "import sys, json, cvdask\n"
        "from cvdask.engine.blockwise import peak_memory_bytes\n"
        "from cvdask.engine.plan import watch_summaries\n"
        "from cvdask.volume.parquet import table_metadata\n"
        "with watch_summaries() as summaries:\n"
        "    table = cvdask.order(sys.argv[1], client='threads')\n"
        "(one,) = table_metadata(table.schema)['volumes'].values()\n"
        "told = {s.stage: s.seconds for s in summaries}\n"
        "print(json.dumps({'peak': peak_memory_bytes(), 'seconds': told, 'gap': one['gap']}))\n"
    )
    command = [sys.executable, "-c", code, url]
    seconds, done = timed(subprocess.run, command, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    stages = [(name, f"{s:.1f}", "", "") for name, s in told["seconds"].items()]
    peak = f"{told['peak'] / 2**30:.2f} GiB"
    report(
        f"Large: cvdask order, {n} slices of {side}², store to store",
        ("stage", "s", "peak memory", "gap"),
        [*stages, ("all, starting Python included", f"{seconds:.1f}", peak, f"{told['gap']:.3%}")],
    )


def memory_bandwidth() -> float:
    """Return the bytes per second that one core reads in memory, by a sum over 512 MiB."""
    data = np.ones(2**26, np.uint64)
    return data.nbytes / min(timed(data.sum)[0] for _ in range(5))


def volumes(n: int, side: int) -> None:
    """Compare volumes on one core: every pair looks at the bits of both."""
    bits = pack(hard_slices(n, side), n, N_CLASSES)
    count_common(bits.select(slice(0, 2)), bits.select(slice(0, 2)))
    seconds, _ = timed(count_common, bits, bits)
    looked_at = n * n * 2 * bits.words.nbytes / n
    bandwidth = memory_bandwidth()
    rate = looked_at / seconds
    report(
        f"Volumes: {n} of {side * side / 1e6:.1f} Mvoxel, all pairs, one core, in memory",
        ("what", "GB/s"),
        [
            ("bits that pairs look at", f"{rate / 1e9:.1f}"),
            ("memory of this machine, by a sum", f"{bandwidth / 1e9:.1f}"),
            ("ratio", f"{rate / bandwidth:.2f}"),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("distances", "paths", "large", "volumes")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256, help="of slices whose distances are timed")
    parser.add_argument("--large", type=int, default=10_000)
    parser.add_argument("--large-side", type=int, default=512)
    parser.add_argument("--real", type=Path, metavar="LABELS.tif", help="a stack of real labels")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cvdask-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where peers are installed")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cvdask-order-"))
    try:
        if "distances" in arguments.only:
            distances(arguments.slices, arguments.side)
        if "paths" in arguments.only:
            if arguments.real is not None:
                import tifffile

                shuffled_path("real labels", tifffile.imread(arguments.real), arguments.cache)
            stack = phantom_stack(arguments.slices, folder)
            shuffled_path("synthetic cell", stack, arguments.cache)
            hard = np.stack(list(hard_slices(arguments.slices, 64)))
            paths("independent slices", jaccard_matrix(hard), None, arguments.cache)
        if "large" in arguments.only:
            large(arguments.large, arguments.large_side, folder)
        if "volumes" in arguments.only:
            volumes(64, 2048)
    finally:
        shutil.rmtree(folder)
    print(f"\npeak memory of this process: {peak_memory_bytes() / 2**30:.1f} GiB", file=sys.stderr)


if __name__ == "__main__":
    main()
