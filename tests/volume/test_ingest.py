"""Ingest: what is in the file is in the volume, and what is wrong with the file is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

import cvdask
from cvdask.errors import BlocksFailed
from cvdask.volume import ingest as ingest_module
from cvdask.volume.sources import SourceError
from tests.trees import tree_digest

RNG = np.random.default_rng(11)


def stack(shape=(9, 40, 50), dtype="uint8") -> np.ndarray:
    """Smooth along z, so that no slice is an outlier."""
    height, width = shape[0] + shape[1], shape[2]
    coarse = RNG.integers(0, 200, (height // 12 + 1, width // 12 + 1))
    base = np.kron(coarse, np.ones((12, 12), int))[:height, :width]
    base = base + RNG.integers(0, 10, base.shape)
    top = 257 if np.dtype(dtype) == np.uint16 else 1
    return (np.stack([base[z : z + shape[1]] for z in range(shape[0])]) * top).astype(dtype)


@pytest.fixture
def tiff(tmp_path: Path) -> tuple[Path, np.ndarray]:
    data = stack()
    tifffile.imwrite(tmp_path / "raw.tif", data, photometric="minisblack")
    return tmp_path / "raw.tif", data


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks from little data: chunks 2 slices deep."""
    shapes = ((2, 16, 16), (4, 32, 32))
    monkeypatch.setattr(ingest_module, "_shapes", lambda source, itemsize: shapes)


def write_folder(folder: Path, data: np.ndarray, numbers: list[int]) -> None:
    folder.mkdir()
    for number, image in zip(numbers, data, strict=True):
        tifffile.imwrite(folder / f"slice_{number:04d}.tif", image, photometric="minisblack")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.usefixtures("small_slabs")
def test_voxels_size_and_levels_arrive(tmp_path, client, dtype):
    data = stack(dtype=dtype)
    tifffile.imwrite(tmp_path / "raw.tif", data, photometric="minisblack")
    result = cvdask.ingest(
        tmp_path / "raw.tif", tmp_path / "o.zarr", voxel_nm=(30, 10, 10), client=client
    )
    volume = cvdask.open(tmp_path / "o.zarr")
    np.testing.assert_array_equal(volume.read(), data)
    assert volume.voxel_size_nm == (30.0, 10.0, 10.0)
    assert result.volume == volume
    assert result.verification.ok
    assert result.summaries[0].n_done == len(ingest_module.plan_ingest(_job_of(result)).grid)


def _job_of(result):
    source = ingest_module.examine(result.volume.attributes["provenance"]["inputs"][0]["path"])
    return ingest_module.SlabJob(source, result.volume, None, "refuse")


@pytest.mark.usefixtures("small_slabs")
def test_any_client_writes_the_same_bytes(tmp_path, tiff, client):
    path, _ = tiff
    options = {"voxel_nm": 5, "labels": path, "label_name": "same", "n_levels": 2}
    cvdask.ingest(path, tmp_path / "a" / "o.zarr", client=client, **options)
    cvdask.ingest(path, tmp_path / "b" / "o.zarr", client="serial", **options)
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def test_ingest_again_is_nothing_to_do(tmp_path, tiff):
    path, _ = tiff
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    before = tree_digest(tmp_path / "o.zarr")
    again = cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    assert again.summaries == ()
    assert "already complete" in again.warnings
    assert tree_digest(tmp_path / "o.zarr") == before


def test_other_options_are_refused_and_named(tmp_path, tiff):
    path, data = tiff
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    with pytest.raises(FileExistsError, match=r"voxel_size_nm: .*5\.0.*6\.0"):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=6, resume=True)
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=6, overwrite=True)
    assert cvdask.open(tmp_path / "o.zarr").voxel_size_nm == (6.0, 6.0, 6.0)
    np.testing.assert_array_equal(cvdask.open(tmp_path / "o.zarr").read(), data)


def test_a_source_that_changed_is_refused(tmp_path, tiff):
    path, data = tiff
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    tifffile.imwrite(path, data[:5], photometric="minisblack")
    with pytest.raises(FileExistsError, match="shape"):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)


def test_dry_run_writes_nothing(tmp_path, tiff):
    path, data = tiff
    plans = cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5, dry_run=True)
    assert plans[0].read_bytes == data.nbytes
    assert not (tmp_path / "o.zarr").exists()


# ---------------------------------------------------------------------------------------------
# Labels


