"""Does the stage tell apart what differs, and nothing else; and is what it writes whole?"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest

import cvdask
from cvdask.comparison.compare import Comparison, main_findings, open_comparison
from tests.comparison.cells import objects, write_cell, write_cells
from tests.trees import tree_digest


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Five control and five diabetic samples, and five more controls."""
    folder = tmp_path_factory.mktemp("cells")
    return {
        "control": write_cells(folder, "control", 5, seed=1, between=0.2),
        "diabetic": write_cells(folder, "diabetic", 5, seed=12, between=0.2, shift=3.0),
        "again": write_cells(folder, "again", 5, seed=3, between=0.2),
    }


def compare(*inputs: str, **options: Any) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        done = cvdask.compare(*inputs, **{"figures": False, **options})
    assert isinstance(done, Comparison)
    return done


def groups(cells: dict[str, list[str]], *names: str) -> dict[str, list[str]]:
    return {name: cells[name] for name in names}


def test_groups_that_differ_are_told_apart_and_others_not(tmp_path: Path, cells: dict):
    apart = compare(groups=groups(cells, "control", "diabetic"), out=str(tmp_path / "apart"))
    found = {(row["class"], row["measure"]) for row in main_findings(apart.summary)}
    assert {("mitochondria", "volume_um3"), ("mitochondria", "sphericity")} <= found
    assert not any(name == "myofibrils" for name, _ in found)
    alike = compare(groups=groups(cells, "control", "again"), out=str(tmp_path / "alike"))
    assert main_findings(alike.summary) == []


