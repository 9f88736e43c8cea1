"""What does a sample look like, in three dimensions, in a browser?

1. :func:`view` opens samples and finds what can be shown of each: the image, its label images,
   density, meshes. Several samples stand side by side and move together.
2. A local sample is served to the viewer over loopback HTTP, by ``cvdask.viewer.serving``; nothing
   is copied, and the viewer reads just the chunks that it shows. The viewer itself, Neuroglancer,
   comes out of its Python package and needs no network.
3. A click on an object shows its row of the table of objects: the rows are served as
   Neuroglancer's *segment properties*.
4. Samples in a bucket that everyone may read need no server: the URL of a hosted viewer with their
   addresses in it is printed, to be passed on.

In napari instead, for a sample that is open in Python::

    import napari

    sample = cvdask.open("cell.zarr")
    viewer = napari.Viewer()
    levels = [sample.to_xarray(k).data for k in range(len(sample.levels))]
    viewer.add_image(levels, scale=sample.voxel_size_nm, name="image")
    classes = sample.label("classes")
    levels = [classes.to_xarray(k).data for k in range(len(classes.levels))]
    viewer.add_labels(levels, scale=classes.voxel_size_nm, name="classes")
    napari.run()
"""

from __future__ import annotations

import json
import math
import threading
import warnings
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask.viewer.serving import LOOPBACK, SampleServer, check_port
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.ensemble import is_ensemble, open_ensemble
from cvdask.volume.objects import is_remote, redact
from cvdask.volume.store import Volume, open_volume, read_attributes, read_box

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_VERSION = (2, 41)
HOSTED_VIEWER = "https://neuroglancer-demo.appspot.com/"
# Beyond, panels would be too small to see anything in.
MOST_SAMPLES = 4
# Rows of the table that the browser gets to hold.
MOST_OBJECTS = 200_000
# Voxels that are read to choose the contrast.
CONTRAST_VOXELS = 2**24
# What is shown of an object, in this order, as far as the table has it.
SHOWN = (
    "volume_um3",
    "surface_um2",
    "sa_v_per_um",
    "compactness",
    "sphericity",
    "elongation",
    "flatness",
    "sparseness",
    "euler_number",
    "n_voxels",
    "touches_border",
)