def test_labels_beside_the_image(tmp_path, tiff):
    path, data = tiff
    labels = (data > 120).astype(np.uint8) * 2
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    cvdask.ingest(
        path, tmp_path / "o.zarr", voxel_nm=5, labels=tmp_path / "labels.tif", label_name="truth",
        classes=["mitochondria", "myofibrils"],
    )  # fmt: skip
    truth = cvdask.open(tmp_path / "o.zarr").label("truth")
    np.testing.assert_array_equal(truth.read(), labels)
    assert dict(truth.classes) == {1: "mitochondria", 2: "myofibrils"}
    assert set(truth.colors) == {1, 2}


def test_sparse_annotation_is_255_elsewhere(tmp_path, tiff):
    path, data = tiff
    annotated = np.stack([data[6] > 100, data[2] > 100]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "two.tif", annotated, photometric="minisblack")
    cvdask.ingest(
        path, tmp_path / "o.zarr", voxel_nm=5, labels=tmp_path / "two.tif", label_slices=[6, 2],
        classes=["bright"],
    )  # fmt: skip
    volume = cvdask.open(tmp_path / "o.zarr").label("annotations")
    expected = np.full(data.shape, 255, np.uint8)
    expected[6], expected[2] = annotated
    np.testing.assert_array_equal(volume.read(), expected)
    assert volume.attributes["slices"] == {"annotated": [2, 6]}


def test_labels_are_added_to_a_sample_later(tmp_path, tiff):
    path, data = tiff
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    tifffile.imwrite(tmp_path / "l.tif", data % 3, photometric="minisblack")
    result = cvdask.ingest(tmp_path / "l.tif", tmp_path / "o.zarr", as_labels="later")
    assert result.volume.is_labels
    volume = cvdask.open(tmp_path / "o.zarr")
    assert volume.label_names() == ["later"]
    np.testing.assert_array_equal(volume.label("later").read(), data % 3)
    np.testing.assert_array_equal(volume.read(), data)


def test_labels_that_do_not_fit_are_refused(tmp_path, tiff):
    path, data = tiff
    tifffile.imwrite(tmp_path / "l.tif", data[:4], photometric="minisblack")
    options = {"voxel_nm": 5, "labels": tmp_path / "l.tif"}
    with pytest.raises(SourceError, match=r"\(9, 40, 50\).*\(4, 40, 50\)"):
        cvdask.ingest(path, tmp_path / "o.zarr", **options)
    with pytest.raises(SourceError, match=r"8.*\[0, 1, 2, 9\]"):
        cvdask.ingest(path, tmp_path / "o.zarr", label_slices=[0, 1, 2, 9], **options)
    tifffile.imwrite(tmp_path / "f.tif", data.astype("float32"), photometric="minisblack")
    with pytest.raises(SourceError, match="float32"):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5, labels=tmp_path / "f.tif")
    assert not (tmp_path / "o.zarr").exists()


def test_label_values_without_a_name_fail_the_block(tmp_path, tiff):
    path, data = tiff
    tifffile.imwrite(tmp_path / "l.tif", np.full_like(data, 7), photometric="minisblack")
    with pytest.raises(BlocksFailed, match=r"\[7\]"):
        cvdask.ingest(
            path, tmp_path / "o.zarr", voxel_nm=5, labels=tmp_path / "l.tif", classes=["one"]
        )
    with pytest.raises(ValueError, match="not complete"):
        cvdask.open(tmp_path / "o.zarr")


# ---------------------------------------------------------------------------------------------
# Slices: missing, damaged, suspect


@pytest.mark.usefixtures("small_slabs")
def test_a_gap_is_refused_declared_or_interpolated(tmp_path, client):
    data = stack((7, 20, 24))
    numbers = [3, 4, 5, 8, 9, 10, 11]  # 6 and 7 are missing
    write_folder(tmp_path / "s", data, numbers)
    with pytest.raises(SourceError, match=r"2 of 9 slices(.|\n)*z = 3(.|\n)*z = 4"):
        cvdask.ingest(tmp_path / "s", tmp_path / "o.zarr", voxel_nm=5)

    result = cvdask.ingest(
        tmp_path / "s", tmp_path / "hole.zarr", voxel_nm=5, damaged="hole", client=client
    )
    holes = result.volume.read()
    assert not holes[3:5].any()
    np.testing.assert_array_equal(np.delete(holes, [3, 4], axis=0), data)
    assert result.slices["missing"] == [3, 4]
    assert any("holes" in warning and "3, 4" in warning for warning in result.warnings)

    filled = cvdask.ingest(
        tmp_path / "s", tmp_path / "fill.zarr", voxel_nm=5, damaged="interpolate", client=client
    ).volume.read()
    low, high = data[2].astype(float), data[3].astype(float)
    np.testing.assert_array_equal(filled[3], np.floor(low + (high - low) / 3 + 0.5))
    np.testing.assert_array_equal(filled[4], np.floor(low + (high - low) * 2 / 3 + 0.5))


