"""Does a volume come back as it was written, for us and for every other reader of OME-Zarr?"""

from __future__ import annotations

import concurrent.futures
import json
import math
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuroglancer
import numcodecs
import numpy as np
import ome_zarr.format
import ome_zarr.io
import ome_zarr.reader
import ome_zarr.writer
import ome_zarr_models
import ome_zarr_models.v05
import pytest
import tensorstore
import zarr
from distributed import Client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from cvdask.errors import DamagedData
from cvdask.volume.boxes import Box
from cvdask.volume.objects import watch_traffic
from cvdask.volume.store import (
    Level,
    check_voxel_size,
    create,
    create_level,
    describe,
    digest_shard,
    open_volume,
    publish,
    read_attributes,
    read_manifest,
    storage_shapes,
    volume_digest,
    write_box,
)
from tests import strategies
from tests.samples import random_voxels, write_sample

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32", "float64")


def written_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


# Small cases, written out


def test_metadata_of_a_sample(tmp_path: Path) -> None:
    write_sample(tmp_path / "cell.zarr", np.ones((8, 4, 4), "uint8"), shard_shape=(8, 4, 4))
    attributes = written_json(tmp_path / "cell.zarr/zarr.json")["attributes"]
    assert attributes["ome"] == {
        "version": "0.5",
        "multiscales": [
            {
                "name": "cell.zarr",
                "axes": [
                    {"name": "z", "type": "space", "unit": "nanometer"},
                    {"name": "y", "type": "space", "unit": "nanometer"},
                    {"name": "x", "type": "space", "unit": "nanometer"},
                ],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [40.0, 10.0, 10.0]}
                        ],
                    }
                ],
                "type": "mean",
            }
        ],
    }
    assert attributes["cvdask"]["state"] == "complete"
    assert attributes["cvdask"]["provenance"] == {"stage": "sample"}
    array = written_json(tmp_path / "cell.zarr/0/zarr.json")
    assert (array["shape"], array["data_type"]) == ([8, 4, 4], "uint8")
    assert array["dimension_names"] == ["z", "y", "x"]
    assert array["chunk_grid"]["configuration"] == {"chunk_shape": [8, 4, 4]}
    sharding = array["codecs"][0]["configuration"]
    assert sharding["chunk_shape"] == [4, 4, 4]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "zstd", "crc32c"]


def test_metadata_of_labels(tmp_path: Path) -> None:
    data = np.ones((4, 4, 4), "uint8")
    write_sample(tmp_path, data)
    write_sample(
        tmp_path, data, labels="tissue", classes={2: "z_discs", 1: "nucleus"}, colors={1: "#0a0bff"}
    )
    group = written_json(tmp_path / "labels/tissue/zarr.json")["attributes"]["ome"]
    assert group["multiscales"][0]["type"] == "mode"
    assert group["image-label"] == {
        "source": {"image": "../../"},
        "colors": [{"label-value": 1, "rgba": [10, 11, 255, 255]}],
        "properties": [
            {"label-value": 1, "name": "nucleus"},
            {"label-value": 2, "name": "z_discs"},
        ],
    }
    listed = written_json(tmp_path / "labels/zarr.json")["attributes"]["ome"]
    assert listed == {"version": "0.5", "labels": ["tissue"]}
    volume = open_volume(tmp_path)
    assert volume.label_names() == ["tissue"]
    labels = volume.label("tissue")
    assert (labels.classes, labels.colors) == ({1: "nucleus", 2: "z_discs"}, {1: "#0a0bff"})
    assert (labels.name, labels.is_labels, volume.is_labels) == ("tissue", True, False)
    with pytest.raises(ValueError, match=r"tissue.*'membrane'"):
        volume.label("membrane")


def test_shards_and_digests_of_a_write(tmp_path: Path) -> None:
    volume = describe(
        tmp_path,
        shape=(4, 4, 6),
        dtype="uint8",
        voxel_size_nm=10,
        chunk_shape=(2, 2, 2),
        shard_shape=(4, 4, 4),
    )
    create(volume, {})
    data = np.zeros((4, 4, 6), "uint8")
    data[..., 4:] = 7
    level = volume.levels[0]
    digests = volume.write(level.box, data)
    assert digests == {
        "c/0/0/0": digest_shard(level, data[..., :4]),
        "c/0/0/1": digest_shard(level, data[..., 4:]),
    }
    # The first shard holds zeros alone, so it is not stored; and zeros take back what was there.
    assert not (tmp_path / "0/c/0/0/0").exists()
    assert (tmp_path / "0/c/0/0/1").is_file()
    volume.write(level.box, np.zeros_like(data))
    assert not (tmp_path / "0/c/0/0/1").exists()
    np.testing.assert_array_equal(volume.read(), np.zeros_like(data))


