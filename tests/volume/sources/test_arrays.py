"""Arrays inside HDF5, zarr, OME-Zarr and N5."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.volume.boxes import Box
from cvdask.volume.sources import Source, SourceError, arrays, examine, read
from tests.strategies import boxes


def counted(shape: tuple[int, ...], dtype: str = "u2") -> npt.NDArray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def whole(path: Path, **options: Any) -> tuple[Source, npt.NDArray]:
    source = examine(path, **options)
    voxels, reasons = read(source, Box.whole(source.shape))
    assert reasons == {}
    assert voxels.shape == source.shape
    assert voxels.dtype == np.dtype(source.dtype)
    return source, voxels


# HDF5


def write_hdf5(path: Path, **arrays: npt.NDArray) -> Path:
    with h5py.File(path, "w") as file:
        for name, voxels in arrays.items():
            file[name.replace("__", "/")] = voxels
    return path


def test_hdf5_chooses_the_only_volume(tmp_path: Path):
    voxels = counted((3, 5, 7))
    path = write_hdf5(tmp_path / "a.h5", a__raw=voxels, table=np.zeros((4, 2)), list=np.zeros(4))
    with h5py.File(path, "a") as file:
        file["a/raw"].attrs["element_size_um"] = (0.03, 0.006, 0.005)
    source, found = whole(path)
    np.testing.assert_array_equal(found, voxels)
    assert (source.kind, source.dataset) == ("hdf5", "a/raw")
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)
    assert source.row_access
    assert source.chunk_shape == (1, 1, 7)
    assert source.stored_bytes == path.stat().st_size


@pytest.mark.parametrize("dtype", ["u1", ">u2", "i8", "u8", "?", "f4", "f2"])
def test_hdf5_dtypes(tmp_path: Path, dtype: str):
    voxels = counted((3, 5, 7), dtype)
    np.testing.assert_array_equal(whole(write_hdf5(tmp_path / "a.h5", a=voxels))[1], voxels)


def test_hdf5_chunks(tmp_path: Path):
    voxels = counted((6, 16, 20))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=voxels, chunks=(2, 4, 20), compression="gzip")
    source, found = whole(tmp_path / "a.h5")
    np.testing.assert_array_equal(found, voxels)
    assert source.chunk_shape == (2, 4, 20)
    assert source.row_access


def test_hdf5_candidates_are_listed(tmp_path: Path):
    voxels = counted((3, 5, 7))
    path = write_hdf5(tmp_path / "a.h5", raw=voxels, labels=voxels + 1)
    with pytest.raises(SourceError, match=r"2 candidates: labels \(3, 5, 7\), raw \(3, 5, 7\)"):
        examine(path)
    np.testing.assert_array_equal(whole(path, dataset="/labels")[1], voxels + 1)
    with pytest.raises(SourceError, match=r"'nothing'.*labels, raw"):
        examine(path, dataset="nothing")


def test_hdf5_channels(tmp_path: Path):
    voxels = counted((1, 2, 3, 5, 7))
    path = write_hdf5(tmp_path / "a.h5", a=voxels)
    with pytest.raises(SourceError, match=r"axis 1 .* of 2.*channel=0"):
        examine(path)
    np.testing.assert_array_equal(whole(path, channel=1)[1], voxels[0, 1])
    with pytest.raises(SourceError, match="channel=2"):
        examine(path, channel=2)


def test_hdf5_links_are_not_followed(tmp_path: Path):
    write_hdf5(tmp_path / "other.h5", secret=counted((3, 5, 7)))
    path = write_hdf5(tmp_path / "a.h5", list=np.zeros(4))
    with h5py.File(path, "a") as file:
        file["outside"] = h5py.ExternalLink("other.h5", "/secret")
        file["group/soft"] = h5py.SoftLink("/outside")
    with pytest.raises(SourceError, match="2 or more axes"):
        examine(path)
    with pytest.raises(SourceError, match=r"'outside'.*'other\.h5:/secret'"):
        examine(path, dataset="outside")
    with pytest.raises(SourceError, match=r"'group/soft'.*'/outside'"):
        examine(path, dataset="group/soft")


def test_hdf5_foreign_storage_is_refused(tmp_path: Path):
    (tmp_path / "raw").write_bytes(bytes(105))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (3, 5, 7), "u1", external=[(str(tmp_path / "raw"), 0, 105)])
    with pytest.raises(SourceError, match="external"):
        examine(tmp_path / "a.h5")
    write_hdf5(tmp_path / "part.h5", a=counted((3, 5, 7)))
    layout = h5py.VirtualLayout((3, 5, 7), "u2")
    layout[:] = h5py.VirtualSource(tmp_path / "part.h5", "a", (3, 5, 7))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_virtual_dataset("a", layout)
    with pytest.raises(SourceError, match="virtual"):
        examine(tmp_path / "b.h5")


@pytest.mark.parametrize("dtype", ["f8", "c8"])
def test_hdf5_dtypes_that_must_be_converted(tmp_path: Path, dtype: str):
    with pytest.raises(SourceError, match=np.dtype(dtype).name):
        examine(write_hdf5(tmp_path / "a.h5", a=counted((3, 5, 7), dtype)))


def test_hdf5_chunks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # HDF5 itself refuses chunks of 4 GiB, so the bound is lowered for the test.
    monkeypatch.setattr(arrays, "MAX_SEGMENT_BYTES", 79)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (3, 8, 10), "u1", chunks=(1, 8, 10))
    with pytest.raises(SourceError, match=r"79 bytes.*\(1, 8, 10\)"):
        examine(tmp_path / "a.h5")


def test_hdf5_corrupt_chunk_costs_its_slices(tmp_path: Path):
    voxels = counted((6, 16, 20))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", data=voxels, chunks=(2, 16, 20), compression="gzip")
        chunk = data.id.get_chunk_info(1)
    stored = bytearray(path.read_bytes())
    stored[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(stored)
    source = examine(path)
    part, reasons = read(source, Box((1, 2, 3), (6, 16, 20)))
    assert set(reasons) == {2, 3}
    expected = voxels.copy()
    expected[2:4] = 0
    np.testing.assert_array_equal(part, expected[1:, 2:, 3:])


@pytest.mark.parametrize("keep", [8, 300, 900])
def test_hdf5_that_breaks_off(tmp_path: Path, keep: int):
    path = write_hdf5(tmp_path / "a.h5", a=counted((6, 16, 20)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"a\.h5"):
        examine(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), max_size=4))
def test_hdf5_any_damage_is_an_error_or_reported(tmp_path: Path, changes: list[tuple[int, int]]):
    path = write_hdf5(tmp_path / "a.h5", a=counted((3, 5, 7)))
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        source = examine(path)
    except SourceError:
        return
    box = Box.whole(source.shape).intersect(Box((0, 0, 0), (64, 128, 128)))
    voxels, _ = read(source, box)
    assert voxels.shape == box.shape


# zarr


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_array(tmp_path: Path, version: Any):
    voxels = counted((6, 16, 20))
    zarr.create_array(tmp_path / "a.zarr", data=voxels, chunks=(2, 4, 10), zarr_format=version)
    source, found = whole(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found, voxels)
    assert (source.kind, source.dataset) == ("zarr", "")
    assert source.chunk_shape == (2, 4, 10)
    assert source.row_access
    assert source.voxel_size_nm is None
    files = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    assert source.stored_bytes == sum(path.stat().st_size for path in files)


def test_zarr_fingerprint_changes_with_a_chunk(tmp_path: Path):
    array = zarr.create_array(tmp_path / "a.zarr", data=counted((6, 16, 20)), chunks=(2, 16, 20))
    before = examine(tmp_path / "a.zarr").fingerprint
    assert examine(tmp_path / "a.zarr").fingerprint == before
    array[0] = 7
    assert examine(tmp_path / "a.zarr").fingerprint != before


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_candidates_are_listed(tmp_path: Path, version: Any):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=version)
    voxels = counted((3, 5, 7))
    group.create_array("b/raw", data=voxels)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[1], voxels)
    group.create_array("labels", data=voxels + 1)
    with pytest.raises(SourceError, match=r"2 candidates: b/raw \(3, 5, 7\), labels"):
        examine(tmp_path / "a.zarr")
    source, found = whole(tmp_path / "a.zarr", dataset="labels")
    np.testing.assert_array_equal(found, voxels + 1)
    assert source.dataset == "labels"
    for wrong in ("nothing", "../a.zarr/labels"):
        with pytest.raises(SourceError, match=wrong):
            examine(tmp_path / "a.zarr", dataset=wrong)


def ome_zarr(
    path: Path, voxels: npt.NDArray, axes: str, scale: list[float], version: str = "0.4"
) -> Path:
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    kinds = {"t": "time", "c": "channel"}
    image = {
        "axes": [
            {
                "name": a,
                "type": kinds.get(a, "space"),
                **({} if a in kinds else {"unit": "micrometer"}),
            }
            for a in axes
        ],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": s}]}
            for level, s in enumerate((scale, [2 * v for v in scale]))
        ],
    }
    attributes = {"multiscales": [image]}
    group.attrs.update(
        attributes if version == "0.4" else {"ome": {"version": "0.5", **attributes}}
    )
    group.create_array("0", data=voxels, chunks=(1,) * (voxels.ndim - 2) + (4, 4))
    group.create_array("1", data=voxels[..., ::2, ::2])
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str):
    voxels = counted((1, 2, 3, 5, 7))
    path = ome_zarr(tmp_path / "a.zarr", voxels, "tczyx", [1, 1, 0.03, 0.006, 0.005], version)
    source, found = whole(path, channel=1)
    np.testing.assert_array_equal(found, voxels[0, 1])
    assert source.dataset == "0"
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)
    assert source.chunk_shape == (1, 4, 4)
    assert not source.row_access
    with pytest.raises(SourceError, match=r"2 channels.*channel=0"):
        examine(path)
    level = examine(path, dataset="1", channel=0)
    assert level.shape == (3, 3, 4)
    assert level.voxel_size_nm == (60.0, 12.0, 10.0)


def test_ome_zarr_axes_of_one_and_of_another_order(tmp_path: Path):
    voxels = counted((1, 1, 3, 5, 7))
    path = ome_zarr(tmp_path / "a.zarr", voxels, "tcxyz", [1, 1, 0.005, 0.006, 0.03])
    source, found = whole(path)
    np.testing.assert_array_equal(found, voxels[0, 0].T)
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)
    assert source.chunk_shape == (4, 4, 1)


def test_ome_zarr_time_series(tmp_path: Path):
    path = ome_zarr(tmp_path / "a.zarr", counted((4, 3, 5, 7)), "tzyx", [1, 1, 1, 1])
    with pytest.raises(SourceError, match=r"axis 0 \(t\) of 4"):
        examine(path)


def test_ome_zarr_nonsense_is_no_voxel_size(tmp_path: Path):
    path = ome_zarr(tmp_path / "a.zarr", counted((3, 5, 7)), "zyx", [0, 1, 1])
    assert examine(path).voxel_size_nm is None


def test_zarr_without_axes(tmp_path: Path):
    voxels = counted((2, 3, 5, 7))
    zarr.create_array(tmp_path / "a.zarr", data=voxels)
    with pytest.raises(SourceError, match=r"axis 0 .* of 2.*channel=0"):
        examine(tmp_path / "a.zarr")
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr", channel=1)[1], voxels[1])
    zarr.create_array(tmp_path / "b.zarr", data=voxels[0, 0])
    np.testing.assert_array_equal(whole(tmp_path / "b.zarr")[1], voxels[0, :1])


@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_pickled_chunks_are_refused(tmp_path: Path, where: str):
    zarr.create_array(tmp_path / "a.zarr", data=counted((3, 5, 7)), zarr_format=2)
    described = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    codec = numcodecs.Pickle().get_config()
    described[where] = [codec] if where == "filters" else codec
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps(described))
    with pytest.raises(SourceError, match="pickle"):
        examine(tmp_path / "a.zarr")


@pytest.mark.parametrize("text", ["", "{}", '{"zarr_format": 3}', '{"zarr_format": 9}', "[1]"])
def test_zarr_metadata_that_cannot_be_read(tmp_path: Path, text: str):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(SourceError, match=str(tmp_path)):
        examine(tmp_path)


def test_zarr_lying_chunks_are_refused(tmp_path: Path):
    zarr.create_array(tmp_path / "a.zarr", data=counted((3, 5, 7)))
    described = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    described["chunk_grid"]["configuration"]["chunk_shape"] = [3, 100_000, 100_000]
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(described))
    with pytest.raises(SourceError, match=r"4294967296.*\(3, 100000, 100000\)"):
        examine(tmp_path / "a.zarr")


def test_zarr_corrupt_chunk_costs_its_slices(tmp_path: Path):
    voxels = counted((6, 16, 20))
    zarr.create_array(tmp_path / "a.zarr", data=voxels, chunks=(2, 16, 20))
    (tmp_path / "a.zarr/c/1/0/0").write_bytes(b"nothing that was compressed")
    source = examine(tmp_path / "a.zarr")
    part, reasons = read(source, Box((1, 2, 3), (6, 16, 20)))
    assert set(reasons) == {2, 3}
    voxels[2:4] = 0
    np.testing.assert_array_equal(part, voxels[1:, 2:, 3:])


# N5


def write_n5(path: Path, name: str, voxels: npt.NDArray, compression: str = "gzip") -> Path:
    """Write a dataset as Java's N5 tools do, x first."""
    stored = voxels.T
    described = {
        "dimensions": list(stored.shape),
        "blockSize": [min(4, n) for n in stored.shape],
        "dataType": voxels.dtype.name,
        "compression": {"type": compression},
    }
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(path / name) + "/"},
        "metadata": described,
    }
    tensorstore.open(spec, create=True, open=True).result()[...] = stored
    return path


