"""What would one hand to a colleague: a comparison as a single HTML file.

The file has everything in it, pictures, tables, styles and the few lines of script, and asks the
network for nothing; a content security policy holds it to that. It can be read without the script,
in dark and in light, on a phone, and on paper.

1. :func:`report` reads what ``compare`` has written: summary, tables, figures and their index.
2. Every text that comes from data is escaped, names of samples and classes above all.
3. The page says what was found, what to be careful of, shows the figures with what each was drawn
   from, the tests, the volumes, how it was tested, and the provenance.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from cvdask import __version__
from cvdask.comparison.compare import Comparison, main_findings, open_comparison
from cvdask.comparison.drawing import file_name, name_of
from cvdask.comparison.statistics import ALPHA
from cvdask.errors import DamagedData
from cvdask.volume.objects import normalize_url, read_json, read_object, redact, write_object

GENERATOR = f'<meta name="generator" content="cvdask {__version__}">'
# Rows of a table of thousands of volumes that are in the page; all are in the files beside it.
MOST_ROWS = 2000
# A larger SVG would make the page slow to open; it lies beside.
MOST_LINKED_BYTES = 400_000

METHODS = (
    (
        "What is an observation",
        "Objects of one volume resemble each other, so the volume is the unit: the mean of a "
        "measure over the objects of a volume is one observation. Where a group has a single "
        "volume and the other four or more, it is held against their spread. Where there are too "
        "few volumes, ranges of slices stand for them, and what is said holds for these volumes "
        "only.",
    ),
    (
        "Main tests",
        "Welch's t-test of the means of volumes; Student's for a single volume; a permutation of "
        "ranges of slices where there are too few volumes. Their p-values are corrected together "
        "by Holm's method.",
    ),
    (
        "Beside them",
        "Permutation of volumes among the groups, for the means and for the distributions "
        "(Kolmogorov–Smirnov distance and Wasserstein distance between the mean distributions of "
        "volumes). Equivalence by two one-sided tests: a small p says that the means differ by "
        "less than the margin. Effect: Hedges' g with a 95 % bootstrap interval. Detectable: the "
        "smallest difference found with 80 % power at 5 %.",
    ),
    (
        "Naive tests",
        "One-way ANOVA, Levene's test around medians, Kolmogorov–Smirnov and Wasserstein over "
        "single objects, as published tables have them. They take the objects of a volume for "
        "independent and find differences too often; they are shown to be compared with others'.",
    ),
    (
        "Within a group",
        "The same over the volumes of one group: do they differ from each other? The effect is the "
        "intraclass correlation, the share of the variance that lies between volumes.",
    ),
)

Column = tuple[str, str, Callable[[Mapping[str, Any]], Any]]  # title, kind, value


def report(
    comparison: Comparison | str,
    *,
    out: str | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write a comparison as one self-contained HTML file.

    Parameters
    ----------
    comparison : Comparison or str
        What :func:`cvdask.comparison.compare.compare` returned, or its folder.
    out : str, optional
        File to write; by default ``report.html`` in that folder. A report that lies there is
        replaced.
    title : str, optional
        By default the names of the groups.
    overwrite : bool
        Replace something else that lies there.

    Returns
    -------
    str
        Where it was written.

    Raises
    ------
    ValueError
        When the folder holds no complete comparison, or ``out`` is no ``.html``.
    FileExistsError
        When something else lies at ``out``.
    """
    if isinstance(comparison, str):
        comparison = open_comparison(comparison)
    target = normalize_url(out) if out is not None else f"{comparison.url}/report.html"
    parent, _, name = target.rpartition("/")
    if not name.lower().endswith((".html", ".htm")):
        raise ValueError(f"a report is a .html file. Received: {redact(target)}")
    there = read_object(parent, name)
    foreign = there is not None and b'<meta name="generator" content="cvdask ' not in there[:2000]
    if foreign and not overwrite:
        raise FileExistsError(
            f"{redact(target)} exists and is no report. Give another name, or --overwrite to "
            f"replace it"
        )
    write_object(parent, name, page(comparison, title).encode())
    return target