def test_digest_is_that_of_the_voxels_only(tmp_path: Path) -> None:
    data = random_voxels((8, 8, 8), "uint16")
    level = write_sample(tmp_path / "a", data).levels[0]
    labels = write_sample(tmp_path / "a", data, labels="a").levels[0]  # compressed otherwise
    assert digest_shard(level, data) == digest_shard(labels, data)
    other = data.copy()
    other[7, 7, 7] ^= 1
    assert digest_shard(level, data) != digest_shard(level, other)


def test_what_a_volume_is_called(tmp_path: Path) -> None:
    assert describe(tmp_path / "cell.zarr", shape=(1, 1, 1), dtype="u1", voxel_size_nm=1).name == (
        "cell.zarr"
    )


# Describing


def test_describe_opens_and_creates_nothing(tmp_path: Path) -> None:
    describe(tmp_path / "cell.zarr", shape=(10, 10, 10), dtype="uint8", voxel_size_nm=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (5, 5)}, r"\(5, 5\)"),
        ({"shape": (5, 0, 5)}, r"\(5, 0, 5\)"),
        ({"dtype": "complex64"}, "complex64"),
        ({"dtype": "float32", "labels": "classes"}, "classes.*float32"),
        ({"labels": "../up"}, r"\.\./up"),
        ({"labels": ""}, "''"),
        ({"labels": ".cvdask"}, r"\.cvdask"),
        ({"voxel_size_nm": (5, 5)}, r"\(5, 5\)"),
        ({"voxel_size_nm": (5, -5, 5)}, "-5"),
        ({"voxel_size_nm": math.nan}, "nan"),
        ({"chunk_shape": (2, 3, 2), "shard_shape": (4, 4, 4)}, "y.*4.*3"),
        ({"chunk_shape": (2, 2, 0), "shard_shape": (4, 4, 4)}, "x.*4.*0"),
    ],
)
def test_descriptions_that_break_a_rule(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    options = {"shape": (5, 5, 5), "dtype": "uint8", "voxel_size_nm": 5, **changes}
    with pytest.raises(ValueError, match=said):
        describe(tmp_path, **options)


def test_one_voxel_size_is_that_of_all_axes() -> None:
    assert check_voxel_size(5) == check_voxel_size([5]) == (5.0, 5.0, 5.0)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 30000), st.integers(1, 30000)),
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.sampled_from([2**20, 2**26, 2**30]),
)
@example((33, 513, 513), 8, None)
def test_storage_shapes_are_bounded_and_even(
    shape: tuple[int, ...], itemsize: int, slab_bytes: int | None
) -> None:
    chunk, shard = storage_shapes(shape, itemsize, slab_bytes=slab_bytes)
    for extent, small, large in zip(shape, chunk, shard, strict=True):
        assert 1 <= small <= extent
        assert large % small == 0
        assert large < extent + small
        # Shards divide an axis evenly: the last one is short by less than a chunk for each of them.
        n_shards = -(-extent // large)
        assert n_shards * large - extent < n_shards * small
    assert math.prod(chunk) <= 32 * 256 * 256
    assert math.prod(shard) * itemsize <= 2**28


# Reading and writing


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    shape = draw(st.tuples(*[st.sampled_from(strategies.EXTENTS)] * 3))
    chunk = tuple(draw(st.integers(1, 5)) for _ in range(3))
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    return {"shape": shape, "chunk_shape": chunk, "shard_shape": shard}


@given(layout=layouts(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_box_is_the_slice_of_the_array(
    tmp_path_factory: pytest.TempPathFactory,
    layout: dict[str, tuple[int, ...]],
    dtype: str,
    data: st.DataObject,
) -> None:
    voxels = random_voxels(layout.pop("shape"), dtype, data.draw(st.integers(0, 99)))
    labels = None if dtype.startswith("float") else data.draw(st.none() | st.just("classes"))
    url = tmp_path_factory.mktemp("box")
    volume = write_sample(url, voxels, labels=labels, **layout)
    # Boxes on both sides of half a shard: zarr reads the smaller, we read the larger.
    for _ in range(4):
        box = data.draw(strategies.boxes(voxels.shape))
        read = volume.read(box)
        np.testing.assert_array_equal(read, voxels[box.slices])
        assert read.dtype == voxels.dtype
        assert read.flags.writeable
    path = volume.levels[0].path
    zarr_array = zarr.open_array(url / path, mode="r")
    np.testing.assert_array_equal(zarr_array[...], voxels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_readers_see_the_same_voxels(tmp_path: Path, dtype: str) -> None:
    voxels = random_voxels((11, 13, 7), dtype)
    write_sample(tmp_path, voxels)
    np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")["0"][...], voxels)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "0")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), voxels)


@pytest.mark.parametrize("writer", ["zarr", "tensorstore"])
def test_shards_of_other_writers(tmp_path: Path, writer: str) -> None:
    voxels = random_voxels((11, 13, 7), "uint16", empty=0.5)
    write_sample(tmp_path, np.zeros_like(voxels))
    if writer == "zarr":
        zarr.open_array(tmp_path / "0", mode="r+")[...] = voxels
    else:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "0")}}
        tensorstore.open(spec).result().write(voxels).result()
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(volume.read(), voxels)
    sliver = Box((2, 3, 1), (4, 9, 3))
    np.testing.assert_array_equal(volume.read(sliver), voxels[sliver.slices])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parts_of_shards_are_read_alone(data: st.DataObject) -> None:
    voxels = random_voxels((32, 24, 40), "uint16", empty=0.3)
    with tempfile.TemporaryDirectory() as folder:
        volume = write_sample(Path(folder), voxels)
        ranges = [
            sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
            for n in voxels.shape
        ]
        box = Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))
        np.testing.assert_array_equal(volume.read(box), voxels[box.slices])


