"""Is each measure summed up as NumPy would, whatever the batches?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cvdask
from cvdask.comparison.samples import Sample
from cvdask.comparison.summaries import BORDER_SHARE, Reading, summarise
from cvdask.volume.store import open_volume
from tests.comparison.cells import CLASSES, objects, write_cell

EXTENT_UM = (1.0, 0.4, 0.4)


def reading(url: Path, measures: tuple[str, ...] = ("volume_um3",), **options: Any) -> Reading:
    sample = Sample(url.stem, "g", open_volume(url).label("classes"))
    return Reading((sample,), measures, **options)


def summary(url: Path, *measures: str, **options: Any) -> dict:
    described = reading(url, measures or ("volume_um3",), **options)
    return summarise(described, described.samples[0])


@pytest.mark.parametrize("parts", [1, 4])
def test_means_are_those_of_numpy_in_any_parts(tmp_path: Path, parts: int):
    columns = objects(np.random.default_rng(0), 60)
    write_cell(tmp_path / "cell.zarr", columns, parts=parts)
    found = summary(tmp_path / "cell.zarr", "volume_um3", "sphericity", z_blocks=5)
    for measure in ("volume_um3", "sphericity"):
        one, values = found["mitochondria", measure], columns[measure]
        assert (one.n, one.volume) == (60, "cell")
        assert one.mean == pytest.approx(values.mean())
        assert one.sd == pytest.approx(values.std(ddof=1))
        assert one.values.tolist() == values.tolist()
        block = np.minimum(((columns["centroid_z_um"] + 0.05) * 5).astype(int), 4)
        assert one.blocks.tolist() == block.tolist()
        expected = [values[block == b].mean() for b in range(5)]
        assert one.block_means == pytest.approx(expected)


def test_values_that_are_none_are_counted_and_left_out(tmp_path: Path):
    columns = objects(np.random.default_rng(0), 20)
    columns["flatness"][:3] = np.inf
    columns["flatness"][3] = np.nan
    flatness = pa.array(columns["flatness"]).to_pylist()
    flatness[4] = None
    write_cell(tmp_path / "cell.zarr", {**columns, "flatness": flatness})
    one = summary(tmp_path / "cell.zarr", "flatness")["mitochondria", "flatness"]
    assert (one.n, one.n_infinite, one.n_missing) == (15, 3, 2)
    assert one.mean == pytest.approx(columns["flatness"][5:].mean())


def test_a_measure_without_any_value_has_no_mean(tmp_path: Path):
    columns = objects(np.random.default_rng(0), 6)
    write_cell(tmp_path / "cell.zarr", {**columns, "flatness": np.full(6, np.nan)})
    one = summary(tmp_path / "cell.zarr", "flatness")["mitochondria", "flatness"]
    assert (one.n, one.n_missing) == (0, 6)
    assert math.isnan(one.mean)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_of_many_values_every_second_or_fourth_is_kept(tmp_path: Path, parts: int):
    columns = objects(np.random.default_rng(0), 100)
    write_cell(tmp_path / "cell.zarr", columns, parts=parts)
    one = summary(tmp_path / "cell.zarr", kept=30)["mitochondria", "volume_um3"]
    assert one.n == 100
    assert one.values.tolist() == columns["volume_um3"][::4].tolist()
    assert one.mean == pytest.approx(columns["volume_um3"].mean())


def test_a_class_as_a_whole(tmp_path: Path):
    columns = objects(np.random.default_rng(0), 30)
    write_cell(tmp_path / "cell.zarr", columns)
    found = summary(tmp_path / "cell.zarr", z_blocks=2)
    size, volumes = math.prod(EXTENT_UM), columns["volume_um3"]
    upper = columns["centroid_z_um"] < 0.45
    density = found["mitochondria", "objects_per_um3"]
    assert density.mean == pytest.approx(30 / size)
    assert density.block_means == pytest.approx([upper.sum() / size * 2, (~upper).sum() / size * 2])
    fraction = found["mitochondria", "volume_fraction"]
    assert fraction.mean == pytest.approx(volumes.sum() / size)
    weighted = found["mitochondria", "weighted_volume_um3"]
    assert weighted.mean == pytest.approx((volumes**2).sum() / volumes.sum())
    border = found["mitochondria", BORDER_SHARE]
    assert border.mean == pytest.approx(columns["touches_border"].mean())


def test_objects_at_the_border_can_be_left_out(tmp_path: Path):
    columns = objects(np.random.default_rng(1), 40)
    write_cell(tmp_path / "cell.zarr", columns)
    inside = ~columns["touches_border"]
    assert 0 < inside.sum() < 40
    one = summary(tmp_path / "cell.zarr", whole_objects=True)["mitochondria", "volume_um3"]
    assert one.n == inside.sum()
    assert one.mean == pytest.approx(columns["volume_um3"][inside].mean())
    del columns["touches_border"]
    write_cell(tmp_path / "old.zarr", columns)
    with pytest.raises(ValueError, match="touches_border"):
        summary(tmp_path / "old.zarr", whole_objects=True)


def test_only_some_classes(tmp_path: Path):
    rng = np.random.default_rng(0)
    parts = [objects(rng, 10), objects(rng, 10, name="myofibrils")]
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    write_cell(tmp_path / "cell.zarr", columns)
    assert {name for name, _ in summary(tmp_path / "cell.zarr")} == set(CLASSES.values())
    found = summary(tmp_path / "cell.zarr", classes=("myofibrils",))
    assert {name for name, _ in found} == {"myofibrils"}
    assert found["myofibrils", "volume_um3"].mean == pytest.approx(parts[1]["volume_um3"].mean())


def test_a_column_of_text_is_no_measure(tmp_path: Path):
    columns = objects(np.random.default_rng(0), 8)
    write_cell(tmp_path / "cell.zarr", {**columns, "note": ["x"] * 8})
    with pytest.raises(ValueError, match=r"note holds string"):
        summary(tmp_path / "cell.zarr", "note")
    with pytest.raises(ValueError, match=r"no nothing.*sphericity"):
        summary(tmp_path / "cell.zarr", "nothing")


def test_density_is_summed_over_its_places(tmp_path: Path):
    data = np.random.default_rng(0).integers(0, 3, (10, 8, 8)).astype(np.uint8)
    write_cell(tmp_path / "cell.zarr", objects(np.random.default_rng(0), 8), data=data)
    density = cvdask.density(
        str(tmp_path / "cell.zarr"),
        numerator="mitochondria",
        denominator="myofibrils",
        kernel_um=0.2,
        stride_um=0.1,
    )
    values = density.read().astype(float)
    one = summary(tmp_path / "cell.zarr", z_blocks=3)["mitochondria / myofibrils", "density"]
    finite = np.isfinite(values)
    assert one.n == finite.sum()
    assert one.n_missing == (~finite).sum()
    assert one.mean == pytest.approx(values[finite].mean())
    slices = np.arange(len(values)) * 3 // len(values)
    expected = [np.nanmean(values[slices == block]) for block in range(3)]
    assert one.block_means == pytest.approx(expected)


def test_descriptors_that_are_one_number(tmp_path: Path):
    write_cell(tmp_path / "cell.zarr", objects(np.random.default_rng(0), 8))
    rows = [
        ("class_fraction", "mitochondria", None, None, 0.3, "1"),
        ("two_point", "mitochondria", None, 0.1, 0.2, "1"),
        ("interface_density", "mitochondria", "myofibrils", None, 1.5, "1/µm"),
        ("mean_local_thickness", "mitochondria", None, None, 0.4, "µm"),
        ("mean_local_thickness", "myofibrils", None, None, None, "µm"),
    ]
    names = ("descriptor", "class", "other", "distance_um", "value", "unit")
    table = pa.table({name: [row[k] for row in rows] for k, name in enumerate(names)})
    pq.write_table(table, tmp_path / "cell.zarr" / "tables" / "descriptors.parquet")
    found = summary(tmp_path / "cell.zarr")
    one = found["mitochondria", "interface_density with myofibrils_per_um"]
    assert (one.mean, one.of_objects) == (1.5, False)
    assert found["mitochondria", "mean_local_thickness_um"].mean == 0.4
    assert not {"class_fraction", "two_point"} & {measure for _, measure in found}
    assert ("myofibrils", "mean_local_thickness_um") not in found


def test_a_sample_knows_where_it_begins(tmp_path: Path):
    write_cell(tmp_path / "cell.zarr", objects(np.random.default_rng(0), 8))
    (sample,) = reading(tmp_path / "cell.zarr").samples
    # Centroids are those of voxel centres: the first slice begins half a voxel before its own.
    assert sample.start_um == pytest.approx(-0.05)
    assert sample.extent_um == pytest.approx(EXTENT_UM)
