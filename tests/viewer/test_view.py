"""What of a sample is shown, what a click tells, and does a browser show it?"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cvdask
from cvdask.viewer.view import FIRST_VERSION, HOSTED_VIEWER, View, segment_properties
from cvdask.volume.ensemble import create_ensemble, publish_ensemble
from cvdask.volume.store import open_volume
from tests.browser import needs_chromium, visit
from tests.comparison.cells import objects, write_cell, write_table
from tests.samples import write_sample

neuroglancer = pytest.importorskip("neuroglancer")


@pytest.fixture(scope="module", autouse=True)
def recent() -> None:
    if tuple(map(int, version("neuroglancer").split(".")[:2])) < FIRST_VERSION:
        pytest.skip(f"neuroglancer {version('neuroglancer')} cannot read OME-Zarr 0.5")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, classes in two halves, their objects, density and meshes."""
    url = tmp_path_factory.mktemp("view") / "cell.zarr"
    data = np.ones((10, 16, 16), np.uint8)
    data[:, 8:] = 2
    rows = objects(np.random.default_rng(0), 6)
    rows["flatness"][2] = np.inf
    write_cell(url, rows, data=data, classes={1: "mitochondria", 2: "myofibrils"})
    instances = np.zeros((10, 16, 16), np.uint32)
    instances[:, :8, :8] = 3
    write_sample(url, instances, voxel_size_nm=(100.0, 50.0, 50.0), labels="mitochondria")
    cvdask.density(str(url), numerator=1, denominator="all", kernel_um=0.2, stride_um=0.1)
    (url / "meshes" / "mitochondria").mkdir(parents=True)
    info = url / "meshes" / "mitochondria" / "info"
    info.write_text('{"@type": "neuroglancer_legacy_mesh"}')
    return url


def state_of(opened: View) -> dict[str, Any]:
    return opened._viewer.state.to_json()


def layers(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in state["layers"]}


def sources(layer: dict[str, Any]) -> list[str]:
    return [source if isinstance(source, str) else source["url"] for source in layer["source"]]


def test_everything_in_a_sample_is_a_layer(cell: Path):
    with cvdask.view(str(cell), browser=False) as opened:
        assert opened.layers == ("image", "density", "classes", "mitochondria")
        shown = layers(state_of(opened))
        assert [name for name, layer in shown.items() if layer.get("visible", True)] == [
            "image", "classes",
        ]  # fmt: skip
        assert shown["classes"]["segmentColors"] == {"1": "#e69f00", "2": "#56b4e9"}
        where = sources(shown["mitochondria"])
        assert [url.partition("|")[2] for url in where] == [
            "zarr:", "neuroglancer-precomputed:", "neuroglancer-precomputed:",
        ]  # fmt: skip
        assert where[1].endswith("/0/meshes/mitochondria/|neuroglancer-precomputed:")
        assert opened.url.startswith("http://127.0.0.1:")
        scales = state_of(opened)["dimensions"]
        assert scales["x"] == [5e-08, "m"]
        assert scales["z"] == [1e-07, "m"]


def test_what_is_served_is_the_sample(cell: Path):
    with cvdask.view(str(cell), browser=False) as opened:
        (source,) = sources(layers(state_of(opened))["image"])
        base = source.partition("|")[0]
        with urllib.request.urlopen(f"{base}zarr.json") as answer:
            assert answer.read() == (cell / "zarr.json").read_bytes()
            origin = "/".join(opened.url.split("/")[:3])
            assert answer.headers["Access-Control-Allow-Origin"] == origin
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{base}zarr.json")


def test_a_click_tells_the_row_of_an_object(cell: Path):
    with cvdask.view(str(cell), browser=False) as opened:
        url = sources(layers(state_of(opened))["mitochondria"])[2].partition("|")[0]
        with urllib.request.urlopen(f"{url}info") as answer:
            told = json.loads(answer.read())
    assert told["@type"] == "neuroglancer_segment_properties"
    inline = told["inline"]
    assert inline["ids"] == ["1", "2", "3", "4", "5", "6"]
    values = {one["id"]: one["values"] for one in inline["properties"]}
    rows = objects(np.random.default_rng(0), 6)
    assert values["class"] == ["mitochondria"] * 6
    assert values["volume_um3"] == pytest.approx(rows["volume_um3"])
    assert values["flatness"][2] == 0.0  # infinite: the form knows no such number
    assert values["touches_border"] == [float(v) for v in rows["touches_border"]]
    types = {one["type"] for one in inline["properties"]}
    assert types == {"label", "number"}