def test_halves_of_a_shard_are_read_once(tmp_path: Path) -> None:
    voxels = random_voxels((64, 64, 64), "uint16", empty=0.0)
    chunked = {"chunk_shape": (16, 16, 16), "shard_shape": (64, 64, 64)}
    volume = describe(
        str(tmp_path), shape=voxels.shape, dtype="uint16", voxel_size_nm=(1, 1, 1), **chunked
    )
    create(volume, {})
    volume.write(volume.levels[0].box, voxels)
    stored = (tmp_path / "0" / "c" / "0" / "0" / "0").stat().st_size
    for axis in range(3):
        with watch_traffic() as traffic:
            for half in (0, 32):
                start, stop = [0] * 3, [64] * 3
                start[axis], stop[axis] = half, half + 32
                box = Box(tuple(start), tuple(stop))
                np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
        assert traffic.bytes_read <= 1.02 * stored


def test_a_flipped_byte_in_a_part_of_a_shard_is_found(tmp_path: Path) -> None:
    voxels = random_voxels((8, 8, 8), "uint16", empty=0.0)
    volume = write_sample(tmp_path, voxels)
    shard = tmp_path / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedData, match=r"chunk 0.*checksum"):
        volume.read(Box((0, 0, 0), (4, 8, 8)))
    np.testing.assert_array_equal(volume.read(Box((4, 0, 0), (8, 8, 8))), voxels[4:])
    shard.write_bytes(content[:20])
    with pytest.raises(DamagedData, match="damaged"):
        volume.read(Box((4, 0, 0), (8, 8, 8)))


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (Box((0, 3, 0), (8, 8, 8)), r"y: 3:8.*\b8\b.*ends at 12.*\(8, 8, 8\)"),
        (Box((0, 0, 0), (4, 8, 8)), r"z: 0:4.*\b8\b.*ends at 9"),
        (Box((0, 0, 8), (8, 8, 12)), r"x: 8:12.*\b8\b.*ends at 20"),
        (Box((8, 8, 16), (10, 12, 20)), "9,0:12,0:20.*8:10,8:12,16:20"),
    ],
)
def test_unaligned_writes_are_refused(tmp_path: Path, box: Box, said: str) -> None:
    volume = write_sample(tmp_path, np.ones((9, 12, 20), "uint8"))
    with pytest.raises(ValueError, match=said):
        volume.write(box, np.zeros(box.shape, "uint8"))
    assert volume.read().all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((8, 8, 7), "uint8"), r"uint8 of shape \(8, 8, 8\).*\(8, 8, 7\)"),
        (np.zeros((8, 8, 8), "uint16"), "uint8.*uint16"),
    ],
)
def test_data_that_does_not_fit_its_box(tmp_path: Path, data: np.ndarray, said: str) -> None:
    volume = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    with pytest.raises(ValueError, match=said):
        volume.write(Box((0, 0, 0), (8, 8, 8)), data)


def test_boxes_that_leave_the_level(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    with pytest.raises(ValueError, match=r"0:8,0:8,0:8.*0:9,0:1,0:1"):
        volume.read(Box((0, 0, 0), (9, 1, 1)))
    with pytest.raises(ValueError, match=r"0 to 0.*3"):
        volume.read(level=3)


def test_an_empty_box_has_no_voxels(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    assert volume.read(Box((3, 3, 3), (3, 5, 5))).shape == (0, 2, 2)


def test_foreign_arrays_are_not_written(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path, np.zeros((4, 4, 4), "uint8"))
    volume = open_volume(tmp_path)
    with pytest.raises(ValueError, match="cvdask ingest"):
        volume.write(Box((0, 0, 0), (4, 4, 4)), np.zeros((4, 4, 4), "uint8"))


def shard_writes(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, list[int]]:
    voxels = random_voxels(shape, "uint16", seed)
    order = list(range(len(describe_grid(shape))))
    random.Random(seed).shuffle(order)
    return voxels, order


def describe_grid(shape: tuple[int, ...]) -> Any:
    return Level("0", shape, "uint16", (4, 4, 4), (8, 8, 8), None).shards


def write_one_shard(url: str, level: Level, seed: int, number: int) -> None:
    """Write one shard from a process of its own, which draws the same voxels again."""
    block = level.shards[number]
    voxels = random_voxels(level.shape, level.dtype, seed)
    write_box(url, level, block.write, voxels[block.write.slices])


@pytest.mark.parametrize("seed", range(3))
def test_threads_write_in_any_order(tmp_path: Path, seed: int) -> None:
    voxels, order = shard_writes((30, 28, 26), seed)
    volume = write_sample(tmp_path, np.ones_like(voxels))
    level = volume.levels[0]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: write_one_shard(volume.url, level, seed, n), order))
    assert np.count_nonzero(volume.read() != voxels) == 0