@pytest.mark.usefixtures("small_slabs")
def test_a_page_that_cannot_be_decoded(tmp_path):
    data = stack((9, 64, 64))
    tifffile.imwrite(tmp_path / "r.tif", data, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(tmp_path / "r.tif") as file:
        offset = file.pages[5].dataoffsets[0]
    content = bytearray((tmp_path / "r.tif").read_bytes())
    content[offset + 2 : offset + 40] = b"\xff" * 38
    (tmp_path / "r.tif").write_bytes(content)

    with pytest.raises(BlocksFailed, match="z = 5"):
        cvdask.ingest(tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5)
    with pytest.raises(ValueError, match="not complete"):
        cvdask.open(tmp_path / "o.zarr")
    result = cvdask.ingest(
        tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5, damaged="interpolate", overwrite=True
    )
    assert list(result.slices["damaged"]) == ["5"]
    expected = np.floor((data[4].astype(float) + data[6]) / 2 + 0.5)
    np.testing.assert_array_equal(result.volume.read()[5], expected)
    np.testing.assert_array_equal(np.delete(result.volume.read(), 5, 0), np.delete(data, 5, 0))


def test_a_truncated_file_is_refused_before_work(tmp_path):
    data = stack((9, 64, 64))
    tifffile.imwrite(tmp_path / "r.tif", data, photometric="minisblack")
    whole = (tmp_path / "r.tif").read_bytes()
    (tmp_path / "r.tif").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(SourceError):
        cvdask.ingest(tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5)
    assert not (tmp_path / "o.zarr").exists()


def test_bad_slices_named_by_the_user_are_replaced(tmp_path, tiff):
    path, data = tiff
    with pytest.raises(ValueError, match="damaged"):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5, bad_slices=[2])
    with pytest.raises(ValueError, match=r"0 and 8.*\[12\]"):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5, bad_slices=[12], damaged="hole")
    result = cvdask.ingest(
        path, tmp_path / "o.zarr", voxel_nm=5, bad_slices=[0, 1], damaged="interpolate"
    )
    np.testing.assert_array_equal(result.volume.read()[0], data[2])  # nothing below: the nearest


def test_blank_and_foreign_slices_are_reported_and_kept(tmp_path):
    data = stack((14, 80, 80))
    data[4] = 9
    data[9] = RNG.integers(0, 255, data[9].shape)
    tifffile.imwrite(tmp_path / "r.tif", data, photometric="minisblack")
    result = cvdask.ingest(tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5)
    assert (result.slices["blank"], result.slices["outliers"]) == ([4], [9])
    np.testing.assert_array_equal(result.volume.read(), data)


def test_not_a_number_is_a_damaged_slice(tmp_path):
    data = stack((5, 20, 20), "float32")
    data[3, 2, 2] = np.nan
    tifffile.imwrite(tmp_path / "r.tif", data, photometric="minisblack")
    with pytest.raises(BlocksFailed, match=r"z = 3.*NaN"):
        cvdask.ingest(tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5)


# ---------------------------------------------------------------------------------------------
# Options and places


def test_conversion_is_explicit_and_recorded(tmp_path):
    data = np.linspace(-500, 3000, 6 * 20 * 20).reshape(6, 20, 20).astype(np.int16)
    tifffile.imwrite(tmp_path / "r.tif", data, photometric="minisblack")
    with pytest.raises(SourceError, match=r"int16.*--dtype"):
        cvdask.ingest(tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5)
    volume = cvdask.ingest(
        tmp_path / "r.tif", tmp_path / "o.zarr", voxel_nm=5, dtype="uint8", value_range=(0, 2550)
    ).volume
    expected = np.clip(np.floor(data / 10 + 0.5), 0, 255)
    np.testing.assert_array_equal(volume.read(), expected)
    assert volume.attributes["provenance"]["options"]["value_range"] == [0, 2550]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_nm": (5, 0, 5)}, r"\(5, 0, 5\)"),
        ({}, "no voxel size"),
        ({"voxel_nm": 5, "damaged": "ignore"}, "ignore"),
        ({"voxel_nm": 5, "dtype": "uint8"}, "value_range"),
        ({"voxel_nm": 5, "dtype": "int8", "value_range": (0, 9)}, "int8"),
        ({"voxel_nm": 5, "dtype": "uint8", "value_range": (9, 9)}, r"9\.0, 9\.0"),
        ({"voxel_nm": 5, "classes": ["a"]}, "labels"),
        ({"voxel_nm": 5, "n_levels": 0}, "0"),
    ],
)
def test_bad_options_are_refused_before_work(tmp_path, tiff, options, message):
    with pytest.raises(ValueError, match=message):
        cvdask.ingest(tiff[0], tmp_path / "o.zarr", **options)
    assert not (tmp_path / "o.zarr").exists()