def test_what_is_written(tmp_path: Path, cells: dict):
    done = compare(groups=groups(cells, "control", "diabetic"), out=str(tmp_path / "out"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {f"{name}.{kind}" for name in ("statistics", "volumes") for kind in ("csv", "parquet")}
    assert written == {"summary.json", *tables}
    for name, table in (("statistics", done.statistics()), ("volumes", done.volumes())):
        csv = pyarrow.csv.read_csv(tmp_path / "out" / f"{name}.csv")
        assert csv.column_names == table.column_names
        assert csv.num_rows == table.num_rows > 20
    tests = done.statistics().to_pylist()
    assert {row["test"] for row in tests if row["naive"]} == {
        "anova",
        "levene",
        "ks",
        "wasserstein",
    }
    main = [row for row in tests if row["main"]]
    assert len({(row["class"], row["measure"]) for row in main}) == len(main) == 22
    assert [row["p_holm"] for row in main] == [row["p_holm"] for row in done.summary["main"]]


def test_summaries_as_named_arrays(tmp_path: Path, cells: dict):
    done = compare(groups=groups(cells, "control", "diabetic"), out=str(tmp_path / "out"))
    arrays = done.to_xarray()
    assert dict(arrays.sizes) == {"volume": 10, "class": 2, "measure": 12}
    one = arrays.sel({"volume": "control3", "class": "mitochondria", "measure": "sphericity"})
    rng = np.random.default_rng([1, 3])
    expected = objects(rng, 40, between=0.2)["sphericity"]
    assert float(one["mean"]) == pytest.approx(expected.mean())
    assert int(one["n"]) == 40
    means = arrays["mean"].groupby("group").mean()
    assert means.sel({"class": "mitochondria", "measure": "volume_um3"}).argmax("group") == 1


def test_the_same_bytes_wherever_it_runs(tmp_path: Path, cells: dict, client: Any):
    wanted = {"groups": groups(cells, "control", "diabetic"), "measures": "sphericity"}
    compare(**wanted, out=str(tmp_path / "serial"))
    compare(**wanted, out=str(tmp_path / "other"), client=client)
    assert tree_digest(tmp_path / "serial") == tree_digest(tmp_path / "other")


def test_what_is_complete_is_not_done_again(tmp_path: Path, cells: dict):
    out = tmp_path / "out"
    wanted = {"groups": groups(cells, "control", "again"), "measures": "sphericity"}
    done = compare(**wanted, out=str(out))
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert compare(**wanted, out=str(out)).summary == done.summary
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(FileExistsError, match=r"margin: 0\.1 → 0\.2"):
        compare(**wanted, out=str(out), margin=0.2)
    compare(**wanted, out=str(out), margin=0.2, overwrite=True)
    assert open_comparison(str(out)).summary["provenance"]["options"]["margin"] == 0.2


def test_a_table_that_was_measured_again_is_another_input(tmp_path: Path):
    urls = write_cells(tmp_path, "cell", 2)
    compare(*urls, out=str(tmp_path / "out"), measures="sphericity")
    write_cell(tmp_path / "new.zarr", objects(np.random.default_rng(9), 40))
    table = Path(urls[0]) / "tables" / "objects.parquet"
    table.write_bytes((tmp_path / "new.zarr" / "tables" / "objects.parquet").read_bytes())
    with pytest.raises(FileExistsError, match="objects"):
        compare(*urls, out=str(tmp_path / "out"), measures="sphericity")


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    urls = write_cells(tmp_path, "cell", 2)
    out = str(tmp_path / "out")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cvdask.comparison.compare._write_table", fail)
        with pytest.raises(KeyboardInterrupt):
            compare(*urls, out=out, measures="sphericity")
    with pytest.raises(ValueError, match=r"out is not complete"):
        open_comparison(out)
    compare(*urls, out=out, measures="sphericity")
    assert open_comparison(out).summary["state"] == "complete"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    urls = write_cells(tmp_path, "cell", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"mine exists"):
        compare(*urls, out=str(tmp_path / "mine"), measures="sphericity")
    compare(*urls, out=str(tmp_path / "mine"), measures="sphericity", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="is no comparison"):
        open_comparison(urls[0])


def test_a_dry_run_writes_nothing(tmp_path: Path):
    urls = write_cells(tmp_path, "cell", 3)
    (plan,) = cvdask.compare(*urls, out=str(tmp_path / "out"), dry_run=True)
    assert len(plan.grid) == 3
    assert plan.notes["groups"] == {"cell0": 1, "cell1": 1, "cell2": 1}
    assert not (tmp_path / "out").exists()


def test_notices_say_what_to_be_careful_of(tmp_path: Path):
    rng = np.random.default_rng(0)
    columns = objects(rng, 40)
    columns["flatness"][0] = np.inf
    columns["sparseness"][1] = np.nan
    columns["sphericity"] = np.full(40, 0.5)
    columns["touches_border"][:30] = True
    columns["euler_number"] = np.ones(40)
    write_cell(tmp_path / "a.zarr", columns)
    write_cell(tmp_path / "b.zarr", {key: values[:4] for key, values in columns.items()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        done = cvdask.compare(
            str(tmp_path / "a.zarr"),
            str(tmp_path / "b.zarr"),
            out=str(tmp_path / "out"),
            measures="volume_um3,flatness,sparseness,sphericity",
            figures=False,
        )
    told = [str(warning.message) for warning in caught]
    assert told == done.summary["notices"]
    text = "\n".join(told)
    for expected in (
        "a is a single volume",
        "b is a single volume",
        "mitochondria has fewer than 5 objects with a value in b",
        "infinite values are left out: flatness",
        "no number are left out: sparseness",
        "100% of mitochondria",
    ):
        assert expected in text
    row = next(r for r in done.summary["main"] if r["measure"] == "volume_um3")
    assert row["p"] is None
    assert "b has no volume with at least 5 objects" in row["note"]


def test_constant_measures_are_told(tmp_path: Path):
    columns = objects(np.random.default_rng(0), 40)
    columns["sphericity"] = np.full(40, 0.5)
    for name in "ab":
        write_cell(tmp_path / f"{name}.zarr", columns)
    urls = [str(tmp_path / f"{name}.zarr") for name in "ab"]
    done = compare(*urls, out=str(tmp_path / "out"), measures="sphericity")
    assert any("sphericity of mitochondria" in notice for notice in done.summary["notices"])


def test_three_groups(tmp_path: Path, cells: dict):
    done = compare(groups=cells, out=str(tmp_path / "out"), measures="sphericity")
    comparisons = {row["comparison"] for row in done.summary["main"]}
    assert comparisons == {
        "all groups", "control – diabetic", "control – again", "diabetic – again",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z_blocks": 1}, "1"),
        ({"margin": 0.0}, r"positive.*0\.0"),
        ({"margins": {"sphericitee": 0.1}}, r"sphericity.*sphericitee"),
        ({"measures": "roundness"}, r"'roundness' is no column.*sphericity"),
        ({"measures": "class"}, r"'class' holds"),
        ({"measures": " , "}, "at least one name"),
        ({"classes": "axons"}, r"mitochondria, myofibrils.*axons"),
        ({"labels": "truth"}, r"'truth'"),
    ],
)
def test_bad_options_are_refused_before_work(tmp_path: Path, options: dict, message: str):
    urls = write_cells(tmp_path, "cell", 2)
    with pytest.raises(ValueError, match=message):
        compare(*urls, out=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_scores_that_are_not_there_are_refused_before_work(tmp_path: Path):
    urls = write_cells(tmp_path, "cell", 2)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        compare(*urls, out=str(tmp_path / "out"), scores=[str(tmp_path / "none.json")])
    assert not (tmp_path / "out").exists()


def test_margins_of_single_measures(tmp_path: Path, cells: dict):
    done = compare(
        groups=groups(cells, "control", "again"),
        out=str(tmp_path / "out"),
        measures="sphericity,elongation",
        margin=0.5,
        margins={"sphericity": 0.2},
    )
    rows = done.statistics().to_pylist()
    margins = {
        row["measure"]: row["margin"]
        for row in rows
        if row["test"] == "equivalence" and row["class"] == "mitochondria"
    }
    assert margins["sphericity"] == 0.2
    assert margins["elongation"] == pytest.approx(1.0, abs=0.2)  # half of about 2


def test_the_summary_is_plain_json(tmp_path: Path, cells: dict):
    wanted = groups(cells, "control", "diabetic")
    compare(groups=wanted, out=str(tmp_path / "out"), measures="sphericity")
    text = (tmp_path / "out" / "summary.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(text, parse_constant=refuse)
    assert found["state"] == "complete"
    assert str(tmp_path) not in text