def test_processes_write_in_any_order(tmp_path: Path, distributed_client: Client) -> None:
    voxels, order = shard_writes((30, 28, 26), 7)
    volume = write_sample(tmp_path, np.ones_like(voxels))
    futures = [
        distributed_client.submit(write_one_shard, volume.url, volume.levels[0], 7, n, pure=False)
        for n in order
    ]
    distributed_client.gather(futures)
    assert np.count_nonzero(volume.read() != voxels) == 0


def test_an_output_that_was_replaced_is_not_read_by_its_old_layout(tmp_path: Path) -> None:
    old = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    for leftover in (tmp_path / "0/zarr.json", tmp_path / "zarr.json"):
        leftover.unlink()
    new = describe(tmp_path, shape=(9, 8, 8), dtype="uint8", voxel_size_nm=10)
    create(new, {})
    unopened = Level("0", (8, 8, 8), "uint8", (4, 4, 4), (8, 8, 8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(9, 8, 8\).*\(8, 8, 8\).*again"):
        write_box(old.url, unopened, unopened.box, np.ones((8, 8, 8), "uint8"))


# Damage


def shard_file(tmp_path: Path) -> tuple[Path, np.ndarray]:
    voxels = random_voxels((8, 8, 8), "uint8", empty=0.0)
    write_sample(tmp_path, voxels)
    return tmp_path / "0/c/0/0/0", voxels


@pytest.mark.parametrize("box", [Box((0, 0, 0), (8, 8, 8)), Box((1, 1, 1), (2, 3, 3))])
def test_a_flipped_byte_is_found_by_reading_or_is_outside_the_box(tmp_path: Path, box: Box) -> None:
    path, voxels = shard_file(tmp_path)
    volume = open_volume(tmp_path)
    good = path.read_bytes()
    n_found = 0
    for position in [*range(0, len(good), 23), *range(len(good) - 140, len(good), 3)]:
        damaged = bytearray(good)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
        except DamagedData:
            n_found += 1
    whole = box.size == voxels.size
    assert n_found == len(range(0, len(good), 23)) + 47 if whole else n_found > 47


@pytest.mark.parametrize("kept", [0, 1, 50, -1])
@pytest.mark.parametrize("box", [Box((0, 0, 0), (8, 8, 8)), Box((5, 5, 5), (8, 8, 8))])
def test_a_truncated_shard_is_found_by_reading(tmp_path: Path, kept: int, box: Box) -> None:
    path, _ = shard_file(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedData, match="/0"):
        open_volume(tmp_path).read(box)


# Publishing


def test_a_volume_is_there_when_it_is_published(tmp_path: Path) -> None:
    volume = describe(tmp_path, shape=(4, 4, 4), dtype="uint8", voxel_size_nm=10)
    create(volume, {"stage": "segment", "options": {"seed": 1}})
    with pytest.raises(ValueError, match="segment has begun"):
        open_volume(tmp_path)
    assert read_attributes(tmp_path)["state"] == "begun"
    assert publish(volume, holes=[3]).attributes["holes"] == [3]
    opened = open_volume(tmp_path)
    assert opened.attributes["provenance"]["options"] == {"seed": 1}
    assert opened.attributes["state"] == "complete"


def test_unpublished_labels_are_not_listed(tmp_path: Path) -> None:
    write_sample(tmp_path, np.ones((4, 4, 4), "uint8"))
    labels = describe(tmp_path, shape=(4, 4, 4), dtype="uint8", voxel_size_nm=10, labels="classes")
    create(labels, {"stage": "segment"})
    assert open_volume(tmp_path).label_names() == []
    with pytest.raises(ValueError, match="segment has begun"):
        open_volume(tmp_path, labels="classes")
    publish(labels)
    assert open_volume(tmp_path).label_names() == ["classes"]


def test_levels_and_their_places_come_back(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    coarse = Level(
        "1", (8, 4, 4), "uint8", (4, 4, 4), (8, 4, 4), (40.0, 20.0, 20.0), (0.0, 5.0, 5.0)
    )
    create_level(volume.url, coarse)
    publish(type(volume)(volume.url, "", (*volume.levels, coarse)))
    assert open_volume(tmp_path).levels == (volume.levels[0], coarse)


def test_manifests(tmp_path: Path) -> None:
    voxels = random_voxels((16, 8, 16), "uint8", empty=0.0)
    level = write_sample(tmp_path, voxels).levels[0]
    assert read_manifest(str(tmp_path), level, 1) == {
        "c/1/0/0": digest_shard(level, voxels[8:, :, :8]),
        "c/1/0/1": digest_shard(level, voxels[8:, :, 8:]),
    }
    assert read_manifest(str(tmp_path), level, 2) == {}


def test_volume_digest_follows_the_voxels(tmp_path: Path) -> None:
    voxels = random_voxels((8, 8, 8), "uint8")
    first = volume_digest(write_sample(tmp_path / "a", voxels))
    assert first == volume_digest(write_sample(tmp_path / "b", voxels))
    assert first == volume_digest(open_volume(tmp_path / "b"))
    voxels[0, 0, 0] ^= 1
    assert first != volume_digest(write_sample(tmp_path / "c", voxels))
    write_ome_zarr(tmp_path / "d", voxels)
    assert re.fullmatch("sha256:[0-9a-f]{64}", volume_digest(open_volume(tmp_path / "d")))


# Other readers


def test_the_referee_accepts_what_is_written(tmp_path: Path) -> None:
    data = random_voxels((8, 8, 8), "uint8")
    write_sample(tmp_path, data)
    write_sample(tmp_path, data, labels="classes", classes={1: "nucleus"}, colors={1: "#ff0000"})
    group = zarr.open_group(tmp_path, mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert isinstance(image, ome_zarr_models.v05.Image)
    assert image.labels is not None
    assert image.labels.attributes.ome.labels == ["classes"]
    labels = ome_zarr_models.open_ome_zarr(group["labels/classes"])
    assert isinstance(labels, ome_zarr_models.v05.ImageLabel)
    properties = labels.attributes.ome.image_label.properties
    assert [(row.label_value, row.name) for row in properties] == [(1, "nucleus")]


def test_ome_zarr_py_opens_what_is_written(tmp_path: Path) -> None:
    data = random_voxels((8, 8, 8), "uint8")
    write_sample(tmp_path / "cell.zarr", data)
    write_sample(tmp_path / "cell.zarr", data, labels="classes", classes={1: "nucleus"})
    for path in ("cell.zarr", "cell.zarr/labels/classes"):
        location = ome_zarr.io.parse_url(tmp_path / path)
        assert location is not None
        node = next(iter(ome_zarr.reader.Reader(location)()))
        np.testing.assert_array_equal(node.data[0].compute(), data)
        scale = node.metadata["coordinateTransformations"][0][0]
        assert scale == {"type": "scale", "scale": [40.0, 10.0, 10.0]}
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]


def test_neuroglancer_takes_the_layer(tmp_path: Path) -> None:
    # Its own reader runs in the browser; tensorstore, by the same authors, reads in
    # test_other_readers_see_the_same_voxels. Here: the state, and a volume of the voxels.
    data = random_voxels((8, 8, 8), "uint8")
    volume = write_sample(tmp_path, data)
    state = neuroglancer.ViewerState()
    state.layers["cell"] = neuroglancer.ImageLayer(source="http://127.0.0.1/cell.zarr/|zarr3:")
    assert state.to_json()["layers"][0]["source"][0]["url"].endswith("|zarr3:")
    space = neuroglancer.CoordinateSpace(
        names=["z", "y", "x"], units="nm", scales=volume.voxel_size_nm
    )
    local = neuroglancer.LocalVolume(volume.read(), space)
    assert (local.volume_type, local.shape) == ("image", (8, 8, 8))


# What other programs write


def write_ome_zarr(
    path: Path,
    data: np.ndarray,
    *,
    axes: str = "zyx",
    unit: str | None = "nanometer",
    datasets: list[dict[str, Any]] | None = None,
    transforms: list[dict[str, Any]] | None = None,
    ome: dict[str, Any] | None = None,
    **array: Any,
) -> None:
    """Write an OME-Zarr 0.5 image by hand, with one level of ones as voxel size."""
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": axis, "type": kinds.get(axis, "space")}
        | ({"unit": unit} if unit and axis not in kinds else {})
        for axis in axes
    ]
    scale = {"type": "scale", "scale": [1.0] * len(axes)}
    multiscale: dict[str, Any] = {
        "axes": described,
        "datasets": datasets or [{"path": "0", "coordinateTransformations": [scale]}],
    }
    if transforms:
        multiscale["coordinateTransformations"] = transforms
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale], **(ome or {})}}
    group = zarr.open_group(path, mode="w", attributes=attributes)
    group.create_array("0", data=data, **{"chunks": tuple(min(4, n) for n in data.shape), **array})


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("fill", [0, 3])
def test_ome_zarr_04_by_hand(tmp_path: Path, separator: str, fill: int) -> None:
    voxels = random_voxels((5, 6, 7), "uint16").astype(">u2")
    voxels[:4, :4, :4] = fill
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
            "datasets": [
                {
                    "path": "s0",
                    "coordinateTransformations": [{"type": "scale", "scale": [0.04, 0.01, 0.02]}],
                }
            ],
        }
    ]
    encoding = {"name": "v2", "separator": separator}
    array = group.create_array(
        "s0",
        shape=(5, 6, 7),
        chunks=(4, 4, 4),
        dtype=">u2",
        fill_value=fill,
        chunk_key_encoding=encoding,
    )
    array[...] = voxels
    volume = open_volume(tmp_path)
    assert volume.version == "0.4"
    assert volume.voxel_size_nm == pytest.approx((40.0, 10.0, 20.0))
    np.testing.assert_array_equal(volume.read(), voxels)
    box = Box((3, 0, 2), (5, 6, 5))
    np.testing.assert_array_equal(volume.read(box), voxels[box.slices])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_of_ome_zarr_py(tmp_path: Path, version: str) -> None:
    voxels = random_voxels((8, 16, 16), "uint8")
    ome_format = ome_zarr.format.format_from_version(version)
    ome_zarr.writer.write_image(
        voxels,
        str(tmp_path / "cell.zarr"),
        axes="zyx",
        axes_units=dict.fromkeys("zyx", "micrometer"),
        scale={"z": 0.03, "y": 0.005, "x": 0.005},
        scale_factors=[2],
        fmt=ome_format,
    )
    volume = open_volume(tmp_path / "cell.zarr")
    assert volume.version == version
    assert volume.voxel_size_nm == pytest.approx((30.0, 5.0, 5.0))
    np.testing.assert_array_equal(volume.read(), voxels)
    assert len(volume.levels) == 2
    assert volume.levels[1].shape[1:] == (8, 8)
    assert volume.read(level=1).shape == volume.levels[1].shape


