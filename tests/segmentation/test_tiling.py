"""Blocks: the network sees what it needs, memory holds, and no choice would read less."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.engine.plan import check_plan
from cvdask.segmentation.tiling import output_shapes, plan_segment, read_window
from cvdask.segmentation.unet import Architecture, halo, stride
from cvdask.volume.boxes import Box
from cvdask.volume.store import Volume, describe

FAST = Architecture(n_classes=3)
REACH = halo(FAST)
SMALL = Architecture(n_classes=3, base_width=4, depth=2)


def output(shape, chunk=(64, 64, 64), block_yx=None, url="nowhere.zarr") -> Volume:
    chunk_shape, shard_shape = output_shapes(shape, chunk, block_yx)
    return describe(
        url,
        shape=shape,
        dtype="uint8",
        voxel_size_nm=(10, 10, 10),
        labels="classes",
        chunk_shape=chunk_shape,
        shard_shape=shard_shape,
    )


@pytest.mark.parametrize(
    ("shape", "image_chunk", "block_yx", "chunk", "shard"),
    [
        ((2000, 3000, 500), (64, 64, 64), None, (64, 64, 64), (64, 1024, 512)),
        ((20, 768, 1024), (20, 256, 256), None, (5, 256, 256), (5, 768, 1024)),  # 4 layers
        ((1, 768, 1024), (1, 256, 256), None, (1, 256, 256), (1, 768, 1024)),  # one slice
        ((100, 40, 1100), (64, 40, 64), None, (16, 40, 64), (16, 40, 576)),  # narrower than 64
        ((500, 1000, 1000), (500, 1000, 1000), None, (64, 64, 64), (64, 1024, 1024)),  # foreign
        ((500, 1000, 1000), (64, 64, 64), (200, 512), (64, 200, 256), (64, 200, 512)),
        ((500, 100, 1000), (64, 64, 64), (200, 2000), (64, 64, 64), (64, 128, 1024)),  # beyond
    ],
)
def test_shards(shape, image_chunk, block_yx, chunk, shard):
    assert output_shapes(shape, image_chunk, block_yx) == (chunk, shard)


def test_a_shard_that_no_chunk_divides_is_refused():
    with pytest.raises(ValueError, match=r"256.*64.*along x: 1000.*1024"):
        output_shapes((64, 2000, 2000), (64, 64, 64), (512, 1000))


def test_whole_slices_where_they_fit():
    image = output((128, 2048, 2048))
    plan = plan_segment(image.levels[0], FAST, [image])
    assert plan.grid.block_shape == (16, 2048, 2048)  # shards of 16 × 1024 × 1024
    assert len(plan.grid) == 8
    assert plan.as_dict() == {
        "stage": "segment",
        "output": image.url,
        "n_blocks": 8,
        "block_shape": [16, 2048, 2048],
        "halo": [[0, 0], [REACH, REACH], [REACH, REACH]],
        "shape": [128, 2048, 2048],
        "read_bytes": 128 * 2048**2,
        "write_bytes": 128 * 2048**2,
        # One slice a call: 6 × 24 features and 3 probabilities, 4 bytes each.
        "task_bytes": 4 * 147 * 2048**2 + 3 * 16 * 2048**2,
        "stored_bytes_estimate": int(0.05 * 128 * 2048**2),
        "batch_size": 1,
        "network_bytes": 4 * 147 * 2048**2,
        "computed_pixels": 128 * 2048**2,
        "halo_share": 0.0,
    }


def test_tiles_where_they_do_not():
    image = output((128, 2048, 2048))
    plan = plan_segment(image.levels[0], FAST, [image], worker_bytes=2 * 10**9)
    # Bands: a halo on one side of each, 105 and up to the stride, 112.
    assert plan.grid.block_shape == (16, 1024, 2048)
    assert plan.notes["computed_pixels"] == 128 * 2 * (1024 + 112) * 2048
    assert plan.notes["halo_share"] == round(1 - 1024 / 1136, 4)
    assert plan.task_bytes < 2 * 10**9


def test_small_slices_are_batched():
    image = output((64, 256, 256))
    plan = plan_segment(image.levels[0], FAST, [image])
    assert plan.notes["batch_size"] == 16  # 2**20 pixels
    assert plan_segment(image.levels[0], FAST, [image], batch_size=3).notes["batch_size"] == 3


def test_where_nothing_fits_the_numbers_are_said(tmp_path):
    image = output((64, 2048, 2048), url=tmp_path / "s.zarr")
    plan = plan_segment(image.levels[0], FAST, [image], worker_bytes=10**8)
    assert plan.grid.block_shape[1:] == (1024, 1024)
    with pytest.raises(MemoryError, match=r"1024, 1024.*100\.0 MB"):
        check_plan(plan, 2, 10**8)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 300), st.integers(1, 300))


@given(st.data(), shapes, st.sampled_from([SMALL, FAST, Architecture(2, "paper", 4, 1, 1)]))
def test_windows_hold_the_halo_from_the_stride_on(data, shape, architecture):
    """Each block's window: its box, the halo as far as the slice goes, ends at the stride."""
    extents = st.integers(1, 300)
    image = output(shape, block_yx=data.draw(st.tuples(*[extents] * 2).filter(chunkable)))
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    region = Box(tuple(start), tuple(stop))
    plan = plan_segment(image.levels[0], architecture, [image], region=region)
    reach, step = halo(architecture), stride(architecture)
    computed = covered = 0
    largest = 0
    for block in plan.grid:
        kept = block.write.intersect(region)
        window = read_window(shape, kept, architecture)
        assert window.contains(kept)
        assert block.read.contains(window)
        filled = []
        for axis in (1, 2):
            low, high, extent = window.start[axis], window.stop[axis], shape[axis]
            assert low == 0 or low <= kept.start[axis] - reach
            assert high == extent or high >= kept.stop[axis] + reach
            assert low % step == 0
            assert high % step == 0 or high == extent
            filled.append(-(-(high - low) // step) * step)
        computed += kept.shape[0] * math.prod(filled)
        largest = max(largest, math.prod(filled))
        covered += kept.size
    assert covered == region.size
    assert plan.notes["computed_pixels"] == computed
    assert plan.task_bytes >= 4 * largest


@given(st.data(), st.tuples(*[st.integers(1, 200)] * 3), st.sampled_from([SMALL, FAST]))
def test_windows_across_all_axes_hold_the_halo_along_each(data, shape, architecture):
    image = output(shape, (16, 16, 16))
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    region = Box(tuple(start), tuple(stop))
    options = {"region": region, "axes": (0, 1, 2)}
    plan = plan_segment(image.levels[0], architecture, [image], **options)
    assert all(
        n % shard == 0
        for n, shard in zip(plan.grid.block_shape, image.levels[0].shard_shape, strict=True)
    )
    reach, step = halo(architecture), stride(architecture)
    computed = read = 0
    for block in plan.grid:
        kept = block.write.intersect(region)
        window = read_window(shape, kept, architecture, (0, 1, 2))
        assert block.read.contains(window)
        filled = []
        for low, high, first, last, extent in zip(
            window.start, window.stop, kept.start, kept.stop, shape, strict=True
        ):
            assert low == 0 or (low <= first - reach and low % step == 0)
            assert high == extent or (high >= last + reach and high % step == 0)
            filled.append(-(-(high - low) // step) * step)
        read += math.prod(filled)
        for axis in range(3):
            computed += kept.shape[axis] * math.prod(filled) // filled[axis]
    assert plan.notes["computed_pixels"] == computed
    assert plan.read_bytes == read


def chunkable(block_yx: tuple[int, int]) -> bool:
    return all(n <= 256 or n % 64 == 0 for n in block_yx)


@given(
    st.tuples(st.just(64), st.integers(1000, 6000), st.integers(1000, 6000)),
    st.integers(5 * 10**8, 8 * 10**9),
)
def test_no_other_tiles_that_fit_read_less(shape, worker_bytes):
    image = output(shape)
    level = image.levels[0]
    chosen = plan_segment(level, FAST, [image], worker_bytes=worker_bytes)
    _, shard_y, shard_x = level.shard_shape
    for y in range(shard_y, shape[1] + shard_y, shard_y):
        for x in range(shard_x, shape[2] + shard_x, shard_x):
            other = plan_segment(level, FAST, [image], block_yx=(y, x))
            if other.task_bytes <= worker_bytes:
                assert chosen.task_bytes <= worker_bytes
                assert chosen.notes["computed_pixels"] <= other.notes["computed_pixels"]


def test_probabilities_and_views_cost_memory():
    image = output((64, 512, 512))
    one = plan_segment(image.levels[0], FAST, [image])
    more = plan_segment(image.levels[0], FAST, [image] * 3)
    views = plan_segment(image.levels[0], FAST, [image], tta=True)
    depth = image.levels[0].shard_shape[0]
    assert more.task_bytes - one.task_bytes == 4 * depth * 512**2
    assert more.write_bytes == 3 * one.write_bytes
    assert views.task_bytes > one.task_bytes


def test_a_wider_type_is_read_as_it_is():
    image = output((64, 512, 512))
    wide = describe("n.zarr", shape=(64, 512, 512), dtype="uint16", voxel_size_nm=(1, 1, 1))
    plan = plan_segment(wide.levels[0], FAST, [image])
    assert plan.read_bytes == 2 * np.prod((64, 512, 512))
