"""TIFF, BigTIFF, ImageJ and OME-TIFF files, whole and broken."""

from __future__ import annotations

import pickle
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cvdask.volume.boxes import Box
from cvdask.volume.sources import Source, SourceError, examine, read
from tests.strategies import boxes

CODECS = [None, "lzw", "zlib", "zstd", "packbits", "lzma"]
LAYOUTS: list[dict[str, Any]] = [{}, {"rowsperstrip": 5}, {"tile": (16, 32)}]


def counted(shape: tuple[int, ...], dtype: str = "u1") -> npt.NDArray:
    """Voxels that tell where they are, short runs included so that every codec has work."""
    values = np.arange(np.prod(shape)).reshape(shape) // 3
    return (values % 251 if np.dtype(dtype).itemsize == 1 else values).astype(dtype)


def whole(path: Path, **options: Any) -> npt.NDArray:
    source = examine(path, **options)
    voxels, reasons = read(source, Box.whole(source.shape))
    assert reasons == {}
    assert voxels.shape == source.shape
    assert voxels.dtype == np.dtype(source.dtype)
    return voxels


def write(path: Path, voxels: npt.NDArray, **options: Any) -> Path:
    tifffile.imwrite(path, voxels, photometric="minisblack", **{"metadata": None, **options})
    return path


def change(path: Path, position: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    changed = bytearray(path.read_bytes())
    changed[position : position + len(data)] = data
    path.write_bytes(changed)


def tag_position(path: Path, page: int, code: int) -> int:
    """Byte of the value of a tag that fits into its entry."""
    with tifffile.TiffFile(path) as file:
        return int(file.pages[page].tags[code].valueoffset)


def test_a_small_stack(tmp_path: Path):
    voxels = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], np.uint16)
    source = examine(write(tmp_path / "a.tif", voxels))
    assert source.kind == "tiff"
    assert source.path == str(tmp_path / "a.tif")
    assert source.shape == (2, 2, 3)
    assert source.dtype == "uint16"
    assert source.chunk_shape == (1, 1, 3)
    assert source.row_access
    assert source.stored_bytes == (tmp_path / "a.tif").stat().st_size
    assert (source.missing, source.damaged, source.voxel_size_nm) == ((), (), None)
    part, reasons = read(source, Box((1, 0, 1), (2, 2, 3)))
    np.testing.assert_array_equal(part, np.array([[[8, 9], [11, 12]]], np.uint16))
    assert part.dtype == np.uint16
    assert reasons == {}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f4", "<i2", ">u4"])
def test_every_codec_and_layout(tmp_path: Path, codec: str | None, dtype: str):
    voxels = counted((2, 21, 37), dtype)
    for layout in LAYOUTS:
        for bigtiff in (False, True):
            for predictor in (False, True) if codec not in (None, "packbits") else (False,):
                path = write(
                    tmp_path / "a.tif",
                    voxels,
                    compression=codec,
                    predictor=predictor or None,
                    bigtiff=bigtiff,
                    byteorder=">" if dtype.startswith(">") else "<",
                    **layout,
                )
                np.testing.assert_array_equal(whole(path), voxels)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 8}, {"tile": (16, 32)}])