def test_transforms_of_the_dataset_come_before_those_of_the_multiscale(tmp_path: Path) -> None:
    write_ome_zarr(
        tmp_path,
        np.zeros((4, 4, 4), "uint8"),
        unit="micrometer",
        datasets=[
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [2.0, 1.0, 1.0]},
                    {"type": "translation", "translation": [1.0, 0.5, 0.0]},
                ],
            }
        ],
        transforms=[
            {"type": "scale", "scale": [0.01, 0.01, 0.1]},
            {"type": "translation", "translation": [0.0, 0.0, 1.0]},
        ],
    )
    level = open_volume(tmp_path).levels[0]
    assert level.voxel_size_nm == pytest.approx((20.0, 10.0, 100.0))
    assert level.origin_nm == pytest.approx((10.0, 5.0, 1000.0))


@pytest.mark.parametrize("unit", [None, "pixel"])
def test_no_physical_unit_is_no_voxel_size(tmp_path: Path, unit: str | None) -> None:
    write_ome_zarr(tmp_path, np.zeros((4, 4, 4), "uint8"), unit=unit)
    assert open_volume(tmp_path).voxel_size_nm is None


@pytest.mark.parametrize(
    "array",
    [
        {},
        # Recognised as ours but for its five axes.
        {
            "shards": (1, 2, 4, 8, 8),
            "chunks": (1, 1, 4, 4, 4),
            "compressors": [ZstdCodec(level=3), Crc32cCodec()],
        },
    ],
    ids=["chunked", "sharded"],
)
def test_leading_axes(tmp_path: Path, array: dict[str, Any]) -> None:
    voxels = random_voxels((1, 3, 7, 8, 9), "uint8", empty=0.0)
    options = {"chunks": (1, 1, 4, 4, 4), **array}
    write_ome_zarr(tmp_path, voxels, axes="tczyx", **options)
    with pytest.raises(ValueError, match=r"axis c .*length 3.*channel"):
        open_volume(tmp_path)
    with pytest.raises(ValueError, match=r"axis c of .* has 3 entries.*5"):
        open_volume(tmp_path, channel=5)
    volume = open_volume(tmp_path, channel=2)
    assert (volume.shape, volume.levels[0].leading) == ((7, 8, 9), (0, 2))
    np.testing.assert_array_equal(volume.read(), voxels[0, 2])
    sliver = Box((1, 1, 1), (3, 2, 8))
    np.testing.assert_array_equal(volume.read(sliver), voxels[0, 2][sliver.slices])


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path, np.zeros((2, 4, 4, 4), "uint8"), axes="tzyx")
    with pytest.raises(ValueError, match=r"axis t .*length 2"):
        open_volume(tmp_path)


