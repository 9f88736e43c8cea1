"""The whole way without networks: planned, run, passed by, made anew, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cvdask
from cvdask.pipeline.run import PlannedStep, Run
from tests.pipeline.configs import ABOUT_THE_RUN, CELLS, WHOLE, write_config
from tests.trees import tree_digest

# What stages tell of cells this small is of no concern here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

AFTER_INGEST = ("evaluate", "label", "measure", "density", "compare", "report")


def planned(config: Path, **options: Any) -> list[PlannedStep]:
    found = cvdask.run(config, dry_run=True, **options)
    assert isinstance(found, list)
    return found


def completed(config: Path, **options: Any) -> Run:
    found = cvdask.run(config, **options)
    assert isinstance(found, Run)
    return found


def states(steps: Any) -> dict[str, set[str]]:
    """Return the states of the steps of each stage."""
    found: dict[str, set[str]] = {}
    for step in steps:
        one = step if isinstance(step, dict) else step.as_dict()
        found.setdefault(one["stage"], set()).add(one["state"])
    return found


def written(folder: Path) -> dict[str, str]:
    """Return digests of all files but those about the run."""
    digests = tree_digest(folder)
    return {
        name: digest for name, digest in digests.items() if Path(name).name not in ABOUT_THE_RUN
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config that was run."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.warns(UserWarning, match="single volume"):
        completed(write_config(folder))
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_a_run_makes_everything_and_tells_of_it(done: Path):
    out = done / "out"
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "complete"
    assert [f"{s['stage']} {s['subject']}".strip() for s in record["steps"]] == [
        "ingest control", "ingest diabetic", "evaluate control", "evaluate diabetic",
        "label control", "label diabetic", "measure control", "measure diabetic",
        "density control", "density diabetic", "compare", "report",
    ]  # fmt: skip
    assert {step["state"] for step in record["steps"]} == {"done"}
    for step in record["steps"]:
        assert step["seconds"] > 0
        assert step["peak_memory_bytes"] > 2**20
    assert record["inputs"]["control"].startswith("sha256:")
    assert record["figures"]["f1"]["control"]["mitochondria"] == 1.0
    control = cvdask.open(out / "samples/control.zarr")
    assert {"truth", "mitochondria", "myofibrils"} <= set(control.label_names())
    assert (control.url, (out / "comparison/report.html").exists()) == (
        str(out / "samples/control.zarr"), True,
    )  # fmt: skip
    log = (out / "run.log").read_text()
    assert "[12/12] report" in log
    assert log.splitlines()[-1].endswith("complete")


def test_comparison_has_the_groups_and_the_scores(done: Path):
    summary = json.loads((done / "out/comparison/summary.json").read_text())
    assert list(summary["groups"]) == ["control", "diabetic"]
    scores = [one for one in summary["provenance"]["inputs"] if "scores" in one]
    assert [one["scores"] for one in scores] == ["control.json", "diabetic.json"]


def test_a_second_run_changes_nothing(done: Path):
    before = written(done)
    lines: list[str] = []
    again = completed(done / "config.toml", callback=lines.append)
    assert {step["state"] for step in again.steps} == {"complete before"}
    assert written(done) == before
    assert again.report == str(done / "out/comparison/report.html")
    assert lines[0] == "[1/12] ingest control"
    plan = planned(done / "config.toml")
    assert {step.state for step in plan} == {"complete"}
    assert all(step.plans == () for step in plan)


def test_overwrite_keeps_what_is_complete_for_the_same(done: Path):
    before = written(done)
    again = completed(done / "config.toml", overwrite=True)
    assert {step["state"] for step in again.steps} == {"complete before"}
    assert written(done) == before


def test_another_option_is_refused_before_any_work(copy: Path):
    before = written(copy)
    config = write_config(copy, WHOLE.replace("min_voxels = 5", "min_voxels = 7"))
    with pytest.raises(FileExistsError) as refused:
        cvdask.run(config)
    told = str(refused.value)
    assert [
        w for w in ("measure control", "min_voxels: 5 → 7", "--overwrite") if w not in told
    ] == []
    assert written(copy) == {**before, "config.toml": written(copy)["config.toml"]}


def test_overwrite_makes_anew_what_follows_from_it(copy: Path):
    config = write_config(copy, WHOLE.replace("min_voxels = 5", "min_voxels = 7"))
    expected = {
        "ingest": {"complete"}, "evaluate": {"complete"}, "label": {"complete"},
        "measure": {"to do anew"}, "density": {"complete"}, "compare": {"waits"},
        "report": {"waits"},
    }  # fmt: skip
    assert states(planned(config, overwrite=True)) == expected
    again = completed(config, overwrite=True)
    assert states(again.steps) == {
        "ingest": {"complete before"}, "evaluate": {"complete before"},
        "label": {"complete before"}, "measure": {"done"}, "density": {"complete before"},
        "compare": {"done"}, "report": {"done"},
    }  # fmt: skip


def test_another_sample_makes_all_of_its_stages_anew(copy: Path):
    config = write_config(copy, WHOLE.replace('"diabetic"\nsize', '"healthy"\nsize'))
    plan = states(planned(config, overwrite=True))
    assert plan["ingest"] == {"complete", "to do anew"}
    assert plan["measure"] == {"complete", "waits"}


def test_a_plan_writes_nothing_and_says_what_waits(tmp_path: Path):
    config = write_config(tmp_path)
    plan = planned(config)
    assert states(plan) == {
        "ingest": {"to do"},
        **{stage: {"waits"} for stage in AFTER_INGEST},
    }
    text = str(plan[0])
    assert [w for w in ("phantom", "1 blocks", "control.zarr", "memory") if w not in text] == []
    assert plan[4].waits_for == ("ingest control",)
    assert plan[-2].waits_for[:2] == ("measure control", "density control")
    assert json.loads(json.dumps([step.as_dict() for step in plan]))
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_from_and_until(tmp_path: Path):
    config = write_config(tmp_path)
    first = completed(config, until="label")
    assert list(states(first.steps)) == ["ingest", "evaluate", "label"]
    assert first.report is None
    second = completed(config, from_="measure", until="measure", client="threads")
    assert states(second.steps) == {"measure": {"done"}}


def test_from_needs_what_earlier_stages_make(tmp_path: Path):
    config = write_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"label image 'truth' of .*control\.zarr"):
        cvdask.run(config, from_="measure")
    assert not (tmp_path / "out/samples").exists()
    assert planned(config, from_="measure")[0].missing


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"from_": "segment"}, "segment"),
        ({"until": "mesure"}, "mesure"),
        ({"from_": "measure", "until": "label"}, "measure"),
        ({"client": "thread"}, "thread"),
        ({"workers": 0}, "0"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        cvdask.run(write_config(tmp_path), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_files_that_are_absent_are_told_before_any_work(tmp_path: Path):
    text = CELLS + '[[sample]]\nname = "c"\nsource = "absent.tif"\nvoxel_nm = 5\n'
    config = write_config(tmp_path, text)
    with pytest.raises(FileNotFoundError, match=r"absent\.tif"):
        cvdask.run(config)
    plan = planned(config)
    assert plan[-1].missing == (f"the files {tmp_path / 'absent.tif'}",)
    assert not (tmp_path / "out/samples").exists()


def test_what_stages_refuse_is_told_of_all_of_them_before_any_work(copy: Path):
    text = WHOLE.replace("min_voxels = 5", "min_voxels = 0").replace(
        "stride_um = 0.1", "stride_um = 0"
    )
    before = written(copy)
    with pytest.raises(ValueError, match="steps cannot be taken") as refused:
        cvdask.run(write_config(copy, text))
    told = str(refused.value)
    assert [
        w for w in ("measure control", "density diabetic", "min_voxels=0") if w not in told
    ] == []
    assert written(copy) == {**before, "config.toml": written(copy)["config.toml"]}


def test_a_stage_that_fails_is_told_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, dry_run: bool, **__: Any) -> list[Any]:
        if dry_run:
            return []
        raise ValueError("no such luck")

    monkeypatch.setattr(cvdask, "measure", fail)
    with pytest.raises(ValueError, match="measure control: no such luck"):
        cvdask.run(write_config(tmp_path))
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["state"] == "failed"
    assert record["steps"][-1]["error"] == "no such luck"
    assert (tmp_path / "out/run.log").read_text().splitlines()[-1].endswith("failed")
    monkeypatch.undo()
    assert {"measure"} <= set(states(completed(tmp_path / "config.toml").steps))


def test_notes_are_written_down_and_shown(tmp_path: Path):
    config = write_config(tmp_path, CELLS + '[label]\nlabels = "truth"\nclass_ = "nucleus"\n')
    with pytest.warns(UserWarning, match="nucleus"):
        done = completed(config)
    (note,) = done.steps[2]["warnings"]
    assert "nucleus" in note
    assert note in (tmp_path / "out/run.log").read_text()


def test_a_volume_that_is_there_is_measured_inside(done: Path, tmp_path: Path):
    cell = Path(shutil.copytree(done / "out/samples/control.zarr", tmp_path / "cell.zarr"))
    shutil.rmtree(cell / "tables")
    text = '[[sample]]\nname = "own"\nvolume = "cell.zarr"\n[measure]\nlabels = "truth"\n'
    found = completed(write_config(tmp_path, text))
    assert states(found.steps) == {"measure": {"done"}}
    assert (cell / "tables/objects.parquet").exists()
    assert found.figures["objects"]["own"] >= 1
    assert (tmp_path / "run.json").exists()  # without out, beside the config


def test_files_are_ingested_with_their_labels(done: Path, tmp_path: Path):
    cell = done / "out/samples/control.zarr"
    cvdask.export(str(cell), tmp_path / "raw.tif")
    cvdask.export(str(cell), tmp_path / "marks.tif", labels="truth")
    text = """
