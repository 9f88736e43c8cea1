"""Where does it stop? The real plans and the real engine over up to a petabyte, workers simulated.

1. *Costs*. Every pass of ingest, segment, measure, density and pyramid runs on a small synthetic
   cell, block after block: seconds, requests and bytes of a block. So do the function that joins
   objects, on the joins that the cell left, again and again under other keys, and the client: what
   a task costs it, and what it costs to wait among many.
2. *Plans*. Metadata of volumes of 1, 100 and 1000 TB, one byte a voxel, without a shard. The real
   functions plan them; how long it takes and what the client holds is measured.
3. *Simulation*. The real engine hands its tasks to workers that are numbers (``virtual_pool.py``).
   A block takes what it took here, and a wait for each request, and its bytes through the worker's
   network; never less than the bucket allows. What the client does alone is added: markers read,
   pairs written, scratch deleted.
4. *Check*. ``measure`` on one and two workers of this machine, beside what is predicted for it.

Prices and the site are options; their defaults are round figures, stated with the tables. Waits for
requests are taken one after another, as most are: an upper bound. Failures are not simulated.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import pickle
import shutil
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from cell_samples import VOXEL_NM, bare_sample, repeated_cell, repeated_image
from report import report
from virtual_pool import Cost, Outcome, RecordingPool, VirtualPool, as_many, simulate

import cvdask
from cvdask.engine import blockwise
from cvdask.engine.cluster import local_client
from cvdask.engine.ledger import READ_AHEAD, Ledger
from cvdask.engine.plan import Plan, watch_summaries
from cvdask.morphometry import survey as surveys
from cvdask.morphometry.components import _Writing
from cvdask.morphometry.survey import Numbering, Survey, contract, describe_survey
from cvdask.segmentation.predict import describe_outputs
from cvdask.segmentation.tiling import GPU_BATCH_PIXELS, plan_segment
from cvdask.segmentation.unet import Architecture
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.cell import CLASSES
from cvdask.volume.store import Volume

TB = 10**12
# Of an answer to a list, and of a request to delete.
KEYS_PER_REQUEST = 1000
GPU_STAGE = "segment"
VERBS = ("ingest", "segment", "pyramid", "density", "measure")
# Of which it is told what most of their time is.
LONG_VERBS = ("ingest", "segment", "measure")


# ---------------------------------------------------------------------------------------------
# 1. Costs


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Parameters
    ----------
    blocks : dict
        By stage; of a block, save ``total`` and ``table``: of an object.
    block_voxels : dict
        By stage: voxels of such a block.
    objects, edges : float
        Rows and joins that a block of the scan leaves.
    kept : float
        Of the joins, those that remain when their chains are known.
    contract_seconds, contract_bytes : float
        Of the joining function, for a join among ``contract_n``.
    contract_n : int
    task_seconds : float
        Of client and scheduler for a task.
    marker_seconds, read_seconds, delete_seconds : float
        To write a marker, to read one, to delete an object, on a local disk.
    """

    blocks: dict[str, Cost]
    block_voxels: dict[str, int]
    objects: float
    edges: float
    kept: float
    contract_seconds: float
    contract_bytes: float
    contract_n: int
    task_seconds: float
    marker_seconds: float
    read_seconds: float
    delete_seconds: float


# Functions of the passes, by the name of their stage.
FUNCTIONS = {
    "ingest": "write_image_slab",
    "segment": "_segment_block",
    "scan": "scan_block",
    "seam": "seam_block",
    "joins": "_edges_of",
    "gather": "gather_block",
    "density counts": "_count_block",
    "density": "_window_block",
    "pyramid": "_write_block",
}
PER_OBJECT = {"total": "total_part", "table": "write_part"}


