"""Is every figure drawn, as PNG, SVG and numbers, and are the numbers those of the volumes?"""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from matplotlib.figure import Figure

import cvdask
from cvdask.comparison.drawing import Drawing, file_name, save, shorten, style
from cvdask.comparison.figures import draw_all, draw_effects, read_scores
from cvdask.comparison.pictures import (
    _render_pyvista,
    colors_of,
    draw_rendering,
    draw_slices,
    surfaces,
)
from cvdask.comparison.samples import Sample
from cvdask.comparison.similarity import continuity, jaccard_counts, similarity
from cvdask.comparison.statistics import Row
from cvdask.comparison.summaries import Reading
from cvdask.volume.store import open_volume
from tests.comparison.cells import objects, write_cell
from tests.comparison.conftest import CLASS, GROUP
from tests.samples import write_sample

NAMES = {
    "scores", "slices", "sections", "rendering", "continuity", "similarity", "effects-script",
    "shapes-img-src", "shapes-myofibrils", "density-img",
}  # fmt: skip


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "figures" / "index.json").read_text())["figures"]


def numbers(folder: Path, start: str) -> list[dict]:
    (path,) = (folder / "figures").glob(f"{start}*.csv")
    return pyarrow.csv.read_csv(path).to_pylist()


def test_every_figure_is_there_in_three_forms(hostile_folder: Path):
    found = [entry["name"] for entry in entries(hostile_folder)]
    for start in NAMES:
        assert sum(name.startswith(start) for name in found) == 1, start
    written = {path.name for path in (hostile_folder / "figures").iterdir()}
    forms = {f"{name}.{kind}" for name in found for kind in ("png", "svg", "csv")}
    assert written == {*forms, "index.json"}


def test_every_picture_decodes_and_is_not_blank(hostile_folder: Path):
    for entry in entries(hostile_folder):
        path = hostile_folder / "figures" / f"{entry['name']}.png"
        picture = imagecodecs.png_decode(path.read_bytes())[..., :3]
        assert min(picture.shape[:2]) > 200, entry["name"]
        assert max(picture.shape[:2]) < 4000, entry["name"]
        assert len(np.unique(picture.astype(np.int64) @ [1, 256, 65536])) > 20, entry["name"]
        root = ElementTree.parse(path.with_suffix(".svg")).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_labels_in_another_order_are_not_drawn_over_the_image(tmp_path: Path):
    random = np.random.default_rng(0)
    url = str(tmp_path / "cell.zarr")
    write_sample(url, random.integers(0, 256, (6, 16, 16), np.uint8))
    classes = (np.arange(16)[:, None] + np.zeros((6, 1, 16), int) < 8).astype(np.uint8)
    shuffled = np.where(random.random(classes.shape) < 0.1, 1 - classes, classes)
    write_sample(url, shuffled.astype(np.uint8), labels="classes", classes={1: "mitochondria"})
    cvdask.order(url, client="serial")
    colors = {}
    for name in ("classes", "ordered"):
        drawing = draw_slices([Sample("cell", "cell", open_volume(url, labels=name))])
        panels = [axes.images[0].get_array() for axes in drawing.figure.axes[:4]]
        pixels = panels[1].reshape(-1, panels[1].shape[-1])
        colors[name] = [panel.ndim for panel in panels], len(np.unique(pixels, axis=0))
    assert colors["classes"][0] == [2, 3, 3, 3]  # the image itself, then classes over it
    assert colors["ordered"][0] == [3, 3, 3, 3]
    assert colors["classes"][1] > colors["ordered"][1] == 2


def test_svgs_hold_names_as_text_and_run_nothing(hostile_folder: Path):
    for path in (hostile_folder / "figures").glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "foreignObject", "iframe", "img"}, path.name


def test_shares_of_shapes_add_up(hostile_folder: Path):
    rows = numbers(hostile_folder, "shapes-img-src")
    for group in (GROUP, "</style> & co"):
        shares = [r["share"] for r in rows if r["group"] == group and r["measure"] == "sphericity"]
        assert 0.85 < sum(shares) <= 1 + 1e-9  # 1 % lies beyond the axis, of few objects more