@dataclass
class View:
    """An open view, served until it is closed.

    Parameters
    ----------
    url : str
        Where the viewer is. For a local sample with a token: whoever has it can read the sample,
        from this machine.
    layers : tuple of str
        Names of what is shown.
    """

    url: str
    layers: tuple[str, ...]
    _viewer: Any = None
    _server: SampleServer | None = field(default=None, repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def is_served(self) -> bool:
        """Whether it is there only until it is closed."""
        return self._server is not None and not self._closed.is_set()

    def wait(self) -> None:
        """Serve until :meth:`close` is called, or Ctrl-C; returns at once for a public bucket."""
        if self._server is not None:
            self._closed.wait()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None and not self._closed.is_set():
            self._server.close()
            import neuroglancer

            neuroglancer.stop()
        self._closed.set()

    def __enter__(self) -> View:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def view(
    *volumes: Volume | str,
    labels: str | Sequence[str] | None = None,
    browser: bool = True,
    port: int = 0,
) -> View:
    """Show samples in Neuroglancer.

    Parameters
    ----------
    *volumes : Volume or str
        At most four, side by side. Of an ensemble, the first members.
    labels : str or sequence of str, optional
        Label images to show; by default all.
    browser : bool
        Open a browser.
    port : int
        Port of the viewer on the loopback address; 0 for any that is free.

    Returns
    -------
    View
        To be closed, or waited for, by the caller: also as a context manager.

    Raises
    ------
    ValueError
        When there is none or too many, a label image is absent, samples are partly local and partly
        remote, or the viewer is not installed.
    OSError
        When the port is in use.

    Warns
    -----
    UserWarning
        When not all members, labels or objects are shown.
    """
    samples = _open_samples(volumes)
    wanted = _label_names(samples, labels)
    remote = {is_remote(sample.url) for sample in samples}
    if len(remote) > 1:
        raise ValueError(
            "samples are shown from this disk or from buckets, not from both at once. Received: "
            + ", ".join(redact(sample.url) for sample in samples)
        )
    neuroglancer = _neuroglancer()
    if remote == {True}:
        opened = _view_public(neuroglancer, samples, wanted)
    else:
        opened = _view_local(neuroglancer, samples, wanted, port)
    if browser:
        webbrowser.open(opened.url)
    return opened


def _neuroglancer() -> Any:
    advice = "Install it with: pip install 'cvdask[view]'"
    try:
        import neuroglancer
    except ImportError as error:
        raise ValueError(f"the viewer is not installed. {advice}") from error
    found = version("neuroglancer")
    if tuple(map(int, found.split(".")[:2])) < FIRST_VERSION:
        raise ValueError(
            f"the viewer reads OME-Zarr 0.5 since Neuroglancer "
            f"{'.'.join(map(str, FIRST_VERSION))}. Received: {found}. {advice}"
        )
    return neuroglancer


def _open_samples(volumes: Sequence[Volume | str]) -> list[Volume]:
    samples: list[Volume] = []
    for volume in volumes:
        if isinstance(volume, Volume):
            samples.append(open_volume(volume.url))
        elif is_ensemble(volume):
            ensemble = open_ensemble(volume)
            shown = max(1, MOST_SAMPLES - len(volumes) + 1)
            if len(ensemble) > shown:
                warnings.warn(
                    f"the first {shown} of {len(ensemble)} members of {ensemble.name} are shown. "
                    f"Name others as {ensemble.name}/{ensemble.members[-1]}",
                    stacklevel=3,
                )
            samples += [ensemble[number] for number in range(min(shown, len(ensemble)))]
        else:
            samples.append(open_volume(volume))
    if not 1 <= len(samples) <= MOST_SAMPLES:
        raise ValueError(f"one to {MOST_SAMPLES} samples are shown. Received: {len(samples)}")
    return samples


def _label_names(samples: Sequence[Volume], labels: str | Sequence[str] | None) -> list[list[str]]:
    """Return which label images of each sample are shown."""
    present = [sample.label_names() for sample in samples]
    if labels is None:
        return present
    parts = labels.split(",") if isinstance(labels, str) else list(labels)
    names = [part.strip() for part in parts if part.strip()]
    known = {name for found in present for name in found}
    absent = [name for name in names if name not in known]
    if absent or not names:
        raise ValueError(
            f"there are the label images {', '.join(sorted(known)) or 'none'}. "
            f"Received: {', '.join(absent) or labels!r}"
        )
    return [[name for name in names if name in found] for found in present]


# ---------------------------------------------------------------------------------------------
# Where it is served


def _view_local(
    neuroglancer: Any, samples: Sequence[Volume], labels: Sequence[Sequence[str]], port: int
) -> View:
    check_port(port)
    if port:
        # The viewer's own server may still be there from another view.
        neuroglancer.stop()
    neuroglancer.set_server_bind_address(LOOPBACK, port)
    viewer = neuroglancer.Viewer()
    origin = "/".join(viewer.get_viewer_url().split("/")[:3])
    server = SampleServer([sample.url for sample in samples], origin)
    try:
        sources = [server.folder_url(number) for number in range(len(samples))]
        state, names = _state(neuroglancer, samples, labels, sources, server)
        viewer.set_state(state)
    except BaseException:
        server.close()
        raise
    return View(viewer.get_viewer_url(), names, viewer, server)


def _view_public(
    neuroglancer: Any, samples: Sequence[Volume], labels: Sequence[Sequence[str]]
) -> View:
    """Put addresses into the URL of a hosted viewer: the browser reads the bucket itself."""
    warnings.warn(
        "the viewer reads the bucket from the browser, without credentials: it must be public and "
        "allow requests from other sites (CORS). Rows of objects are not shown",
        stacklevel=3,
    )
    sources = [sample.url for sample in samples]
    state, names = _state(neuroglancer, samples, labels, sources, None)
    return View(neuroglancer.to_url(state, prefix=HOSTED_VIEWER), names)


# ---------------------------------------------------------------------------------------------
# What is shown


def _state(
    neuroglancer: Any,
    samples: Sequence[Volume],
    labels: Sequence[Sequence[str]],
    sources: Sequence[str],
    server: SampleServer | None,
) -> tuple[Any, tuple[str, ...]]:
    """Describe all layers, and which panel shows which."""
    state = neuroglancer.ViewerState()
    panels: list[Any] = []
    every_name: list[str] = []
    for number, sample in enumerate(samples):
        prefix = f"{_short(sample)} " if len(samples) > 1 else ""
        names = []
        for name, layer, visible in _layers(
            neuroglancer, sample, labels[number], sources[number], server, number
        ):
            full = _unused(f"{prefix}{name}", every_name)
            state.layers.append(name=full, layer=layer, visible=visible)
            names.append(full)
            every_name.append(full)
        panels.append(neuroglancer.LayerGroupViewer(layers=names, layout="4panel-alt"))
    first = samples[0]
    spacing = first.voxel_size_nm or (1.0, 1.0, 1.0)
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=list(spacing[::-1])
    )
    state.position = [extent / 2 for extent in first.shape[::-1]]
    state.cross_section_scale = max(first.shape[1:]) / 500
    state.projection_scale = 1.3 * max(
        n * s / spacing[2] for n, s in zip(first.shape, spacing, strict=True)
    )
    state.layout = panels[0] if len(panels) == 1 else neuroglancer.row_layout(panels)
    objects = [
        name
        for name in every_name
        if isinstance(state.layers[name].layer, neuroglancer.SegmentationLayer)
    ]
    if objects:
        # Its panel shows the row of the object that is clicked on.
        state.selected_layer = neuroglancer.SelectedLayerState(layer=objects[-1], visible=True)
    return state, tuple(every_name)


