"""Does the page hold everything, ask for nothing, and run nothing that comes from data?"""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import imagecodecs
import pytest

import cvdask
from cvdask.comparison.compare import Comparison
from cvdask.comparison.report import page
from tests.browser import near, needs_chromium, visit
from tests.comparison.conftest import CLASS, GROUP


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    def values(self, name: str) -> list[str]:
        """Return an attribute of all tags."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def text(hostile: Comparison) -> str:
    return page(hostile)


def test_nothing_is_asked_of_the_network(text: str):
    parsed = Page(text)
    wanted = [*parsed.values("src"), *parsed.values("href")]
    assert len(wanted) > 20
    assert all(value.startswith(("data:", "#")) for value in wanted), [v[:60] for v in wanted]
    assert not re.search(r"url\(|@import", re.sub(r"data:[^\"]*", "", text))
    (policy,) = [a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_everything_from_data_is_escaped(text: str):
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert [tag for tag, _ in parsed.tags].count("style") == 1
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    said = "".join(parsed.texts)
    assert GROUP in said
    assert CLASS in said
    assert "<script>cell 0" in said


def test_every_image_decodes(text: str):
    images = [
        attributes["src"]
        for tag, attributes in Page(text).tags
        if tag == "img" and attributes.get("alt")
    ]
    assert len(images) == 10
    for source in images:
        media, _, data = source.partition(";base64,")
        assert media == "data:image/png"
        assert imagecodecs.png_decode(base64.b64decode(data)).ndim == 3


def test_links_lead_to_a_section(text: str):
    parsed = Page(text)
    targets = {value[1:] for value in parsed.values("href") if value.startswith("#")}
    assert targets == {"found", "figures", "tests", "all", "methods", "origin"}
    assert targets <= set(parsed.values("id"))


def test_every_figure_says_what_it_was_drawn_from(text: str, hostile_folder: Path):
    index = json.loads((hostile_folder / "figures" / "index.json").read_text())["figures"]
    said = "".join(Page(text).texts)
    for entry in index:
        assert entry["title"] in said
        assert entry["sources"]
        for source in entry["sources"]:
            assert source in said


def test_it_is_written_whole_and_again(hostile: Comparison, hostile_folder: Path, tmp_path: Path):
    first = Path(cvdask.report(hostile))
    assert first == hostile_folder / "report.html"
    data = first.read_bytes()
    assert data.startswith(b"<!DOCTYPE html>")
    assert Path(cvdask.report(hostile.url)).read_bytes() == data
    elsewhere = cvdask.report(hostile, out=str(tmp_path / "page.html"), title="A & B")
    assert "<title>A &amp; B</title>" in Path(elsewhere).read_text()


def test_what_is_no_report_is_not_replaced(hostile: Comparison, tmp_path: Path):
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(FileExistsError, match=r"mine\.html"):
        cvdask.report(hostile, out=str(tmp_path / "mine.html"))
    cvdask.report(hostile, out=str(tmp_path / "mine.html"), overwrite=True)
    with pytest.raises(ValueError, match=r"page\.pdf"):
        cvdask.report(hostile, out=str(tmp_path / "page.pdf"))
    with pytest.raises(ValueError, match="is no comparison"):
        cvdask.report(str(tmp_path))


def test_an_index_that_names_other_files_is_refused(hostile: Comparison, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(hostile.url, copy)
    entry = {"name": "../summary", "title": "", "caption": "", "sources": []}
    (copy / "figures" / "index.json").write_text(json.dumps({"figures": [entry]}))
    with pytest.raises(OSError, match=r"'\.\./summary'"):
        cvdask.report(str(copy))


# ---------------------------------------------------------------------------------------------
# In a browser


WIDTH = "document.documentElement.scrollWidth"
BROKEN = "[...document.images].filter((i) => i.alt && !i.naturalWidth).length"
SORTED = """
(() => {
  const table = document.querySelector("#tests table");
  const titles = [...table.tHead.rows[0].cells];
  const column = titles.findIndex((cell) => cell.textContent === "mean, first");
  const values = () => [...table.tBodies[0].rows]
    .map((row) => Number(row.cells[column].dataset.value)).filter((v) => !Number.isNaN(v));
  const found = [];
  for (let k = 0; k < 2; k++) {
    titles[column].querySelector("button").click();
    found.push(values());
  }
  return found;
})()
"""
ENLARGED = """
(() => {
  const button = document.querySelector("button.zoom");
  button.click();
  const dialog = document.querySelector("dialog");
  return dialog.open && dialog.querySelector("img").src === button.querySelector("img").src;
})()
"""


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_shows_at_the_width_of_a_desk_and_of_a_phone(
    hostile: Comparison, tmp_path: Path, width: int, dark: bool
):
    path = cvdask.report(hostile, out=str(tmp_path / "report.html"))
    seen = visit(
        f"file://{path}", tmp_path / "profile", width=width, height=6000, dark=dark,
        evaluate=(WIDTH, BROKEN, SORTED, ENLARGED),
    )  # fmt: skip
    assert seen.complaints == []
    assert seen.requests == [f"file://{path}"]
    # The blue of the first group's curves and the orange of a class are there: pictures show.
    for color in ((0, 114, 178), (230, 159, 0)):
        assert near(seen.picture, color) > 100, color
    ground = seen.picture[-1, 2].mean()
    assert (ground < 60) == dark
    page_width, n_broken, columns, enlarged = seen.results
    assert page_width <= width
    assert n_broken == 0
    ascending, descending = columns
    assert ascending == sorted(ascending)
    assert descending == ascending[::-1]
    assert enlarged