def measure_costs(folder: Path, arguments: argparse.Namespace) -> Costs:
    """Run every pass on a small cell."""
    pool = RecordingPool()
    warm_up(folder)
    cell = str(folder / "cell.zarr")
    classes = repeated_cell(cell, (arguments.side,) * 3, (2, 2, 2), arguments.side, "threads")
    shape = survey_blocks(classes, arguments)
    joins: list[np.ndarray] = []
    keep = surveys._edges_of

    def noted(survey: Survey, block: Block) -> np.ndarray:
        joins.append(keep(survey, block))
        return joins[-1]

    noted.__name__ = keep.__name__
    surveys._edges_of = noted
    try:
        cvdask.measure(cell, chart=False, client=pool, block_shape=shape)
    finally:
        surveys._edges_of = keep
    sizes = {"kernel_um": arguments.kernel_um, "stride_um": arguments.stride_um}
    cvdask.density(cell, numerator=1, denominator=2, client=pool, **sizes)
    cvdask.pyramid(cell, labels="classes", n_levels=2, client=pool)
    image = str(folder / "image.zarr")
    repeated_image(image, arguments.image_side, 128, 128, (64,) * 3, "threads")
    ingest: dict[str, Any] = {"n_levels": 1, "check": False}
    copied = cvdask.ingest(image, folder / "copy.zarr", dry_run=True, **ingest)[0]
    cvdask.ingest(image, folder / "copy.zarr", client=pool, **ingest)
    segmented = copied
    if not arguments.no_segment:
        model = write_model(folder / "model.keras")
        segmented = cvdask.segment(image, model, name="segmented", dry_run=True)[0]
        cvdask.segment(image, model, name="segmented", client=pool)
    blocks = {stage: pool.typical(name) for stage, name in FUNCTIONS.items() if name in pool.costs}
    # Of a network on a GPU only what it reads and writes is taken from here: as much as an ingest.
    blocks.setdefault("segment", blocks["ingest"])
    objects = sum(cost.record["objects"] for cost in pool.costs["scan_block"])
    for stage, name in PER_OBJECT.items():
        blocks[stage] = Cost(sum(cost.seconds for cost in pool.costs[name]) / objects)
    pairs = max(joins, key=len)
    seconds, held, kept = cost_of_joining(pairs, arguments.joins)
    store = str(folder / "markers")
    return Costs(
        blocks=blocks,
        block_voxels={
            "scan": math.prod(shape),
            "ingest": copied.grid.largest_read,
            "segment": segmented.grid.largest_read,
        },
        objects=max(cost.record["objects"] for cost in pool.costs["scan_block"]),
        edges=float(len(pairs)),
        kept=kept,
        contract_seconds=seconds,
        contract_bytes=held,
        contract_n=arguments.joins,
        task_seconds=cost_of_a_task(arguments.tasks),
        **costs_of_markers(store),
    )


def warm_up(folder: Path) -> None:
    """Compile all on a small cell of several blocks."""
    small = str(folder / "small.zarr")
    repeated_cell(small, (64,) * 3, (2, 2, 2), 64)
    cvdask.measure(small, chart=False, block_shape=(32,) * 3)
    cvdask.density(small, numerator=1, denominator=2, kernel_um=0.4, stride_um=0.1)
    cvdask.pyramid(small, labels="classes")


def survey_blocks(classes: Volume, arguments: argparse.Namespace) -> tuple[int, ...]:
    """Return the blocks that a survey has by itself, unless others are asked for."""
    return tuple(arguments.block or surveys.survey_block_shape(classes.levels[0]))


def write_model(path: Path) -> Path:
    """Save a network with random weights: its speed does not depend on them."""
    from cvdask.segmentation import model_file
    from cvdask.segmentation.model_file import UNet
    from cvdask.segmentation.unet import build

    unet = UNet(architecture(), CLASSES, 128.0, 40.0, (VOXEL_NM,) * 3, "uint8")
    model_file.save(unet, build(architecture()), path)
    return path


def architecture() -> Architecture:
    return Architecture(n_classes=len(CLASSES) + 1, preset="fast")