@pytest.mark.parametrize("axes", ["xyz", "zxy", "zyxc", "yx"])
def test_axes_in_another_order_are_refused(tmp_path: Path, axes: str) -> None:
    write_ome_zarr(tmp_path, np.zeros((4,) * len(axes), "uint8"), axes=axes)
    with pytest.raises(ValueError, match=", ".join(axes)):
        open_volume(tmp_path)


@pytest.mark.parametrize("name", ["v2", "default"])
def test_chunks_under_other_keys_are_read(tmp_path: Path, name: str) -> None:
    voxels = random_voxels((8, 8, 8), "uint8", empty=0.0)
    write_ome_zarr(
        tmp_path,
        voxels,
        shards=(8, 8, 8),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        chunk_key_encoding={"name": name, "configuration": {"separator": "."}},
    )
    np.testing.assert_array_equal(open_volume(tmp_path).read(), voxels)


# Named axes


def test_xarray_view(tmp_path: Path) -> None:
    voxels = random_voxels((9, 10, 11), "uint16")
    view = write_sample(tmp_path, voxels).to_xarray()
    assert view.dims == ("z", "y", "x")
    assert view.chunks == ((8, 1), (8, 2), (8, 3))
    assert view.dtype == np.uint16
    np.testing.assert_allclose(view.z, np.arange(9) * 0.04)
    np.testing.assert_allclose(view.x, np.arange(11) * 0.01)
    assert view.z.attrs["units"] == "µm"
    np.testing.assert_array_equal(view.compute(), voxels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_xarray_slices_like_numpy(tmp_path: Path, data: st.DataObject) -> None:
    voxels = random_voxels((9, 10, 11), "uint16")
    if not (tmp_path / "zarr.json").exists():
        write_sample(tmp_path, voxels)
    view = open_volume(tmp_path).to_xarray()
    index = tuple(data.draw(st.integers(-n, n - 1) | st.slices(n)) for n in voxels.shape)
    np.testing.assert_array_equal(view[index].compute(), voxels[index])


def test_xarray_takes_no_handle_to_the_workers(tmp_path: Path, distributed_client: Client) -> None:
    voxels = random_voxels((9, 10, 11), "uint16")
    view = write_sample(tmp_path, voxels).to_xarray()
    with distributed_client.as_current():
        total = view.astype("uint64").sum().compute()
    assert int(total) == int(voxels.astype("uint64").sum())


def test_xarray_places_a_coarse_level_between_the_voxels_it_covers(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, np.ones((8, 8, 8), "uint8"))
    coarse = Level("1", (8, 4, 4), "uint8", (4, 4, 4), (8, 4, 4), (40.0, 20.0, 20.0), (0, 5, 5))
    create_level(volume.url, coarse)
    view = publish(type(volume)(volume.url, "", (*volume.levels, coarse))).to_xarray(level=1)
    np.testing.assert_allclose(view.y, [0.005, 0.025, 0.045, 0.065])


# Headers that lie


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.zarr"):
        open_volume(tmp_path / "missing.zarr")
    assert not (tmp_path / "missing.zarr").exists()


def test_a_zarr_store_that_is_no_image(tmp_path: Path) -> None:
    zarr.open_group(tmp_path, mode="w")
    with pytest.raises(ValueError, match=r"multiscales.*cvdask ingest"):
        open_volume(tmp_path)


def test_a_version_of_the_future(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path, np.zeros((4, 4, 4), "uint8"), ome={"version": "0.9"})
    with pytest.raises(ValueError, match=r"0\.9"):
        open_volume(tmp_path)


def test_a_level_that_is_missing(tmp_path: Path) -> None:
    write_ome_zarr(
        tmp_path,
        np.zeros((4, 4, 4), "uint8"),
        datasets=[{"path": "7", "coordinateTransformations": []}],
    )
    with pytest.raises(FileNotFoundError, match="/7"):
        open_volume(tmp_path)


Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: Any) -> Change:
    """Return a function that replaces one entry of nested JSON."""

    def change(metadata: Any) -> None:
        *outer, last = path
        for step in outer:
            metadata = metadata[step]
        metadata[last] = value

    return change


