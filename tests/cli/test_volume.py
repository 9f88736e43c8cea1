"""The commands that make volumes: what they write, what they tell, and the number they end with."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cvdask
from cvdask.cli import main
from tests.cli.command_lines import SMALL, VOLUME_COMMANDS, Call, example_of, in_own_process
from tests.trees import tree_digest


def voxels(url: object, labels: str | None = None) -> np.ndarray:
    volume = cvdask.open(url)
    return (volume.label(labels) if labels else volume).read()


# ---------------------------------------------------------------------------------------------
# Round trips


def test_phantom_writes_what_the_function_writes(sample: Path, tmp_path: Path):
    cvdask.phantom(tmp_path / "cell.zarr", size_um=(1, 2, 2), voxel_nm=40, n_levels=2)
    assert tree_digest(sample / "cell.zarr") == tree_digest(tmp_path / "cell.zarr")


def test_export_and_ingest_return_the_same_voxels(call: Call, sample: Path, tmp_path: Path):
    out = tmp_path / "out.zarr"
    names = "mitochondria,myofibrils,z_discs,nucleus"
    code, text, error = call(
        f"ingest {sample}/raw.tif {out} --labels {sample}/truth.tif --label-name truth "
        f"--classes {names}"
    )
    assert (code, error) == (0, "")
    assert "ingest 0: 1 of 1 blocks" in text
    assert "0 faults" in text
    assert f"cvdask info {out}" in text
    np.testing.assert_array_equal(voxels(out), voxels(sample / "cell.zarr"))
    np.testing.assert_array_equal(voxels(out, "truth"), voxels(sample / "cell.zarr", "truth"))
    # The TIFF carries the voxel size, so it was not asked for.
    assert cvdask.open(out).voxel_size_nm == pytest.approx((40, 40, 40))
    assert cvdask.open(out).label("truth").classes == dict(enumerate(names.split(","), start=1))


def test_every_option_of_ingest_reaches_the_function(call: Call, tmp_path: Path):
    stack = np.arange(12 * 8 * 8, dtype=np.uint16).reshape(12, 8, 8)
    tifffile.imwrite(tmp_path / "raw.tif", stack, photometric="minisblack")
    marks = np.full((2, 8, 8), 7, np.uint8)
    tifffile.imwrite(tmp_path / "marks.tif", marks, photometric="minisblack")
    out = tmp_path / "out.zarr"
    code, text, _ = call(
        f"ingest {tmp_path}/raw.tif {out} --voxel-nm 30 10 10 --dtype uint8 --range -100 1000 "
        f"--bad-slices 3,7 --damaged hole --labels {tmp_path}/marks.tif --label-slices 0,10 "
        f"--classes 7=nucleus --n-levels 2 --no-check --json"
    )
    told = json.loads(text)
    assert (code, told["verification"], len(told["volume"]["levels"])) == (0, None, 2)
    assert any("3, 7" in warning for warning in told["warnings"])
    expected = np.floor((stack + 100.0) * (255 / 1100) + 0.5)
    expected[[3, 7]] = 0
    np.testing.assert_array_equal(voxels(out), expected)
    labels = np.full((12, 8, 8), 255)
    labels[[0, 10]] = 7
    np.testing.assert_array_equal(voxels(out, "annotations"), labels)
    assert cvdask.open(out).label("annotations").classes == {7: "nucleus"}


def test_labels_are_added_to_a_volume_that_exists(call: Call, sample: Path, tmp_path: Path):
    out = tmp_path / "out.zarr"
    assert call(f"ingest {sample}/raw.tif {out}")[0] == 0
    code, _, error = call(f"ingest {sample}/truth.tif {out} --as-labels truth")
    assert (code, error) == (0, "")
    np.testing.assert_array_equal(voxels(out, "truth"), voxels(sample / "cell.zarr", "truth"))


def test_pyramid_adds_levels(call: Call, tmp_path: Path):
    url = tmp_path / "cell.zarr"
    call(f"phantom {url} {SMALL}")
    assert len(cvdask.open(url).levels) == 1
    code, text, _ = call(f"pyramid {url} --n-levels 3")
    assert code == 0
    assert "pyramid level 1: 1 of 1 blocks" in text
    assert [level.shape for level in cvdask.open(url).levels] == [
        (25, 50, 50),
        (13, 25, 25),
        (7, 13, 13),
    ]
    assert "nothing to do" in call(f"pyramid {url} --n-levels 3")[1]


@pytest.mark.parametrize("name", ["slice.png", "slices", "box.tif"])
def test_export_writes_each_kind(call: Call, sample: Path, tmp_path: Path, name: str):
    box = "3,:,:" if name == "slice.png" else "3:5,:9,4:"
    line = f"export {sample}/cell.zarr {tmp_path}/{name} --box {box} --json"
    code, text, _ = call(line)
    assert (code, json.loads(text)["output"]) == (0, str(tmp_path / name))
    assert (tmp_path / name).exists()
    code, _, error = call(line)
    assert (code, name in error, "--overwrite" in error) == (2, True, True)
    assert call(f"{line} --overwrite")[0] == 0


def test_a_second_run_finds_nothing_to_do(call: Call, tmp_path: Path):
    url = tmp_path / "cell.zarr"
    line = f"phantom {url} {SMALL} --resume"
    assert call(line)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in url.rglob("*")}
    code, text, _ = call(line)
    assert (code, "complete before" in text) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in url.rglob("*")}
    assert call(f"{line} --seed 1")[0] == 2
    assert call(f"phantom {url} {SMALL} --overwrite --seed 1")[0] == 0
    assert cvdask.info(str(url))["provenance"]["options"]["seed"] == 1


@pytest.mark.parametrize(
    "line",
    [
        f"phantom {{new}} {SMALL}",
        "ingest {sample}/raw.tif {new} --labels {sample}/truth.tif",
        "pyramid {sample}/cell.zarr --n-levels 4",
        "verify {sample}/cell.zarr",
        "export {sample}/cell.zarr {new}.tif",
    ],
)
def test_dry_runs_print_plans_and_write_nothing(call: Call, sample, tmp_path, line: str):
    line = line.format(new=tmp_path / "new.zarr", sample=sample)
    before = tree_digest(sample)
    code, text, error = call(f"{line} --dry-run")
    assert (code, error) == (0, "")
    assert "plan:" in text
    assert "task_bytes" in text
    code, text, _ = call(f"{line} --dry-run --json")
    assert (code, json.loads(text)["dry_run"]) == (0, True)
    assert json.loads(text)["plans"][0]["n_blocks"] >= 1
    assert tree_digest(sample) == before
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# What the user is told


def test_json_names_what_was_written(call: Call, tmp_path: Path):
    code, text, error = call(f"phantom {tmp_path}/cell.zarr {SMALL} --json")
    told = json.loads(text)
    assert (code, error, told["ok"], told["command"]) == (0, "", True, "phantom")
    assert told["warnings"] == []
    assert told["volume"]["shape"] == [25, 50, 50]
    assert sorted(told["volume"]["labels"]) == ["truth", "truth_objects"]
    (summary,) = told["summaries"]
    assert (summary["stage"], summary["n_done"], summary["n_voxels"]) == ("phantom", 1, 62500)


def test_info_tells_what_is_there(call: Call, sample: Path):
    code, text, _ = call(f"info {sample}/cell.zarr")
    assert code == 0
    for expected in (
        "OME-Zarr 0.5, uint8, 1 × 2 × 2 µm",
        "25 × 50 × 50",
        "80 × 80 × 80",  # voxel size of level 1
        "1 mitochondria, 2 myofibrils, 3 z_discs, 4 nucleus",
        "made by cvdask 0.1.0 phantom",
        "seed: 0",
    ):
        assert expected in text
    assert "shard" in call(f"info {sample}/cell.zarr -v")[1]
    described = json.loads(call(f"info {sample}/cell.zarr --json")[1])["volume"]
    assert described == json.loads(json.dumps(cvdask.info(f"{sample}/cell.zarr")))


def test_info_tells_sources_and_bad_slices(call: Call, sample: Path, tmp_path: Path):
    folder = tmp_path / "slices"
    call(f"export {sample}/cell.zarr {folder}")
    (folder / "z000004.png").unlink()
    call(f"ingest {folder} {tmp_path}/out.zarr --voxel-nm 40 --damaged interpolate")
    text = call(f"info {tmp_path}/out.zarr")[1]
    assert f"from {folder} (folder) into 0" in text
    assert "missing slices: z = 4" in text
    assert "interpolate" in text


def test_verify_lists_faults_and_ends_with_1(call: Call, tmp_path: Path):
    url = tmp_path / "cell.zarr"
    call(f"phantom {url} {SMALL}")
    assert call(f"verify {url}")[:2] == (0, "read back: 3 shards of 3 levels, 0 faults\n")
    shard = url / "0/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (url / "labels/truth/0/c/0/0/0").unlink()
    code, text, _ = call(f"verify {url}")
    assert (code, "2 faults" in text) == (1, True)
    assert f"{url}/0/c/0/0/0: damaged" in text
    assert f"{url}/labels/truth/0/c/0/0/0: missing" in text
    code, text, _ = call(f"verify {url} --json")
    told = json.loads(text)
    assert (code, told["ok"], len(told["verification"]["faults"])) == (1, False, 2)


def test_failed_blocks_are_listed_with_1(call: Call, tmp_path: Path):
    """A page that cannot be decoded is found where it is read."""
    stack = np.random.default_rng(0).integers(0, 255, (6, 64, 64), np.uint8)
    path = tmp_path / "raw.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[3].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(data)
    line = f"ingest {path} {tmp_path}/out.zarr --voxel-nm 5"
    code, _, error = call(line)
    assert (code, "1 of 1 blocks" in error, "z = 3" in error) == (1, True, True)
    code, text, _ = call(f"{line} --json -v")
    told = json.loads(text)
    assert (code, told["ok"], told["exit_code"]) == (1, False, 1)
    assert told["error"]["failures"][0]["block"] == 0
    assert "z = 3" in told["error"]["failures"][0]["cause"]


def test_interrupted_then_run_again_gives_the_same_bytes(
    call: Call, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    line = f"phantom {tmp_path}/cell.zarr {SMALL} --n-levels 2"
    with monkeypatch.context() as patch:
        patch.setattr(
            "cvdask.volume.phantom.build_levels",
            lambda *_, **__: signal.raise_signal(signal.SIGINT),
        )
        code, _, error = call(line)
    assert (code, error) == (
        130,
        "interrupted; run the same command again, it goes on where it was\n",
    )
    assert call(f"info {tmp_path}/cell.zarr")[0] == 2  # not shown before it is whole
    code, text, _ = call(line)
    assert (code, "1 done before" in text) == (0, True)
    assert tree_digest(tmp_path / "cell.zarr") == tree_digest(sample / "cell.zarr")


def test_ended_as_by_a_batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Contexts are left as after control-C, so that jobs are cancelled and keys removed."""
    monkeypatch.setattr(
        "cvdask.volume.phantom.build_levels",
        lambda *_, **__: signal.raise_signal(signal.SIGTERM),
    )
    monkeypatch.setattr(sys, "argv", ["cvdask", *f"phantom {tmp_path}/c.zarr {SMALL}".split()])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("ingst", ["ingst", "cvdask --help"]),
        ("phantom", ["OUT.zarr", "cvdask phantom --help"]),
        ("phantom {new} --no-such", ["--no-such"]),
        ("phantom {new} --kind old", ["old", "healthy", "diabetic"]),
        ("phantom {new} --voxel-nm 5 5", ["5.0, 5.0", "z y x"]),
        ("phantom {new} --voxel-nm 0", ["0.0"]),
        ("phantom {new} --voxel-nm fine", ["--voxel-nm", "fine"]),
        ("phantom {new} --size-um 1 2", ["1.0, 2.0", "z y x"]),
        ("phantom {new} --workers 0", ["0"]),
        ("phantom {new} --workers 3 --client serial", ["--workers 3", "serial"]),
        ("phantom {new} --client nowhere", ["nowhere", "threads", "tcp://"]),
        ("phantom {new} --n-levels 99", ["99", "16"]),
        ("phantom {sample}/cell.zarr --size-um 1 2 2 --voxel-nm 20", ["--overwrite", "40", "20"]),
        ("phantom {sample}/raw.tif", ["raw.tif"]),
        ("ingest {sample}/none.tif {new}", ["none.tif"]),
        ("ingest {sample}/plain.tif {new}", ["--voxel-nm 5 5 5"]),
        ("ingest {sample}/raw.tif {new} --range 1 --dtype uint8", ["--range", "LOW HIGH", "1"]),
        ("ingest {sample}/raw.tif {new} --range 0 9", ["dtype", "9"]),
        ("ingest {sample}/raw.tif {new} --bad-slices 3,99 --damaged hole", ["24", "99"]),
        ("ingest {sample}/raw.tif {new} --bad-slices three", ["--bad-slices", "three"]),
        ("ingest {sample}/raw.tif {new} --classes a,b", ["labels"]),
        (
            "ingest {sample}/raw.tif {new} --labels {sample}/truth.tif --classes 1=a,1=b",
            ["--classes", "1=a,1=b"],
        ),
        (
            "ingest {sample}/raw.tif {new} --labels {sample}/truth.tif --classes 1=a,b",
            ["1=a,7=b", "1=a,b"],
        ),
        ("ingest {sample}/raw.tif {new} --channel 3", ["3"]),
        ("info {new}", ["new.zarr"]),
        ("verify {sample}/raw.tif", ["raw.tif"]),
        ("pyramid {sample}/cell.zarr --labels none", ["none"]),
        ("export {sample}/cell.zarr {new}.tif --box 0:9,0:9,0:99", ["x", "0:99", "50"]),
        ("export {sample}/cell.zarr {new}.png --box 0:9,:,:", ["0:9", "z"]),
        ("export {sample}/cell.zarr {new}.jpg", [".jpg", ".png"]),
        ("export {sample}/cell.zarr {new}.tif --level 7", ["7"]),
        ("export {sample}/cell.zarr {new}.tif --labels none", ["none", "truth"]),
    ],
)
def test_bad_input_ends_with_2_and_the_values(
    call: Call, sample: Path, tmp_path: Path, line: str, values: Sequence[str]
):
    if "plain.tif" in line:  # states no voxel size
        tifffile.imwrite(sample / "plain.tif", np.zeros((2, 8, 8), np.uint8))
    line = line.format(new=tmp_path / "new.zarr", sample=sample)
    code, out, error = call(line)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert [value for value in values if value not in error] == []
    code, out, _ = call(f"{line} --json")
    told = json.loads(out)
    assert (code, told["ok"], told["exit_code"]) == (2, False, 2)
    assert [value for value in values if value not in told["error"]["message"]] == []
    assert list(tmp_path.iterdir()) == []


def test_worker_processes_write_the_same_bytes(sample: Path, tmp_path: Path):
    line = f"phantom {tmp_path}/cell.zarr {SMALL} --n-levels 2 --client local --workers 1"
    done = in_own_process(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert tree_digest(tmp_path / "cell.zarr") == tree_digest(sample / "cell.zarr")


def test_examples_of_the_help_run_as_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for command in VOLUME_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        assert call(example)[0::2] == (0, "")
        if command == "phantom":  # what the example of ingest reads
            assert call("export cell.zarr raw.tif")[0] == 0
            assert call("export cell.zarr truth.tif --labels truth")[0] == 0
    assert {"cell.zarr", "sample.zarr", "middle.png"} <= {path.name for path in tmp_path.iterdir()}