@pytest.mark.parametrize("compression", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_n5(tmp_path: Path, compression: str, dtype: str):
    voxels = counted((3, 5, 7), dtype) % 200
    path = write_n5(tmp_path / "a.n5", "volumes/raw", voxels, compression)
    attributes = path / "volumes/raw/attributes.json"
    described = json.loads(attributes.read_text())
    described["pixelResolution"] = {"dimensions": [5, 6, 30], "unit": "nm"}
    attributes.write_text(json.dumps(described))
    source, found = whole(path)
    np.testing.assert_array_equal(found, voxels)
    assert (source.kind, source.dataset) == ("n5", "volumes/raw")
    assert source.chunk_shape == (3, 4, 4)
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)


def test_n5_candidates_are_listed(tmp_path: Path):
    voxels = counted((3, 5, 7))
    path = write_n5(tmp_path / "a.n5", "s0", voxels)
    write_n5(path, "s1", voxels[:, ::2, ::2])
    with pytest.raises(SourceError, match=r"2 candidates: s0 \(3, 5, 7\), s1 \(3, 3, 4\)"):
        examine(path)
    np.testing.assert_array_equal(whole(path, dataset="s0")[1], voxels)
    np.testing.assert_array_equal(whole(path / "s0")[1], voxels)
    with pytest.raises(SourceError, match=r"'s2'.*s0, s1"):
        examine(path, dataset="s2")