SHARDING = ("codecs", 0, "configuration")
LIES = {
    "huge chunk": (put(*SHARDING, "chunk_shape", value=[2**14, 2**14, 2**14]), "16384"),
    "huge table": (
        put("chunk_grid", "configuration", "chunk_shape", value=[2**20, 2**20, 2**20]),
        "1048576",
    ),
    "negative shape": (put("shape", value=[-8, 8, 8]), "-8"),
    "empty shape": (put("shape", value=[]), r"\[\]"),
    "type of half a letter": (put("data_type", value="\ud800"), r"ud800.*/0"),
    "endless shape": (put("shape", value=[float("inf"), 8, 8]), "malformed"),
    "shape of words": (put("shape", value=["a", 8, 8]), "malformed"),
    "chunk of none": (put(*SHARDING, "chunk_shape", value=[0, 4, 4]), "0"),
    "fewer chunk axes": (put(*SHARDING, "chunk_shape", value=[4, 4]), "malformed"),
    "object type": (put("data_type", value="object"), "object"),
    "string type": (put("data_type", value="string"), "string"),
    "structured type": (put("data_type", value={"name": "struct"}), "struct"),
    "unknown codec": (put(*SHARDING, "codecs", 1, "name", value="own"), "own.*zstd"),
    "pickle codec": (put(*SHARDING, "codecs", 1, "name", value="numcodecs.pickle"), "pickle"),
    "no codecs": (lambda metadata: metadata.pop("codecs"), "codecs"),
    "wrong settings": (put(*SHARDING, "codecs", 1, "configuration", value=3), "0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_array_headers_are_refused_before_any_decode(
    tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(tmp_path, random_voxels((8, 8, 8), "uint16"))
    change, said = LIES[lie]
    header = tmp_path / "0/zarr.json"
    metadata = written_json(header)
    change(metadata)
    header.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=said):
        open_volume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, r"\|O"),
        ({"dtype": "|O", "filters": [{"id": "vlen-utf8"}]}, r"\|O"),
        ({"filters": [{"id": "pickle"}]}, "pickle"),
        ({"compressor": {"id": "json2"}}, "json2"),
        ({"dtype": [["a", "<u2"]]}, "a"),
        ({"chunks": [2**12, 2**12, 2**12]}, "4096"),
        ({"zarr_format": 4}, "malformed"),
    ],
)
def test_lying_headers_of_zarr_2(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    group.create_array("0", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="uint8")
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n} for n in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": []}],
        }
    ]
    header = tmp_path / "0/.zarray"
    header.write_text(json.dumps(written_json(header) | changes))
    with pytest.raises(ValueError, match=said):
        open_volume(tmp_path)


