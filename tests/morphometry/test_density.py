"""Density: equal to a direct sliding window, from any blocks, on any client, after any kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from cvdask.engine.plan import Plan
from cvdask.errors import BlocksFailed
from cvdask.morphometry import density as density_module
from cvdask.morphometry.density import (
    Windows,
    count_cells,
    counter_table,
    density,
    whole_voxels,
    window_sums,
)
from cvdask.volume import classes as classes_module
from cvdask.volume.boxes import Box
from cvdask.volume.objects import list_objects
from cvdask.volume.store import Volume, open_volume, read_attributes
from tests.samples import write_sample
from tests.trees import tree_digest

NAMES = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
SHAPE = (13, 22, 19)


def voxels(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Draw classes 0 to 3, some not annotated."""
    generator = np.random.default_rng(seed)
    return generator.choice([0, 1, 2, 3, 255], shape, p=(0.2, 0.3, 0.3, 0.1, 0.1)).astype(np.uint8)


def write_classes(
    folder: Path, data: np.ndarray, size: Sequence[float] = (40, 10, 10), **options: Any
) -> Volume:
    url = folder / "cell.zarr"
    write_sample(url, np.zeros(data.shape, np.uint8), voxel_size_nm=size)
    options = {"classes": NAMES, **options}
    write_sample(url, data, labels="classes", voxel_size_nm=size, **options)
    return open_volume(url)