def page(comparison: Comparison, title: str | None = None) -> str:
    """Return the page as text; equal comparisons give equal pages.

    Raises
    ------
    DamagedData
        When the folder does not hold what :func:`cvdask.comparison.compare.compare` writes.
    """
    try:
        return _page(comparison, title)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedData(
            f"{redact(comparison.url)} is damaged, or of another version: {error!r}. Run cvdask "
            f"compare again, with --overwrite"
        ) from error


def _page(comparison: Comparison, title: str | None) -> str:
    groups = comparison.summary["groups"]
    title = title or " and ".join(groups)
    style = files("cvdask.comparison").joinpath("page.css").read_text("utf-8")
    script = files("cvdask.comparison").joinpath("page.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    sections = [
        ("found", "What was found", _findings(comparison.summary)),
        ("figures", "Figures", _figures(comparison)),
        ("tests", "Main tests", _main_table(comparison.summary)),
        ("all", "All tests", _all_tables(comparison)),
        ("methods", "How it was tested", _methods()),
        ("origin", "Where it comes from", _origin(comparison.summary)),
    ]
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{escape(name)}</h2>{content}</section>'
        for key, name, content in sections
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An icon of its own: browsers would ask the network for one.
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>"
        f"<body><header><h1>{escape(title)}</h1>{_group_cards(groups)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        f"<footer>Made by cvdask {escape(__version__)}. The figures lie beside as PNG, SVG and "
        f"CSV, the tables as parquet and CSV.</footer>"
        f'<dialog aria-label="Figure"><img src="data:," alt=""><button>Close</button></dialog>'
        f"<script>{script}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# ---------------------------------------------------------------------------------------------
# Sections


def _group_cards(groups: Mapping[str, Sequence[str]]) -> str:
    cards = []
    for name, members in groups.items():
        shown = ", ".join(members[:6])
        more = f" and {len(members) - 6} more" if len(members) > 6 else ""
        plural = "s" if len(members) != 1 else ""
        cards.append(
            f'<div class="group"><strong>{escape(name)}</strong>'
            f'<span class="soft">{len(members)} volume{plural}: {escape(shown)}{more}</span></div>'
        )
    return f'<div class="groups">{"".join(cards)}</div>'


def _findings(summary: Mapping[str, Any]) -> str:
    tested = [row for row in summary["main"] if row["p"] is not None]
    found = main_findings(summary)
    sentences = [
        f"<p>{len(found)} of {len(tested)} main tests are below {ALPHA:.0%} after Holm's "
        f"correction.</p>"
    ]
    if found:
        items = "".join(f"<li>{_finding(row)}</li>" for row in found[:20])
        sentences.append(f"<ul>{items}</ul>")
        if len(found) > 20:
            sentences.append(f"<p>… and {len(found) - 20} more, in the table of main tests.</p>")
    notices = "".join(f'<li class="notice">{escape(text)}</li>' for text in summary["notices"])
    if notices:
        sentences.append(f'<h3>To be careful of</h3><ul class="notices">{notices}</ul>')
    return "".join(sentences)


def _finding(row: Mapping[str, Any]) -> str:
    name = f"{name_of(row['measure'])} of {row['class']}"
    if row["difference"] is None:
        return f"{escape(name)} differs between groups (p = {_number(row['p_holm'])})"
    share = ""
    if row["mean_a"]:
        share = f", {row['difference'] / abs(row['mean_a']):+.0%}"
    unit = escape(_unit(row["unit"]))
    return (
        f"<strong>{escape(name)}</strong>: {_number(row['mean_a'])}{unit} in "
        f"{escape(row['group_a'])}, {_number(row['mean_b'])}{unit} in "
        f"{escape(row['group_b'])}{share} (p = {_number(row['p_holm'])})"
    )


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" {unit}"


