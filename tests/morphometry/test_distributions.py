"""Distributions: numbers against pandas, and a picture that can be read."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest

from cvdask.morphometry import distributions as distributions_module
from cvdask.morphometry.distributions import MEASURES, draw_distributions, summarize
from cvdask.morphometry.tables import Table, complete_parts, open_table
from cvdask.volume.parquet import write_table


def write_objects(folder, n: int, n_parts: int = 1) -> Table:
    """Write a table of objects of two classes, as parts."""
    generator = np.random.default_rng(0)
    columns = {
        "label": np.arange(n),
        "class": np.where(np.arange(n) % 3 == 0, "b", "a"),
        **{name: generator.lognormal(size=n) for name in MEASURES},
    }
    columns["flatness"][::2] = np.inf
    columns["elongation"][:] = np.nan
    table = pa.table(columns)
    if n_parts == 1:
        write_table(str(folder), "t.parquet", table)
    else:
        for part in range(n_parts):
            first, last = part * n // n_parts, (part + 1) * n // n_parts
            own = table.slice(first, last - first)
            write_table(str(folder), f"t.parquet/part-{part:05d}.parquet", own)
        complete_parts(str(folder), "t.parquet", {})
    return open_table(str(folder), "t.parquet")


@pytest.mark.parametrize("n_parts", [1, 3])
def test_counts_totals_and_medians(tmp_path, n_parts):
    table = write_objects(tmp_path, 50, n_parts)
    frame = table.to_pandas()
    found = summarize(table)
    assert list(found) == ["a", "b"]
    for name, rows in frame.groupby("class"):
        assert found[name]["n"] == len(rows)
        assert found[name]["total_volume_um3"] == pytest.approx(rows.volume_um3.sum())
        medians = found[name]["median"]
        assert medians["sphericity"] == rows.sphericity.median()
        assert medians["flatness"] == rows.flatness[np.isfinite(rows.flatness)].median()
        assert medians["elongation"] is None


def test_many_objects_are_thinned_evenly(tmp_path, monkeypatch):
    table = write_objects(tmp_path, 90, 3)
    exact = summarize(table)
    monkeypatch.setattr(distributions_module, "MOST_ROWS", 30)
    thinned = summarize(table)
    for name in ("a", "b"):
        assert thinned[name]["n"] == exact[name]["n"]
        assert thinned[name]["total_volume_um3"] == exact[name]["total_volume_um3"]
    assert thinned["b"]["median"]["sphericity"] == table.to_pandas().sphericity[::3].median()


def test_no_objects(tmp_path):
    table = write_objects(tmp_path, 0)
    assert summarize(table) == {}
    draw_distributions(table, "t.png")
    assert matplotlib.image.imread(tmp_path / "t.png").ndim == 3


@pytest.mark.parametrize("n", [1, 2, 200])
def test_the_picture(tmp_path, n):
    table = write_objects(tmp_path, n)
    draw_distributions(table, "t.png")
    first = matplotlib.image.imread(tmp_path / "t.png")
    assert first.shape[0] > 500
    assert (first.min(), first.max()) != (1, 1)
    if n == 200:
        draw_distributions(write_objects(tmp_path / "other", 3), "t.png")
        assert not np.array_equal(first, matplotlib.image.imread(tmp_path / "other/t.png"))
    assert sorted(path.name for path in tmp_path.glob("t*")) == ["t.parquet", "t.png"]
