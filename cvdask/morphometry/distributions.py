"""How are the measures of objects distributed? A summary in numbers, and a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask.morphometry.tables import Table
from cvdask.volume.colors import PALETTE
from cvdask.volume.objects import write_object

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {
    "volume_um3": "volume (µm³)",
    "sa_v_per_um": "surface : volume (1/µm)",
    "sphericity": "sphericity",
    "elongation": "elongation",
    "flatness": "flatness",
    "sparseness": "sparseness",
}
# Quantiles and pictures of more objects than this are of an even sample of them.
MOST_ROWS = 5_000_000


def summarize(table: Table) -> dict[str, dict[str, Any]]:
    """Summarise the objects of each class.

    Returns
    -------
    dict of class to dict
        ``n``, ``volume_um3`` in total, and the median of each measure over its finite values.
    """
    found = _measured(table)
    return {
        str(name): {
            "n": int(weight["n"]),
            "total_volume_um3": float(weight["volume"]),
            "median": {column: _median(rows[column].to_numpy()) for column in MEASURES},
        }
        for (name, rows), weight in (
            ((name, rows), totals) for name, rows, totals in _by_class(found, table)
        )
    }


def _by_class(found: pd.DataFrame, table: Table) -> Any:
    totals: dict[str, dict[str, float]] = {}
    for part in table.batches(["class", "volume_um3"]):
        frame = part.to_pandas()
        for name, volumes in frame.groupby("class", sort=False)["volume_um3"]:
            own = totals.setdefault(str(name), {"n": 0, "volume": 0.0})
            own["n"] += len(volumes)
            own["volume"] += float(volumes.sum())
    for name in sorted(totals):
        yield name, found[found["class"] == name], totals[name]


def _measured(table: Table) -> pd.DataFrame:
    """Read class and measures, evenly thinned where there are very many objects."""
    import pandas as pd

    n_rows = sum(len(part) for part in table.batches(["label"]))
    step = max(1, -(-n_rows // MOST_ROWS))
    parts = [part.to_pandas().iloc[::step] for part in table.batches(["class", *MEASURES])]
    return pd.concat(parts, ignore_index=True)


def _median(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def draw_distributions(table: Table, file: str) -> None:
    """Draw a histogram of each measure, a line for each class, as a PNG file beside the table."""
    from matplotlib.figure import Figure

    found = _measured(table)
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    classes: Mapping[str, str] = {
        str(name): PALETTE[k % len(PALETTE)] for k, name in enumerate(sorted(set(found["class"])))
    }
    for place, (column, title) in zip(axes, MEASURES.items(), strict=True):
        values = found[column].to_numpy(float)
        usable = np.isfinite(values) & (values > 0)
        place.set_xlabel(title)
        if usable.any():
            low, high = np.quantile(values[usable], (0.001, 0.999))
            wide = column == "volume_um3" and high > 20 * low
            place.set_xscale("log" if wide else "linear")
            high = high if high > low else low * 1.1
            edges = np.geomspace(low, high, 41) if wide else np.linspace(low, high, 41)
            for name, color in classes.items():
                own = values[usable & (found["class"] == name).to_numpy()]
                label = f"{name} ({len(own):,})"
                place.hist(own, edges, histtype="step", color=color, lw=1.6, label=label)
    axes[0].set_ylabel("objects")
    axes[3].set_ylabel("objects")
    if classes:
        axes[0].legend(frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_object(table.parent, file, picture.getvalue())