def cost_of_joining(pairs: np.ndarray, n: int) -> tuple[float, float, float]:
    """Measure the joining function: seconds and bytes for a pair among n, and the share it keeps.

    The pairs of a real border, again and again under other keys.
    """
    span = int(pairs.max(initial=0)) + 1
    copies = max(1, n // max(1, len(pairs)))
    many = [pairs + span * copy for copy in range(copies)]
    contract(many[:1])  # compiles
    started = time.perf_counter()
    kept = len(contract(many))
    seconds = time.perf_counter() - started
    tracemalloc.start()
    contract(many)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = max(1, copies * len(pairs))
    return seconds / total, held / total + pairs.itemsize * 2, kept / total


def cost_of_a_task(n_tasks: int) -> float:
    """Measure what client and scheduler spend on a task: their own processor's time."""
    with local_client(1) as client:
        work = as_many(Plan("nothing", Grid((1, 1, 1), (1, 1, 1)), os.sep), n_tasks)
        tree = {"batch": 1, "fan_in": n_tasks + 1}
        blockwise.reduce(one, sum, as_many(work, 100), client=client, **tree)
        started = time.process_time()
        blockwise.reduce(one, sum, work, client=client, **tree)
        return (time.process_time() - started) / n_tasks


def one(block: Block) -> int:
    return 1


def costs_of_markers(store: str, n: int = 200) -> dict[str, float]:
    ledger = Ledger(store, "0")
    times = [time.perf_counter()]
    for number in range(n):
        ledger.mark({2 * number: {"objects": number}})
    times.append(time.perf_counter())
    assert sum(1 for _ in ledger.records()) == n
    times.append(time.perf_counter())
    ledger.clear()
    times.append(time.perf_counter())
    names = ("marker_seconds", "read_seconds", "delete_seconds")
    taken = ((later - earlier) / n for earlier, later in itertools.pairwise(times))
    return dict(zip(names, taken, strict=True))


# ---------------------------------------------------------------------------------------------
# 2. Plans


@dataclass(frozen=True)
class Planned:
    """A virtual volume and what is to be done with it.

    Parameters
    ----------
    terabytes : float
    plans : dict
        By stage.
    survey : Survey
    seconds, client_bytes : float
        To plan it.
    """

    terabytes: float
    plans: dict[str, Plan]
    survey: Survey
    seconds: float
    client_bytes: float

    @property
    def n_blocks(self) -> int:
        return len(self.survey.grid)

    def parts_met(self) -> float:
        """Return how many parts a block of the survey hands rows to, in the mean along z."""
        survey = self.survey
        plane = survey.level.shape[1] * survey.level.shape[2]
        edges = np.arange(0, survey.level.shape[0], survey.block_shape[0])
        first = survey.part(edges * plane)
        last = survey.part(
            np.minimum(edges + survey.block_shape[0], survey.level.shape[0]) * plane - 1
        )
        # No more parts than rows.
        return float((last - first + 1).mean())


def plan(folder: Path, terabytes: float, arguments: argparse.Namespace) -> Planned:
    """Plan everything for a volume of which there is only metadata."""
    extent = round((terabytes * TB) ** (1 / 3))
    url = str(folder / f"virtual-{terabytes:g}.zarr")
    shard = arguments.virtual_shard
    image, classes = bare_sample(
        url, (extent,) * 3, chunk_shape=(64,) * 3, shard_shape=(shard,) * 3
    )
    sizes = {"kernel_um": arguments.kernel_um, "stride_um": arguments.stride_um}
    tracemalloc.start()
    started = time.perf_counter()
    outputs = describe_outputs(image, CLASSES, "segmented", False)
    plans = {
        "ingest": cvdask.ingest(url, f"{url}.copy", dry_run=True)[0],
        "segment": plan_segment(
            image.levels[0],
            architecture(),
            outputs,
            worker_bytes=round(arguments.gpu_worker_gb * 1e9),
            batch_pixels=GPU_BATCH_PIXELS,
        ),
    }
    for number, one_plan in enumerate(cvdask.pyramid(url, labels="classes", dry_run=True), 1):
        plans[f"pyramid {number}"] = one_plan
    scan, seam, gather, total, table = cvdask.measure(url, chart=False, dry_run=True)
    plans |= {"scan": scan, "seam": seam, "gather": gather, "total": total, "table": table}
    counts, windows = cvdask.density(url, numerator=1, denominator=2, dry_run=True, **sizes)
    plans |= {"density counts": counts, "density": windows}
    done = np.zeros(len(scan.grid), bool)
    seconds, held = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del done
    survey = describe_survey(
        classes, Box.whole(classes.shape), class_=None, connectivity=26, scratch=(url, "scratch")
    )
    return Planned(terabytes, plans, survey, seconds, held)


def task_bytes(planned: Planned) -> tuple[int, int]:
    """Return the bytes of a task of the scan, and of one that writes labels."""
    survey = planned.survey
    n_parts = survey.n_parts
    scan = blockwise._Job(partial(surveys.scan_block, survey), survey.grid, None, None, 2)
    survey = replace(survey, gathered=tuple(range(n_parts)), merge="0" * 32)
    numbers = Numbering(tuple((0, 10**9 + n) for n in range(n_parts + 1)), 0)
    writing = _Writing(survey, numbers, Volume(survey.url, "labels/x", (survey.level,)))
    label = replace(scan, function=partial(surveys.scan_block, writing))
    return len(pickle.dumps(scan)), len(pickle.dumps(label))


# ---------------------------------------------------------------------------------------------
# 3. Simulation


@dataclass(frozen=True)
class Site:
    """Where it runs.

    Parameters
    ----------
    latency : float
        Seconds that a request waits for its first byte.
    worker_rate, bucket_rate : float
        Bytes per second of a worker's core, and of the bucket for all.
    gets, puts : float
        Requests per second that the bucket takes.
    """

    latency: float = 0.0
    worker_rate: float = math.inf
    bucket_rate: float = math.inf
    gets: float = math.inf
    puts: float = math.inf


@dataclass(frozen=True)
class Pass:
    """A simulated pass: its wall time and what it was spent on.

    Parameters
    ----------
    stage : str
    seconds : float
    reason : str
        What would have to be faster.
    n_tasks : float
    worker_seconds : float
        Paid time of all workers.
    reads, writes : float
        Requests.
    on_gpu : bool
    """

    stage: str
    seconds: float
    reason: str
    n_tasks: float = 0
    worker_seconds: float = 0
    reads: float = 0
    writes: float = 0
    on_gpu: bool = False


@dataclass(frozen=True)
class Simulation:
    """Costs at a site, for so many workers."""

    costs: Costs
    site: Site
    planned: Planned
    n_workers: int
    n_gpus: int
    gpu_rate: float  # voxels per second
    worker_bytes: int = 2**62
    gpu_worker_bytes: int = 2**62

    def cost(self, stage: str) -> Cost:
        """Return what a block of the plan of a stage costs."""
        kind = stage.partition(" ")[0] if stage.startswith("pyramid") else stage
        planned, costs = self.planned, self.costs
        one = costs.blocks[kind]
        if stage in PER_OBJECT:
            rows = planned.n_blocks * costs.objects / planned.survey.n_parts
            handed = planned.n_blocks / planned.survey.n_parts + 1
            reads = handed * planned.parts_met() if stage == "total" else 1
            row_bytes = rows * planned.survey.layout.width
            return Cost(rows * one.seconds, reads, 1, row_bytes, row_bytes)
        if stage == "gather":
            # Here one or few parts are met, there many; each is an object.
            more = max(0.0, min(planned.parts_met(), costs.objects) - one.writes)
            return replace(
                one,
                seconds=one.seconds + more * costs.marker_seconds,
                writes=one.writes + more,
            )
        if stage in costs.block_voxels:
            plan = planned.plans[stage]
            factor = math.prod(plan.grid.shape) / len(plan.grid) / costs.block_voxels[stage]
            values = (one.seconds, one.reads, one.writes, one.bytes_read, one.bytes_written)
            return Cost(*(factor * value for value in values))
        return one

    def block_seconds(self, stage: str) -> tuple[float, str]:
        """Return what a block takes when all workers are at it, and what most of it is."""
        cost, site = self.cost(stage), self.site
        gpu = stage == GPU_STAGE and self.n_gpus > 0
        n = self.n_gpus if gpu else self.n_workers
        plan = self.planned.plans[stage]
        computing = cost.seconds
        if gpu:
            computing = math.prod(plan.grid.shape) / len(plan.grid) / self.gpu_rate
        requests, n_bytes = cost.reads + cost.writes, cost.bytes_read + cost.bytes_written
        waiting = requests * site.latency
        moving = n_bytes / site.worker_rate
        parts = {
            "computing": computing,
            "waiting for requests": waiting,
            "a worker's network": moving,
        }
        # Two tasks share a GPU: while one computes, the other reads and writes.
        own = max(computing, (computing + waiting + moving) / 2) if gpu else sum(parts.values())
        bounds = {
            max(parts, key=lambda name: parts[name]): own,
            "the bucket's bytes": n * n_bytes / site.bucket_rate,
            "the bucket's requests": n * (cost.reads / site.gets + cost.writes / site.puts),
        }
        worst = max(bounds, key=lambda name: bounds[name])
        return bounds[worst], worst

    def run(self, stage: str) -> Pass:
        """Simulate the pass over the blocks of a plan."""
        plan = self.planned.plans[stage]
        seconds, reason = self.block_seconds(stage)
        gpu = stage == GPU_STAGE and self.n_gpus > 0
        n = self.n_gpus if gpu else self.n_workers
        marker = self.costs.marker_seconds + self.site.latency
        try:
            outcome = simulate(
                plan,
                lambda: VirtualPool(
                    n,
                    max(seconds, 1e-6),
                    task_seconds=self.costs.task_seconds,
                    marker_seconds=marker,
                    worker_bytes=self.gpu_worker_bytes if gpu else self.worker_bytes,
                ),
            )
        except MemoryError:
            return Pass(stage, math.inf, f"refused: {plan.task_bytes / 1e9:.1f} GB a block")
        cost = self.cost(stage)
        return Pass(
            stage,
            outcome.seconds,
            self._reason(outcome, n, reason),
            outcome.n_tasks,
            n * outcome.seconds,
            cost.reads * len(plan.grid),
            cost.writes * len(plan.grid) + outcome.n_tasks,
            gpu,
        )

    def _reason(self, outcome: Outcome, n: int, reason: str) -> str:
        """Say what would have to be faster: the blocks, or what hands them out."""
        if outcome.busy >= 0.5 * n * outcome.seconds:
            return reason
        if outcome.n_tasks * self.costs.task_seconds >= 0.5 * outcome.seconds:
            return "scheduler"
        return "too few tasks"

    def join(self) -> Pass:
        """Simulate the reduction of the joins: the engine's tree, on numbers of pairs."""
        costs, site, plan = self.costs, self.site, self.planned.plans["seam"]
        one = costs.blocks["joins"]
        reading = one.seconds + one.reads * site.latency + one.bytes_read / site.worker_rate

        def leaf(n_blocks: int) -> float:
            return n_blocks * costs.edges * costs.kept

        pool = VirtualPool(
            self.n_workers,
            reading,
            task_seconds=costs.task_seconds,
            leaf_value=leaf,
            combine_seconds=self.joining_seconds,
        )
        # The size of a leaf follows from the number of blocks, so it is the plan's own.
        n_blocks = len(plan.grid)
        batch = max(blockwise.SMALLEST_REDUCTION, -(-n_blocks // blockwise.MOST_REDUCTIONS))
        blockwise.reduce(_nothing, sum, as_many(plan, n_blocks), client=pool, batch=batch)
        root = self.joining_seconds(self.pairs())
        reason = "the root of the tree" if root > 0.3 * pool.now else "reading joins"
        return Pass("joins", pool.now, reason, pool.n_tasks, self.n_workers * pool.now, n_blocks)

    def joining_seconds(self, pairs: float) -> float:
        """Return what it takes a worker to fetch and to join so many pairs."""
        costs = self.costs
        deeper = math.log2(max(pairs, 2)) / math.log2(max(costs.contract_n, 2))
        return pairs * (costs.contract_seconds * deeper + 16 / self.site.worker_rate)

    def root_bytes(self) -> float:
        """Return the memory of the worker that joins all that is left."""
        return self.pairs() * self.costs.contract_bytes

    def pairs(self) -> float:
        """Return the pairs that remain of all joins: they end in one place."""
        return self.planned.n_blocks * self.costs.edges * self.costs.kept

    def spread_pairs(self) -> Pass:
        """Return what it takes the workers to fetch the pairs of every layer that they look at."""
        layers = self.planned.survey.grid.cells.shape[0]
        per_layer = self.pairs() / layers * 16
        readers = min(self.n_workers, self.planned.n_blocks / layers)
        rate = min(self.site.worker_rate, self.site.bucket_rate / readers)
        seconds = layers * (per_layer / rate + self.site.latency)
        reads = layers * readers
        return Pass(
            "pairs to workers", seconds, "a worker's network", 0, seconds * self.n_workers, reads
        )

    def alone(self, n_tasks: dict[str, float]) -> Pass:
        """Return what the client does with nobody's help at the end of a measure."""
        costs, site = self.costs, self.site
        pairs = self.pairs()
        markers = n_tasks["gather"] + n_tasks["total"]
        reading = markers * (costs.read_seconds + site.latency / READ_AHEAD)
        writing = pairs * 16 / site.worker_rate
        # On a disk one by one; of a bucket a thousand for each list and each request, no more of
        # them in a second than may be written.
        each = costs.delete_seconds
        if site.latency:
            each = max(2 * site.latency / KEYS_PER_REQUEST, 1 / site.puts)
        deleting = (self.scratch_objects() + sum(n_tasks.values())) * each
        parts = {"markers": reading, "pairs": writing, "deleting scratch": deleting}
        reason = max(parts, key=lambda name: parts[name])
        seconds = sum(parts.values())
        return Pass("client alone", seconds, reason, 0, self.n_workers * seconds, markers, 0)

    def scratch_objects(self) -> float:
        """Return how many objects a measure leaves for its later passes."""
        return self.planned.n_blocks * (3 + self.cost("gather").writes)

    def passes(self) -> dict[str, list[Pass]]:
        """Simulate everything, by verb."""
        plans = self.planned.plans
        found = {
            "ingest": [self.run("ingest")],
            "segment": [self.run("segment")],
            "pyramid": [self.run(stage) for stage in plans if stage.startswith("pyramid")],
            "density": [self.run("density counts"), self.run("density")],
        }
        ran = {stage: self.run(stage) for stage in ("scan", "seam", "gather", "total", "table")}
        n_tasks = {stage: one.n_tasks for stage, one in ran.items()}
        found["measure"] = [*ran.values(), self.join(), self.spread_pairs(), self.alone(n_tasks)]
        return found


def _nothing(block: Block) -> int:
    """Stand for a function that is never called."""
    return 0


def longest(passes: list[Pass]) -> str:
    """Say which pass takes most of the time, and of what; or which one the engine refuses."""
    worst = max(passes, key=lambda one: one.seconds)
    if math.isinf(worst.seconds):
        return f"{worst.stage}: {worst.reason}"
    total = sum(one.seconds for one in passes)
    return f"{worst.stage} ({worst.seconds / total:.0%}): {worst.reason}"


# ---------------------------------------------------------------------------------------------
# Tables


def tell_costs(costs: Costs) -> None:
    rows: list[tuple[str, ...]] = [
        (
            stage,
            f"{1e3 * cost.seconds:.2f}",
            f"{cost.reads:.1f}",
            f"{cost.writes:.1f}",
            f"{cost.bytes_read / 1e6:.2f}",
            f"{cost.bytes_written / 1e6:.2f}",
        )
        for stage, cost in costs.blocks.items()
        if stage not in PER_OBJECT
    ]
    report(
        "Scale: what a block costs here",
        ("pass", "ms", "reads", "writes", "MB read", "MB written"),
        rows,
    )
    per_object = " and ".join(f"{1e6 * costs.blocks[s].seconds:.1f} µs ({s})" for s in PER_OBJECT)
    print(
        f"\nA block of the scan leaves {costs.objects:.0f} rows and {costs.edges:.0f} joins, of "
        f"which {costs.kept:.0%} remain. An object takes {per_object}. A join takes "
        f"{1e9 * costs.contract_seconds:.0f} ns among {costs.contract_n:,} and "
        f"{costs.contract_bytes:.0f} bytes. A task takes client and scheduler "
        f"{1e3 * costs.task_seconds:.2f} ms; a marker "
        f"{1e3 * costs.marker_seconds:.2f} ms to write, {1e3 * costs.read_seconds:.2f} ms to "
        f"read, {1e3 * costs.delete_seconds:.2f} ms to delete."
    )


def tell_plans(all_planned: list[Planned]) -> None:
    rows = []
    for planned in all_planned:
        scan, label = task_bytes(planned)
        rows.append(
            (
                f"{planned.terabytes:g} TB",
                " × ".join(f"{n:,}" for n in planned.survey.level.shape),
                f"{planned.n_blocks:,}",
                f"{sum(len(one.grid) for one in planned.plans.values()):,}",
                f"{max(one.task_bytes for one in planned.plans.values()) / 1e9:.2f} "
                f"({max(planned.plans, key=lambda s: planned.plans[s].task_bytes)})",
                f"{planned.seconds:.2f}",
                f"{planned.client_bytes / 1e6:.1f}",
                f"{scan / 1e3:.1f}",
                f"{label / 1e3:.1f}",
            )
        )
    report(
        "Scale: the real plans of virtual volumes",
        (
            "volume",
            "voxels",
            "blocks of a survey",
            "blocks of all passes",
            "largest block (GB)",
            "planning (s)",
            "client (MB)",
            "a task of the scan (kB)",
            "a task that writes labels (kB)",
        ),
        rows,
    )


def tell_merge(simulations: list[Simulation]) -> None:
    rows = []
    for one in simulations:
        passes = [each for verb in one.passes().values() for each in verb]
        pairs = one.pairs()
        tasks = sum(each.n_tasks for each in passes)
        window = blockwise.WINDOW_PER_SLOT * one.n_workers
        rows.append(
            (
                f"{one.planned.terabytes:g} TB",
                f"{tasks:,.0f}",
                f"{max(window * 2 * task_bytes(one.planned)[0], 1) / 1e6:.0f}",
                f"{pairs:.2g}",
                f"{16 * pairs / 1e9:.2g}",
                f"{one.root_bytes() / 1e9:.2g}",
                f"{one.joining_seconds(pairs):.0f}",
                f"{one.scratch_objects():.2g}",
                f"{sum(each.reads for each in passes):.2g}",
                f"{sum(each.writes for each in passes):.2g}",
            )
        )
    last = simulations[-1]
    most = last.planned.terabytes * last.worker_bytes / last.root_bytes()
    report(
        f"Scale: what meets in one place, {simulations[0].n_workers} workers",
        (
            "volume",
            "tasks",
            "tasks held by the scheduler (MB)",
            "pairs at the root",
            "their size (GB)",
            "memory of the root (GB)",
            "the root (s)",
            "objects of scratch",
            "reads",
            "writes",
        ),
        rows,
    )
    print(
        f"\nThe joins of a survey end in one worker: one of {last.worker_bytes / 1e9:.0f} GB holds "
        f"those of {most:.2g} TB of this tissue."
    )


def tell_times(simulations: Iterator[Simulation], prices: argparse.Namespace) -> None:
    rows = []
    walls: dict[tuple[float, int], dict[str, float]] = {}
    for one in simulations:
        found = one.passes()
        everything = [each for verb in found.values() for each in verb]
        wall = {verb: sum(each.seconds for each in passes) for verb, passes in found.items()}
        walls[one.planned.terabytes, one.n_workers] = wall
        rows.append(
            (
                f"{one.planned.terabytes:g} TB",
                f"{one.n_workers:,} / {one.n_gpus:,}",
                *(hours(wall[verb]) for verb in VERBS),
                *(longest(found[verb]) for verb in LONG_VERBS[:-1]),
                too_large(one) + longest(found["measure"]),
                f"{dollars(everything, prices):,.0f}",
            )
        )
    report(
        "Scale: hours against workers (cores) and GPUs",
        (
            "volume",
            "workers / GPUs",
            *(f"{verb} (h)" for verb in VERBS),
            *(f"longest of {verb}" for verb in LONG_VERBS),
            "dollars",
        ),
        rows,
    )
    tell_stops(walls)


def too_large(one: Simulation) -> str:
    """Say that the joins need a larger worker than there is."""
    if one.root_bytes() <= one.worker_bytes:
        return ""
    return f"given one worker of {one.root_bytes() / 1e9:,.0f} GB, "


def hours(seconds: float) -> str:
    return "refused" if math.isinf(seconds) else f"{seconds / 3600:.3g}"


def tell_stops(walls: dict[tuple[float, int], dict[str, float]]) -> None:
    """Say from how many workers on more of them gain less than half of what they should."""
    rows = []
    verbs = [verb for verb in VERBS if verb != GPU_STAGE]
    for size in sorted({size for size, _ in walls}):
        numbers = sorted(n for own, n in walls if own == size)
        row = [f"{size:g} TB"]
        for verb in verbs:
            if math.isinf(walls[size, numbers[0]][verb]):
                row.append("refused")
                continue
            best = numbers[0]
            for fewer, more in itertools.pairwise(numbers):
                gain = walls[size, fewer][verb] / walls[size, more][verb]
                if gain < 1 + (more / fewer - 1) / 2:
                    break
                best = more
            row.append(f"{best:,}" if best < numbers[-1] else f"beyond {best:,}")
        rows.append(row)
    report(
        "Scale: workers up to which more of them gain at least half of what they should",
        ("volume", *verbs),
        rows,
    )


def dollars(passes: list[Pass], prices: argparse.Namespace) -> float:
    cores = sum(one.worker_seconds for one in passes if not one.on_gpu) / 3600
    gpus = sum(one.worker_seconds for one in passes if one.on_gpu) / 3600
    reads, writes = sum(one.reads for one in passes), sum(one.writes for one in passes)
    return float(
        cores * prices.core_hour
        + gpus * prices.gpu_hour
        + reads / 1000 * prices.thousand_gets
        + writes / 1000 * prices.thousand_puts
    )


# ---------------------------------------------------------------------------------------------
# 4. Check


def check(folder: Path, costs: Costs, arguments: argparse.Namespace) -> None:
    """Measure with one and two workers, and say what was predicted."""
    cell = str(folder / "check.zarr")
    repeats = (arguments.check_depth, 2, 2)
    classes = repeated_cell(cell, (arguments.side,) * 3, repeats, arguments.side, "threads")
    shape = survey_blocks(classes, arguments)
    rows = []
    for n in (1, 2):
        with local_client(n) as client:
            small = str(folder / "small.zarr")
            options: dict[str, Any] = {"chart": False, "overwrite": True, "client": client}
            for _ in range(2):  # both workers have compiled
                cvdask.measure(small, block_shape=(32,) * 3, **options)
            started = time.perf_counter()
            with watch_summaries() as summaries:
                cvdask.measure(cell, block_shape=shape, **options)
            wall = time.perf_counter() - started
        planned = planned_here(classes, shape)
        one = Simulation(costs, Site(), planned, n, 0, 1.0)
        predicted = {stage: one.run(stage) for stage in planned.plans}
        n_tasks = {stage: each.n_tasks for stage, each in predicted.items()}
        own = [*predicted.values(), one.join(), one.alone(n_tasks)]
        total = sum(each.seconds for each in own)
        for stage, each in predicted.items():
            measured = next(each.seconds for each in summaries if each.stage == stage)
            if measured > 0.02 * wall:
                rows.append(check_row(n, stage, each.seconds, measured))
        rows.append(check_row(n, "**measure**", total, wall))
    report(
        "Scale: the simulation against this machine",
        ("workers", "pass", "predicted (s)", "measured (s)", "predicted / measured"),
        rows,
    )


def check_row(n: int, stage: str, predicted: float, measured: float) -> tuple[str, ...]:
    return str(n), stage, f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured:.2f}"


def planned_here(classes: Volume, shape: tuple[int, ...]) -> Planned:
    plans = cvdask.measure(
        classes.url, chart=False, block_shape=shape, dry_run=True, overwrite=True
    )
    survey = describe_survey(
        classes,
        Box.whole(classes.shape),
        class_=None,
        connectivity=26,
        scratch=(classes.url, "scratch"),
        block_shape=shape,
    )
    return Planned(0, {one.stage: one for one in plans}, survey, 0, 0)


# ---------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number: Callable[..., Any] = parser.add_argument
    number("--terabytes", type=float, nargs="+", default=[1, 100, 1000])
    number("--workers", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    number("--workers-per-gpu", type=int, default=16)
    number("--gpu-mvoxel", type=float, default=60, help="Mvoxel/s of a GPU; see segment_gpu.py")
    number("--worker-gb", type=float, default=8, help="memory of a worker")
    number("--gpu-worker-gb", type=float, default=32, help="memory of a GPU's worker")
    number("--latency-ms", type=float, default=20, help="wait for the first byte of a request")
    number("--worker-mb-s", type=float, default=100, help="network of a worker")
    number("--bucket-gb-s", type=float, default=50, help="of the bucket, for all")
    number("--gets", type=float, default=5500, help="per second and prefix")
    number("--puts", type=float, default=3500)
    number("--prefixes", type=int, default=16, help="that the bucket has divided itself into")
    number("--core-hour", type=float, default=0.05, help="dollars")
    number("--gpu-hour", type=float, default=4.0)
    number("--thousand-gets", type=float, default=0.0004)
    number("--thousand-puts", type=float, default=0.005)
    number("--side", type=int, default=512, help="of the cell that is measured, and its shards")
    number(
        "--block",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="of the cell; for a try: what it then says of large volumes is wrong",
    )
    number("--virtual-shard", type=int, default=512)
    number("--image-side", type=int, default=512)
    number("--kernel-um", type=float, default=4.0)
    number("--stride-um", type=float, default=0.4)
    number("--joins", type=int, default=2_000_000, help="that are joined at once, to measure it")
    number("--tasks", type=int, default=5000, help="that do nothing, to measure them")
    number("--check-depth", type=int, default=4, help="cells along z of the check")
    number("--no-segment", action="store_true", help="leave the network on the CPU out")
    number("--folder", type=Path, help="where samples go (2 GB)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    folder = Path(tempfile.mkdtemp(prefix="cvdask-scale-", dir=arguments.folder))
    try:
        costs = measure_costs(folder, arguments)
        tell_costs(costs)
        check(folder, costs, arguments)
        all_planned = [plan(folder, size, arguments) for size in arguments.terabytes]
        tell_plans(all_planned)
        site = Site(
            arguments.latency_ms / 1e3,
            arguments.worker_mb_s * 1e6,
            arguments.bucket_gb_s * 1e9,
            arguments.gets * arguments.prefixes,
            arguments.puts * arguments.prefixes,
        )

        def at(planned: Planned, n: int) -> Simulation:
            return Simulation(
                costs,
                site,
                planned,
                n,
                max(1, n // arguments.workers_per_gpu),
                arguments.gpu_mvoxel * 1e6,
                round(arguments.worker_gb * 1e9),
                round(arguments.gpu_worker_gb * 1e9),
            )

        middle = arguments.workers[len(arguments.workers) // 2]
        tell_merge([at(planned, middle) for planned in all_planned])
        tell_times((at(p, n) for p in all_planned for n in arguments.workers), arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
