"""How is a volume described in the words of OME-Zarr, and what do they say of one?

Metadata as JSON values, in and out; nothing is opened. Written is version 0.5, read are 0.4 and 0.5
(https://ngff.openmicroscopy.org).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cvdask.volume.boxes import AXES

NM_PER_UNIT = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}

Triple = tuple[float, float, float]


def multiscales(
    name: str, datasets: Sequence[tuple[str, Triple, Triple]], method: str
) -> dict[str, Any]:
    """Describe the levels of an image.

    Parameters
    ----------
    name : str
        Name of the image.
    datasets : sequence of (path, voxel size, origin)
        Levels, finest first; lengths z, y, x in nm, the origin at the centre of the first voxel.
    method : str
        How a level follows from the one before.
    """
    described = []
    for path, voxel_size_nm, origin_nm in datasets:
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(voxel_size_nm)}]
        if any(origin_nm):
            steps.append({"type": "translation", "translation": list(origin_nm)})
        described.append({"path": path, "coordinateTransformations": steps})
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in AXES],
        "datasets": described,
        "type": method,
    }


def image_label(classes: Mapping[int, str], colors: Mapping[int, str]) -> dict[str, Any]:
    """Describe a label image: names and ``#rrggbb`` colours of its values."""
    described: dict[str, Any] = {"source": {"image": "../../"}}
    if colors:
        described["colors"] = [
            {"label-value": value, "rgba": [*bytes.fromhex(color.lstrip("#")), 255]}
            for value, color in sorted(colors.items())
        ]
    if classes:
        described["properties"] = [
            {"label-value": value, "name": name} for value, name in sorted(classes.items())
        ]
    return described


def label_name(text: str) -> str:
    """Return a name that a label image can have: ``_`` stands for what it cannot hold.

    >>> label_name("classes_p_Z disc/line")
    'classes_p_Z_disc_line'
    """
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text)


def read_image_label(described: Mapping[str, Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Return names and ``#rrggbb`` colours of label values.

    Raises
    ------
    ValueError
        When a value or colour is none.
    """
    try:
        classes = {
            int(entry["label-value"]): str(entry["name"])
            for entry in described.get("properties") or ()
            if "name" in entry
        }
        colors = {
            int(entry["label-value"]): "#" + bytes(entry["rgba"][:3]).hex()
            for entry in described.get("colors") or ()
            if "rgba" in entry
        }
    except OverflowError as error:
        raise ValueError(str(error)) from error
    return classes, colors


def read_placement(
    multiscale: Mapping[str, Any], dataset: Mapping[str, Any]
) -> tuple[Triple | None, Triple]:
    """Return spacing and origin of a level, z, y, x in nm; None and zeros without a known unit.

    Raises
    ------
    ValueError
        When a transformation has another number of axes than the image.
    """
    axes = multiscale["axes"]
    scale, origin = np.ones(3), np.zeros(3)
    for step in (
        *dataset["coordinateTransformations"],
        *multiscale.get("coordinateTransformations", ()),
    ):
        if step["type"] not in ("scale", "translation"):
            continue
        values = np.array(step[step["type"]], float)
        if values.shape != (len(axes),):
            raise ValueError(f"a {step['type']} of {len(axes)} axes. Received: {values.tolist()}")
        if step["type"] == "scale":
            scale, origin = scale * values[-3:], origin * values[-3:]
        else:
            origin = origin + values[-3:]
    per_unit = np.array([NM_PER_UNIT.get(axis.get("unit"), math.nan) for axis in axes[-3:]])
    spacing, origin = scale * per_unit, origin * per_unit
    if not (np.all(np.isfinite(spacing)) and np.all(spacing > 0)):
        return None, (0.0, 0.0, 0.0)
    return _triple(spacing), _triple(origin)


def _triple(values: np.ndarray) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x