def test_image_codecs_as_tifffile_decodes_them(tmp_path: Path, codec: str, layout: dict[str, Any]):
    grey = np.add.outer(np.arange(24), np.arange(40)).astype("u1") * 3
    path = write(tmp_path / "a.tif", grey, compression=codec, **layout)
    np.testing.assert_array_equal(whole(path)[0], tifffile.imread(path))
    colour = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    tifffile.imwrite(path, colour, photometric="rgb", compression=codec, **layout)
    np.testing.assert_array_equal(whole(path, channel=1)[0], tifffile.imread(path)[..., 1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", [None, "zlib"])
def test_packed_bits_read_as_uint8(tmp_path: Path, codec: str | None, layout: dict[str, Any]):
    voxels = counted((2, 21, 37)) % 3 == 0
    path = write(tmp_path / "a.tif", voxels, compression=codec, **layout)
    assert examine(path).dtype == "uint8"
    np.testing.assert_array_equal(whole(path), voxels.astype(np.uint8))


def test_one_image_is_a_stack_of_one_slice(tmp_path: Path):
    voxels = counted((5, 7))
    np.testing.assert_array_equal(whole(write(tmp_path / "a.tif", voxels)), voxels[np.newaxis])


def test_float16_reads_as_float32(tmp_path: Path):
    voxels = counted((2, 5, 7), "f2")
    assert whole(write(tmp_path / "a.tif", voxels)).dtype == np.float32


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("codec", [None, "zlib"])
def test_one_channel_of_a_colour_image(tmp_path: Path, planes: str, codec: str | None):
    voxels = counted((3, 20, 30))
    stored = voxels if planes == "separate" else np.moveaxis(voxels, 0, -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planes, compression=codec, rowsperstrip=7
    )
    for channel in range(3):
        source = examine(path, channel=channel)
        part, _ = read(source, Box((0, 3, 4), (1, 18, 29)))
        np.testing.assert_array_equal(part[0], voxels[channel, 3:18, 4:29])
    with pytest.raises(SourceError, match=r"3 channels.*channel=0"):
        examine(path)
    with pytest.raises(SourceError, match=r"0 to 2.*channel=3"):
        examine(path, channel=3)


def test_a_channel_of_a_grey_image(tmp_path: Path):
    path = write(tmp_path / "a.tif", counted((2, 5, 7)))
    assert examine(path, channel=0).shape == (2, 5, 7)
    with pytest.raises(SourceError, match="channel=1"):
        examine(path, channel=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[npt.NDArray, list[Source]]:
    """One stack in many layouts."""
    folder = tmp_path_factory.mktemp("drawn")
    voxels = counted((3, 21, 37), "<u2")
    sources = []
    for number, layout in enumerate(LAYOUTS):
        for codec in (None, "zlib"):
            for order in "<>":
                path = folder / f"{number}{codec}{order == '<'}.tif"
                write(path, voxels, compression=codec, predictor=codec and True, byteorder=order,
                      **layout)  # fmt: skip
                sources.append(examine(path))
    return voxels, sources


@given(box=boxes((3, 21, 37)))
def test_any_box_equals_numpy(drawn: tuple[npt.NDArray, list[Source]], box: Box):
    voxels, sources = drawn
    for source in sources:
        part, reasons = read(source, box)
        assert reasons == {}
        np.testing.assert_array_equal(part, voxels[box.slices])


def test_threads_read_the_same_file(drawn: tuple[npt.NDArray, list[Source]]):
    voxels, sources = drawn
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        generator = np.random.default_rng(number)
        start.wait()
        for _ in range(40):
            low = generator.integers(0, (3, 21, 37))
            high = [
                int(generator.integers(a, b + 1)) for a, b in zip(low, (3, 21, 37), strict=True)
            ]
            box = Box(tuple(low), tuple(high))
            for source in sources:
                part, reasons = read(source, box)
                if reasons or not np.array_equal(part, voxels[box.slices]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_source_is_small_and_travels(tmp_path: Path):
    source = examine(write(tmp_path / "a.tif", counted((200, 5, 7))))
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert pickle.loads(sent) == source


def test_thumbnails_are_no_slices(tmp_path: Path):
    path = tmp_path / "a.tif"
    voxels = counted((2, 8, 8))
    with tifffile.TiffWriter(path) as file:
        for image in voxels:
            file.write(image, metadata=None)
            file.write(image[::2, ::2], subfiletype=1, metadata=None)
    np.testing.assert_array_equal(whole(path), voxels)


# ImageJ and OME


def test_imagej_states_the_voxel_size(tmp_path: Path):
    path = tmp_path / "a.tif"
    voxels = counted((4, 6, 5))
    tifffile.imwrite(
        path, voxels, imagej=True, resolution=(200.0, 100.0),
        metadata={"axes": "ZYX", "spacing": 0.03, "unit": "um"},
    )  # fmt: skip
    assert examine(path).voxel_size_nm == (30.0, 10.0, 5.0)
    np.testing.assert_array_equal(whole(path), voxels)


@pytest.mark.parametrize(
    "metadata",
    [{"spacing": 0.0, "unit": "um"}, {"spacing": float("nan"), "unit": "um"}, {"unit": "um"},
     {"spacing": 1.0}, {"spacing": -1.0, "unit": "nm"}, {"spacing": 1.0, "unit": "pixel"}],
)  # fmt: skip
def test_nonsense_is_no_voxel_size(tmp_path: Path, metadata: dict[str, Any]):
    path = tmp_path / "a.tif"
    facts = {"axes": "ZYX", **metadata}
    tifffile.imwrite(path, counted((4, 6, 5)), imagej=True, resolution=(2, 2), metadata=facts)
    assert examine(path).voxel_size_nm is None


def test_imagej_channels(tmp_path: Path):
    path = tmp_path / "a.tif"
    voxels = counted((4, 2, 6, 5))  # z, c, y, x
    tifffile.imwrite(path, voxels, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(whole(path, channel=1), voxels[:, 1])
    with pytest.raises(SourceError, match="2 channels"):
        examine(path)
    tifffile.imwrite(path, counted((9, 6, 5)), imagej=True)  # z, which tifffile calls channels
    np.testing.assert_array_equal(whole(path), counted((9, 6, 5)))


def test_imagej_time_series(tmp_path: Path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, counted((3, 4, 6, 5)), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(SourceError, match=r"3 frames of 4 slices"):
        examine(path)
    # A stack that was opened as a film has frames for slices.
    tifffile.imwrite(path, counted((3, 6, 5)), imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(whole(path), counted((3, 6, 5)))


def imagej_above_4_gib(path: Path, n_images: int, voxels: npt.NDArray) -> Path:
    """Write what ImageJ writes above 4 GiB: one directory, then all voxels."""
    text = f"ImageJ=1.53\nimages={n_images}\nslices={n_images}\n"
    tifffile.imwrite(path, voxels[0], description=text, metadata=None, byteorder=">")
    with open(path, "ab") as file:
        file.write(voxels[1:].astype(voxels.dtype.newbyteorder(">")).tobytes())
    return path


def test_imagej_with_a_single_directory(tmp_path: Path):
    voxels = counted((5, 6, 7), "u2")
    path = imagej_above_4_gib(tmp_path / "a.tif", 5, voxels)
    np.testing.assert_array_equal(whole(path), voxels)


def test_imagej_cut_off(tmp_path: Path):
    voxels = counted((5, 6, 7), "u2")
    path = imagej_above_4_gib(tmp_path / "a.tif", 7, voxels)
    source = examine(path)
    assert source.shape == (7, 6, 7)
    assert [z for z, _ in source.damaged] == [5, 6]
    part, reasons = read(source, Box.whole(source.shape))
    np.testing.assert_array_equal(part, np.concatenate([voxels, np.zeros((2, 6, 7), "u2")]))
    assert str(path.stat().st_size) in reasons[6]


def test_imagej_that_counts_too_many(tmp_path: Path):
    path = imagej_above_4_gib(tmp_path / "a.tif", 2_000_000_000, counted((5, 6, 7), "u2"))
    with pytest.raises(SourceError, match="2000000000 slices damaged"):
        examine(path)


def test_tifffile_with_a_single_directory(tmp_path: Path):
    voxels = counted((5, 6, 7), "u2")
    tifffile.imwrite(tmp_path / "a.tif", voxels, truncate=True)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), voxels)


def ome(path: Path, voxels: npt.NDArray, axes: str, **facts: Any) -> Path:
    tifffile.imwrite(path, voxels, ome=True, metadata={"axes": axes, **facts})
    return path


def test_ome_states_the_voxel_size(tmp_path: Path):
    voxels = counted((4, 6, 5))
    path = ome(
        tmp_path / "a.ome.tif", voxels, "ZYX",
        PhysicalSizeZ=0.03, PhysicalSizeY=100, PhysicalSizeYUnit="Å", PhysicalSizeX=5,
        PhysicalSizeXUnit="nm",
    )  # fmt: skip
    source = examine(path)
    assert source.kind == "ome-tiff"
    assert source.voxel_size_nm == (30.0, 10.0, 5.0)
    np.testing.assert_array_equal(whole(path), voxels)


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TCZYX"])
def test_ome_channels(tmp_path: Path, axes: str):
    shape = [{"T": 1, "C": 2, "Z": 4, "Y": 6, "X": 5}[axis] for axis in axes]
    voxels = counted(tuple(shape))
    path = ome(tmp_path / "a.ome.tif", voxels, axes)
    expected = voxels.reshape([n for n in shape if n > 1]).take(1, axis=axes.strip("T").index("C"))
    np.testing.assert_array_equal(whole(path, channel=1), expected)
    with pytest.raises(SourceError, match="2 channels"):
        examine(path)


def test_ome_time_series(tmp_path: Path):
    path = ome(tmp_path / "a.ome.tif", counted((3, 4, 6, 5)), "TZYX")
    with pytest.raises(SourceError, match="3 time points"):
        examine(path)


def test_ome_colours(tmp_path: Path):
    voxels = counted((4, 6, 5, 3))
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, voxels, ome=True, photometric="rgb", metadata={"axes": "ZYXS"})
    np.testing.assert_array_equal(whole(path, channel=2), voxels[..., 2])


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    "{images}</OME>"
)
IMAGE = (
    '<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" SizeC="1" SizeT="1" SizeX="5" SizeY="6" '
    'SizeZ="{z}" Type="uint8">{data}</Pixels></Image>'
)


def with_xml(path: Path, voxels: npt.NDArray, xml: str) -> Path:
    with tifffile.TiffWriter(path) as file:
        for number, image in enumerate(voxels):
            file.write(image, description=xml if number == 0 else None, metadata=None)
    return path


def test_ome_places_pages(tmp_path: Path):
    voxels = counted((3, 6, 5))
    data = "".join(f'<TiffData IFD="{i}" FirstZ="{z}"/>' for i, z in ((0, 2), (1, 0), (2, 3)))
    xml = OME.format(images=IMAGE.format(z=4, data=data))
    source = examine(with_xml(tmp_path / "a.tif", voxels, xml))
    part, reasons = read(source, Box.whole(source.shape))
    np.testing.assert_array_equal(
        part, voxels[[1, 0, 0, 2]] * np.array([1, 0, 1, 1], "u1")[:, None, None]
    )
    assert list(reasons) == [1]
    assert [z for z, _ in source.damaged] == [1]


@pytest.mark.parametrize(
    ("xml", "value"),
    [
        (OME.format(images=IMAGE.format(z=3, data="") * 2), "2 images"),
        (OME.format(images=""), "0 images"),
        (OME.format(images=IMAGE.format(z=999999999, data="")), "999999999 planes"),
        (OME.format(images="<Image>"), "mismatched tag"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + OME.format(images=""), "entities"),
        (
            OME.format(
                images=IMAGE.format(
                    z=3,
                    data='<TiffData IFD="0"><UUID FileName="a"/></TiffData>'
                    '<TiffData IFD="1"><UUID FileName="b"/></TiffData>',
                )
            ),
            "2 files",
        ),
    ],
)
def test_ome_that_cannot_be_followed(tmp_path: Path, xml: str, value: str):
    with pytest.raises(SourceError, match=value):
        examine(with_xml(tmp_path / "a.tif", counted((3, 6, 5)), xml))


# Bad input


def pages_of(path: Path, *images: npt.NDArray, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as file:
        for image in images:
            file.write(image, metadata=None, **options)
    return path


def test_mixed_shapes(tmp_path: Path):
    path = pages_of(tmp_path / "a.tif", *counted((3, 6, 5)), counted((4, 7)))
    with pytest.raises(SourceError, match=r"6 x 5 uint8 .* z = 0, 4 x 7 uint8 .* z = 3"):
        examine(path)


def test_mixed_dtypes(tmp_path: Path):
    path = pages_of(tmp_path / "a.tif", counted((6, 5)), counted((6, 5), "u2"))
    with pytest.raises(SourceError, match=r"6 x 5 uint8 .* z = 0, 6 x 5 uint16 .* z = 1"):
        examine(path)


def test_palette(tmp_path: Path):
    path = tmp_path / "a.tif"
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, counted((6, 5)), photometric="palette", colormap=colours)
    with pytest.raises(SourceError, match="palette"):
        examine(path)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_dtypes_that_must_be_converted(tmp_path: Path, dtype: str):
    with pytest.raises(SourceError, match=rf"{dtype}.*[Cc]onvert"):
        examine(write(tmp_path / "a.tif", counted((2, 6, 5), dtype)))


def test_nan_is_found_while_reading(tmp_path: Path):
    voxels = counted((4, 6, 5), "f4")
    voxels[1, 2, 3], voxels[3, 0, 0] = np.nan, -np.inf
    source = examine(write(tmp_path / "a.tif", voxels))
    part, reasons = read(source, Box.whole(source.shape))
    assert reasons == dict.fromkeys((1, 3), "slice holds NaN or infinite values")
    voxels[[1, 3]] = 0
    np.testing.assert_array_equal(part, voxels)


@pytest.mark.parametrize("codec", [None, "zlib"])
def test_a_file_that_breaks_off(tmp_path: Path, codec: str | None):
    voxels = counted((6, 40, 50))
    path = pages_of(tmp_path / "a.tif", *voxels, compression=codec)
    with tifffile.TiffFile(path) as file:
        last = file.pages[5].dataoffsets[0]
    path.write_bytes(path.read_bytes()[: last + 20])
    source = examine(path)
    assert source.shape == (6, 40, 50)
    assert [z for z, _ in source.damaged] == [5]
    assert str(last + 20) in source.damaged[0][1]
    part, reasons = read(source, Box.whole(source.shape))
    np.testing.assert_array_equal(part[:5], voxels[:5])
    assert not part[5].any()
    assert reasons == dict(source.damaged)


def test_a_page_that_cannot_be_decoded(tmp_path: Path):
    voxels = counted((4, 40, 50))
    path = pages_of(tmp_path / "a.tif", *voxels, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    change(path, offset + 2, bytes(count - 2))
    source = examine(path)
    assert source.damaged == ()
    part, reasons = read(source, Box((1, 3, 4), (4, 30, 31)))
    assert list(reasons) == [2]
    assert "Error" in reasons[2]
    np.testing.assert_array_equal(part[[0, 2]], voxels[[1, 3], 3:30, 4:31])
    assert not part[1].any()


def test_a_chain_that_returns_to_itself(tmp_path: Path):
    path = pages_of(tmp_path / "a.tif", *counted((3, 6, 5)))
    with tifffile.TiffFile(path) as file:
        second, third = file.pages[1].offset, file.pages[2].offset
        link = third + 2 + 12 * len(file.pages[2].tags)
    change(path, link, struct.pack("<I", second))
    with pytest.raises(SourceError, match=rf"page 2 names page 1 \(byte {second}\)"):
        examine(path)


def test_a_chain_that_leaves_the_file(tmp_path: Path):
    path = pages_of(tmp_path / "a.tif", *counted((3, 6, 5)))
    with tifffile.TiffFile(path) as file:
        link = file.pages[1].offset + 2 + 12 * len(file.pages[1].tags)
    change(path, link, struct.pack("<I", 2**32 - 8))
    source = examine(path)
    assert source.shape == (3, 6, 5)
    assert [z for z, _ in source.damaged] == [2]
    assert str(2**32 - 8) in source.damaged[0][1]


@pytest.mark.parametrize(
    ("codec", "width", "value"),
    [(None, 100_000, "600208"), ("zlib", 1 << 20, str(6 << 20)), (None, 0, "6 and 0")],
)
def test_a_header_that_lies_about_the_size(
    tmp_path: Path, codec: str | None, width: int, value: str
):
    path = write(tmp_path / "a.tif", counted((6, 5)), compression=codec)
    entry = tag_position(path, 0, 256) - 8
    change(path, entry, struct.pack("<HHII", 256, 4, 1, width))  # type 4: four bytes
    tracemalloc.start()
    with pytest.raises(SourceError, match=value):
        examine(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


def test_a_bomb_does_not_unfold(tmp_path: Path):
    # A megabyte of zeros is promised as four kilobytes: the buffer ends there.
    path = write(tmp_path / "a.tif", np.zeros((1024, 1024), "u1"), compression="zlib",
                 rowsperstrip=1024)  # fmt: skip
    for code in (256, 257):
        change(path, tag_position(path, 0, code), struct.pack("<H", 64))
    source = examine(path)
    assert source.shape == (1, 64, 64)
    part, reasons = read(source, Box.whole(source.shape))
    assert part.shape == (1, 64, 64)
    assert "SPACE" in reasons[0]


def test_an_unknown_compression_is_named(tmp_path: Path):
    path = write(tmp_path / "a.tif", counted((6, 5)))
    change(path, tag_position(path, 0, 259), struct.pack("<H", 4242))
    with pytest.raises(SourceError, match=r"4242.*deflate"):
        examine(path)


def test_a_file_that_changed(tmp_path: Path):
    path = write(tmp_path / "a.tif", counted((2, 6, 5)))
    source = examine(path)
    write(path, counted((2, 6, 6)))
    with pytest.raises(SourceError, match=source.fingerprint[:12]):
        read(source, Box.whole(source.shape))


def test_a_box_outside(tmp_path: Path):
    source = examine(write(tmp_path / "a.tif", counted((2, 6, 5))))
    with pytest.raises(SourceError, match=r"0:2,0:7,0:5.*\(2, 6, 5\)"):
        read(source, Box((0, 0, 0), (2, 7, 5)))


@pytest.mark.parametrize("head", [b"", b"II", b"II*\0", b"II*\0\x08\0\0\0", b"GIF89a  "])
def test_a_file_that_is_no_tiff(tmp_path: Path, head: bytes):
    (tmp_path / "a.tif").write_bytes(head)
    with pytest.raises(SourceError, match=r"a\.tif"):
        examine(tmp_path / "a.tif")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small files of every kind, as bytes to be damaged."""
    folder = tmp_path_factory.mktemp("small")
    voxels = counted((3, 20, 18), "u2")
    files = [
        write(folder / "0.tif", voxels),
        write(folder / "1.tif", voxels, compression="zlib", rowsperstrip=6, predictor=True),
        write(folder / "2.tif", voxels, compression="lzw", tile=(16, 16), bigtiff=True),
        write(folder / "3.tif", voxels.astype("u1"), compression="jpeg"),
        write(folder / "4.tif", voxels.astype("f4"), compression="zstd", predictor=True),
        ome(folder / "5.tif", voxels, "ZYX", PhysicalSizeZ=1.0),
        imagej_above_4_gib(folder / "6.tif", 3, voxels),
        write(folder / "7.tif", voxels > 100, compression="packbits"),
    ]
    return [path.read_bytes() for path in files]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, 7),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1) | st.just(1.0),
)
@example(which=0, changes=[], keep=1.0)
def test_any_damage_is_an_error_or_reported(
    small_files: list[bytes],
    tmp_path: Path,
    which: int,
    changes: list[tuple[int, int]],
    keep: float,
):
    data = bytearray(small_files[which])
    for position, value in changes:
        # Headers lie at the start or the end: half of the changes go to the first 600 bytes.
        data[(position // 2 % 600 if position % 2 else position) % len(data)] = value
    path = tmp_path / "a.tif"
    path.write_bytes(data[: int(keep * len(data))])
    tracemalloc.start()
    try:
        source = examine(path)
        # Sizes that the file can hold, compressed, and no more.
        assert np.prod(source.shape, dtype=object) <= len(data) * 100_000
        box = Box.whole(source.shape)
        if box.size > 1 << 20:
            box = box.intersect(Box((0, 0, 0), (64, 128, 128)))
        voxels, reasons = read(source, box)
        assert voxels.shape == box.shape
        assert voxels.dtype == np.dtype(source.dtype)
        assert set(reasons) <= set(range(box.shape[0]))
    except SourceError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 256 << 20


def test_headers_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import cvdask.volume.sources.tiff as tiff

    path = pages_of(tmp_path / "a.tif", *np.arange(300, dtype="u2").repeat(4).reshape(300, 2, 2))
    parsed = []
    original = tiff.read_directory

    def counting(*args: Any) -> Any:
        parsed.append(args)
        return original(*args)

    monkeypatch.setattr(tiff, "read_directory", counting)
    source = examine(path)
    for z in range(0, 300, 50):
        part, _ = read(source, Box((z, 0, 0), (z + 1, 2, 2)))
        assert (part == z).all()
    assert len(parsed) == 2  # once to examine, once to read