def test_destinations_that_are_refused(tmp_path):
    data = stack((3, 20, 20))
    write_folder(tmp_path / "s", data, [0, 1, 2])
    with pytest.raises(ValueError, match="inside the source"):
        cvdask.ingest(tmp_path / "s", tmp_path / "s" / "o.zarr", voxel_nm=5)
    with pytest.raises(ValueError, match="inside the destination"):
        cvdask.ingest(tmp_path / "s" / "slice_0001.tif", tmp_path / "s", voxel_nm=5)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="home"):
            cvdask.ingest(tmp_path / "s", tmp_path / "home", voxel_nm=5, overwrite=overwrite)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_voxel_size_of_the_file_is_used_or_contradicted_aloud(tmp_path):
    data = stack((3, 20, 20))
    tifffile.imwrite(
        tmp_path / "r.ome.tif", data, photometric="minisblack",
        metadata={"axes": "ZYX", "PhysicalSizeX": 8, "PhysicalSizeY": 8, "PhysicalSizeZ": 40,
                  "PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "nm"},
    )  # fmt: skip
    volume = cvdask.ingest(tmp_path / "r.ome.tif", tmp_path / "a.zarr").volume
    assert volume.voxel_size_nm == (40.0, 8.0, 8.0)
    result = cvdask.ingest(tmp_path / "r.ome.tif", tmp_path / "b.zarr", voxel_nm=5)
    assert result.volume.voxel_size_nm == (5.0, 5.0, 5.0)
    assert any("40.0, 8.0, 8.0" in warning for warning in result.warnings)


def test_one_png_folder_end_to_end(tmp_path):
    data = stack((4, 30, 20))
    (tmp_path / "s").mkdir()
    for z, image in enumerate(data):
        (tmp_path / "s" / f"{z}.png").write_bytes(imagecodecs.png_encode(image))
    volume = cvdask.ingest(tmp_path / "s", tmp_path / "o.zarr", voxel_nm=(50, 5, 5)).volume
    np.testing.assert_array_equal(volume.read(), data)


def test_provenance_names_inputs_and_no_credentials(tmp_path, tiff):
    volume = cvdask.ingest(tiff[0], tmp_path / "o.zarr", voxel_nm=5).volume
    provenance = volume.attributes["provenance"]
    assert provenance["stage"] == "ingest"
    assert provenance["inputs"][0]["fingerprint"]
    json.dumps(provenance)


# ---------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.usefixtures("small_slabs")
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, tiff, monkeypatch):
    path, _ = tiff
    cvdask.ingest(path, tmp_path / "whole" / "o.zarr", voxel_nm=5)
    done: list[int] = []
    write = ingest_module.write_image_slab

    def stop_at_third(job, block):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(block.index)
        return write(job, block)

    monkeypatch.setattr("cvdask.engine.blockwise.batch_seconds", lambda slots: 0.0)
    monkeypatch.setattr(ingest_module, "write_image_slab", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    with pytest.raises(ValueError, match="not complete"):
        cvdask.open(tmp_path / "o.zarr")
    again: list[int] = []
    monkeypatch.setattr(
        ingest_module,
        "write_image_slab",
        lambda job, block: (again.append(block.index), write(job, block))[1],
    )
    cvdask.ingest(path, tmp_path / "o.zarr", voxel_nm=5)
    assert not set(done) & set(again)
    assert tree_digest(tmp_path / "o.zarr") == tree_digest(tmp_path / "whole" / "o.zarr")


def test_real_data_round_trip(tmp_path, real_data):
    folder = real_data("epfl6-hippocampus")
    classes = ["mitochondria", "membrane", "vesicle", "psd", "axon_sheath"]
    result = cvdask.ingest(
        folder / "raw.tif", tmp_path / "o.zarr", voxel_nm=5, labels=folder / "labels.tif",
        classes=classes, client="threads",
    )  # fmt: skip
    np.testing.assert_array_equal(result.volume.read(), tifffile.imread(folder / "raw.tif"))
    truth = result.volume.label("annotations")
    np.testing.assert_array_equal(truth.read(), tifffile.imread(folder / "labels.tif"))
    assert result.verification.ok
    shutil.rmtree(tmp_path / "o.zarr")
