"""Descriptors: against the whole array, from any blocks, on any client, after any kill."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvdask.errors import BlocksFailed
from cvdask.morphometry import descriptors as descriptors_module
from cvdask.morphometry.descriptors import COLUMNS, Ratios, descriptors
from cvdask.morphometry.directions import DIRECTIONS, direction_weights
from cvdask.morphometry.thickness import count_thick
from cvdask.volume import classes as classes_module
from cvdask.volume.parquet import table_metadata
from cvdask.volume.pyramid import pyramid
from cvdask.volume.store import Volume, open_volume
from tests.samples import write_sample

# Random patches are thin, and there is a test of what is said then.
pytestmark = pytest.mark.filterwarnings("ignore:.* is thinner than the smallest")

NAMES = {1: "mitochondria", 2: "myofibrils"}
SHAPE = (11, 13, 17)
SIZE = (40.0, 10.0, 20.0)


def patches(seed: int = 0, shape: Sequence[int] = SHAPE, annotated: bool = True) -> np.ndarray:
    """Classes 0 to 2 in patches of 2 by 3 by 4 voxels; some not annotated when asked."""
    generator = np.random.default_rng(seed)
    values = (0, 1, 2) if annotated else (0, 1, 2, 255)
    coarse = generator.choice(values, [n // k + 1 for n, k in zip(shape, (2, 3, 4), strict=True)])
    fine = np.kron(coarse, np.ones((2, 3, 4), int)).astype(np.uint8)
    return np.ascontiguousarray(fine[tuple(slice(0, n) for n in shape)])


def write_classes(folder: Path, data: np.ndarray, **options: Any) -> Volume:
    url = folder / "cell.zarr"
    options = {"voxel_size_nm": SIZE, **options}
    write_sample(url, np.zeros(data.shape, np.uint8), **options)
    write_sample(url, data, labels="classes", **{"classes": NAMES, **options})
    return open_volume(url)


def described(volume: Volume, **options: Any) -> pa.Table:
    lengths = {"max_distance_um": 0.12, "max_thickness_um": 0.2, "thickness_step_um": 0.05}
    table = descriptors(volume, **{**lengths, **options})
    assert isinstance(table, pa.Table)
    return table


def values(table: pa.Table, **wanted: Any) -> list[Any]:
    """Return the values of the rows where the columns hold what is wanted."""
    rows = [row for row in table.to_pylist() if all(row[k] == v for k, v in wanted.items())]
    return [row["value"] for row in rows]


def correlated(mask: np.ndarray, axis: int, n_lags: int) -> np.ndarray:
    """Count pairs along an axis by the FFT of the whole array, padded so that it does not wrap."""
    n = mask.shape[axis]
    spectrum = np.fft.rfft(mask.astype(float), 2 * n, axis=axis)
    autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2, 2 * n, axis=axis)
    across = tuple(a for a in range(3) if a != axis)
    return np.rint(autocorrelation.sum(axis=across)[:n_lags]).astype(int)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes_module, "FEWEST_BLOCK_VOXELS", 1)
    monkeypatch.setattr(descriptors_module, "THICKNESS_EXTENT", 20)


# ---------------------------------------------------------------------------------------------
# What comes out


def test_a_small_volume_by_hand(tmp_path):
    data = np.array([[[1, 1, 2, 2, 1, 255]]] * 2, np.uint8)
    volume = write_classes(tmp_path, data, voxel_size_nm=(10, 10, 10))
    table = descriptors(
        volume, max_distance_um=0.02, only="fractions,two_point,lineal-path", z_blocks=2
    )
    assert isinstance(table, pa.Table)
    assert table.column_names == list(COLUMNS)
    fractions = [row for row in table.to_pylist() if row["descriptor"] == "class_fraction"]
    shared = {"descriptor": "class_fraction", "other": None, "axis": None, "distance_um": None}
    assert fractions == [
        {**shared, "class": name, "value": value, "low": value, "high": value, "unit": "1"}
        for name, value in (("background", 0), ("mitochondria", 0.6), ("myofibrils", 0.4))
    ]
    # Of two rows of five annotated voxels.
    first = {"class": "mitochondria", "axis": "x"}
    assert values(table, descriptor="two_point", **first) == [3 / 5, 1 / 4, 0]
    assert values(table, descriptor="lineal_path", **first) == [3 / 5, 1 / 4, 0]
    second = {"class": "myofibrils", "axis": "x"}
    assert values(table, descriptor="two_point", **second) == [2 / 5, 1 / 4, 0]
    along = {"class": "mitochondria", "axis": "z"}
    assert values(table, descriptor="two_point", **along) == [3 / 5, 3 / 5]
    assert values(table, descriptor="two_point", **{**along, "axis": "y"}) == [3 / 5]
    rows = [row for row in table.to_pylist() if row["axis"] == "x" and row["class"] == "myofibrils"]
    assert [row["distance_um"] for row in rows] == [0, 0.01, 0.02] * 2


@pytest.mark.parametrize("annotated", [True, False])
def test_everything_equals_the_whole_array(tmp_path, client, small_blocks, annotated):
    data = patches(1, annotated=annotated)
    volume = write_classes(tmp_path, data)
    table = described(volume, client=client, z_blocks=3)
    known = data != 255
    for value, name in NAMES.items():
        mask = data == value
        fraction = mask.sum() / known.sum()
        assert values(table, descriptor="class_fraction", **{"class": name}) == [fraction]
        for axis, n_lags in enumerate((4, 13, 7)):
            which = {"class": name, "axis": "zyx"[axis]}
            hits, pairs = correlated(mask, axis, n_lags), correlated(known, axis, n_lags)
            np.testing.assert_array_equal(
                values(table, descriptor="two_point", **which), hits / pairs
            )
            paths = unbroken(mask, axis, n_lags) / unbroken(known, axis, n_lags)
            np.testing.assert_array_equal(values(table, descriptor="lineal_path", **which), paths)
        thick = count_thick(
            mask, known & ~mask, tuple(map(slice, (0, 0, 0), SHAPE)),
            [s / 1000 for s in SIZE], (0.05, 0.1, 0.15, 0.2),
        ).sum(axis=0)  # fmt: skip
        shares = thick / mask.sum()
        assert values(table, descriptor="local_thickness", **{"class": name}) == shares.tolist()
        mean = values(table, descriptor="mean_local_thickness", **{"class": name})
        assert mean == pytest.approx([0.05 * (0.5 + shares.sum())])
    names = enumerate(["background", *NAMES.values()])
    for (a, first), (b, second) in itertools.combinations(names, 2):
        found = values(table, descriptor="interface_density", other=second, **{"class": first})
        assert found == pytest.approx([area_per_volume(data, a, b)], rel=1e-12)


def unbroken(mask: np.ndarray, axis: int, n_lags: int) -> np.ndarray:
    """Count the stretches of a mask along an axis, from the lengths of its runs."""
    rows = np.moveaxis(mask, axis, -1).reshape(-1, mask.shape[axis])
    closed = np.pad(rows.astype(int), ((0, 0), (1, 1)))
    starts, stops = (np.argwhere(np.diff(closed, axis=1) == step)[:, 1] for step in (1, -1))
    return np.maximum((stops - starts)[:, None] - np.arange(n_lags), 0).sum(axis=0)


def area_per_volume(data: np.ndarray, a: int, b: int) -> float:
    """Sum crossings per length over directions, pair of voxels by pair of voxels."""
    weights = direction_weights(SIZE)
    steps_um = np.linalg.norm(DIRECTIONS * SIZE, axis=1) / 1000
    total = 0.0
    for k, step in enumerate(DIRECTIONS.tolist()):
        n_pairs = n_crossings = 0
        for place in np.ndindex(data.shape):
            there = tuple(p + s for p, s in zip(place, step, strict=True))
            if all(0 <= p < n for p, n in zip(there, data.shape, strict=True)):
                both = {int(data[place]), int(data[there])}
                n_pairs += 255 not in both
                n_crossings += both == {a, b}
        total += 4 * weights[k] * n_crossings / n_pairs / steps_um[k]
    return total


def test_blocks_and_clients_give_the_same_file(tmp_path, client, monkeypatch):
    volume = write_classes(tmp_path, patches(2, annotated=False))
    described(volume, out=str(tmp_path / "whole.parquet"))
    for extent in (1, 200, 2000):
        monkeypatch.setattr(classes_module, "FEWEST_BLOCK_VOXELS", extent)
        monkeypatch.setattr(descriptors_module, "THICKNESS_EXTENT", extent // 10)
        described(volume, out=str(tmp_path / "blocks.parquet"), client=client, overwrite=True)
        found = (tmp_path / "blocks.parquet").read_bytes()
        assert found == (tmp_path / "whole.parquet").read_bytes()


def test_a_box_is_described_as_if_cut_out(tmp_path, small_blocks):
    data = patches(3)
    cut = np.ascontiguousarray(data[2:10, 1:12, 3:])
    table = described(write_classes(tmp_path / "a", data), box="2:10,1:12,3:")
    alone = described(write_classes(tmp_path / "b", cut))
    assert table.to_pylist() == alone.to_pylist()


def test_thickness_is_taken_from_a_coarser_level(tmp_path):
    data = np.zeros((40, 64, 64), np.uint8)
    data[10:30] = 1  # 0.2 µm
    volume = write_classes(tmp_path, data, voxel_size_nm=(10, 10, 10))
    pyramid(volume, labels="classes", n_levels=3)
    table = descriptors(
        volume, classes=["mitochondria"], only=["thickness"],
        max_thickness_um=0.3, thickness_step_um=0.04,
    )  # fmt: skip
    assert isinstance(table, pa.Table)
    assert table_metadata(table.schema)["thickness_voxel_size_nm"] == [20, 20, 20]
    shares = dict(zip(table["distance_um"].to_pylist(), table["value"].to_pylist(), strict=True))
    # Ten voxels of the level: a ball at a voxel's centre has at most nine.
    assert [shares[d] for d in (0.04, 0.16, 0.2, 0.24)] == [1, 1, 0, 0]


def test_the_table_lies_where_asked_and_says_what_it_is(tmp_path):
    volume = write_classes(tmp_path, patches())
    table = described(volume)
    where = Path(volume.url, "tables/descriptors.parquet")
    assert pq.read_table(where).equals(table)
    told = table_metadata(table.schema)
    assert told["provenance"]["options"]["max_distance_um"] == 0.12
    assert "z-blocks" in told["interval"]
    assert sorted(path.name for path in where.parent.rglob("*") if path.is_file()) == [where.name]
    with pytest.raises(FileExistsError, match=r"max_distance_um: 0\.12 → 0\.08"):
        described(volume, max_distance_um=0.08)
    again = described(volume, max_distance_um=0.08, overwrite=True)
    assert len(again) < len(table)
    other = tmp_path / "other.parquet"
    other.write_bytes(b"not ours")
    with pytest.raises(FileExistsError, match=r"other\.parquet.*not made by cvdask"):
        described(volume, out=str(other))


def test_only_some_are_computed(tmp_path, monkeypatch):
    volume = write_classes(tmp_path, patches())
    monkeypatch.setattr(descriptors_module, "count_lags", lambda *_: 1 / 0)
    monkeypatch.setattr(descriptors_module, "count_thick", lambda *_: 1 / 0)
    table = described(volume, only=["interfaces", "fractions"])
    assert set(table["descriptor"].to_pylist()) == {"class_fraction", "interface_density"}
    plans = descriptors(volume, only="thickness", out=str(tmp_path / "t.parquet"), dry_run=True)
    assert len(plans) == 1


def test_classes_without_names_are_given_by_value(tmp_path):
    data = patches(4)
    volume = write_classes(tmp_path, data.astype(np.uint16), classes=None)
    with pytest.raises(ValueError, match=r"'classes' has no class names"):
        described(volume)
    table = described(volume, classes=[2])
    assert set(table["class"].to_pylist()) == {"0", "2"}
    assert values(table, descriptor="class_fraction", **{"class": "2"}) == [(data == 2).mean()]


# ---------------------------------------------------------------------------------------------
# Intervals


def test_equal_z_blocks_leave_no_doubt(tmp_path):
    data = np.concatenate([patches(5, (4, 13, 17))] * 3)
    table = described(write_classes(tmp_path, data), z_blocks=3, only="fractions")
    for row in table.to_pylist():
        assert row["low"] == pytest.approx(row["value"], rel=1e-12)
        assert row["high"] == pytest.approx(row["value"], rel=1e-12)


def test_intervals_hold_what_the_drawings_hold():
    above, below = np.array([[1], [4], [7]]), np.array([[10], [10], [10]])
    ratios = Ratios(3)
    drawn = ratios.of(above, below)
    value, low, high = ratios.interval(drawn)
    assert value == pytest.approx(12 / 30)
    # With three blocks of equal size, 27 drawings: one of 27 is 1, 1, 1 and one is 7, 7, 7.
    assert {round(v, 9) for v in drawn[1:, 0]} <= {k / 10 for k in range(1, 8)}
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.7))
    assert drawn[1:].mean() == pytest.approx(0.4, abs=0.02)


def test_one_z_block_has_no_interval(tmp_path):
    volume = write_classes(tmp_path, patches())
    table = described(volume, z_blocks=1, only="fractions")
    assert table["low"].null_count == table["high"].null_count == len(table)
    assert table["value"].null_count == 0


def test_a_ratio_of_nothing_is_no_number():
    value, low, high = Ratios(2).interval(Ratios(2).of(np.zeros((2, 1)), np.zeros((2, 1))))
    assert np.isnan([value, low, high]).all()


# ---------------------------------------------------------------------------------------------
# Interruptions, and what is said and refused


@pytest.mark.parametrize("breaks_at", ["_count_block", "_thickness_block"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path, small_blocks, monkeypatch, breaks_at
):
    volume = write_classes(tmp_path, patches(6))
    undisturbed, out = tmp_path / "a.parquet", tmp_path / "b.parquet"
    described(volume, out=str(undisturbed))
    function = getattr(descriptors_module, breaks_at)

    def break_some(job, block):
        if block.index % 3 == 1:
            raise OSError("no answer")
        return function(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(descriptors_module, breaks_at, break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            described(volume, out=str(out))
    assert not out.exists()
    with pytest.raises(FileExistsError, match="z_blocks"):
        described(volume, out=str(out), z_blocks=4)
    again = []

    def note(job, block):
        again.append(block.index)
        return function(job, block)

    monkeypatch.setattr(descriptors_module, breaks_at, note)
    described(volume, out=str(out))
    assert again
    assert all(index % 3 == 1 for index in again)
    assert out.read_bytes() == undisturbed.read_bytes()
    monkeypatch.setattr(descriptors_module, breaks_at, lambda *_: 1 / 0)
    assert len(described(volume, out=str(out)))
    assert sorted(p.name for p in tmp_path.rglob("*.jsonl")) == []


def test_absent_and_thick_classes_are_said(tmp_path):
    data = np.ones(SHAPE, np.uint8)
    volume = write_classes(tmp_path, data)
    with pytest.warns(UserWarning, match=r"mito|myo") as warned:
        table = described(volume)
    said = [str(one.message) for one in warned]
    assert said == table_metadata(table.schema)["warnings"]
    assert "myofibrils has no voxel in 'classes' within 0:11,0:13,0:17" in said[0]
    assert "100.0% of mitochondria" in said[1]
    assert "0.2 µm" in said[1]
    assert values(table, descriptor="local_thickness", **{"class": "myofibrils"}) == [None] * 4


def test_thin_classes_are_said(tmp_path):
    data = np.zeros(SHAPE, np.uint8)
    data[:, ::4] = 1  # sheets of 0.01 µm
    data[:5, 2::4] = 2
    volume = write_classes(tmp_path, data)
    with pytest.warns(UserWarning, match=r"100\.0% of mitochondria.*0\.05 µm.*step-um"):
        table = described(volume, classes="mitochondria", only="thickness")
    assert values(table, descriptor="mean_local_thickness") == [0.05 / 2]


def test_a_slice_is_a_volume_too(tmp_path):
    volume = write_classes(tmp_path, patches(7, (1, 13, 17)))
    table = described(volume)
    assert len(values(table, descriptor="two_point", axis="z")) == 2
    assert min(values(table, descriptor="interface_density")) > 0


def test_nothing_annotated_is_refused(tmp_path):
    volume = write_classes(tmp_path, np.full(SHAPE, 255, np.uint8))
    with pytest.raises(ValueError, match=r"'classes'.*0:11,0:13,0:17"):
        described(volume)


def test_values_that_are_no_class_are_refused(tmp_path):
    data = patches()
    data[0, 0, 0] = 9
    with pytest.raises(BlocksFailed, match=r"the value 9, which is no class \(1 voxels\)"):
        described(write_classes(tmp_path, data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "fractions,shape"}, r"two_point.*'fractions,shape'"),
        ({"only": []}, r"Received: \[\]"),
        ({"max_distance_um": 0.03}, r"0\.03 µm.*0\.04 µm along z"),
        ({"max_distance_um": float("nan")}, "nan"),
        ({"thickness_step_um": 0}, r"steps of 0 µm up to 0\.2"),
        ({"max_thickness_um": 0.01}, r"steps of 0\.05 µm up to 0\.01"),
        ({"z_blocks": 0}, "Received: 0"),
        ({"classes": "nucleus"}, r"2: 'myofibrils'.*'nucleus'"),
        ({"out": "table.csv"}, r"\.parquet.*table\.csv"),
        ({"box": "0:99,:,:"}, r"along z: '0:99'.*11"),
    ],
)
def test_odd_options_are_refused(tmp_path, options, message):
    volume = write_classes(tmp_path, patches())
    with pytest.raises(ValueError, match=message):
        described(volume, **options)


def test_the_plan_counts_what_is_read(tmp_path, small_blocks):
    volume = write_classes(tmp_path, patches())
    plans = descriptors(volume, max_distance_um=0.12, dry_run=True)
    assert isinstance(plans, list)
    assert [plan.stage for plan in plans] == ["descriptors", "thickness"]
    counts, thickness = plans
    assert counts.grid.pairs == ((0, 3), (0, 12), (0, 6))
    assert counts.read_bytes == sum(block.read.size for block in counts.grid)
    assert thickness.read_bytes == sum(block.read.size for block in thickness.grid)
    assert json.loads(json.dumps(counts.as_dict()))["largest_lag"] == [3, 12, 6]
    assert not Path(volume.url, "tables").exists()
