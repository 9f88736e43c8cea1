"""Folders of numbered slices, and single pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.volume.boxes import Box
from cvdask.volume.sources import Source, SourceError, examine, read
from tests.strategies import boxes


def counted(shape: tuple[int, ...], dtype: str = "u1") -> npt.NDArray:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


def write_slice(path: Path, image: npt.NDArray) -> None:
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, image, compression="zlib", rowsperstrip=2)
    elif path.suffix.lower() == ".png":
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        path.write_bytes(imagecodecs.jpeg8_encode(image, level=95))


def write_slices(folder: Path, names: list[str], voxels: npt.NDArray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, image in zip(names, voxels, strict=True):
        write_slice(folder / name, image)
    return folder


def whole(path: Path, **options: Any) -> tuple[npt.NDArray, dict[int, str]]:
    source = examine(path, **options)
    return read(source, Box.whole(source.shape))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("extension", ["tif", "tiff", "TIF", "png"])
def test_numbers_are_sorted_as_numbers(tmp_path: Path, extension: str, dtype: str):
    voxels = counted((3, 8, 7), dtype)
    names = [f"cell2_s{number}.{extension}" for number in (9, 10, 11)]
    source = examine(write_slices(tmp_path, names, voxels))
    assert source.kind == "folder"
    assert source.shape == (3, 8, 7)
    assert source.dtype == np.dtype(dtype).name
    assert source.first_number == 9
    assert source.row_access == (extension != "png")
    assert source.chunk_shape == ((1, 8, 7) if extension == "png" else (1, 2, 7))
    assert source.stored_bytes == sum((tmp_path / name).stat().st_size for name in names)
    np.testing.assert_array_equal(read(source, Box.whole(source.shape))[0], voxels)


def test_jpeg_as_imagecodecs_decodes_it(tmp_path: Path):
    images = counted((2, 16, 24))
    write_slices(tmp_path, ["1.jpg", "2.JPEG"], images)
    expected = [imagecodecs.jpeg8_decode((tmp_path / n).read_bytes()) for n in ("1.jpg", "2.JPEG")]
    np.testing.assert_array_equal(whole(tmp_path)[0], expected)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[npt.NDArray, list[Source]]:
    voxels = counted((3, 8, 11))
    folder = tmp_path_factory.mktemp("drawn")
    return voxels, [
        examine(write_slices(folder / kind, [f"{z}.{kind}" for z in range(3)], voxels))
        for kind in ("tif", "png")
    ]


@given(box=boxes((3, 8, 11)))
def test_any_box_equals_numpy(drawn: tuple[npt.NDArray, list[Source]], box: Box):
    voxels, sources = drawn
    for source in sources:
        part, reasons = read(source, box)
        assert reasons == {}
        np.testing.assert_array_equal(part, voxels[box.slices])


def test_a_gap_counts_as_a_slice(tmp_path: Path):
    voxels = counted((4, 8, 7))
    source = examine(write_slices(tmp_path, ["a1.png", "a2.png", "a4.png", "a7.png"], voxels))
    assert source.shape == (7, 8, 7)
    assert source.missing == (2, 4, 5)
    part, reasons = read(source, Box((1, 0, 0), (5, 8, 7)))
    assert reasons == {2: "no slice has number 3", 4: "no slice has number 5"}
    np.testing.assert_array_equal(part[[0, 2]], voxels[[1, 2]])
    assert not part[[1, 3]].any()


def test_what_is_ignored(tmp_path: Path):
    voxels = counted((2, 8, 7))
    write_slices(tmp_path, ["1.tif", "2.tif"], voxels)
    (tmp_path / ".3.tif").write_bytes(b"hidden")
    (tmp_path / "4.txt").write_bytes(b"notes")
    (tmp_path / "5.tif").mkdir()
    np.testing.assert_array_equal(whole(tmp_path)[0], voxels)


def test_a_pattern_chooses(tmp_path: Path):
    voxels = counted((4, 8, 7))
    write_slices(tmp_path, ["a1.tif", "b1.tif", "a2.tif", "b2.png"], voxels)
    np.testing.assert_array_equal(whole(tmp_path, pattern="a*.tif")[0], voxels[[0, 2]])
    with pytest.raises(SourceError, match=r"'c\*'"):
        examine(tmp_path, pattern="c*")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_single_picture_is_one_slice(tmp_path: Path, name: str):
    image = np.full((8, 16), 77, np.uint8)
    write_slice(tmp_path / name, image)
    np.testing.assert_array_equal(whole(tmp_path / name)[0], image[np.newaxis])


def test_a_folder_with_one_picture_needs_no_number(tmp_path: Path):
    write_slices(tmp_path, ["image.png"], counted((1, 8, 7)))
    source = examine(tmp_path)
    assert (source.shape, source.first_number) == ((1, 8, 7), None)


def png(rows: bytes, width: int, height: int, bits: int, colour: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + (chunk(b"PLTE", bytes(768)) if colour == 3 else b"")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [(1, b"\0\xa0", [1, 0, 1]), (2, b"\0\x6c", [1, 2, 3]), (4, b"\0\x1f\x70", [1, 15, 7])],
)
def test_packed_png_keeps_its_labels(tmp_path: Path, bits: int, row: bytes, expected: list[int]):
    (tmp_path / "a.png").write_bytes(png(row, 3, 1, bits, 0))
    assert whole(tmp_path / "a.png")[0].tolist() == [[expected]]


def test_colours_and_palettes(tmp_path: Path):
    voxels = counted((8, 16, 3))
    write_slices(tmp_path / "png", ["1.png"], voxels[np.newaxis])
    write_slices(tmp_path / "jpg", ["1.jpg"], voxels[np.newaxis])
    for kind in ("png", "jpg"):
        with pytest.raises(SourceError, match=r"3 channels.*channel=0"):
            examine(tmp_path / kind)
        assert examine(tmp_path / kind, channel=2).shape == (1, 8, 16)
    np.testing.assert_array_equal(whole(tmp_path / "png", channel=2)[0][0], voxels[..., 2])
    (tmp_path / "p.png").write_bytes(png(b"\0\1", 1, 1, 8, 3))
    with pytest.raises(SourceError, match="palette"):
        examine(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ([], "without any"),
        (["1.tif", "2.png"], "1 PNG, 1 TIFF"),
        (["a1.tif", "a01.tif"], r"number 1 in 'a01\.tif' and in 'a1\.tif'"),
        (["a1.tif", "b.tif"], r"'b\.tif' among 2"),
        (["1.tif", "100.tif"], "2 slices numbered 1 to 100, 98 missing"),
        (["1.tif", "20240101123456.tif"], "20240101123456"),
    ],
)
def test_names_that_make_no_stack(tmp_path: Path, names: list[str], values: str):
    write_slices(tmp_path, names, counted((len(names), 8, 7)))
    with pytest.raises(SourceError, match=values):
        examine(tmp_path)


@pytest.mark.parametrize("extension", ["tif", "png"])
def test_mixed_shapes_and_dtypes(tmp_path: Path, extension: str):
    folder = write_slices(tmp_path, [f"1.{extension}", f"2.{extension}"], counted((2, 8, 7)))
    write_slice(folder / f"3.{extension}", counted((9, 7)))
    with pytest.raises(SourceError, match=rf"8 x 7 .* in 1\.{extension}, 9 x 7 .* in 3\."):
        examine(folder)
    write_slice(folder / f"3.{extension}", counted((8, 7), "u2"))
    with pytest.raises(SourceError, match=rf"uint8 .* in 1\.{extension}, .*uint16 .* in 3\."):
        examine(folder)


def test_several_pages_in_one_slice(tmp_path: Path):
    tifffile.imwrite(tmp_path / "1.tif", counted((3, 8, 7)), photometric="minisblack")
    with pytest.raises(SourceError, match="3 pages"):
        examine(tmp_path)


@pytest.mark.parametrize("extension", ["tif", "png", "jpg"])
@pytest.mark.parametrize("keep", [0, 4, 40, -20])
def test_slices_that_break_off(tmp_path: Path, extension: str, keep: int):
    names = [f"{z}.{extension}" for z in range(3)]
    write_slices(tmp_path, names, np.full((3, 16, 16), 9, np.uint8))
    broken = tmp_path / names[1]
    broken.write_bytes(broken.read_bytes()[:keep])
    source = examine(tmp_path)
    part, reasons = read(source, Box.whole(source.shape))
    assert set(dict(source.damaged)) <= set(reasons)
    assert list(reasons) == [1]
    assert names[1] in reasons[1]
    assert part[:, 5, 5].tolist() == [9, 0, 9]


def test_no_slice_can_be_read(tmp_path: Path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(SourceError, match="2 of 2"):
        examine(tmp_path)


def test_a_png_that_lies_about_its_size(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(b"\0\1", 100_000, 100_000, 8, 0))
    with pytest.raises(SourceError, match="10000000000"):
        examine(tmp_path / "a.png")


def test_a_folder_that_changed(tmp_path: Path):
    folder = write_slices(tmp_path, ["1.png", "2.png"], counted((2, 8, 7)))
    source = examine(folder)
    write_slice(folder / "2.png", counted((8, 7)) + 1)
    with pytest.raises(SourceError, match=source.fingerprint[:12]):
        read(source, Box.whole(source.shape))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    extension=st.sampled_from(["png", "jpg"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_any_damage_is_an_error_or_reported(
    tmp_path: Path, extension: str, changes: list[tuple[int, int]]
):
    path = tmp_path / f"a.{extension}"
    write_slice(path, counted((16, 24)))
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        source = examine(path)
    except SourceError:
        return
    box = Box.whole(source.shape).intersect(Box((0, 0, 0), (1, 100, 100)))
    voxels, reasons = read(source, box)
    assert voxels.shape == box.shape
    assert set(reasons) <= {0}