[ingest]
n_levels = 2
[[sample]]
name = "cell"
source = "raw.tif"
voxel_nm = 20
labels = "marks.tif"
label_name = "truth"
classes = {1 = "mitochondria", 2 = "myofibrils", 3 = "z_discs", 4 = "nucleus"}
[evaluate]
prediction = "truth"
truth = "truth"
"""
    found = completed(write_config(tmp_path, text))
    assert found.figures["f1"]["cell"]["myofibrils"] == 1.0
    assert len(cvdask.open(tmp_path / "samples/cell.zarr").levels) == 2


def test_the_same_everywhere(done: Path, tmp_path: Path, distributed_client: Any):
    address = distributed_client.scheduler.address
    config = write_config(tmp_path)
    completed(config, client=address, until="label")
    expected = written(done)
    assert [n for n, digest in written(tmp_path).items() if expected[n] != digest] == []


def test_figures_of_generated_volumes(tmp_path: Path):
    from cvdask.pipeline.config import read_config
    from cvdask.pipeline.outcome import figures_line, main_figures

    text = '[[sample]]\nname = "a"\nvolume = "a.zarr"\n[generate]\nmodel = "g.keras"\n[distance]\n'
    config = read_config(write_config(tmp_path, text))
    assert main_figures(config) == {}
    told = {"ratio": 3.25, "neighbour_distance": {"generated": 0.3, "real": 0.2, "ratio": 1.5}}
    (tmp_path / "distances").mkdir()
    (tmp_path / "distances/a.json").write_text(json.dumps(told))
    figures = main_figures(config)
    assert figures == {"distance": {"a": 3.25}, "j1": {"a": 1.5}}
    line = figures_line(figures)
    assert [w for w in ("3.2", "floor", "J(1)", "1.50") if w not in line] == []


def test_init_writes_configs_that_hold(tmp_path: Path):
    from cvdask.pipeline.config import read_config

    for paper in (False, True):
        path = cvdask.init(tmp_path / f"{paper}.toml", paper=paper)
        config = read_config(path)
        assert {"ingest", "train-unet", "train-gan", "order", "report"} <= set(config.stages)
        assert {"to do", "waits"} >= {step.state for step in planned(path)}


def test_options_in_comments_of_the_first_config_are_known(tmp_path: Path):
    """What a reader uncomments must be right; samples in comments are whole tables."""
    import re

    from cvdask.pipeline.config import read_config

    text = (cvdask.init(tmp_path / "a.toml")).read_text()
    whole = re.sub(r"^# ((\w+ = |\[\[)[^#\n]*)", r"\1", text, flags=re.MULTILINE)
    assert whole.count("[[sample]]") == 3
    config = read_config(write_config(tmp_path, whole))
    assert [sample.kind for sample in config.samples] == ["source", "volume", "phantom"]


def test_init_never_overwrites_by_itself(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.toml"):
        cvdask.init(path)
    assert path.read_text() == "mine"
    cvdask.init(path, overwrite=True)
    assert path.read_text() != "mine"
    for bad in ("config.yaml", "s3://bucket/config.toml"):
        with pytest.raises(ValueError, match=bad):
            cvdask.init(bad)


def test_lists_of_stages_agree():
    from cvdask.pipeline.schema import STAGES
    from cvdask.pipeline.steps import _STEPS

    assert set(_STEPS) == set(STAGES)
