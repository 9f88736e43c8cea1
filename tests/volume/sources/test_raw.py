"""MRC and NIfTI files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import mrcfile
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.volume.boxes import Box
from cvdask.volume.sources import Source, SourceError, examine, raw, read
from tests.strategies import boxes


def counted(shape: tuple[int, ...], dtype: str = "u1") -> npt.NDArray:
    return (np.arange(np.prod(shape)).reshape(shape) % 119).astype(dtype)


def write_mrc(path: Path, voxels: npt.NDArray, voxel_size: Any = (50, 60, 300)) -> Path:
    """Write an MRC file; the voxel size is x, y, z in Å."""
    with mrcfile.new(path, voxels, overwrite=True) as file:
        file.voxel_size = voxel_size
    return path


def write_nifti(path: Path, voxels: npt.NDArray, unit: str = "micron") -> Path:
    image = nibabel.Nifti1Image(voxels.T, np.diag([0.005, 0.006, 0.03, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def whole(path: Path) -> tuple[Source, npt.NDArray]:
    source = examine(path)
    voxels, reasons = read(source, Box.whole(source.shape))
    assert reasons == {}
    assert voxels.dtype == np.dtype(source.dtype)
    return source, voxels


def change(path: Path, position: int, data: bytes) -> Path:
    changed = bytearray(path.read_bytes())
    changed[position : position + len(data)] = data
    path.write_bytes(changed)
    return path


# MRC


@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f4", ">i2", ">f4"])
def test_mrc(tmp_path: Path, dtype: str):
    voxels = counted((3, 5, 7), dtype)
    source, found = whole(write_mrc(tmp_path / "a.mrc", voxels))
    np.testing.assert_array_equal(found, voxels)
    assert source.kind == "mrc"
    assert source.shape == (3, 5, 7)
    assert source.dtype == np.dtype(dtype).newbyteorder("=").name
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)
    assert source.row_access
    assert source.chunk_shape == (1, 1, 7)


def test_mrc_float16_reads_as_float32(tmp_path: Path):
    voxels = counted((3, 5, 7), "f2")
    source, found = whole(write_mrc(tmp_path / "a.mrc", voxels))
    assert source.dtype == "float32"
    np.testing.assert_array_equal(found, voxels)


def test_mrc_extended_header(tmp_path: Path):
    voxels = counted((3, 5, 7), "i2")
    with mrcfile.new(tmp_path / "a.mrc", voxels) as file:
        file.set_extended_header(np.zeros(160, "V1"))
    np.testing.assert_array_equal(whole(tmp_path / "a.mrc")[1], voxels)


@pytest.mark.parametrize(
    ("position", "data", "expected"),
    [
        (152, struct.pack("<ii", 1146047817, 0), "uint8"),  # IMOD: bytes are unsigned
        (152, struct.pack("<ii", 1146047817, 1), "int8"),  # IMOD: bytes are signed
        (76, struct.pack("<ff", 0, 250), "uint8"),  # the header's maximum is no int8
        (76, struct.pack("<ff", -5, 118), "int8"),
    ],
)
def test_mrc_bytes_with_and_without_sign(tmp_path: Path, position: int, data: bytes, expected: str):
    path = change(write_mrc(tmp_path / "a.mrc", counted((3, 5, 7), "i1")), position, data)
    assert whole(path)[0].dtype == expected


@pytest.mark.parametrize("sizes", [(0, 0, 0), (50, 60, -1), (np.nan, 50, 50)])
def test_mrc_without_voxel_size(tmp_path: Path, sizes: tuple[float, ...]):
    assert (
        examine(write_mrc(tmp_path / "a.mrc", counted((3, 5, 7), "i1"), sizes)).voxel_size_nm
        is None
    )


def test_mrc_that_breaks_off(tmp_path: Path):
    voxels = counted((4, 5, 7), "i2")
    path = write_mrc(tmp_path / "a.mrc", voxels)
    path.write_bytes(path.read_bytes()[: 1024 + 2 * 70 + 30])
    source = examine(path)
    assert source.shape == (4, 5, 7)
    assert [z for z, _ in source.damaged] == [2, 3]
    assert str(1024 + 170) in source.damaged[0][1]
    part, reasons = read(source, Box.whole(source.shape))
    assert reasons == dict(source.damaged)
    voxels[2:] = 0
    np.testing.assert_array_equal(part, voxels)


@pytest.mark.parametrize(
    ("position", "data", "value"),
    [
        (208, b"NOPE", "wrong extension"),
        (12, struct.pack("<i", 4), "mode 4"),
        (0, struct.pack("<i", -3), "-3"),
        (0, struct.pack("<i", 2_000_000_000), "beyond"),
        (64, struct.pack("<iii", 2, 1, 3), r"\(2, 1, 3\)"),
        (88, struct.pack("<i", 401), "401"),
        (92, struct.pack("<i", 0x40404040), "1077952576"),
    ],
)
def test_mrc_headers_that_are_refused(tmp_path: Path, position: int, data: bytes, value: str):
    path = change(write_mrc(tmp_path / "a.mrc", counted((3, 5, 7), "i2")), position, data)
    with pytest.raises(SourceError, match=value):
        examine(path)


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4"])
def test_nifti(tmp_path: Path, name: str, dtype: str):
    voxels = counted((3, 5, 7), dtype)
    source, found = whole(write_nifti(tmp_path / name, voxels))
    np.testing.assert_array_equal(found, voxels)
    assert source.kind == "nifti"
    assert source.dtype == np.dtype(dtype).name
    assert source.voxel_size_nm == (30.0, 6.0, 5.0)
    assert source.row_access == (name == "a.nii")
    assert source.chunk_shape == ((1, 1, 7) if name == "a.nii" else (3, 5, 7))


def test_nifti_2(tmp_path: Path):
    voxels = counted((3, 5, 7), "u2")
    nibabel.save(nibabel.Nifti2Image(voxels.T, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(whole(tmp_path / "a.nii")[1], voxels)


def test_nifti_scaling_gives_float32(tmp_path: Path):
    voxels = counted((3, 5, 7), "i2")
    path = write_nifti(tmp_path / "a.nii", voxels)
    change(path, 112, struct.pack("<ff", 0.5, 2.0))
    source, found = whole(path)
    assert source.dtype == "float32"
    np.testing.assert_array_equal(found, voxels * 0.5 + 2)


def test_nifti_of_unknown_unit_has_no_voxel_size(tmp_path: Path):
    path = write_nifti(tmp_path / "a.nii", counted((3, 5, 7)), unit="unknown")
    assert examine(path).voxel_size_nm is None


@pytest.mark.parametrize("shape", [(5, 7), (1, 3, 5, 7)])
def test_nifti_axes_of_one(tmp_path: Path, shape: tuple[int, ...]):
    voxels = counted(shape)
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(whole(tmp_path / "a.nii")[1], voxels.reshape(-1, 5, 7))


@pytest.mark.parametrize(
    ("position", "data", "value"),
    [
        (40, struct.pack("<hhhhh", 4, 7, 5, 3, 2), r"\(7, 5, 3, 2\)"),
        (70, struct.pack("<hh", 64, 64), "float64"),
        (42, struct.pack("<h", -7), "-7"),
        (42, struct.pack("<h", 30000), "beyond"),
        (344, b"ni1\0", "ni1"),
        (344, b"nope", "nope|first bytes"),
    ],
)
def test_nifti_headers_that_are_refused(tmp_path: Path, position: int, data: bytes, value: str):
    path = change(write_nifti(tmp_path / "a.nii", counted((3, 5, 7), "i2")), position, data)
    with pytest.raises(SourceError, match=value):
        examine(path)


def test_a_gzipped_volume_must_be_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_nifti(tmp_path / "a.nii.gz", counted((3, 5, 7)))
    monkeypatch.setattr(raw, "MAX_GZIP_BYTES", 456)
    with pytest.raises(SourceError, match=r"456 bytes.*457 bytes.*gunzip"):
        examine(path)


def test_a_gzipped_header_that_lies(tmp_path: Path):
    plain = write_nifti(tmp_path / "a.nii", counted((3, 5, 7)))
    change(plain, 42, struct.pack("<hhh", 1000, 1000, 1000))
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError, match="1000000352"):
        examine(path)


def test_a_gzipped_volume_that_breaks_off(tmp_path: Path):
    voxels = np.random.default_rng(0).integers(0, 255, (4, 40, 50)).astype("u1")
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    path.write_bytes(path.read_bytes()[:5000])
    source = examine(path)
    part, reasons = read(source, Box.whole(source.shape))
    assert 0 not in reasons
    assert {2, 3} <= set(reasons)
    for z in range(4):
        np.testing.assert_array_equal(part[z], 0 if z in reasons else voxels[z])


def test_a_gzipped_volume_is_what_its_checksum_says(tmp_path: Path):
    voxels = np.random.default_rng(0).integers(0, 255, (2, 40, 50)).astype("u1")
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    whole(path.rename(tmp_path / "b.nii.gz"))
    good = (tmp_path / "b.nii.gz").read_bytes()
    for place in (len(good) // 2, len(good) - 6):
        changed = bytearray(good)
        changed[place] ^= 4
        path = tmp_path / f"{place}.nii.gz"
        path.write_bytes(changed)
        _, reasons = read(examine(path), Box((0, 0, 0), (2, 40, 50)))
        assert set(reasons) == {0, 1}
    (tmp_path / "e.nii.gz").write_bytes(good[:-8])  # all voxels, and nothing to compare them with
    assert read(examine(tmp_path / "e.nii.gz"), Box((0, 0, 0), (2, 40, 50)))[1].keys() == {0, 1}
    shorter = bytearray(gzip.decompress(good))
    shorter[46] = 1  # one slice, says the header; the checksum is that of two
    packed = bytearray(gzip.compress(shorter))
    packed[-8:-4] = good[-8:-4]
    (tmp_path / "d.nii.gz").write_bytes(packed)
    assert read(examine(tmp_path / "d.nii.gz"), Box((0, 0, 0), (1, 40, 50)))[1].keys() == {0}
    (tmp_path / "c.nii.gz").write_bytes(good + b"thesis")
    np.testing.assert_array_equal(whole(tmp_path / "c.nii.gz")[1], voxels)


def test_a_gzipped_volume_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unpacked = []
    original = raw._Unpacked

    def counting(*args: Any) -> Any:
        unpacked.append(args)
        return original(*args)

    monkeypatch.setattr(raw, "_Unpacked", counting)
    voxels = counted((3, 5, 7))
    source = examine(write_nifti(tmp_path / "a.nii.gz", voxels))
    for z in range(3):
        part, _ = read(source, Box((z, 0, 0), (z + 1, 5, 7)))
        np.testing.assert_array_equal(part[0], voxels[z])
    assert len(unpacked) == 1


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[npt.NDArray, list[Source]]:
    folder = tmp_path_factory.mktemp("drawn")
    voxels = counted((3, 5, 7), "i2")
    return voxels, [
        examine(write_mrc(folder / "a.mrc", voxels)),
        examine(write_nifti(folder / "a.nii", voxels)),
        examine(write_nifti(folder / "a.nii.gz", voxels)),
        examine(change(write_nifti(folder / "b.nii", voxels), 112, struct.pack("<ff", 1, 0))),
    ]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.mrc", "a.nii", "a.nii.gz"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1) | st.just(1.0),
)
def test_any_damage_is_an_error_or_reported(
    tmp_path: Path, name: str, changes: list[tuple[int, int]], keep: float
):
    path = tmp_path / name
    write = write_mrc if name == "a.mrc" else write_nifti
    data = bytearray(write(path, counted((3, 5, 7), "i2")).read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data[: int(keep * len(data))])
    try:
        source = examine(path)
    except SourceError:
        return
    box = Box.whole(source.shape).intersect(Box((0, 0, 0), (64, 128, 128)))
    voxels, reasons = read(source, box)
    assert voxels.shape == box.shape
    assert set(reasons) <= set(range(box.shape[0]))


@given(box=boxes((3, 5, 7)))
def test_any_box_equals_numpy(drawn: tuple[npt.NDArray, list[Source]], box: Box):
    voxels, sources = drawn
    for source in sources:
        part, reasons = read(source, box)
        assert reasons == {}
        np.testing.assert_array_equal(part, voxels[box.slices])
