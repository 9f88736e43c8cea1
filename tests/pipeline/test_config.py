"""What a config means, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvdask.pipeline.config import read_config
from tests.pipeline.configs import CELLS, WHOLE, write_config

SAMPLE = '[[sample]]\nname = "a"\nvolume = "a.zarr"\n'


def faults(folder: Path, text: str) -> list[str]:
    """Read a config that is refused, and return the lines of the error, without the file."""
    with pytest.raises(ValueError, match="cannot be run") as refused:
        read_config(write_config(folder, text))
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def test_paths_are_taken_from_the_config(tmp_path: Path):
    text = """
[run]
out = "here"
store = "s3://bucket/cells"
[ingest]
damaged = "hole"
pattern = "*.tif"
[[sample]]
name = "a"
group = "control"
source = "../slices"
pattern = "*.png"
[[sample]]
name = "b"
volume = "https://host/b.zarr/"
[[sample]]
name = "c"
phantom = "diabetic"
[segment]
model = "/nets/unet.keras"
"""
    config = read_config(write_config(tmp_path, text))
    assert config.out == str(tmp_path / "here")
    a, b, c = config.samples
    assert (a.group, a.origin) == ("control", str(tmp_path.parent / "slices"))
    assert a.url == "s3://bucket/cells/samples/a.zarr"
    assert a.options == {"damaged": "hole", "pattern": "*.png"}
    assert (b.group, b.url) == ("b", "https://host/b.zarr")
    assert (c.origin, c.options) == ("diabetic", {"seed": 2})  # one that no other has
    assert config.stages["segment"]["model"] == "/nets/unet.keras"


def test_stages_come_in_the_order_in_which_they_are_taken(tmp_path: Path):
    text = SAMPLE + '[measure]\n[label]\nclass_ = "x"\n[evaluate]\n'
    config = read_config(write_config(tmp_path, text))
    assert list(config.stages) == ["ingest", "evaluate", "label", "measure"]


def test_seed_of_the_run_is_that_of_stages_without_one(tmp_path: Path):
    text = WHOLE.replace('client = "serial"', "seed = 7") + "[train-gan]\nseed = 3\n"
    config = read_config(write_config(tmp_path, text))
    assert (config.stages["compare"]["seed"], config.stages["train-gan"]["seed"]) == (7, 3)
    assert [sample.options["seed"] for sample in config.samples] == [7, 8]
    assert "seed" not in config.stages["measure"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SAMPLE + "[mesure]\n", ["line 4", "mesure", "measure"]),
        (SAMPLE + "[measure]\nmin_voxel = 3\n", ["line 5", "min_voxel", "min_voxels"]),
        (SAMPLE + '[measure]\nmin_voxels = "3"\n', ["line 5", "whole number", "'3'"]),
        (SAMPLE + "[measure]\nzzz = 3\n", ["line 5", "zzz", "connectivity"]),
        ("mesure = 1\n" + SAMPLE, ["line 1", "mesure"]),
        ("run = 1\n" + SAMPLE, ["line 1", "[run]"]),
        ('[sample]\nname = "a"\n', ["line 1", "[[sample]]"]),
        ("[run]\n", ["at least one"]),
        ('[[sample]]\nname = "a"\n', ["line 1", "source", "phantom", "none"]),
        (SAMPLE + 'phantom = "healthy"\n', ["line 4", "volume, phantom"]),
        ('[[sample]]\nname = "a/b"\nvolume = "x"\n', ["line 2", "a/b"]),
        ('[[sample]]\nvolume = "x"\n', ["line 1", "name"]),
        (SAMPLE + SAMPLE, ["line 5", "twice", "'a'"]),
        (SAMPLE + "voxel_nm = 5\n", ["line 4", "voxel_nm", "volume"]),
        (CELLS.replace('"healthy"', '"helthy"'), ["line 8", "helthy", "diabetic"]),
        (SAMPLE + "[density]\nnumerator = 1\n", ["line 4", "denominator"]),
        (SAMPLE + "[label]\n", ["line 4", "class_"]),
        (SAMPLE + '[label]\nclass_ = ["a", "b"]\nname = "c"\n', ["line 6", "name"]),
        (SAMPLE + "[segment]\n", ["line 4", "[train-unet]", "model"]),
        (SAMPLE + "[generate]\n", ["line 4", "[train-gan]", "model"]),
        (SAMPLE + "[order]\n", ["line 4", "[generate]"]),
        (SAMPLE + "[report]\n", ["line 4", "[compare]"]),
        (SAMPLE + "[measure]\n[compare]\n", ["line 5", "two"]),
        (CELLS + "[compare]\n", ["[measure]"]),
        (SAMPLE + '[measure]\nsamples = ["b"]\n', ["line 5", "'b'"]),
        (SAMPLE + '[run]\nout = "s3://bucket/x"\n', ["line 5", "s3://bucket/x"]),
        (SAMPLE + '[run]\nclient = "thread"\n', ["line 5", "thread"]),
        (SAMPLE + "[run]\nworkers = 0\n", ["line 5", "0"]),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_line(tmp_path: Path, text: str, told: list[str]):
    (fault,) = faults(tmp_path, text)
    assert [words for words in told if words not in fault] == []


def test_all_faults_are_told_at_once(tmp_path: Path):
    found = faults(tmp_path, '[run]\nout = 1\nclint = "x"\n' + SAMPLE + "[report]\n")
    assert [fault.split(":")[0] for fault in found] == ["line 2", "line 3", "line 7"]


def test_a_password_in_a_url_is_not_told(tmp_path: Path):
    text = '[[sample]]\nname = "a"\nvolume = "https://me:secret@host/a.zarr"\n'
    (fault,) = faults(tmp_path, text)
    assert "line 3" in fault
    assert "secret" not in fault
    text = '[[sample]]\nname = "a"\nphantom = "https://me:secret@host/a.zarr"\n'
    assert "secret" not in str(faults(tmp_path, text))


def test_what_is_no_toml_is_refused_with_its_line(tmp_path: Path):
    with pytest.raises(ValueError, match="line 2"):
        read_config(write_config(tmp_path, "[run]\nout = \n"))
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        read_config(tmp_path / "config.toml")


def test_a_config_that_is_absent(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"cvdask init .*absent\.toml"):
        read_config(tmp_path / "absent.toml")