def test_n5_channels(tmp_path: Path):
    voxels = counted((2, 3, 5, 7))
    path = write_n5(tmp_path / "a.n5", "a", voxels)
    np.testing.assert_array_equal(whole(path, channel=1)[1], voxels[1])
    with pytest.raises(SourceError, match=r"axis 0 .* of 2"):
        examine(path)


def test_n5_corrupt_block_costs_its_slices(tmp_path: Path):
    voxels = counted((6, 4, 4))
    path = write_n5(tmp_path / "a.n5", "a", voxels)
    (path / "a/0/0/1").write_bytes(b"nothing that was compressed")
    source = examine(path)
    part, reasons = read(source, Box.whole(source.shape))
    assert set(reasons) == {4, 5}
    voxels[4:] = 0
    np.testing.assert_array_equal(part, voxels)


@pytest.mark.parametrize("text", ["{", '{"dimensions": [3, 5, 7]}'])
def test_n5_attributes_that_cannot_be_read(tmp_path: Path, text: str):
    (tmp_path / "attributes.json").write_text(text)
    with pytest.raises(SourceError, match=str(tmp_path)):
        examine(tmp_path)


# All of them


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[npt.NDArray, list[Source]]:
    folder = tmp_path_factory.mktemp("drawn")
    voxels = counted((3, 5, 7))
    zarr.create_array(folder / "2.zarr", data=voxels, chunks=(2, 2, 3), zarr_format=2)
    zarr.create_array(folder / "3.zarr", data=voxels, chunks=(1, 2, 7), shards=(2, 4, 7))
    ome_zarr(folder / "4.zarr", voxels.transpose(1, 0, 2)[:, np.newaxis], "yczx", [1, 1, 1, 1])
    return voxels, [
        examine(write_hdf5(folder / "a.h5", a=voxels)),
        examine(write_n5(folder / "a.n5", "a", voxels)),
        *[examine(folder / f"{number}.zarr") for number in (2, 3, 4)],
    ]


@given(box=boxes((3, 5, 7)))
def test_any_box_equals_numpy(drawn: tuple[npt.NDArray, list[Source]], box: Box):
    voxels, sources = drawn
    for source in sources:
        part, reasons = read(source, box)
        assert reasons == {}
        np.testing.assert_array_equal(part, voxels[box.slices])


def test_threads_read_the_same_array(drawn: tuple[npt.NDArray, list[Source]]):
    voxels, sources = drawn
    wrong: list[int] = []

    def work(z: int) -> None:
        for _ in range(10):
            for source in sources:
                part, _ = read(source, Box((z, 0, 1), (z + 1, 5, 6)))
                if not np.array_equal(part, voxels[z : z + 1, :, 1:6]):
                    wrong.append(z)

    threads = [threading.Thread(target=work, args=(z % 3,)) for z in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
