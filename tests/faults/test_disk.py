"""What becomes of an output whose disk is full, or may not be written?"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvdask.engine import plan as plan_module
from cvdask.errors import BlocksFailed
from cvdask.morphometry.mesh import mesh
from cvdask.morphometry.objects import measure
from cvdask.volume import phantom as phantom_module
from cvdask.volume.info import info
from cvdask.volume.phantom import phantom
from cvdask.volume.store import Volume, open_volume
from cvdask.volume.verify import Verification, verify
from tests.samples import write_sample
from tests.trees import tree_digest

pytestmark = pytest.mark.faults

# 36 blocks of 64³; the image alone takes 9 MB, since noise does not compress.
OPTIONS: dict[str, Any] = {"size_um": (9.6, 12.8, 9.6), "voxel_nm": 50.0}

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a small disk in memory, or change the options of one."""
    mounted: list[Path] = []

    def change(options: str, path: Path | None = None) -> Path:
        target = path or tmp_path / f"disk{len(mounted)}"
        target.mkdir(exist_ok=True)
        again = "remount," if path else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"disks cannot be mounted here: {getattr(error, 'stderr', error)}")
        if path is None:
            mounted.append(target)
        return target

    yield change
    for target in mounted:
        subprocess.run(["umount", str(target)], check=True)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom_module, "LARGEST_SHARD", 64)


@pytest.fixture
def boundless_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plans believe in a disk that is filled by others while they run."""

    class Usage:
        free = 10**15

    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: Usage)


@pytest.mark.usefixtures("small_shards")
def test_an_output_larger_than_the_disk_is_refused_before_work(mount: Mount) -> None:
    disk = mount("size=4m")
    with pytest.raises(OSError, match=r"phantom.*11\.3 MB.*cell\.zarr.*4\.\d MB free"):
        phantom(disk / "cell.zarr", **OPTIONS)
    assert not (disk / "cell.zarr").exists()


@pytest.mark.usefixtures("small_shards", "boundless_disk")
@pytest.mark.parametrize("client", [None, "threads"])
def test_a_disk_that_fills_up_ends_the_run_and_room_lets_it_go_on(
    mount: Mount, tmp_path: Path, client: str | None
) -> None:
    phantom(tmp_path / "whole/cell.zarr", **OPTIONS)
    disk = mount("size=4m")
    url = disk / "cell.zarr"
    with pytest.raises(BlocksFailed, match=r"\[Errno 28\] No space left.*") as caught:
        phantom(url, client=client, **OPTIONS)
    assert "not tried" in str(caught.value)
    assert caught.value.n_done < 20
    assert list(url.rglob("*.partial")) == []
    with pytest.raises(ValueError, match="phantom has begun"):
        open_volume(url)
    mount("size=64m", disk)
    phantom(url, client=client, **OPTIONS)
    assert tree_digest(url) == tree_digest(tmp_path / "whole/cell.zarr")


@pytest.mark.usefixtures("small_shards", "boundless_disk")
def test_a_disk_that_is_full_from_the_start(mount: Mount, tmp_path: Path) -> None:
    phantom(tmp_path / "whole/cell.zarr", **OPTIONS)
    disk = mount("size=64m")
    filler = disk / "filler"
    filler.write_bytes(bytes(64 * 2**20))
    url = disk / "cell.zarr"
    with pytest.raises(OSError, match="No space left") as caught:
        phantom(url, **OPTIONS)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises((ValueError, FileNotFoundError)):
        open_volume(url)
    filler.unlink()
    phantom(url, **OPTIONS)
    assert tree_digest(url) == tree_digest(tmp_path / "whole/cell.zarr")


@pytest.mark.usefixtures("boundless_disk")
def test_meshes_on_a_disk_that_fills_up(mount: Mount, tmp_path: Path) -> None:
    noise = (np.random.default_rng(0).random((40, 40, 40)) < 0.5).astype(np.uint8)
    url = tmp_path / "cell.zarr"
    write_sample(url, noise, shard_shape=(40, 40, 40), chunk_shape=(40, 40, 40))
    write_sample(url, noise, labels="objects", shard_shape=(40, 40, 40), chunk_shape=(40, 40, 40))
    options: dict[str, Any] = {"labels": "objects", "ids": 1, "format": "obj"}
    mesh(str(url), out=str(tmp_path / "whole"), **options)
    disk = mount("size=4m")
    with pytest.raises(BlocksFailed, match=r"mesh files.*\n.*No space left"):
        mesh(str(url), out=str(disk / "meshes"), **options)
    assert [path.name for path in (disk / "meshes").iterdir()] == [".cvdask"]
    mount("size=64m", disk)
    mesh(str(url), out=str(disk / "meshes"), **options)
    assert tree_digest(disk / "meshes") == tree_digest(tmp_path / "whole")


@pytest.mark.usefixtures("boundless_disk")
def test_a_table_on_a_disk_that_fills_up(mount: Mount, tmp_path: Path) -> None:
    specks = (np.random.default_rng(0).random((32, 32, 32)) < 0.1).astype(np.uint8)
    url = tmp_path / "cell.zarr"
    write_sample(url, specks)
    write_sample(url, specks, labels="classes", classes={1: "specks"})
    options: dict[str, Any] = {"block_shape": (16, 16, 16), "csv": True}
    (tmp_path / "whole").mkdir()
    measure(str(url), out=str(tmp_path / "whole/t.parquet"), **options)
    disk = mount("size=160k")
    with pytest.raises(BlocksFailed, match=r"(scan|seam|gather|total|table).*\n.*No space left"):
        measure(str(url), out=str(disk / "t.parquet"), **options)
    assert [path.name for path in disk.iterdir()] == [".cvdask"]
    assert list(disk.rglob("*.partial")) == []
    mount("size=64m", disk)
    measure(str(url), out=str(disk / "t.parquet"), **options)
    assert tree_digest(disk) == tree_digest(tmp_path / "whole")


def test_a_read_only_disk_is_read_and_not_written(mount: Mount) -> None:
    disk = mount("size=64m")
    written = phantom(disk / "cell.zarr", size_um=(2, 2, 2), voxel_nm=50)
    assert isinstance(written, Volume)
    before = tree_digest(disk)
    mount("ro", disk)
    assert info(str(disk / "cell.zarr"))["shape"] == [40, 40, 40]
    checked = verify(str(disk / "cell.zarr"))
    assert isinstance(checked, Verification)
    assert checked.ok
    with pytest.raises(FileNotFoundError, match=r"other\.zarr"):
        open_volume(disk / "other.zarr")
    for options in ({"out": disk / "other.zarr"}, {"out": disk / "cell.zarr", "overwrite": True}):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            phantom(**{"size_um": (2, 2, 2), "voxel_nm": 50, "seed": 4, **options})
        assert caught.value.errno == errno.EROFS
        assert "zarr" in str(caught.value)
    assert tree_digest(disk) == before