def sliding(mask: np.ndarray, kernel: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """Count the voxels of each window, one window after the other."""
    views = sliding_window_view(mask, kernel)[:: stride[0], :: stride[1], :: stride[2]]
    return views.sum(axis=(3, 4, 5), dtype=np.int64)


def expected_density(
    data: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    above: Sequence[int],
    below: Sequence[int],
) -> np.ndarray:
    over = sliding(np.isin(data, above), kernel, stride)
    under = sliding(np.isin(data, below), kernel, stride)
    return np.where(under > 0, over / np.maximum(under, 1), np.nan).astype(np.float32)


def made(volume: Volume, **options: Any) -> Volume:
    options = {"numerator": "mitochondria", "denominator": "myofibrils", **options}
    result = density(volume, **options)
    assert isinstance(result, Volume)
    return result


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one shard of the label image, and of a few windows of the output."""
    monkeypatch.setattr(classes_module, "FEWEST_BLOCK_VOXELS", 1)
    monkeypatch.setattr(density_module, "CHUNK", 2)
    monkeypatch.setattr(density_module, "SHARD", 4)


# ---------------------------------------------------------------------------------------------
# What comes out


def test_a_small_volume_by_hand(tmp_path):
    data = np.array([[[1, 1, 2, 2, 1, 0, 0, 2]]], np.uint8)
    volume = write_classes(tmp_path, data, size=(10, 10, 10))
    result = made(volume, kernel_um=0.01, stride_um=0.02)
    # Every second voxel alone.
    np.testing.assert_array_equal(result.read(), np.float32([[[np.nan, 0, np.nan, np.nan]]]))
    data = np.array([[[1, 1, 2, 2, 1, 0, 0, 2]] * 2] * 2, np.uint8)
    volume = write_classes(tmp_path / "cubes", data, size=(10, 10, 10))
    result = made(volume, kernel_um=0.02, stride_um=0.01)
    np.testing.assert_array_equal(
        result.read(), np.float32([[[np.nan, 1, 0, 1, np.nan, np.nan, 0]]])
    )
    assert (result.dtype, result.voxel_size_nm) == (np.float32, (10, 10, 10))
    lazy = result.to_xarray()
    assert lazy.x.values == pytest.approx([0.005, 0.015, 0.025, 0.035, 0.045, 0.055, 0.065])
    assert lazy.z.values == pytest.approx([0.005])
    assert lazy.x.attrs["units"] == "µm"


@pytest.mark.parametrize(
    ("kernel_um", "stride_um", "kernel", "stride"),
    [
        (0.12, 0.04, (3, 12, 12), (1, 4, 4)),  # the kernel is whole strides
        (0.12, 0.05, (3, 12, 12), (1, 5, 5)),  # it is not
        (0.08, 0.08, (2, 8, 8), (2, 8, 8)),  # side by side
        (0.04, 0.09, (1, 4, 4), (2, 9, 9)),  # with voxels between windows
        (0.19, 0.7, (5, 19, 19), (18, 70, 70)),  # one window, and a stride beyond the volume
    ],
)
@pytest.mark.filterwarnings("ignore:the (kernel|stride) of")
def test_blocks_equal_the_direct_window(
    tmp_path, client, small_blocks, kernel_um, stride_um, kernel, stride
):
    data = voxels()
    volume = write_classes(tmp_path, data)
    result = made(volume, kernel_um=kernel_um, stride_um=stride_um, client=client)
    expected = expected_density(data, kernel, stride, [1], [2])
    np.testing.assert_array_equal(result.read(), expected)
    assert result.attributes["density"]["kernel_voxels"] == list(kernel)
    assert result.attributes["density"]["stride_voxels"] == list(stride)
    assert [key for key in list_objects(result.url, "") if ".cvdask/counts" in key] == []


def test_classes_are_added_up_and_all_is_what_was_annotated(tmp_path, small_blocks):
    data = voxels(3)
    data[:4, :9, :9] = 255
    volume = write_classes(tmp_path, data)
    sizes = {"kernel_um": 0.08, "stride_um": 0.04}
    result = made(volume, numerator=["mitochondria", 3], denominator="all", **sizes)
    expected = expected_density(data, (2, 8, 8), (1, 4, 4), [1, 3], [0, 1, 2, 3])
    np.testing.assert_array_equal(result.read(), expected)
    assert np.isnan(expected[0, 0, 0])  # nobody has annotated any voxel of it
    assert np.nanmax(expected) <= 1


def test_a_box_is_measured_as_if_cut_out(tmp_path, small_blocks):
    data = voxels(4)
    volume = write_classes(tmp_path, data)
    options = {"kernel_um": 0.08, "stride_um": 0.04, "box": "2:11,3:22,1:17"}
    result = made(volume, **options)
    cut = data[2:11, 3:22, 1:17]
    expected = expected_density(cut, (2, 8, 8), (1, 4, 4), [1], [2])
    np.testing.assert_array_equal(result.read(), expected)
    # Of the first window along y: voxels 3 to 10, at 30 to 100 nm.
    assert result.to_xarray().y.values[:2] == pytest.approx([0.065, 0.105])


def test_a_mean_filter_agrees(tmp_path):
    data = voxels(5, (20, 20, 20))
    data[data == 255] = 2
    volume = write_classes(tmp_path, data, size=(10, 10, 10))
    result = made(volume, kernel_um=0.05, stride_um=0.01).read()
    means = [ndimage.uniform_filter((data == v).astype(float), 5) for v in (1, 2)]
    np.testing.assert_allclose(result, (means[0] / means[1])[2:-2, 2:-2, 2:-2], rtol=1e-6)


def test_it_lies_where_asked_and_remembers_how(tmp_path):
    volume = write_classes(tmp_path, voxels())
    sizes = {"kernel_um": 0.08, "stride_um": 0.08}
    assert made(volume, **sizes).url == f"{volume.url}/tables/density.zarr"
    assert made(volume, name="other", **sizes).url == f"{volume.url}/tables/other.zarr"
    elsewhere = made(volume, out=str(tmp_path / "there.zarr"), **sizes)
    assert elsewhere.url == str(tmp_path / "there.zarr")
    options = elsewhere.attributes["provenance"]["options"]
    assert (options["numerator"], options["kernel_um"]) == ([1], 0.08)
    with pytest.raises(FileExistsError, match=r"kernel_um: 0\.08 → 0\.12"):
        made(volume, kernel_um=0.12, stride_um=0.08)
    again = made(volume, kernel_um=0.12, stride_um=0.08, overwrite=True)
    assert again.attributes["density"]["kernel_voxels"] == [3, 12, 12]
    assert open_volume(volume.url).label_names() == ["classes"]


def test_wide_integers_and_classes_without_names(tmp_path):
    data = voxels(6)
    volume = write_classes(tmp_path, data.astype(np.uint32), classes=None)
    result = made(volume, numerator=1, denominator="2", kernel_um=0.08, stride_um=0.04)
    expected = expected_density(data, (2, 8, 8), (1, 4, 4), [1], [2])
    np.testing.assert_array_equal(result.read(), expected)


# ---------------------------------------------------------------------------------------------
# Parts


@given(st.data())
def test_cells_hold_each_voxel_once_and_make_windows(data):
    kernel, stride = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    line = Windows(data.draw(st.integers(0, 3)), data.draw(st.integers(kernel, 25)), kernel, stride)
    values = np.random.default_rng(0).integers(0, 3, line.start + line.extent).astype(np.uint8)
    edges = line.edges
    assert (edges[0], edges[-1]) == (line.start, line.stop)
    assert np.diff(edges).max() <= line.largest_cell
    used = values[line.start : line.stop]
    one = np.array([0, 1])
    cells, _, _ = count_cells(
        used[None, None], [one, one, edges - line.start], counter_table([1], [2], range(3))
    )
    single = Windows(0, 1, 1, 1)
    sums = window_sums(cells, [single, single, line]).ravel()
    starts = range(line.start, line.start + line.extent - kernel + 1, stride)
    assert sums.tolist() == [int((values[a : a + kernel] == 1).sum()) for a in starts]
    assert len(line) == len(starts)


def test_a_row_longer_than_its_counters():
    data = np.ones((1, 1, 2**22 + 5), np.uint8)
    one = np.array([0, 1])
    edges = [one, one, np.array([0, 3, 2**22 + 5])]
    above, below, absent = count_cells(data, edges, counter_table([1], [1], [1]))
    assert above.ravel().tolist() == below.ravel().tolist() == [3, 2**22 + 2]
    assert absent == 0


def test_what_is_in_no_class_is_counted():
    data = np.array([[[0, 7, 255, 1]]], np.uint8)
    edges = [np.array([0, 1]), np.array([0, 1]), np.array([0, 4])]
    assert count_cells(data, edges, counter_table([1], [0], [0, 1]))[2] == 1


# ---------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("breaks_at", ["_count_block", "_window_block"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path, small_blocks, monkeypatch, breaks_at
):
    data = voxels()
    sizes = {"kernel_um": 0.12, "stride_um": 0.04}
    undisturbed = made(write_classes(tmp_path / "a", data), **sizes)
    volume = write_classes(tmp_path / "b", data)
    function = getattr(density_module, breaks_at)

    def break_some(job, block):
        if block.index % 3 == 1:
            raise OSError("no answer")
        return function(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(density_module, breaks_at, break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            made(volume, **sizes)
    url = f"{volume.url}/tables/density.zarr"
    with pytest.raises(ValueError, match="not complete"):
        open_volume(url)
    counted = []

    def note(job, block):
        counted.append(block.index)
        return count(job, block)

    count = density_module._count_block
    monkeypatch.setattr(density_module, "_count_block", note)
    result = made(volume, **sizes)
    assert all(index % 3 == 1 for index in counted)
    assert bool(counted) == (breaks_at == "_count_block")
    assert tree_digest(Path(result.url)) == tree_digest(Path(undisturbed.url))
    counted.clear()
    assert made(volume, **sizes) == result
    assert counted == []


def test_killed_after_the_last_window(tmp_path, monkeypatch):
    volume = write_classes(tmp_path, voxels())
    sizes = {"kernel_um": 0.12, "stride_um": 0.04}
    with monkeypatch.context() as patch:
        patch.setattr(density_module, "publish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(volume, **sizes)
    monkeypatch.setattr(density_module, "_count_block", lambda *_: 1 / 0)
    expected = expected_density(voxels(), (3, 12, 12), (1, 4, 4), [1], [2])
    np.testing.assert_array_equal(made(volume, **sizes).read(), expected)


def test_damaged_scratch_is_an_error_and_no_number(tmp_path, monkeypatch):
    volume = write_classes(tmp_path, voxels())
    sizes = {"kernel_um": 0.12, "stride_um": 0.04}
    with monkeypatch.context() as patch:
        patch.setattr(density_module, "fill", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(volume, **sizes)
    scratch = Path(volume.url, "tables/density.zarr", density_module.SCRATCH, f"{0:012d}")
    data = bytearray(scratch.read_bytes())
    data[-1] ^= 1
    scratch.write_bytes(data)
    with pytest.raises(BlocksFailed, match=r"DamagedData.*000000000000"):
        made(volume, **sizes)
    scratch.unlink()
    with pytest.raises(BlocksFailed, match=r"is gone.*--overwrite"):
        made(volume, **sizes)
    assert made(volume, overwrite=True, **sizes).dtype == np.float32


# ---------------------------------------------------------------------------------------------
# What is said, and what is refused


def test_rounded_sizes_are_said(tmp_path):
    volume = write_classes(tmp_path, voxels(), size=(30, 10, 10))
    told = r"kernel of 0\.1 µm.*3 × 10 × 10 voxels.*0\.09 × 0\.1 × 0\.1 µm"
    with pytest.warns(UserWarning, match=told):
        result = made(volume, kernel_um=0.1, stride_um=0.03)
    assert len(result.attributes["warnings"]) == 1
    assert made(volume, kernel_um=0.1, stride_um=0.03).attributes == result.attributes


def test_a_class_without_voxels_is_said(tmp_path):
    data = np.ones(SHAPE, np.uint8)
    volume = write_classes(tmp_path, data)
    with pytest.warns(UserWarning, match=r"denominator \(myofibrils\).*0:13,0:20,0:16"):
        result = made(volume, kernel_um=0.08, stride_um=0.04)
    assert np.isnan(result.read()).all()
    with pytest.warns(UserWarning, match=r"numerator \(z_discs\)"):
        result = made(
            volume, numerator="z_discs", denominator="all", kernel_um=0.08, stride_um=0.04,
            name="none",
        )  # fmt: skip
    assert (result.read() == 0).all()
    assert read_attributes(result.url)["n_voxels"] == [0, 13 * 20 * 16]


def test_sizes_that_make_no_window_are_refused(tmp_path):
    volume = write_classes(tmp_path, voxels())
    with pytest.raises(ValueError, match=r"kernel.*0\.02 µm.*0\.04 µm along z"):
        made(volume, kernel_um=0.02, stride_um=0.04)
    with pytest.raises(ValueError, match=r"stride.*0\.01 µm.*0\.04 µm along z"):
        made(volume, kernel_um=0.12, stride_um=0.01)
    with pytest.raises(ValueError, match=r"0\.2 µm.*20 voxels along x.*19"):
        made(volume, kernel_um=0.2, stride_um=0.04)
    with pytest.raises(ValueError, match=r"12 voxels along x.*9"):
        made(volume, kernel_um=0.12, stride_um=0.04, box="0:13,0:22,0:9")
    for length in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"Received: {length}"):
            made(volume, kernel_um=length)
    assert not Path(volume.url, "tables").exists()


def test_lengths_are_rounded_half_up():
    sizes = (100.0, 40.0, 3.0)
    assert whole_voxels("kernel", 0.3, sizes, None) == (3, 8, 100)
    assert whole_voxels("kernel", 0.1, (66.6,) * 3, None) == (2, 2, 2)
    assert whole_voxels("kernel", 0.0599, (40.0,) * 3, None) == (1, 1, 1)


def test_values_that_are_no_class_are_refused(tmp_path):
    data = voxels()
    data[5, 6, 7] = 9
    volume = write_classes(tmp_path, data)
    with pytest.raises(BlocksFailed, match=r"the value 9, which is no class \(1 voxels\)"):
        made(volume, kernel_um=0.08, stride_um=0.04)


def test_names_that_are_none_are_refused(tmp_path):
    volume = write_classes(tmp_path, voxels())
    with pytest.raises(ValueError, match=r"2: 'myofibrils'.*'nucleus'"):
        made(volume, denominator="nucleus")
    with pytest.raises(ValueError, match=r"Received: 'a/b'"):
        made(volume, name="a/b", kernel_um=0.08, stride_um=0.04)
    with pytest.raises(ValueError, match=r"classes.*'annotations'"):
        made(volume, labels="annotations")


def test_the_plan_reads_each_voxel_once_and_writes_nothing(tmp_path, small_blocks):
    volume = write_classes(tmp_path, voxels())
    plans = density(
        volume, numerator=1, denominator=2, kernel_um=0.12, stride_um=0.04, dry_run=True
    )
    assert isinstance(plans, list)
    counts, windows = plans
    assert isinstance(counts, Plan)
    assert counts.read_bytes == 13 * 20 * 16
    assert (len(counts.grid), windows.grid.shape) == (2 * 3 * 2, (11, 3, 2))
    assert counts.grid.roi == Box((0, 0, 0), (13, 20, 16))
    assert not Path(volume.url, "tables").exists()