def test_slices_count_the_classes_they_show(hostile_folder: Path):
    rows = numbers(hostile_folder, "slices")
    first = rows[0]["volume"]
    shown = [row for row in rows if row["volume"] == first]
    sample = open_volume(hostile_folder.parent / f"{first}.zarr").label("classes")
    z = int(shown[0]["box"].split(",")[0].split(":")[0])
    expected = (sample.read()[z] == 1).mean()
    (share,) = [r["share"] for r in shown if r["class"] == CLASS and r["box"] == shown[0]["box"]]
    assert share == pytest.approx(expected)


def test_the_same_data_give_the_same_files(tmp_path: Path):
    def draw(name: str) -> list[bytes]:
        with style():
            figure = Figure()
            figure.add_subplot().plot([1, 2], [3, 4])
            save(str(tmp_path / name), Drawing("one", "One", "", figure, {"x": [1, 2]}))
        return [path.read_bytes() for path in sorted((tmp_path / name / "figures").iterdir())]

    assert draw("a") == draw("b")


def test_names_of_files_hold_nothing_but_letters():
    assert file_name("shapes", "../../etc/passwd") == "shapes-etc-passwd"
    assert file_name("x", "µ") == "x"
    assert len(shorten("a" * 100)) == 28


# ---------------------------------------------------------------------------------------------
# Similarity


def in_sample(url: Path, data: np.ndarray, group: str = "g") -> Sample:
    write_cell(url, objects(np.random.default_rng(0), 8), data=data)
    return Sample(url.stem, group, open_volume(url).label("classes"))


def brute_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = sum(int(((a == c) & (b == c)).sum()) for c in (1, 2))
    either = sum(int(((a == c) | (b == c)).sum()) for c in (1, 2))
    return both / either if either else 1.0


def test_counts_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 6, 7, 8))
    both, either = jaccard_counts(a, b)
    assert both / either == pytest.approx(brute_jaccard(a, b))
    a[0] = 255  # nobody has annotated it: in no class
    both, either = jaccard_counts(a, b)
    assert both / either == pytest.approx(brute_jaccard(a, b))


def test_continuity_is_the_mean_distance_of_slices(tmp_path: Path):
    data = np.random.default_rng(1).integers(0, 3, (9, 8, 8)).astype(np.uint8)
    data[2] = data[3] = 0
    found = continuity(in_sample(tmp_path / "a.zarr", data).labels, most_apart=5)
    for k in range(1, 6):
        pairs = [(data[z], data[z + k]) for z in range(9 - k)]
        expected = np.mean([1 - brute_jaccard(a, b) for a, b in pairs])
        assert found[k - 1] == pytest.approx(expected)


def test_one_slice_has_no_continuity(tmp_path: Path):
    data = np.ones((1, 8, 8), np.uint8)
    assert continuity(in_sample(tmp_path / "a.zarr", data).labels).size == 0