def _figures(comparison: Comparison) -> str:
    index = read_json(comparison.url, "figures/index.json") or {"figures": []}
    drawn = [_figure(comparison.url, entry) for entry in index["figures"]]
    return "".join(drawn) or "<p>No figures were drawn.</p>"


def _figure(url: str, entry: Mapping[str, Any]) -> str:
    name = str(entry["name"])
    if file_name(name) != name:
        raise DamagedData(f"{redact(url)}/figures/index.json names a figure {name!r}")
    picture = read_object(url, f"figures/{name}.png")
    if picture is None:
        raise DamagedData(
            f"{redact(url)}/figures/{name}.png is gone: run cvdask compare again, with --overwrite"
        )
    links = []
    for kind, media in (("png", "image/png"), ("svg", "image/svg+xml"), ("csv", "text/csv")):
        data = read_object(url, f"figures/{name}.{kind}")
        # A picture is in the page once already.
        if data is not None and kind != "png" and len(data) <= MOST_LINKED_BYTES:
            links.append(
                f'<a download="{escape(name)}.{kind}" href="{_data_uri(data, media)}">'
                f"{kind.upper()}</a>"
            )
    sources = "".join(f"<li>{escape(str(source))}</li>" for source in entry["sources"])
    title, caption = escape(str(entry["title"])), escape(str(entry["caption"]))
    return (
        f'<figure id="figure-{escape(name)}"><h3>{title}</h3>'
        f'<button class="zoom" aria-label="Enlarge {title}">'
        f'<img src="{_data_uri(picture, "image/png")}" alt="{title}: {caption}"></button>'
        f"<figcaption>{caption}"
        f"<details><summary>Drawn from</summary><ul>{sources}</ul></details>"
        f'<p class="links">{"".join(links)}</p></figcaption></figure>'
    )


def _data_uri(data: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _main_table(summary: Mapping[str, Any]) -> str:
    columns: list[Column] = [
        ("class", "text", lambda row: row["class"]),
        ("measure", "text", lambda row: row["measure"]),
        ("comparison", "text", lambda row: row["comparison"]),
        ("mean, first", "number", lambda row: row["mean_a"]),
        ("mean, second", "number", lambda row: row["mean_b"]),
        ("difference", "number", lambda row: row["difference"]),
        ("95 % low", "number", lambda row: row["low"]),
        ("high", "number", lambda row: row["high"]),
        ("effect g", "number", lambda row: row["effect"]),
        ("p", "number", lambda row: row["p"]),
        ("p, Holm", "number", lambda row: row["p_holm"]),
        ("detectable", "number", lambda row: row["detectable"]),
        ("test", "text", lambda row: row["test"]),
        ("observations", "text", _observations),
        ("note", "note", lambda row: row["note"]),
    ]
    rows = summary["main"]
    if len({row["comparison"] for row in rows}) == 1:
        columns = [column for column in columns if column[0] != "comparison"]
    return _table(columns, rows, lambda row: row["p_holm"] is not None and row["p_holm"] < ALPHA)


def _observations(row: Mapping[str, Any]) -> str:
    if not row["n_b"]:
        return f"{row['n_a']} {row['level']}s"
    return f"{row['n_a']} + {row['n_b']} {row['level']}s"


def _all_tables(comparison: Comparison) -> str:
    tests = comparison.statistics().to_pylist()
    columns: list[Column] = [
        ("comparison", "text", lambda row: row["comparison"]),
        ("class", "text", lambda row: row["class"]),
        ("measure", "text", lambda row: row["measure"]),
        ("test", "text", lambda row: f"{row['test']}{' (naive)' if row['naive'] else ''}"),
        ("level", "text", lambda row: row["level"]),
        ("n, first", "number", lambda row: row["n_a"]),
        ("n, second", "number", lambda row: row["n_b"]),
        ("statistic", "number", lambda row: row["statistic"]),
        ("df", "number", lambda row: row["df1"]),
        ("df within", "number", lambda row: row["df2"]),
        ("p", "number", lambda row: row["p"]),
        ("p, Holm", "number", lambda row: row["p_holm"]),
        ("effect", "number", lambda row: row["effect"]),
        ("margin", "number", lambda row: row["margin"]),
    ]
    volumes = comparison.volumes().to_pylist()
    of_volumes: list[Column] = [
        ("volume", "text", lambda row: row["volume"]),
        ("group", "text", lambda row: row["group"]),
        ("class", "text", lambda row: row["class"]),
        ("measure", "text", lambda row: row["measure"]),
        ("unit", "text", lambda row: row["unit"]),
        ("n", "number", lambda row: row["n"]),
        ("mean", "number", lambda row: row["mean"]),
        ("sd", "number", lambda row: row["sd"]),
        ("median", "number", lambda row: row["median"]),
        ("left out", "number", lambda row: row["n_missing"] + row["n_infinite"]),
    ]
    return (
        f"<details><summary>{len(tests)} tests</summary>"
        f"{_table(columns, tests, lambda _: False, 'statistics.csv')}</details>"
        f"<details><summary>{len(volumes)} means of volumes</summary>"
        f"{_table(of_volumes, volumes, lambda _: False, 'volumes.csv')}</details>"
    )


def _methods() -> str:
    parts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in METHODS)
    return f"<dl>{parts}</dl>"