def test_rows_are_of_the_objects_that_were_measured(cell: Path, tmp_path: Path):
    image = open_volume(str(cell), labels="mitochondria")
    rows = objects(np.random.default_rng(0), 4, name="something")
    path = tmp_path / "objects.parquet"
    write_table(path, rows)
    assert segment_properties(image, pq.read_table(path)) is None
    options = {"instances": "mitochondria"}
    write_table(path, rows, metadata={"provenance": {"options": options}})
    found = segment_properties(image, pq.read_table(path))
    assert found is not None
    assert found["inline"]["ids"] == ["1", "2", "3", "4"]
    assert segment_properties(image, None) is None
    write_table(path, objects(np.random.default_rng(0), 4, name="myofibrils"))
    made = {"provenance": {"options": {"labels": "classes", "class": 2}}}
    found = segment_properties(replace(image, attributes=made), pq.read_table(path))
    assert found is not None
    assert found["inline"]["properties"][0]["values"] == ["myofibrils"] * 4
    classes = segment_properties(open_volume(str(cell), labels="classes"), None)
    assert classes is not None
    assert classes["inline"]["properties"][0]["values"] == ["mitochondria", "myofibrils"]


def test_samples_stand_side_by_side(cell: Path, tmp_path: Path):
    write_cell(tmp_path / "other.zarr")
    both = (str(cell), str(tmp_path / "other.zarr"))
    with cvdask.view(*both, labels="classes", browser=False) as opened:
        assert opened.layers == (
            "cell image", "cell density", "cell classes", "other image", "other classes",
        )  # fmt: skip
        layout = state_of(opened)["layout"]
        assert layout["type"] == "row"
        assert [panel["layers"] for panel in layout["children"]] == [
            ["cell image", "cell density", "cell classes"],
            ["other image", "other classes"],
        ]


def test_of_an_ensemble_the_first_members(tmp_path: Path, cell: Path):
    ensemble = create_ensemble(tmp_path / "generated.zarr", 5, {"stage": "generate"})
    for number in range(5):
        write_cell(Path(ensemble.member_url(number)))
    publish_ensemble(ensemble)
    with (
        pytest.warns(UserWarning, match=r"first 3 of 5 members.*generated\.zarr/0004"),
        cvdask.view(str(cell), ensemble.url, labels="classes", browser=False) as opened,
    ):
        assert opened.layers[-1] == "generated/0002 classes"


def test_data_in_a_public_bucket_needs_no_server(monkeypatch: pytest.MonkeyPatch, cell: Path):
    # What is known of the sample, as if it lay in a bucket.
    monkeypatch.setattr("cvdask.viewer.view.open_volume", lambda url, **_: at_bucket(url))
    monkeypatch.setattr("cvdask.viewer.view.read_attributes", lambda url: {})
    monkeypatch.setattr("cvdask.viewer.view.read_box", lambda url, level, box: np.arange(9))
    local = open_volume(str(cell))

    def at_bucket(url: str) -> Any:
        return replace(local, url="s3://open-data/cell.zarr")

    monkeypatch.setattr(type(local), "label_names", lambda self: ["classes"])
    monkeypatch.setattr(
        type(local), "label", lambda self, name: open_volume(str(cell), labels=name)
    )
    with pytest.warns(UserWarning, match="must be public"):
        opened = cvdask.view(replace(local, url="s3://open-data/cell.zarr"), browser=False)
    assert opened.url.startswith(HOSTED_VIEWER)
    assert "s3://open-data/cell.zarr/|zarr:" in urllib.parse.unquote(opened.url)
    assert not opened.is_served
    opened.wait()  # returns at once


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "one to 4 samples.*0"),
        (["cell"] * 5, {}, "Received: 5"),
        (["cell"], {"labels": "axons"}, "classes, mitochondria.*axons"),
        (["cell"], {"labels": " , "}, "label images"),
        (["cell"], {"port": 99999}, "99999"),
    ],
)
def test_bad_input_is_refused(cell: Path, names: list, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        cvdask.view(*[str(cell)] * len(names), browser=False, **options)


def test_a_taken_port_is_told(cell: Path):
    with cvdask.view(str(cell), browser=False) as opened:
        port = int(opened.url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=rf"port {port} is in use"):
            cvdask.view(str(cell), browser=False, port=port)


def test_a_browser_is_opened_where_it_is_wished(cell: Path, monkeypatch: pytest.MonkeyPatch):
    opened_urls: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened_urls.append)
    with cvdask.view(str(cell)) as opened:
        assert opened_urls == [opened.url]


@needs_chromium
def test_the_browser_shows_image_and_classes(cell: Path, tmp_path: Path):
    def shows_both(picture: np.ndarray) -> bool:
        # Grey of 80 and 160 with the colours of the classes over it, a third.
        panel = picture[80:, :900].astype(int)
        red, green, blue = panel[..., 0], panel[..., 1], panel[..., 2]
        orange = (red - blue > 40) & (red > green)
        sky = (blue - red > 25) & (blue >= green)
        return bool(orange.sum() > 3000 and sky.sum() > 3000)

    with cvdask.view(str(cell), browser=False) as opened:
        seen = visit(opened.url, tmp_path / "profile", until=shows_both)
    assert [url for url in seen.requests if not url.startswith("http://127.0.0.1:")] == []