def test_similarity_is_that_of_whole_volumes(tmp_path: Path):
    rng = np.random.default_rng(2)
    volumes = [rng.integers(0, 3, (10, 8, 8)).astype(np.uint8) for _ in range(3)]
    volumes.append(volumes[0])
    samples = [in_sample(tmp_path / f"{k}.zarr", data) for k, data in enumerate(volumes)]
    found = similarity(samples)
    for i, a in enumerate(volumes):
        for j, b in enumerate(volumes):
            assert found[i, j] == pytest.approx(brute_jaccard(a, b))
    assert found[0, 3] == 1
    other = in_sample(tmp_path / "other.zarr", np.ones((9, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        similarity([*samples, other])


# ---------------------------------------------------------------------------------------------
# Surfaces


def test_the_surface_of_a_ball_lies_on_the_ball(tmp_path: Path):
    z, y, x = np.mgrid[:24, :24, :24]
    ball = ((z - 12) ** 2 + (y - 12) ** 2 + (x - 12) ** 2 < 81).astype(np.uint8)
    url = tmp_path / "ball.zarr"
    write_cell(
        url, objects(np.random.default_rng(0), 8), data=ball, voxel_size_nm=(100.0, 100.0, 100.0)
    )
    sample = Sample("ball", "g", open_volume(url).label("classes"))
    meshes, box_um = surfaces(sample)
    (mesh,) = meshes.values()
    radii = np.linalg.norm(mesh[0] - 1.25, axis=1)
    assert radii == pytest.approx(0.9, abs=0.08)
    assert box_um == pytest.approx((2.4, 2.4, 2.4))


def test_a_volume_without_any_class_is_drawn_empty(tmp_path: Path):
    sample = in_sample(tmp_path / "empty.zarr", np.zeros((6, 8, 8), np.uint8))
    with style():
        drawing = draw_rendering([sample])
    assert drawing.columns["triangles"] == []
    assert colors_of(sample.labels) == {1: "#e69f00", 2: "#56b4e9"}


def test_surfaces_are_of_the_classes_that_were_chosen(tmp_path: Path):
    data = np.zeros((10, 16, 16), np.uint8)
    data[2:8, 2:6, 2:6], data[2:8, 9:14, 9:14] = 1, 2
    sample = in_sample(tmp_path / "two.zarr", data)
    assert set(surfaces(sample)[0]) == {1, 2}
    assert set(surfaces(sample, ["myofibrils"])[0]) == {2}


def test_pyvista_renders_the_same_surfaces(tmp_path: Path):
    pytest.importorskip("pyvista", reason="the extra 'render' is not installed")
    data = np.zeros((12, 16, 16), np.uint8)
    data[3:9, 4:12, 4:12] = 1
    meshes, box_um = surfaces(in_sample(tmp_path / "cube.zarr", data))
    picture = _render_pyvista(meshes, box_um, {1: "#e69f00"})
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    assert (red - blue > 60).mean() > 0.02
    assert (picture == 255).all(axis=-1).mean() > 0.2


def test_what_cannot_be_drawn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shapes = ((10, 8, 8), (9, 8, 8))
    samples = [
        in_sample(tmp_path / f"{k}.zarr", np.ones(shape, np.uint8))
        for k, shape in enumerate(shapes)
    ]
    monkeypatch.setattr("cvdask.comparison.figures._drawings", lambda *_: [])
    entries, notices = draw_all(str(tmp_path), Reading(tuple(samples), ("sphericity",)), {}, [])
    assert entries == []
    assert "similarity" in notices[0]
    assert "(9, 8, 8)" in notices[0]


def test_similarity_is_of_volumes_of_the_commonest_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shapes = ((10, 8, 8), (9, 8, 8), (9, 8, 8))
    samples = [
        in_sample(tmp_path / f"{k}.zarr", np.ones(shape, np.uint8))
        for k, shape in enumerate(shapes)
    ]
    monkeypatch.setattr("cvdask.comparison.figures._drawings", lambda *_: [])
    entries, notices = draw_all(str(tmp_path), Reading(tuple(samples), ("sphericity",)), {}, [])
    assert [entry["name"] for entry in entries] == ["similarity"]
    rows = (tmp_path / "figures/similarity.csv").read_text().splitlines()[1:]
    assert len(rows) == 4
    assert "2 of 3" in notices[0]


# ---------------------------------------------------------------------------------------------
# Effects and scores


def test_effects_that_are_far_out_leave_room_for_others(tmp_path: Path):
    far = {"effect": 400.0, "effect_low": 3.0, "effect_high": float("inf"), "p_holm": 0.001}
    rows = [
        Row("a – b", "welch", "volume", "a", "b", "mito", "volume_um3", main=True, **far),
        Row("a – b", "welch", "volume", "a", "b", "mito", "sphericity", main=True, effect=0.5),
        Row("a – b", "none", "volume", "a", "b", "mito", "flatness", main=True),
    ]
    with style():
        (drawing,) = draw_effects(rows)
        save(str(tmp_path), drawing)
    assert drawing.columns["measure"] == ["volume_um3", "sphericity"]
    low, high = drawing.figure.axes[0].get_xlim()
    assert -low == high <= 22


@pytest.mark.parametrize("text", ["[]", "{}", '{"classes": {"a": 1}}', "nothing"])
def test_scores_that_are_none_are_refused(tmp_path: Path, text: str):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=r"scores\.json"):
        read_scores(str(tmp_path / "scores.json"))


def test_tables_of_figures_are_rectangular(hostile_folder: Path):
    for path in (hostile_folder / "figures").glob("*.csv"):
        table = pyarrow.csv.read_csv(io.BytesIO(path.read_bytes()))
        assert isinstance(table, pa.Table)
        assert table.num_rows > 0, path.name