def _short(sample: Volume) -> str:
    parts = redact(sample.url).rstrip("/").split("/")
    # Members of an ensemble are numbers that say nothing alone.
    return "/".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:]).replace(".zarr", "")


def _unused(name: str, taken: Sequence[str]) -> str:
    """Return a name that no layer has yet."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    return found


def _layers(
    neuroglancer: Any,
    sample: Volume,
    labels: Sequence[str],
    source: str,
    server: SampleServer | None,
    number: int,
) -> list[tuple[str, Any, bool]]:
    """Return name, layer and whether it is shown at first, of everything in a sample."""
    found = [("image", _image_layer(neuroglancer, sample, f"{source}/|zarr:"), True)]
    density_url = f"{sample.url}/tables/density.zarr"
    if read_attributes(density_url).get("state") == "complete":
        density = open_volume(density_url)
        layer = _image_layer(neuroglancer, density, f"{source}/tables/density.zarr/|zarr:")
        found.append(("density", layer, False))
    table = _objects(sample)
    for name in labels:
        image = sample.label(name)
        sources = [f"{source}/labels/{name}/|zarr:"]
        if not is_remote(sample.url) and (Path(sample.url) / "meshes" / name / "info").is_file():
            sources.append(f"{source}/meshes/{name}/|neuroglancer-precomputed:")
        properties = segment_properties(image, table)
        if server is not None and properties is not None:
            data = json.dumps(properties, allow_nan=False).encode()
            url = server.add_document(f"{number}/{name}/info", data)
            sources.append(f"{url.removesuffix('info')}|neuroglancer-precomputed:")
        colors = {
            value: image.colors.get(value, PALETTE[(value - 1) % len(PALETTE)])
            for value in image.classes
            if value not in (0, UNANNOTATED)
        }
        layer = neuroglancer.SegmentationLayer(
            source=sources,
            segments=sorted(colors),
            segment_colors=colors,
            selected_alpha=0.35,
            not_selected_alpha=0.0 if colors else 0.25,
            hide_segment_zero=True,
        )
        layer.tab = "segments"
        # Classes overlap with the objects of a class: one of the two is enough at first.
        found.append((name, layer, bool(image.classes) or len(labels) == 1))
    return found


def _image_layer(neuroglancer: Any, image: Volume, source: str) -> Any:
    low, high = _contrast(image)
    shader = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"
    return neuroglancer.ImageLayer(
        source=source,
        shader=shader,
        shader_controls={"normalized": {"range": [low, high]}},
        opacity=1.0,
        blend="additive" if image.dtype.kind == "f" else "default",
    )


def _contrast(image: Volume) -> tuple[float, float]:
    """Choose the values that are black and white, from the coarsest level where it is small."""
    level = image.levels[-1]
    if math.prod(level.shape) <= CONTRAST_VOXELS:
        values = read_box(image.url, level, level.box)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = (float(v) for v in np.quantile(values, [0.002, 0.998]))
            if low < high:
                return low, high
    if image.dtype.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(image.dtype)
    return float(limits.min), float(limits.max)


# ---------------------------------------------------------------------------------------------
# Rows of objects


def _objects(sample: Volume) -> pa.Table | None:
    """Read what is shown of the objects of a local sample."""
    where = Path(sample.url) / "tables" / "objects.parquet"
    if is_remote(sample.url) or not where.exists():
        return None
    import pyarrow.dataset

    dataset = pyarrow.dataset.dataset(where, format="parquet", partitioning="hive")
    names = dataset.schema.names
    if not {"label", "class"} <= set(names):
        return None
    columns = ["label", "class", *(name for name in SHOWN if name in names)]
    table = dataset.head(MOST_OBJECTS, columns=columns)
    if len(table) == MOST_OBJECTS:
        warnings.warn(f"a click shows the rows of the first {MOST_OBJECTS} objects", stacklevel=2)
    return table


def segment_properties(image: Volume, table: pa.Table | None) -> dict[str, Any] | None:
    """Describe the objects of a label image in Neuroglancer's form.

    Parameters
    ----------
    image : Volume
        Label image of classes, or of the objects of one.
    table : pyarrow.Table, optional
        Objects: ``label``, ``class`` and measures.

    Returns
    -------
    dict, optional
        For classes their names. For objects their rows: those that were measured in this label
        image, or of the class that it was made of or is named after. None where there are none.

    References
    ----------
    Neuroglancer, "Segment properties", datasource/precomputed.
    """
    if image.classes:
        classes = {v: n for v, n in sorted(image.classes.items()) if v not in (0, UNANNOTATED)}
        return _properties(list(classes), list(classes.values()), {})
    rows = _rows_of(image, table)
    if rows is None or not rows.num_rows:
        return None
    numbers = {
        name: rows.column(name).cast("float64").to_numpy(zero_copy_only=False)
        for name in SHOWN
        if name in rows.column_names
    }
    texts = [str(text) for text in rows.column("class").to_pylist()]
    return _properties(rows.column("label").to_pylist(), texts, numbers)


def _rows_of(image: Volume, table: pa.Table | None) -> pa.Table | None:
    """Return the rows of the objects in a label image; None where that cannot be told."""
    if table is None:
        return None
    import pyarrow
    import pyarrow.compute

    own = json.loads((table.schema.metadata or {}).get(b"cvdask", b"{}"))
    if own.get("provenance", {}).get("options", {}).get("instances") == image.name:
        return table.sort_by("label")
    classes = table.column("class").cast(pyarrow.string())
    rows = table.filter(pyarrow.compute.equal(classes, _class_of(image)))
    return rows.sort_by("label")


def _class_of(image: Volume) -> str:
    """Return the class whose objects a label image holds: as it was made, else as it is named."""
    options = image.attributes.get("provenance", {}).get("options", {})
    made_from, value = options.get("labels"), options.get("class")
    if isinstance(made_from, str) and isinstance(value, int) and made_from in image.label_names():
        return str(image.label(made_from).classes.get(value, value))
    return image.name


def _properties(
    ids: Sequence[int], texts: Sequence[str], numbers: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    properties: list[dict[str, Any]] = [{"id": "class", "type": "label", "values": list(texts)}]
    for name, values in numbers.items():
        properties.append(
            {
                "id": name,
                "type": "number",
                "data_type": "float32",
                "description": name.replace("_", " "),
                # JSON has neither NaN nor infinity, and the form no missing number.
                "values": np.nan_to_num(values, posinf=0.0, neginf=0.0).tolist(),
            }
        )
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {"ids": [str(label) for label in ids], "properties": properties},
    }
