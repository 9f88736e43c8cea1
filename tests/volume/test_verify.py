"""Is everything found that is not as it was written, and nothing else?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.engine.plan import Plan
from cvdask.errors import BlocksFailed
from cvdask.volume import verify as verify_module
from cvdask.volume.pyramid import pyramid
from cvdask.volume.store import describe, open_volume
from cvdask.volume.verify import Verification, verify
from tests.samples import random_voxels, write_sample
from tests.trees import tree_digest

# Two layers of 2 × 2 shards; the first holds zeros alone and is not stored.
KEYS = [f"c/{z}/{y}/{x}" for z in range(2) for y in range(2) for x in range(2)]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    data = random_voxels((16, 16, 16), "uint8", empty=0.0)
    data[:8, :8, :8] = 0
    write_sample(tmp_path, data)
    return tmp_path


def checked(url: Path, **options: Any) -> Verification:
    found = verify(str(url), **options)
    assert isinstance(found, Verification)
    return found


# Small cases, written out


def test_what_was_written_is_well(sample: Path, client: Any) -> None:
    found = checked(sample, client=client)
    assert found.ok
    assert (found.n_shards, found.faults, found.unsealed) == ({"0": 8}, {}, ())
    assert found.as_dict()["ok"] is True


def test_every_kind_of_damage_is_listed_with_its_key(sample: Path, client: Any) -> None:
    flipped = sample / "0/c/0/0/1"
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    truncated = sample / "0/c/0/1/0"
    truncated.write_bytes(truncated.read_bytes()[:-10])
    (sample / "0/c/0/1/1").unlink()
    shutil.copy(sample / "0/c/1/0/0", sample / "0/c/1/0/1")  # sound, of another place
    (sample / "0/c/0/0/0").write_bytes((sample / "0/c/1/1/1").read_bytes())  # of no place
    (sample / "0/c/1/1/0").write_bytes(b"")
    found = checked(sample, client=client)
    assert not found.ok
    reasons = {
        key.removeprefix(f"{sample}/0/"): reason.partition(":")[0]
        for key, reason in found.faults.items()
    }
    assert reasons == {
        "c/0/0/0": "differs",
        "c/0/0/1": "damaged",
        "c/0/1/0": "damaged",
        "c/0/1/1": "missing",
        "c/1/0/1": "differs",
        "c/1/1/0": "damaged",
    }
    assert found.as_dict()["faults"] == found.faults


def test_all_levels_and_labels_are_read(sample: Path) -> None:
    data = random_voxels((16, 16, 16), "uint16", empty=0.0)
    write_sample(sample, data, labels="cells")
    pyramid(str(sample), n_levels=2)
    pyramid(str(sample), labels="cells", n_levels=2)
    assert checked(sample).n_shards == {"0": 8, "1": 1, "labels/cells/0": 8, "labels/cells/1": 1}
    (sample / "labels/cells/1/c/0/0/0").unlink()
    assert list(checked(sample).faults) == [f"{sample}/labels/cells/1/c/0/0/0"]
    image_only = verify(open_volume(sample, labels="cells"))
    assert isinstance(image_only, Verification)
    assert set(image_only.n_shards) == {"labels/cells/0", "labels/cells/1"}


def test_dry_run_reads_nothing(sample: Path) -> None:
    (sample / "0/c/1/1/1").unlink()
    plans = verify(str(sample), dry_run=True)
    assert isinstance(plans, list)
    assert [type(plan) for plan in plans] == [Plan]
    assert plans[0].read_bytes == 16**3


def test_verify_changes_nothing(sample: Path) -> None:
    before = tree_digest(sample)
    verify(str(sample))
    assert tree_digest(sample) == before


# Invariants


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_any_flipped_byte_of_any_shard_is_found(sample: Path, data: st.DataObject) -> None:
    path = sample / "0" / data.draw(st.sampled_from(KEYS[1:]))
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        assert list(checked(sample).faults) == [str(path)]
    finally:
        path.write_bytes(good)


# Manifests


@pytest.mark.parametrize("harm", ["flipped", "removed", "not text"])
def test_a_damaged_manifest_is_a_fault_of_its_own(sample: Path, harm: str) -> None:
    manifest = sample / "0/.cvdask/manifest/1.xxh3"
    if harm == "removed":
        manifest.unlink()
    elif harm == "flipped":
        manifest.write_bytes(manifest.read_bytes().replace(b"a", b"b", 1))
    else:
        manifest.write_bytes(b"\xff\xfe")
    found = checked(sample)
    assert len(found.faults) == 1
    assert next(iter(found.faults)).startswith(f"{sample}/0/.cvdask/manifest/")
    assert found.unsealed == ("0",)


def test_a_layer_lost_with_its_manifest_is_found(sample: Path) -> None:
    (sample / "0/.cvdask/manifest/1.xxh3").unlink()
    shutil.rmtree(sample / "0/c/1")
    assert not checked(sample).ok


def test_volumes_of_others_are_read_back_and_said_to_have_no_manifest(sample: Path) -> None:
    header = sample / "zarr.json"
    metadata = json.loads(header.read_text())
    del metadata["attributes"]["cvdask"]
    header.write_text(json.dumps(metadata))
    (sample / "0/c/1/0/0").unlink()  # nothing tells
    broken = sample / "0/c/1/1/1"
    broken.write_bytes(broken.read_bytes()[:-1])
    found = checked(sample)
    assert list(found.faults) == [str(broken)]
    assert found.unsealed == ("0",)


def test_zarr_2_is_read_back(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    array = group.create_array("0", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="uint8")
    array[...] = random_voxels((8, 8, 8), "uint8", empty=0.0)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n} for n in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": []}],
        }
    ]
    assert checked(tmp_path).n_shards == {"0": 8}
    (tmp_path / "0/1.0.1").write_bytes(b"no chunk")
    assert list(checked(tmp_path).faults) == [f"{tmp_path}/0/c/1/0/1"]


# What is no damage


def test_a_lost_connection_is_no_damage(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> np.ndarray:
        raise ConnectionResetError("the bucket is gone")

    monkeypatch.setattr(verify_module, "read_box", unreachable)
    with pytest.raises(BlocksFailed, match="8 of 8") as caught:
        verify(str(sample))
    assert "the bucket is gone" in str(caught.value)


def test_a_volume_that_is_not_complete(tmp_path: Path) -> None:
    describe(tmp_path / "a", shape=(4, 4, 4), dtype="u1", voxel_size_nm=1)
    with pytest.raises(FileNotFoundError, match="/a"):
        verify(str(tmp_path / "a"))
