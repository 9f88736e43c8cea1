"""How does a figure look, and what is kept of it?

1. :func:`style` is the one style of all figures: colours that colour-blind people can tell apart,
   text that stays text in SVG, no date, so that equal data give equal files.
2. A :class:`Drawing` is a figure with its title, its caption, what it was drawn from and the
   numbers that it shows.
3. :func:`save` writes it as PNG, SVG and CSV, and returns its entry of ``figures/index.json``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

from cvdask.volume.objects import write_json, write_object

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Groups, in an order in which neighbours differ in lightness as well (Okabe and Ito 2008).
GROUP_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# The second way to tell groups apart, for prints without colour.
GROUP_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
GROUP_MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 160
FOLDER = "figures"
NICE_LENGTHS_UM = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "cvdask",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

# Names of measures as they are read.
TITLES = {
    "volume_um3": "volume",
    "surface_um2": "surface",
    "sa_v_per_um": "surface / volume",
    "objects_per_um3": "objects per volume",
    "weighted_volume_um3": "volume, weighted by volume",
    "volume_fraction": "share of the volume",
}


@dataclass(frozen=True)
class Drawing:
    """A figure and all that is said of it.

    Parameters
    ----------
    name : str
        File name without ending: lower case, digits and hyphens.
    title, caption : str
        Plain text.
    figure : Figure
    columns : mapping of str to sequence
        The numbers that it shows, as columns of equal length.
    sources : sequence of str
        What it was drawn from.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    columns: Mapping[str, Sequence[Any]]
    sources: Sequence[str] = field(default_factory=tuple)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the style of all figures inside a ``with`` statement."""
    with rc_context(STYLE):
        yield


def save(url: str, drawing: Drawing) -> dict[str, Any]:
    """Write a drawing as PNG, SVG and CSV; return its entry of the index."""
    import pyarrow
    import pyarrow.csv

    with style():
        frame = _lay_out(drawing.figure)
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with style():
            drawing.figure.savefig(
                buffer, format=kind, dpi=DPI, bbox_inches=frame, metadata=metadata
            )
        write_object(url, f"{FOLDER}/{drawing.name}.{kind}", buffer.getvalue())
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pyarrow.table(dict(drawing.columns)), buffer)
    write_object(url, f"{FOLDER}/{drawing.name}.csv", buffer.getvalue())
    return {
        "name": drawing.name,
        "title": drawing.title,
        "caption": drawing.caption,
        "sources": list(drawing.sources),
    }


def _lay_out(figure: Figure) -> Bbox:
    """Place what is in a figure, once for all formats; return what encloses it, in inches.

    Left to itself, ``savefig`` places everything again for each format, and draws it once more to
    see what encloses it.
    """
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    padding: float = rcParams["savefig.pad_inches"]
    return figure.get_tightbbox().padded(padding)


def write_index(url: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the index of all figures, in the order in which they are shown."""
    write_json(url, f"{FOLDER}/index.json", {"figures": list(entries)})


def group_look(number: int) -> dict[str, Any]:
    """Return colour and line of a group by its number."""
    return {
        "color": GROUP_COLORS[number % len(GROUP_COLORS)],
        "linestyle": GROUP_LINES[number % len(GROUP_LINES)],
    }


def file_name(*words: str) -> str:
    """Make a file name of words of the user's own.

    >>> file_name("shapes", "Z-disc / all µm")
    'shapes-z-disc-all-m'
    """
    text = "-".join(words).lower()
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
    return "-".join(part for part in kept.split("-") if part)


def title_of(measure: str, unit: str = "1") -> str:
    """Write a measure as the label of an axis.

    >>> title_of("volume_um3", "µm³"), title_of("radius_1_um", "µm"), title_of("sphericity")
    ('volume (µm³)', 'radius 1 (µm)', 'sphericity')
    """
    name = name_of(measure)
    return plain(name if unit == "1" else f"{name} ({unit})")


def name_of(measure: str) -> str:
    """Write a measure as words.

    >>> name_of("sa_v_per_um"), name_of("mean_local_thickness_um")
    ('surface / volume', 'mean local thickness')
    """
    if measure in TITLES:
        return TITLES[measure]
    for ending in ("_per_um3", "_per_um", "_um3", "_um2", "_um", "_px"):
        measure = measure.removesuffix(ending)
    return measure.replace("_", " ")


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics.

    >>> plain("cost $x$")
    'cost \\\\$x\\\\$'
    """
    return text.replace("$", r"\$")


def shorten(text: str, most: int = 28) -> str:
    """Cut a long name in its middle.

    >>> shorten("a_very_long_name_of_a_sample_indeed", 16)
    'a_very_lo…indeed'
    """
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 5
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def scale_bar(axes: Axes, width_um: float, *, color: str = "white", edge: str = "black") -> None:
    """Draw a bar of a round length, about a quarter of a picture whose axes are in µm."""
    from matplotlib import patheffects

    fitting = [length for length in NICE_LENGTHS_UM if length <= 0.3 * width_um]
    length = fitting[-1] if fitting else NICE_LENGTHS_UM[0]
    shade = [patheffects.withStroke(linewidth=2.5, foreground=edge)]
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    x = left + 0.05 * (right - left)
    y = low + 0.06 * (high - low)
    axes.plot(
        [x, x + length], [y, y], color=color, linewidth=3, solid_capstyle="butt",
        path_effects=[patheffects.withStroke(linewidth=4.5, foreground=edge)],
    )  # fmt: skip
    axes.annotate(
        f"{length:g} µm", (x + length / 2, y), (0, 4), textcoords="offset points",
        ha="center", va="bottom", color=color, fontsize=8, path_effects=shade,
    )  # fmt: skip
