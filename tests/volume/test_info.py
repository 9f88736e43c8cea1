"""Is a volume described by what its metadata says, without reading a voxel?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from cvdask.volume.info import info
from cvdask.volume.objects import watch_traffic
from cvdask.volume.store import open_volume, update_attributes
from tests.samples import random_voxels, write_sample


def test_a_sample_with_labels(tmp_path: Path) -> None:
    image = write_sample(tmp_path, random_voxels((9, 8, 20), "uint16"))
    write_sample(tmp_path, np.ones((9, 8, 20), "uint8"), labels="tissue", classes={1: "nucleus"})
    update_attributes(image, slices={"missing": [3]})
    described = info(str(tmp_path))
    level = {
        "path": "0",
        "shape": [9, 8, 20],
        "voxel_size_nm": [40.0, 10.0, 10.0],
        "chunk_shape": [4, 4, 4],
        "shard_shape": [8, 8, 8],
        "n_shards": 6,
        "uncompressed_bytes": 2880,
    }
    assert described == {
        "url": str(tmp_path),
        "ome_zarr": "0.5",
        "shape": [9, 8, 20],
        "dtype": "uint16",
        "voxel_size_nm": [40.0, 10.0, 10.0],
        "size_um": [0.36, 0.08, 0.2],
        "levels": [level],
        "classes": {},
        "slices": {"missing": [3]},
        "provenance": {"stage": "sample"},
        "labels": {
            "tissue": {
                "shape": [9, 8, 20],
                "dtype": "uint8",
                "voxel_size_nm": [40.0, 10.0, 10.0],
                "size_um": [0.36, 0.08, 0.2],
                "levels": [{**level, "path": "labels/tissue/0", "uncompressed_bytes": 1440}],
                "classes": {"1": "nucleus"},
                "provenance": {"stage": "sample"},
            }
        },
    }
    assert json.loads(json.dumps(described)) == described


def test_one_label_image(tmp_path: Path) -> None:
    write_sample(tmp_path, np.ones((4, 4, 4), "uint8"), labels="tissue")
    described = info(open_volume(tmp_path, labels="tissue"))
    assert (described["dtype"], described["labels"]) == ("uint8", {})


def test_no_voxel_size_is_said_as_none(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w")
    group.create_array("0", shape=(4, 4, 4), chunks=(2, 2, 2), dtype="uint8")
    multiscale = {
        "axes": [{"name": n} for n in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": []}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    described = info(str(tmp_path))
    assert described["voxel_size_nm"] is None
    assert described["size_um"] is None
    assert "provenance" not in described


def test_no_voxel_is_read(tmp_path: Path) -> None:
    write_sample(tmp_path, random_voxels((16, 16, 16), "uint8", empty=0.0))
    for shard in (tmp_path / "0/c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(bytes(10**6))
    with watch_traffic() as traffic:
        info(str(tmp_path))
    assert 0 < traffic.bytes_read < 10**5


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cell\.zarr"):
        info(str(tmp_path / "cell.zarr"))
