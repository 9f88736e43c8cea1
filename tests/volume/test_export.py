"""Do other programs get the voxels that were asked for, at their size, and nothing half-written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.engine.plan import Plan
from cvdask.volume import export as export_module
from cvdask.volume.boxes import Box
from cvdask.volume.export import draw_overlay, export
from cvdask.volume.pyramid import pyramid
from tests import strategies
from tests.samples import random_voxels, write_sample
from tests.trees import tree_digest

SHAPE = (11, 13, 9)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    write_sample(tmp_path / "cell.zarr", random_voxels(SHAPE, "uint8"))
    return tmp_path / "cell.zarr"


# Small cases, written out


def test_overlay_of_a_slice() -> None:
    grey = np.array([[0, 100, 200, 50]], "uint8")
    values = np.array([[0, 1, 2, 255]], "uint8")  # background, red, the palette's second, unknown
    drawn = draw_overlay(grey, values, {1: "#ff0000"})
    # 0.55 of the grey and 0.45 of the colour; #56b4e9 is (86, 180, 233).
    assert drawn.tolist() == [[[0, 0, 0], [170, 55, 55], [149, 191, 215], [50, 50, 50]]]


def test_overlay_stretches_grey_values_of_other_types() -> None:
    grey = np.array([[-1.0, 0.0, 1.0]])
    drawn = draw_overlay(grey, np.zeros((1, 3), "uint8"), {})
    assert drawn[0, :, 0].tolist() == [0, 127, 255]
    flat = draw_overlay(np.full((1, 2), 7, "uint16"), np.zeros((1, 2), "uint8"), {})
    assert flat.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_voxel_size_where_imagej_looks(sample: Path, tmp_path: Path) -> None:
    path = export(str(sample), tmp_path / "box.tif")
    assert isinstance(path, Path)
    with tifffile.TiffFile(path) as file:
        metadata = file.imagej_metadata
        assert metadata is not None
        assert (metadata["images"], metadata["spacing"], metadata["unit"]) == (11, 40.0, "nm")
        first = file.pages[0]
        assert isinstance(first, tifffile.TiffPage)
        assert first.tags["XResolution"].value == (1, 10)  # pixels per nm: one in ten
        assert first.tags["ResolutionUnit"].value == 1  # in the unit that ImageJ names


# Voxels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_of_any_type_as_tiff(tmp_path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "uint32", "float32"]))
    voxels = random_voxels(SHAPE, dtype)
    url = tmp_path / dtype / "cell.zarr"
    if not url.exists():
        write_sample(url, voxels)
    box = data.draw(strategies.boxes(SHAPE, min_extent=1))
    written = export(str(url), tmp_path / "box.tif", box=str(box), overwrite=True)
    read = tifffile.imread(written)
    np.testing.assert_array_equal(read.reshape(box.shape), voxels[box.slices])
    assert read.dtype == voxels.dtype


def test_levels_and_labels(sample: Path, tmp_path: Path) -> None:
    write_sample(sample, random_voxels(SHAPE, "uint16"), labels="cells")
    volume = pyramid(str(sample), labels="cells", n_levels=2)
    export(str(sample), tmp_path / "coarse.tif", labels="cells", level=1)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "coarse.tif"), volume.read(level=1))  # type: ignore[union-attr]


def test_png_of_the_middle_slice_and_of_any(sample: Path, tmp_path: Path) -> None:
    voxels = random_voxels(SHAPE, "uint8")
    export(str(sample), tmp_path / "middle.png")
    export(str(sample), tmp_path / "part.png", box="-1,2:7,:4")
    middle = imagecodecs.png_decode((tmp_path / "middle.png").read_bytes())
    part = imagecodecs.png_decode((tmp_path / "part.png").read_bytes())
    np.testing.assert_array_equal(middle, voxels[5])
    np.testing.assert_array_equal(part, voxels[-1, 2:7, :4])


def test_folder_of_numbered_pngs(sample: Path, tmp_path: Path) -> None:
    voxels = random_voxels(SHAPE, "uint8")
    export(str(sample), tmp_path / "slices", box=Box((3, 0, 0), (9, 13, 9)))
    files = sorted((tmp_path / "slices").iterdir())
    assert [file.name for file in files] == [f"z{z:06d}.png" for z in range(3, 9)]
    for z, file in enumerate(files, start=3):
        np.testing.assert_array_equal(imagecodecs.png_decode(file.read_bytes()), voxels[z])


def test_overlay_of_labels(sample: Path, tmp_path: Path) -> None:
    labels = (random_voxels(SHAPE, "uint8") % 3).astype("uint8")
    write_sample(sample, labels, labels="classes", colors={1: "#00ff00"})
    export(str(sample), tmp_path / "overlay.tif", overlay="classes", box="2:5,:,:")
    drawn = tifffile.imread(tmp_path / "overlay.tif")
    grey = random_voxels(SHAPE, "uint8")
    for z in range(3):
        expected = draw_overlay(grey[2 + z], labels[2 + z], {1: "#00ff00"})
        np.testing.assert_array_equal(drawn[z], expected)


def test_memory_is_bounded_by_a_slab(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[Box] = []
    read_box = export_module.read_box

    def count(url: str, level: Any, box: Box) -> np.ndarray:
        boxes.append(box)
        return read_box(url, level, box)

    monkeypatch.setattr(export_module, "read_box", count)
    export(str(sample), tmp_path / "box.tif", box="1:10,:,:")
    assert [(box.start[0], box.stop[0]) for box in boxes] == [(1, 4), (4, 8), (8, 10)]


def test_dry_run_writes_nothing(sample: Path, tmp_path: Path) -> None:
    plan = export(str(sample), tmp_path / "box.tif", box="1:3,:,2:4", dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.write_bytes == 2 * 13 * 2
    assert plan.notes == {"box": "1:3,0:13,2:4", "slices": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.zarr"]


# What breaks a rule


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("a.jpg", {}, r"a\.jpg"),
        ("a.zarr", {}, r"a\.zarr"),
        ("s3://bucket/a.tif", {}, "s3:"),
        ("a.png", {"box": "0:2,:,:"}, "z: 0:2"),
        ("a.tif", {"box": "0:12,:,:"}, "z.*0:12.*11"),
        ("a.tif", {"box": Box((0, 0, 0), (12, 1, 1))}, "0:12,0:1,0:1"),
        ("a.tif", {"box": Box((1, 1, 1), (1, 2, 2))}, "1:1,1:2,1:2"),
        ("a.tif", {"box": "0,0"}, "0,0"),
        ("a.tif", {"level": 2}, "0 to 0.*2"),
        ("a.tif", {"labels": "classes"}, "none.*classes"),
        ("a.tif", {"labels": "a", "overlay": "b"}, "not both"),
    ],
)
def test_refused(
    sample: Path, tmp_path: Path, out: str, options: dict[str, Any], said: str
) -> None:
    target = out if "://" in out else tmp_path / out
    with pytest.raises(ValueError, match=said):
        export(str(sample), target, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.zarr"]


def test_png_holds_no_floats(tmp_path: Path) -> None:
    write_sample(tmp_path / "cell.zarr", random_voxels((4, 4, 4), "float32"))
    with pytest.raises(ValueError, match=r"float32.*\.tif"):
        export(str(tmp_path / "cell.zarr"), tmp_path / "a.png")


def test_overlay_of_another_shape(sample: Path, tmp_path: Path) -> None:
    write_sample(sample, np.ones((4, 4, 4), "uint8"), labels="small")
    with pytest.raises(ValueError, match=r"\(4, 4, 4\).*\(11, 13, 9\)"):
        export(str(sample), tmp_path / "a.tif", overlay="small")


# What is there already, and what is half-written


@pytest.mark.parametrize("out", ["a.tif", "a.png", "a"])
def test_what_exists_is_replaced_on_request_only(sample: Path, tmp_path: Path, out: str) -> None:
    export(str(sample), tmp_path / out, box="3,:,:")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(str(sample), tmp_path / out, box="4,:,:")
    export(str(sample), tmp_path / out, box="4,:,:", overwrite=True)
    file = next((tmp_path / out).iterdir()) if out == "a" else tmp_path / out
    expected = random_voxels(SHAPE, "uint8")[4]
    read = tifffile.imread(file) if out == "a.tif" else imagecodecs.png_decode(file.read_bytes())
    np.testing.assert_array_equal(read, expected)
    if out == "a":
        assert [path.name for path in (tmp_path / out).iterdir()] == ["z000004.png"]


def test_a_folder_of_other_things_is_never_replaced(sample: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    export(str(sample), home, box="3,:,:")
    (home / "thesis.txt").write_text("thesis")
    before = tree_digest(home)
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        export(str(sample), home, overwrite=True)
    assert tree_digest(home) == before


@pytest.mark.parametrize("out", ["a.tif", "a.png", "a"])
def test_a_failed_export_leaves_what_was_there(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    export(str(sample), tmp_path / out, box="3,:,:")
    before = sorted(path.name for path in tmp_path.iterdir())
    kept = (tmp_path / out).read_bytes() if out != "a" else tree_digest(tmp_path / out)
    monkeypatch.setattr(export_module, "read_box", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(str(sample), tmp_path / out, box="4,:,:", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert kept == ((tmp_path / out).read_bytes() if out != "a" else tree_digest(tmp_path / out))


def test_what_a_killed_export_left_is_not_mixed_in(sample: Path, tmp_path: Path) -> None:
    leftover = tmp_path / ".slices.partial"
    leftover.mkdir()
    (leftover / "z000009.png").write_bytes(b"of another box")
    export(str(sample), tmp_path / "slices", box="3:5,:,:")
    assert sorted(path.name for path in (tmp_path / "slices").iterdir()) == [
        "z000003.png",
        "z000004.png",
    ]
