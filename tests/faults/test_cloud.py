"""Does the whole way work on S3, byte for byte as on a disk, and is no credential left anywhere?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cvdask import cli
from tests.faults.buckets import PASSWORD, assert_no_secret, bucket, everything, server
from tests.trees import tree_digest

__all__ = ["bucket", "server"]  # fixtures

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]

CONFIG = """
[run]
out = "{out}"
store = "{store}"
client = "serial"

[[sample]]
name = "a"
source = "a.tif"

[[sample]]
name = "b"
source = "b.tif"

[ingest]
voxel_nm = [40, 20, 20]
n_levels = 2

[segment]
model = "unet.keras"

[label]
class_ = "mitochondria"

[measure]
csv = true

[density]
numerator = "mitochondria"
denominator = "all"
kernel_um = 0.12
stride_um = 0.08

[compare]
z_blocks = 2
figures = false

[report]
"""
STAGES = ("ingest", "segment", "label", "measure", "density", "compare", "report")


def write_sources(folder: Path) -> None:
    """Write two small stacks, and a network of random weights to segment them with."""
    # Late: they load the network framework.
    from cvdask.segmentation.unet import Architecture
    from tests.segmentation.networks import texture, write_network

    for seed, name in enumerate(("a.tif", "b.tif")):
        tifffile.imwrite(folder / name, texture((4, 40, 48), seed), photometric="minisblack")
    write_network(
        folder / "unet.keras",
        Architecture(n_classes=3, base_width=4, depth=1),
        classes={1: "mitochondria", 2: "myofibrils"},
        voxel_size_nm=(40.0, 20.0, 20.0),
    )


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
def test_the_whole_way_on_s3(
    bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    for out, store in (("near", "near-store"), ("far", bucket)):
        config = tmp_path / f"{out}.toml"
        config.write_text(CONFIG.format(out=out, store=store))
        assert cli.run(["run", str(config), "--verbose"]) == 0, capfd.readouterr().err
    told = capfd.readouterr()
    assert all(f"{stage}" in told.err for stage in STAGES)

    far, near = everything(bucket), tmp_path / "near-store"
    assert set(far) == set(tree_digest(near))
    for key, stored in far.items():
        assert stored == (near / key).read_bytes(), key
    labels = np.unique([key.split("/")[3] for key in far if "/labels/" in key])
    assert {"classes", "mitochondria"} <= set(labels)
    assert (tmp_path / "far/comparison/report.html").exists()

    for line in ("info {0}", "verify {0} --verbose", "report {1}/comparison --json",
                 "measure {0} --dry-run --json", "label {0} --class 7 --verbose"):  # fmt: skip
        cli.run(line.format(f"{bucket}/samples/a.zarr", tmp_path / "far").split())
    told = capfd.readouterr()
    assert "mitochondria" in told.out
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert_no_secret(told.out, told.err, *written, *(data for data in far.values() if data))


ADDRESS = f"s3://user:{PASSWORD}@bucket/cell.zarr"
SIGNED = f"https://example.org/cell.zarr?sig={PASSWORD}"


@pytest.mark.parametrize(
    "line",
    [
        "ingest {file} {address}", "phantom {address}", "info {address}", "verify {address}",
        "pyramid {address}", "export {address} {folder}/a.tif", "export {file} {address}",
        "label {address} --class 1", "measure {address}", "measure {folder} --out {address}",
        "mesh {address} --labels a --out {folder}/m", "mesh {folder} --labels a --out {address}",
        "density {address} --numerator 1 --denominator 2", "descriptors {address}",
        "segment {address} --model {file}", "segment {folder} --model {address}",
        "evaluate {address} --truth a", "train-unet {address} --labels a --out {folder}/u.keras",
        "train-gan {address} --out {folder}/g.keras", "train-gan {folder} --out {address}",
        "generate --model {address} --volumes 1 {folder}/e.zarr", "order {address}",
        "generate --model {file} --volumes 1 {address}", "distance {address} --real {folder}",
        "compare {address} {folder} --out {folder}/c", "compare {folder} {folder} --out {address}",
        "report {address}", "run {address}", "run {config}", "info {signed}", "verify {signed}",
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_not_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    file, config = tmp_path / "a.tif", tmp_path / "config.toml"
    tifffile.imwrite(file, np.ones((2, 4, 4), np.uint8))
    config.write_text(CONFIG.format(out="out", store=ADDRESS))
    places = {"file": file, "config": config, "folder": tmp_path}
    places |= {"address": ADDRESS, "signed": SIGNED}
    for options in ([], ["--json", "--verbose"]):
        code = cli.run([*line.format(**places).split(), *options])
        told = capfd.readouterr()
        assert code == cli.BAD_INPUT, told.err
        assert_no_secret(told.out, told.err)
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != config]
    assert_no_secret(*(path.read_bytes() for path in others))
