"""Ensembles: ordinary samples in one group, one lazy array over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cvdask.volume.ensemble import (
    Ensemble,
    begin_ensemble,
    create_ensemble,
    is_ensemble,
    open_ensemble,
    publish_ensemble,
    update_ensemble,
)
from cvdask.volume.store import Volume, open_volume
from tests.samples import random_voxels, write_sample

SHAPE = (9, 10, 13)
PROVENANCE = {"stage": "generate", "version": "0", "options": {"seed": 0}, "inputs": []}


def voxels(number: int) -> np.ndarray:
    return random_voxels(SHAPE, "uint8", seed=number)


def written(folder: Path, numbers: Sequence[int] = (0, 1, 2)) -> Ensemble:
    ensemble = create_ensemble(folder / "all.zarr", 3, PROVENANCE)
    for number in numbers:
        url = ensemble.member_url(number)
        write_sample(url, voxels(number))
        write_sample(url, voxels(number) % 3, labels="classes", classes={1: "a", 2: "b"})
    return publish_ensemble(ensemble, remark="none")


def test_members_are_ordinary_samples(tmp_path):
    written(tmp_path)
    ensemble = open_ensemble(tmp_path / "all.zarr")
    assert (len(ensemble), ensemble.members) == (3, ("0000", "0001", "0002"))
    assert ensemble.name == "all.zarr"
    for number, volume in enumerate(ensemble):
        assert isinstance(volume, Volume)
        np.testing.assert_array_equal(volume.read(), voxels(number))
        assert volume.label("classes").classes == {1: "a", 2: "b"}
    assert ensemble.attributes["remark"] == "none"
    assert ensemble.attributes["provenance"] == PROVENANCE
    group = zarr.open_group(tmp_path / "all.zarr", mode="r")
    assert sorted(group.group_keys()) == ["0000", "0001", "0002"]


def test_all_members_as_one_lazy_array(tmp_path):
    written(tmp_path)
    ensemble = open_ensemble(tmp_path / "all.zarr")
    whole = np.stack([voxels(number) % 3 for number in range(3)])
    lazy = ensemble.to_xarray()
    assert lazy.dims == ("volume", "z", "y", "x")
    assert lazy.chunks[0] == (1, 1, 1)
    np.testing.assert_array_equal(lazy.values, whole)
    np.testing.assert_array_equal(lazy.sel(volume="0001").values, whole[1])
    assert lazy.z.values[:2] == pytest.approx([0.0, 0.04])
    assert lazy.attrs["classes"] == {1: "a", 2: "b"}
    picked = lazy.isel(volume=slice(0, 3, 2), z=slice(1, 8, 3), y=-1, x=slice(4, 4))
    np.testing.assert_array_equal(picked.values, whole[0:3:2, 1:8:3, -1, 4:4])
    picked = lazy.isel(z=3, x=slice(None, None, 2))
    np.testing.assert_array_equal(picked.values, whole[:, 3, :, ::2])
    means = ensemble.to_xarray(labels=None).mean(("z", "y", "x")).compute()
    assert means.values == pytest.approx([voxels(number).mean() for number in range(3)])


def test_the_lazy_array_reads_one_description_and_the_blocks_asked_for(tmp_path):
    # Other members than the first are not looked at before their voxels are wanted.
    ensemble = written(tmp_path, numbers=(0, 1))
    lazy = ensemble.to_xarray()
    np.testing.assert_array_equal(lazy[1].values, voxels(1) % 3)
    with pytest.raises(FileNotFoundError, match="0002"):
        lazy[2].compute()


def test_an_ensemble_is_whole_or_not_there(tmp_path):
    url = tmp_path / "all.zarr"
    assert not is_ensemble(url)
    with pytest.raises(FileNotFoundError, match=r"all\.zarr"):
        open_ensemble(url)
    ensemble = create_ensemble(url, 2, PROVENANCE)
    assert is_ensemble(url)
    with pytest.raises(ValueError, match="not complete: generate has begun"):
        open_ensemble(url)
    update_ensemble(ensemble, half="written")
    publish_ensemble(ensemble)
    assert open_ensemble(url).attributes["half"] == "written"
    with pytest.raises(ValueError, match=r"ensemble of 2 volumes.*all\.zarr/0000"):
        open_volume(url)


def test_a_volume_is_no_ensemble(tmp_path):
    write_sample(tmp_path / "cell.zarr", voxels(0))
    assert not is_ensemble(tmp_path / "cell.zarr")
    with pytest.raises(ValueError, match=r"cell\.zarr is no ensemble"):
        open_ensemble(tmp_path / "cell.zarr")


def begun(url: Path, provenance: dict[str, Any] = PROVENANCE, **options: bool) -> str:
    return begin_ensemble(url, ["0000", "0001", "0002"], provenance, **options)


def test_what_lies_there_decides(tmp_path):
    url = tmp_path / "all.zarr"
    assert begun(url, dry_run=True) == "new"
    assert not url.exists()
    assert begun(url) == "new"
    assert begun(url) == "begun"
    ensemble = written(tmp_path)
    assert begun(url) == "complete"
    other = {**PROVENANCE, "options": {"seed": 1}}
    with pytest.raises(FileExistsError, match=r"options\.seed: 0 → 1"):
        begun(url, other)
    assert begun(url, other, overwrite=True, dry_run=True) == "new"
    assert open_ensemble(url) == ensemble
    assert begun(url, other, overwrite=True) == "new"
    assert [path.name for path in url.iterdir()] == ["zarr.json"]


def test_only_a_store_is_overwritten(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="not made by cvdask"):
        begun(tmp_path)
    with pytest.raises(FileExistsError, match="holds something else"):
        begun(tmp_path, overwrite=True)
    assert (tmp_path / "letters.txt").read_text() == "dear"
    write_sample(tmp_path / "cell.zarr", voxels(0))
    assert begun(tmp_path / "cell.zarr", overwrite=True) == "new"
    assert is_ensemble(tmp_path / "cell.zarr")


@pytest.mark.parametrize("members", [[], ["a", "a"], ["a/b"], [".."]])
def test_names_that_are_none_are_refused(tmp_path, members):
    with pytest.raises(ValueError, match="members have different names"):
        begin_ensemble(tmp_path / "all.zarr", members, PROVENANCE)
    ensemble = written(tmp_path)
    update_ensemble(ensemble, members=[*members, "../x"])
    with pytest.raises(ValueError, match="malformed"):
        open_ensemble(ensemble.url)