def _origin(summary: Mapping[str, Any]) -> str:
    provenance = summary["provenance"]
    inputs = [one for one in provenance["inputs"] if "volume" in one]
    columns: list[Column] = [
        ("volume", "text", lambda row: row["volume"]),
        ("group", "text", lambda row: row["group"]),
        ("classes", "text", lambda row: _short(row.get("digest"))),
        ("objects", "text", lambda row: _short(row.get("objects"))),
        ("density", "text", lambda row: _short(row.get("density"))),
        ("descriptors", "text", lambda row: _short(row.get("descriptors"))),
    ]
    text = json.dumps(provenance, indent=2, ensure_ascii=False)
    return (
        f"<p>Digests of what was read, the first digits.</p>"
        f"{_table(columns, inputs, lambda _: False)}"
        f"<details><summary>Options and full digests</summary><pre>{escape(text)}</pre></details>"
    )


def _short(digest: str | None) -> str:
    return digest.partition(":")[2][:12] if digest else "–"


# ---------------------------------------------------------------------------------------------
# Tables


def _table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    is_found: Callable[[Mapping[str, Any]], bool],
    beside: str = "",
) -> str:
    head = "".join(
        f'<th scope="col" class="{kind}"><button>{escape(title)}</button></th>'
        for title, kind, _ in columns
    )
    body = "".join(
        f"<tr{' class=found' if is_found(row) else ''}>{''.join(_cells(columns, row))}</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = ""
    if len(rows) > MOST_ROWS:
        more = (
            f'<p class="soft">The first {MOST_ROWS} of {len(rows)} rows; all are in '
            f"{escape(beside)}.</p>"
        )
    return (
        f'<div class="scroll tall" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _cells(columns: Sequence[Column], row: Mapping[str, Any]) -> Iterable[str]:
    for _, kind, value_of in columns:
        value = value_of(row)
        if kind == "number":
            exact = "" if value is None else f' data-value="{escape(repr(value))}"'
            yield f"<td{exact}>{_number(value)}</td>"
        else:
            wide = "text note" if kind == "note" else kind
            yield f'<td class="{wide}">{escape(str(value))}</td>'


def _number(value: float | None) -> str:
    """Write a number for people.

    >>> _number(0.000123), _number(12345.6), _number(3), _number(None)
    ('1.2e-04', '1.23e+04', '3', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return str(value)
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}"
