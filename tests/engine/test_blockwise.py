"""Does every block run once and count once, whatever pool runs it and whatever goes wrong?"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.engine import blockwise
from cvdask.engine.blockwise import (
    LARGEST_BATCH,
    MANY_FAILURES,
    WINDOW_PER_SLOT,
    Mask,
    reduce,
    run,
)
from cvdask.engine.cluster import ThreadPool
from cvdask.engine.ledger import Ledger
from cvdask.engine.plan import Plan, watch_summaries
from cvdask.errors import BlocksFailed
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.objects import read_object, write_object
from tests import strategies
from tests.samples import random_voxels, write_sample

GRID = Grid((20, 20), (4, 5), halo=1)


def plan(grid: Grid = GRID, **changes: Any) -> Plan:
    return Plan(**{"stage": "try", "grid": grid, "output": os.sep, **changes})


def tried(folder: Path) -> Counter[int]:
    """Count the tries of each block: a file for each, since they may run in other processes."""
    return Counter(int(path.name.partition("-")[0]) for path in folder.iterdir())


def note(folder: Path, block: Block) -> None:
    """Leave a file that says that a block was tried."""
    (folder / f"{block.index}-{uuid.uuid4().hex}").touch()


def work(folder: Path, block: Block) -> dict[str, Any]:
    note(folder, block)
    return {"box": str(block.write)}


# Small cases, written out


def test_the_serial_loop_is_the_reference() -> None:
    blocks: list[Block] = []
    summary = run(blocks.append, plan())
    assert blocks == list(GRID)
    assert (summary.n_blocks, summary.n_done, summary.n_voxels) == (20, 20, 400)
    assert (summary.n_resumed, summary.n_empty) == (0, 0)


def test_every_block_runs_once(tmp_path: Path, client: Any) -> None:
    summary = run(partial(work, tmp_path), plan(), client=client, workers=2)
    assert tried(tmp_path) == dict.fromkeys(range(20), 1)
    assert (summary.n_done, summary.n_voxels) == (20, 400)
    assert summary.seconds > 0
    assert summary.peak_worker_bytes > 2**20


def no_blocks(_: Block) -> None:
    raise AssertionError("there is no block to run")


def test_no_blocks_are_no_work(client: Any) -> None:
    empty = Grid((20, 20), (4, 5), roi=Box((3, 3), (3, 9)))
    summary = run(no_blocks, plan(empty), client=client)
    assert (summary.n_blocks, summary.n_done) == (0, 0)
    value, summary = reduce(no_blocks, sum, plan(empty), client=client)
    assert (value, summary.n_done) == (None, 0)


def move(source: str, target: str, block: Block) -> None:
    data = read_object(source, str(block.index))
    assert data is not None
    write_object(target, str(block.index), 2 * data)


def test_traffic_is_that_of_all_blocks(tmp_path: Path, client: Any) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    for index in range(20):
        write_object(source, str(index), bytes(index))
    summary = run(partial(move, source, target), plan(), client=client)
    assert (summary.bytes_read, summary.bytes_written) == (190, 380)


def test_summaries_are_noted_also_of_stages_that_fail() -> None:
    with watch_summaries() as summaries:
        run(lambda block: None, plan())
        with pytest.raises(BlocksFailed):
            run(fail_always, plan(), retries=0)
        reduce(lambda block: 1, sum, plan())
    assert [summary.n_done for summary in summaries] == [20, 0, 20]


# Planning comes first


@pytest.mark.parametrize("verb", [run, partial(reduce, combine=sum)])
def test_plans_that_cannot_work_are_refused_before_work(client: Any, verb: Any) -> None:
    with pytest.raises(MemoryError, match=r"try.*\(4, 5\).*1\.0 PB"):
        verb(no_blocks, plan=plan(task_bytes=10**15), client=client)
    with pytest.raises(OSError, match=r"try.*1000\.0 PB"):
        verb(no_blocks, plan=plan(stored_bytes=10**18), client=client)


# Blocks that are done


def test_done_blocks_are_skipped(tmp_path: Path, client: Any) -> None:
    ledger = Ledger(str(tmp_path / "store"), "0")
    ledger.mark({n: {"box": str(GRID[n].write)} for n in (0, 3, 4, 5, 19)})
    (tmp_path / "tried").mkdir()
    summary = run(partial(work, tmp_path / "tried"), plan(), ledger=ledger, client=client)
    assert tried(tmp_path / "tried") == dict.fromkeys([1, 2, *range(6, 19)], 1)
    assert (summary.n_done, summary.n_resumed, summary.n_blocks) == (15, 5, 20)
    assert ledger.done(20).all()
    assert [record["box"] for record in ledger.records()] == [str(b.write) for b in GRID]
    again = run(no_blocks, plan(), ledger=ledger, client=client)
    assert (again.n_done, again.n_resumed) == (0, 20)


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


def test_a_marker_never_precedes_what_it_attests(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "0")
    marked_before: list[bool] = []

    def look(block: Block) -> None:
        marked_before.append(bool(ledger.done(20)[block.index]))
        if block.index == 13:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(look, plan(), ledger=ledger)
    assert marked_before == [False] * 14
    assert not ledger.done(20)[13:].any()


# Failures


def fail_twice(folder: Path, block: Block) -> None:
    note(folder, block)
    if tried(folder)[block.index] <= 2:
        raise ConnectionResetError("the store was away")


def test_failing_blocks_are_tried_again(tmp_path: Path, client: Any) -> None:
    summary = run(partial(fail_twice, tmp_path), plan(), client=client, retries=2)
    assert summary.n_done == 20
    assert tried(tmp_path) == dict.fromkeys(range(20), 3)


def test_blocks_that_keep_failing_are_set_aside(tmp_path: Path, client: Any) -> None:
    with pytest.raises(BlocksFailed, match="20 of 20 blocks failed, 0 are done") as caught:
        run(partial(fail_twice, tmp_path), plan(), client=client, retries=1)
    assert tried(tmp_path) == dict.fromkeys(range(20), 2)
    failures = caught.value.failures
    assert [failure.block for failure in failures] == list(range(20))
    assert failures[6].box == GRID[6].write
    assert failures[6].cause == "ConnectionResetError: the store was away"
    assert {failure.attempts for failure in failures} == {2}


def fail_some(folder: Path, block: Block) -> None:
    note(folder, block)
    if block.index in (4, 11) and not (folder.parent / "mended").exists():
        raise ValueError(f"no\n  {block.index}")


def test_the_rest_goes_on_and_a_rerun_takes_only_those(tmp_path: Path, client: Any) -> None:
    ledger = Ledger(str(tmp_path / "store"), "0")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with pytest.raises(BlocksFailed, match="2 of 20 blocks failed, 18 are done") as caught:
        run(partial(fail_some, tmp_path / "first"), plan(), client=client, ledger=ledger)
    assert [failure.cause for failure in caught.value.failures] == [
        "ValueError: no 4",
        "ValueError: no 11",
    ]
    assert tried(tmp_path / "first") == {n: 3 if n in (4, 11) else 1 for n in range(20)}
    (tmp_path / "mended").touch()
    summary = run(partial(fail_some, tmp_path / "second"), plan(), client=client, ledger=ledger)
    assert tried(tmp_path / "second") == {4: 1, 11: 1}
    assert (summary.n_done, summary.n_resumed) == (2, 18)


def fail_always(_: Block) -> None:
    raise ArithmeticError("no block can work")


def fill_disk(folder: Path, code: int, block: Block) -> None:
    note(folder, block)
    if block.index == 5:
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_what_no_block_will_be_spared_ends_the_run(tmp_path: Path, client: Any, code: int) -> None:
    many = plan(Grid((1_000_000,), (1,)))
    with pytest.raises(BlocksFailed, match=r"1 of 1000000 blocks failed.*not tried") as caught:
        run(partial(fill_disk, tmp_path, code), many, client=client, workers=2)
    assert len(tried(tmp_path)) < 10_000
    (failure,) = caught.value.failures
    assert (failure.block, failure.attempts, failure.fatal) == (5, 1, True)
    assert os.strerror(code) in failure.cause
    assert caught.value.n_done < 10_000


def test_a_run_whose_blocks_all_fail_ends_early(client: Any) -> None:
    many = plan(Grid((10_000,), (1,)))
    with pytest.raises(BlocksFailed) as caught:
        run(fail_always, many, client=client, workers=2, retries=0)
    assert MANY_FAILURES <= len(caught.value.failures) < 1000


@pytest.mark.parametrize("pool", [None, "threads"])
def test_blocks_that_cannot_be_marked_are_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "the disk hung up")

    ledger = Ledger(str(tmp_path), "0")
    monkeypatch.setattr(Ledger, "mark", refuse)
    with pytest.raises(BlocksFailed, match="20 of 20 blocks failed, 0 are done") as caught:
        run(lambda block: {}, plan(), client=pool, ledger=ledger)
    assert "the disk hung up" in caught.value.failures[0].cause


# The window and the batches


class CountingPool(ThreadPool):
    """Threads that count the batches under way, and say how long they took as they are told."""

    def __init__(
        self, executor: ThreadPoolExecutor, slots: int, block_seconds: float | None = None
    ) -> None:
        super().__init__(executor, slots)
        self.under_way = self.most = 0
        self.batches: list[int] = []
        self.block_seconds = block_seconds
        self._lock = threading.Lock()

    def submit(self, function: Any, *args: Any) -> Any:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if function is blockwise._run_batch:
                self.batches.append(len(args[1]))

        def call(*inner: Any) -> Any:
            report = function(*inner)
            if self.block_seconds is not None:
                report.seconds = self.block_seconds * report.n_done
            return report

        return super().submit(call, *args)

    def wait(self, futures: Any) -> set[Any]:
        ended = super().wait(futures)
        with self._lock:
            self.under_way -= len(ended)
        return ended


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as opened:
        yield opened


def test_few_batches_are_under_way_at_a_time(executor: ThreadPoolExecutor) -> None:
    pool = CountingPool(executor, 3)
    run(lambda block: None, plan(Grid((20_000,), (1,))), client=pool)
    assert sum(pool.batches) == 20_000
    assert pool.most == WINDOW_PER_SLOT * 3


def test_few_leaves_of_a_reduction_are_under_way_at_a_time(executor: ThreadPoolExecutor) -> None:
    leaves: list[int] = []
    most = 0

    class Watching(ThreadPool):
        def wait(self, futures: Any) -> set[Any]:
            nonlocal most
            most = max(most, len(list(futures)))
            return super().wait(futures)

    value, _ = reduce(
        lambda block: leaves.append(block.index) or 1,
        sum,
        plan(Grid((5000,), (1,))),
        client=Watching(executor, 3),
    )
    assert value == len(leaves) == 5000
    assert most == WINDOW_PER_SLOT * 3


def test_cheap_blocks_travel_in_growing_batches(executor: ThreadPoolExecutor) -> None:
    pool = CountingPool(executor, 1, block_seconds=1e-6)
    run(lambda block: None, plan(Grid((20_000,), (1,))), client=pool)
    growth = pool.batches[:8]
    assert growth[:2] == [1, 1]
    assert growth == sorted(growth)
    assert max(pool.batches) == LARGEST_BATCH
    assert len(pool.batches) < 50


@pytest.mark.parametrize(("block_seconds", "largest"), [(0.2, 2), (3.0, 1), (0.01, 50)])
def test_batches_last_about_half_a_second(
    executor: ThreadPoolExecutor, block_seconds: float, largest: int
) -> None:
    pool = CountingPool(executor, 1, block_seconds=block_seconds)
    run(lambda block: None, plan(Grid((400,), (1,))), client=pool)
    assert max(pool.batches) == largest


def test_many_workers_get_longer_tasks(executor: ThreadPoolExecutor) -> None:
    pool = CountingPool(executor, 250, block_seconds=0.1)
    run(lambda block: None, plan(Grid((8000,), (1,))), client=pool)
    assert max(pool.batches) == 20


# Where work is wanted


def test_blocks_without_a_voxel_of_the_mask_are_skipped(tmp_path: Path, client: Any) -> None:
    # One voxel of the mask covers 2 × 4 × 4 of the grid, whose blocks cut across it.
    wanted = np.zeros((4, 4, 4), "uint8")
    wanted[1, 0, 3] = wanted[3, 3, 0] = 1
    mask = write_sample(tmp_path / "mask", wanted)
    grid = Grid((8, 15, 16), (3, 5, 6))
    (tmp_path / "tried").mkdir()
    summary = run(
        partial(work, tmp_path / "tried"),
        plan(grid),
        client=client,
        mask=Mask(mask.url, mask.levels[0], (2, 4, 4)),
    )
    fine = wanted.repeat(2, 0).repeat(4, 1).repeat(4, 2)[:8, :15, :16]
    expected = {block.index for block in grid if fine[block.write.slices].any()}
    assert set(tried(tmp_path / "tried")) == expected
    assert (summary.n_done, summary.n_empty) == (len(grid), len(grid) - len(expected))


def test_a_mask_smaller_than_the_volume_excludes_what_lies_beyond(tmp_path: Path) -> None:
    mask = write_sample(tmp_path, np.ones((2, 2, 2), "uint8"))
    taken: list[int] = []
    run(
        lambda block: taken.append(block.index),
        plan(Grid((8, 4, 4), (4, 4, 4))),
        mask=Mask(mask.url, mask.levels[0], (2, 2, 2)),
    )
    assert taken == [0]


def test_a_region_limits_the_blocks() -> None:
    region = Grid((20, 20), (4, 5), roi=Box((5, 6), (9, 7)))
    taken: list[Box] = []
    run(lambda block: taken.append(block.write), plan(region))
    assert taken == [Box((4, 5), (8, 10)), Box((8, 5), (12, 10))]


def test_blocks_that_say_they_are_empty_are_counted() -> None:
    summary = run(lambda block: {"empty": block.index < 7}, plan())
    assert (summary.n_done, summary.n_empty) == (20, 7)


# Reductions


def numbers_of(block: Block) -> list[int]:
    return [block.index]


def join(parts: list[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 70), st.integers(1, 20), st.integers(2, 9))
def test_partials_are_combined_in_order(n_blocks: int, batch: int, fan_in: int) -> None:
    grid = plan(Grid((n_blocks,), (1,)))
    for pool in (None, "threads"):
        value, summary = reduce(
            numbers_of, join, grid, client=pool, workers=3, batch=batch, fan_in=fan_in
        )
        assert (value or []) == list(range(n_blocks))
        assert (summary.n_done, summary.n_voxels) == (n_blocks, n_blocks)


def third(block: Block) -> float:
    return 1.0 / (3 + block.index) ** 3


def test_floating_point_sums_agree_to_the_last_bit(client: Any) -> None:
    grid = plan(Grid((700,), (1,)))
    reference, _ = reduce(third, sum, grid)
    value, summary = reduce(third, sum, grid, client=client)
    assert value == reference
    assert summary.n_done == 700


def count_voxels(url: str, level: Any, block: Block) -> dict[int, int]:
    values, counts = np.unique(blockwise.read_box(url, level, block.write), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def add_counts(parts: list[dict[int, int]]) -> dict[int, int]:
    return dict(sum((Counter(part) for part in parts), Counter()))


@settings(max_examples=10)
@given(data=st.data())
def test_a_histogram_by_blocks_is_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    voxels = random_voxels((9, 8, 7), "uint8") % 5
    volume = write_sample(tmp_path_factory.mktemp("volume"), voxels)
    grid = Grid(voxels.shape, data.draw(strategies.block_shapes(voxels.shape)))
    found, _ = reduce(
        partial(count_voxels, volume.url, volume.levels[0]), add_counts, plan(grid), batch=3
    )
    values, counts = np.unique(voxels, return_counts=True)
    assert found == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_a_reduction_without_some_blocks_is_no_number(tmp_path: Path, client: Any) -> None:
    (tmp_path / "tried").mkdir()
    with pytest.raises(BlocksFailed, match="2 of 20") as caught:
        reduce(partial(fail_some, tmp_path / "tried"), sum_of_nothing, plan(), client=client)
    assert [failure.block for failure in caught.value.failures] == [4, 11]
    assert tried(tmp_path / "tried") == {n: 3 if n in (4, 11) else 1 for n in range(20)}


def sum_of_nothing(parts: list[Any]) -> int:
    return len(parts)


def test_a_reduction_where_nothing_is_wanted(tmp_path: Path, client: Any) -> None:
    mask = write_sample(tmp_path, np.zeros((2, 2, 2), "uint8"))
    value, summary = reduce(
        no_blocks,
        sum,
        plan(Grid((4, 4, 4), (2, 2, 2))),
        client=client,
        mask=Mask(mask.url, mask.levels[0], (2, 2, 2)),
    )
    assert value is None
    assert (summary.n_done, summary.n_empty) == (8, 8)


# Workers that die


def die(folder: Path, block: Block) -> dict[str, Any]:
    """End the process at block 7, as the kernel does with one that takes too much memory."""
    note(folder, block)
    if block.index == 7 and not (folder.parent / "mended").exists():
        os._exit(1)
    return {"n": block.index}


@pytest.mark.faults
def test_the_block_that_kills_its_workers_is_set_aside_and_no_other(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "store"), "0")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    # Strict: the first death is held against all that lay on the worker.
    settings = {"distributed.scheduler.allowed-failures": 0}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with pytest.raises(BlocksFailed, match="1 of 20 blocks failed, 19 are done") as caught:
            run(partial(die, tmp_path / "first"), plan(), client=client, ledger=ledger)
        (failure,) = caught.value.failures
        assert (failure.block, failure.box) == (7, GRID[7].write)
        assert "worker died" in failure.cause
        assert np.flatnonzero(~ledger.done(20)).tolist() == [7]
        (tmp_path / "mended").touch()
        summary = run(partial(die, tmp_path / "second"), plan(), client=client, ledger=ledger)
    assert tried(tmp_path / "second") == {7: 1}
    assert (summary.n_done, summary.n_resumed) == (1, 19)