@pytest.mark.parametrize(
    ("change", "group", "said"),
    [
        (put("attributes", "ome", "labels", value=None), "labels", "names of label images"),
        (put("attributes", "ome", "labels", value=[1]), "labels", r"Received: \[1\]"),
        (put("attributes", "cvdask", "digests", value=None), "labels/classes", "digests"),
        (put("attributes", "cvdask", "provenance", value=3), "labels/classes", "provenance"),
    ],
)
def test_metadata_of_ours_that_is_malformed(
    tmp_path: Path, change: Any, group: str, said: str
) -> None:
    write_sample(tmp_path, np.ones((4, 4, 4), "uint8"))
    write_sample(tmp_path, np.ones((4, 4, 4), "uint8"), labels="classes", classes={1: "nucleus"})
    header = tmp_path / group / "zarr.json"
    metadata = written_json(header)
    change(metadata)
    header.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=said) as error:
        open_volume(tmp_path).label("classes")
    assert str(tmp_path) in str(error.value)


def test_a_damaged_chunk_of_blosc(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    array = group.create_array(
        "0", shape=(4, 4, 4), chunks=(4, 4, 4), dtype="uint8", compressors=numcodecs.Blosc()
    )
    array[...] = random_voxels((4, 4, 4), "uint8")
    scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
    ]
    chunk = tmp_path / "0/0.0.0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:4] + b"\x00\x00\x00\x80" + good[8:])  # it says: -2**31 bytes
    with pytest.raises(DamagedData, match="box 0:4,0:4,0:4"):
        open_volume(tmp_path).read()


def steps_of(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """List the way to every entry of nested JSON."""
    if isinstance(value, dict):
        inner = [step for key in value for step in steps_of(value[key], (*at, key))]
    elif isinstance(value, list):
        inner = [step for i, item in enumerate(value) for step in steps_of(item, (*at, i))]
    else:
        inner = []
    return [*([at] if at else []), *inner]


@settings(max_examples=150)
@given(st.data())
def test_no_header_whatever_breaks_more_than_itself(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # One entry of the metadata becomes something else: a volume opens, or is refused in our words.
    path = tmp_path_factory.mktemp("header")
    write_sample(path, np.ones((4, 4, 4), "uint8"), labels="classes", classes={1: "nucleus"})
    header = path / data.draw(
        st.sampled_from(["labels/classes/zarr.json", "labels/classes/0/zarr.json"])
    )
    metadata = written_json(header)
    way = data.draw(st.sampled_from(steps_of(metadata)))
    value = data.draw(
        st.sampled_from([None, -1, 2**60, 1.5, "", "x", [], {}, [1], {"a": 1}, [[]], True])
    )
    put(*way, value=value)(metadata)
    header.write_text(json.dumps(metadata))
    said = f"{path}: opened"
    try:
        open_volume(path, labels="classes").read(Box((0, 0, 0), (1, 1, 1)))
    except (ValueError, DamagedData, FileNotFoundError) as error:
        said = str(error)
    assert str(path) in said or "Received" in said
