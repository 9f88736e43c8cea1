"""What do the volumes themselves look like: slices, cross-sections, surfaces.

Pictures show the first volume of each group, at the coarsest level that still has enough voxels to
look at, so that a terabyte costs no more to show than a gigabyte.

Surfaces are drawn by PyVista where it is installed (extra ``render``), else by matplotlib from the
same triangles.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cvdask.comparison.drawing import DPI, Drawing, plain, scale_bar, shorten
from cvdask.comparison.samples import Sample
from cvdask.volume.boxes import Box
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.export import draw_overlay
from cvdask.volume.store import Level, Volume, open_volume, read_box

# Voxels along the longest side of a slice, of a cross-section and of a rendering.
SLICE_VOXELS, SECTION_VOXELS, RENDERED_VOXELS = 1024, 768, 160
RENDERED_INCHES = (4.8, 4.8)
# matplotlib sorts and shades every triangle on its own.
MOST_TRIANGLES, FEWEST_VOXELS = 90_000, 64
DEPTHS = (0.25, 0.5, 0.75)
ELEVATION, AZIMUTH = 24.0, -52.0
# Towards the light, x, y, z: above and to the left of who looks.
LIGHT = np.array((0.25, -0.6, 0.76))

Meshes = dict[int, tuple[np.ndarray, np.ndarray]]  # value: vertices (n, 3) z y x, faces (m, 3)


def colors_of(labels: Volume) -> dict[int, str]:
    """Return a colour for each class: its own, else the palette's in turn."""
    values = [value for value in sorted(labels.classes) if value not in (0, UNANNOTATED)]
    return {
        value: labels.colors.get(value, PALETTE[(value - 1) % len(PALETTE)]) for value in values
    }


def fitting_level(volume: Volume, most: int) -> Level:
    """Choose the finest level whose slices are at most so large, else the coarsest."""
    fitting = [level for level in volume.levels if max(level.shape[1:]) <= most]
    return fitting[0] if fitting else volume.levels[-1]


def _slice_box(level: Level, depth: float, most: int) -> Box:
    """Return one slice, cut to its middle where even the coarsest level is too large."""
    z = min(level.shape[0] - 1, int(depth * level.shape[0]))
    start, stop = [z], [z + 1]
    for extent in level.shape[1:]:
        side = min(extent, most)
        start.append((extent - side) // 2)
        stop.append((extent - side) // 2 + side)
    return Box(tuple(start), tuple(stop))


def _extent_um(level: Level, box: Box, axes: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of a picture of two axes, the first downwards."""
    assert level.voxel_size_nm is not None
    down, across = axes
    height = box.shape[down] * level.voxel_size_nm[down] / 1000
    width = box.shape[across] * level.voxel_size_nm[across] / 1000
    return 0.0, width, 0.0, height


def _paint(values: np.ndarray, colors: Mapping[int, str]) -> np.ndarray:
    """Return classes in their colours on white: (Y, X, 3) uint8."""
    out = np.full((*values.shape, 3), 255, np.uint8)
    for value, color in colors.items():
        out[values == value] = (np.array(to_rgb(color)) * 255).astype(np.uint8)
    out[values == UNANNOTATED] = 225
    return out


def _show(axes: Any, picture: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    grey = {"cmap": "gray"} if picture.ndim == 2 else {}
    axes.imshow(picture, extent=extent, interpolation="nearest", aspect="equal", **grey)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#999999")


def _legend(figure: Figure, samples: Sequence[Sample], shown: Sequence[str]) -> None:
    """Name the classes that are shown below a figure."""
    named: dict[str, str] = {}
    for sample in samples:
        for value, color in colors_of(sample.labels).items():
            if sample.labels.classes[value] in shown:
                named.setdefault(sample.labels.classes[value], color)
    handles = [
        Patch(facecolor=color, edgecolor="#555555", linewidth=0.5, label=plain(shorten(name)))
        for name, color in named.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))


def _row_title(axes: Any, sample: Sample) -> None:
    text = shorten(sample.group, 24)
    if sample.name != sample.group:
        text += f"\n{shorten(sample.name, 28)}"
    axes.set_ylabel(plain(text), fontsize=8)


def _rows_of(samples: Sequence[Sample], ratio: float, n_columns: int) -> tuple[float, float]:
    """Return width and height of a figure of rows whose pictures are so high for their width."""
    side = 2.3
    height = min(3.2, max(1.2, side * ratio)) + 0.25
    return side * n_columns + 0.4, height * len(samples) + 0.7


def _columns() -> dict[str, list[Any]]:
    names = ("group", "volume", "level", "box", "class", "voxels", "share")
    return {name: [] for name in names}


def _count(
    columns: dict[str, list[Any]], sample: Sample, level: Level, box: Box, values: np.ndarray
) -> None:
    """Note how much of a picture each class takes."""
    for value in np.unique(values):
        n = int((values == value).sum())
        columns["group"].append(sample.group)
        columns["volume"].append(sample.name)
        columns["level"].append(level.path)
        columns["box"].append(str(box))
        columns["class"].append(sample.labels.classes.get(int(value), str(value)))
        columns["voxels"].append(n)
        columns["share"].append(n / values.size)


def _sources(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.name}: {sample.labels.group}" for sample in samples]


# ---------------------------------------------------------------------------------------------
# Slices and cross-sections


def draw_slices(samples: Sequence[Sample]) -> Drawing:
    """Draw the middle slice, and its classes there and at two other depths."""
    shapes = [sample.extent_um for sample in samples]
    ratio = max(y / x for _, y, x in shapes)
    figure = Figure(figsize=_rows_of(samples, ratio, 4), layout="constrained")
    panels = figure.subplots(len(samples), 4, squeeze=False)
    columns = _columns()
    for row, sample in zip(panels, samples, strict=True):
        level = fitting_level(sample.labels, SLICE_VOXELS)
        image = open_volume(sample.url)
        grey_levels = image.levels if _belongs_to(image, sample.labels) else ()
        grey_level = next((lv for lv in grey_levels if lv.shape == level.shape), None)
        for axes, depth in zip(row, (0.5, *DEPTHS), strict=True):
            box = _slice_box(level, depth, SLICE_VOXELS)
            values = read_box(sample.url, level, box)[0]
            picture: np.ndarray = _paint(values, colors_of(sample.labels))
            if grey_level is not None:
                grey = _stretch(read_box(image.url, grey_level, box)[0])
                picture = grey if axes is row[0] else _overlay(grey, values, sample)
            _show(axes, picture, _extent_um(level, box, (1, 2)))
            assert level.voxel_size_nm is not None
            z_um = box.start[0] * level.voxel_size_nm[0] / 1000
            axes.set_title(f"z = {z_um:.3g} µm", fontsize=8)
            if axes is not row[0]:
                _count(columns, sample, level, box, values)
        scale_bar(row[0], row[0].get_xlim()[1])
        _row_title(row[0], sample)
    _legend(figure, samples, columns["class"])
    return Drawing(
        "slices",
        "Slices",
        "The middle slice of the first volume of each group, and its classes at a quarter, a half "
        "and three quarters of its depth.",
        figure,
        columns,
        _sources(samples),
    )


def _belongs_to(image: Volume, labels: Volume) -> bool:
    """Tell whether labels can be drawn over an image.

    Slices that were put in order lie elsewhere than those of the image, and the image of a
    generated volume is nothing but its classes in grey.
    """
    stages = [one.attributes.get("provenance", {}).get("stage") for one in (image, labels)]
    return stages[0] != "generate" and stages[1] != "order"


def _stretch(grey: np.ndarray) -> np.ndarray:
    """Spread grey values over the range of uint8, all but the outermost in a thousand."""
    low, high = np.quantile(grey, [0.001, 0.999])
    scaled = (grey.astype(np.float64) - low) / max(float(high - low), 1e-12)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _overlay(grey: np.ndarray, values: np.ndarray, sample: Sample) -> np.ndarray:
    return draw_overlay(grey, values, colors_of(sample.labels))


def draw_sections(samples: Sequence[Sample]) -> Drawing:
    """Draw the classes of each first volume, cut through its middle along three planes."""
    depth = max(sample.extent_um[0] for sample in samples)
    width = max(sample.extent_um[2] for sample in samples)
    ratio = max(1.0, *(s.extent_um[1] / s.extent_um[2] for s in samples))
    figure = Figure(
        figsize=(
            2.6 * (2 + min(1.5, max(0.35, depth / width))) + 0.6,
            2.6 * ratio * len(samples) + 0.7,
        ),
        layout="constrained",
    )
    panels = figure.subplots(
        len(samples), 3, squeeze=False, width_ratios=(1, 1, min(1.5, max(0.35, depth / width)))
    )
    columns = _columns()
    for row, sample in zip(panels, samples, strict=True):
        level = fitting_level(sample.labels, SECTION_VOXELS)
        middle = [extent // 2 for extent in level.shape]
        # y across x, z across x, y across z: what is down is named first.
        for axes, fixed, shown in zip(row, (0, 1, 2), ((1, 2), (0, 2), (1, 0)), strict=True):
            box = _section_box(level, fixed, middle[fixed])
            values = np.take(read_box(sample.url, level, box), 0, axis=fixed)
            values = values.T if fixed == 2 else values
            _show(axes, _paint(values, colors_of(sample.labels)), _extent_um(level, box, shown))
            axes.set_title(f"{'zyx'[shown[1]]} → , {'zyx'[shown[0]]} ↓", fontsize=8)
            _count(columns, sample, level, box, values)
        scale_bar(row[0], row[0].get_xlim()[1])
        _row_title(row[0], sample)
    _legend(figure, samples, columns["class"])
    return Drawing(
        "sections",
        "Cross-sections",
        "Classes of the first volume of each group, cut through its middle along three planes, all "
        "with true proportions.",
        figure,
        columns,
        _sources(samples),
    )


def _section_box(level: Level, fixed: int, at: int) -> Box:
    start = [0, 0, 0]
    stop = [min(extent, SECTION_VOXELS) for extent in level.shape]
    start[fixed], stop[fixed] = at, at + 1
    return Box(tuple(start), tuple(stop))


# ---------------------------------------------------------------------------------------------
# Surfaces


def draw_rendering(samples: Sequence[Sample], classes: Sequence[str] | None = None) -> Drawing:
    """Draw the surfaces of classes, or all, of each first volume but one that fills most of it."""
    n_columns = min(3, len(samples))
    n_rows = -(-len(samples) // n_columns)
    figure = Figure(figsize=(3.9 * n_columns, 3.6 * n_rows + 0.5), layout="constrained")
    columns: dict[str, list[Any]] = {name: [] for name in ("group", "volume", "class", "triangles")}
    render = _render_pyvista if _has_pyvista() else _render_matplotlib
    for number, sample in enumerate(samples):
        meshes, box_um = surfaces(sample, classes)
        axes = figure.add_subplot(n_rows, n_columns, number + 1)
        axes.imshow(render(meshes, box_um, colors_of(sample.labels)))
        axes.set_axis_off()
        size = " × ".join(f"{length:.3g}" for length in box_um)
        axes.set_title(plain(f"{shorten(sample.name)}\n{size} µm (z × y × x)"), fontsize=8)
        for value, (_, faces) in meshes.items():
            columns["group"].append(sample.group)
            columns["volume"].append(sample.name)
            columns["class"].append(sample.labels.classes.get(value, str(value)))
            columns["triangles"].append(len(faces))
    _legend(figure, samples, columns["class"])
    return Drawing(
        "rendering",
        "Surfaces",
        "Surfaces of the classes of the first volume of each group, on a coarse level; a class "
        "that fills more than half of a volume with several is left out, because nothing could be "
        "seen behind it.",
        figure,
        columns,
        _sources(samples),
    )


def surfaces(
    sample: Sample, classes: Sequence[str] | None = None
) -> tuple[Meshes, tuple[float, float, float]]:
    """Find the surfaces of classes of a volume, or of all, in µm, closed at its border.

    Returns
    -------
    meshes : mapping of int to (vertices, faces)
        Vertices (n, 3) float64 z, y, x in µm; faces (m, 3) int.
    box_um : (float, float, float)
        Size of the volume that is shown.
    """
    names = sample.labels.classes
    wanted = [v for v in colors_of(sample.labels) if classes is None or names[v] in classes]
    most = RENDERED_VOXELS
    while True:
        values, spacing, box_um = _thin_out(sample.labels, most)
        meshes = _surfaces_of(values, spacing, wanted)
        if most <= FEWEST_VOXELS or sum(len(f) for _, f in meshes.values()) <= MOST_TRIANGLES:
            break
        most = int(0.8 * most)
    return meshes, box_um


def _surfaces_of(
    values: np.ndarray, spacing: tuple[float, float, float], classes: Sequence[int]
) -> Meshes:
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    shares = {v: float((values == v).mean()) for v in classes}
    shown = [v for v in classes if shares[v] > 0]
    if len(shown) > 1:
        shown = [v for v in shown if shares[v] <= 0.5]
    meshes: Meshes = {}
    for value in shown:
        # Smoothed, so that the steps of voxels do not hide the shape; what is thinner than a
        # voxel or two stays as it is, where it would vanish.
        inside = np.pad((values == value).astype(np.float32), 2)
        smooth = gaussian_filter(inside, 0.8)
        smooth = smooth if (smooth >= 0.5).sum() > 0.6 * inside.sum() else inside
        vertices, faces, _, _ = marching_cubes(smooth, 0.5, spacing=spacing)
        meshes[value] = (vertices - 1.5 * np.array(spacing), faces)
    return meshes


def _thin_out(
    labels: Volume, most: int
) -> tuple[np.ndarray, tuple[float, float, float], tuple[float, float, float]]:
    """Read a level, every so many voxels, so that no side has more than ``most``.

    Returns
    -------
    values : (z, y, x) integer
    spacing_um, extent_um : (float, float, float)
        Of the voxels that were kept, and of the whole level.
    """
    fitting = [level for level in labels.levels if max(level.shape) <= 4 * most]
    level = fitting[0] if fitting else labels.levels[-1]
    assert level.voxel_size_nm is not None
    z, y, x = (n * s / 1000 for n, s in zip(level.shape, level.voxel_size_nm, strict=True))
    longest = 1000 * max(z, y, x)
    steps = [max(1, math.ceil(longest / most / s - 1e-9)) for s in level.voxel_size_nm]
    values = read_box(labels.url, level, level.box)
    kept = tuple(
        slice(min(step // 2, n - 1), None, step) for step, n in zip(steps, level.shape, strict=True)
    )
    dz, dy, dx = (step * s / 1000 for step, s in zip(steps, level.voxel_size_nm, strict=True))
    return values[kept], (dz, dy, dx), (z, y, x)


def _render_matplotlib(
    meshes: Meshes, box_um: tuple[float, float, float], colors: Mapping[int, str]
) -> np.ndarray:
    """Draw triangles, shaded by where they face; matplotlib sorts them by depth.

    Returns
    -------
    (Y, X, 3) uint8
        Drawn once: a figure draws its parts several times, to lay them out and for each format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    figure = Figure(figsize=RENDERED_INCHES, dpi=DPI)
    axes: Any = figure.add_axes((0, 0, 1, 1), projection="3d", computed_zorder=False)
    triangles, shades = [], []
    for value, (vertices, faces) in meshes.items():
        corners = vertices[faces][:, :, ::-1]  # x, y, z
        outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outwards /= np.linalg.norm(outwards, axis=1, keepdims=True) + 1e-12
        bright = 0.45 + 0.55 * np.clip(outwards @ LIGHT, 0, 1)
        triangles.append(corners)
        shades.append(np.clip(bright[:, None] * np.array(to_rgb(colors[value])), 0, 1))
    if triangles:
        # One collection: depth is sorted across all classes.
        surface = Poly3DCollection(
            np.concatenate(triangles), facecolors=np.concatenate(shades),
            edgecolors=np.concatenate(shades), linewidths=0.3, zorder=1,
        )  # fmt: skip
        axes.add_collection3d(surface)
    _draw_frame(axes, box_um)
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    axes.set_proj_type("persp", focal_length=1.6)
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.array(canvas.buffer_rgba())[..., :3]
    drawn = np.any(picture < 255, axis=2)
    rows, columns = (np.flatnonzero(np.any(drawn, axis=axis)) for axis in (1, 0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _draw_frame(axes: Any, box_um: tuple[float, float, float]) -> None:
    z, y, x = box_um
    axes.set_xlim(0, x)
    axes.set_ylim(0, y)
    axes.set_zlim(0, z)
    # Boxes are drawn with diagonals of one length; a long one fills the width of its panel.
    axes.set_box_aspect((x, y, z), zoom=0.88)
    farthest = (0.0, y, 0.0)
    for start, end in _edges_of_box(x, y, z):
        behind = farthest in (start, end)
        axes.plot(
            *zip(start, end, strict=True), color="#777777", linewidth=0.6, zorder=0 if behind else 2
        )


def _edges_of_box(x: float, y: float, z: float) -> list[tuple[tuple[float, ...], ...]]:
    corners = [(a, b, c) for a in (0.0, x) for b in (0.0, y) for c in (0.0, z)]
    return [
        (p, q)
        for i, p in enumerate(corners)
        for q in corners[i + 1 :]
        if sum(a != b for a, b in zip(p, q, strict=True)) == 1
    ]


def _has_pyvista() -> bool:
    """Tell whether PyVista can be loaded: it may be there without the system's OpenGL."""
    try:
        import pyvista  # noqa: F401
    except ImportError:
        return False
    return True


def _render_pyvista(
    meshes: Meshes, box_um: tuple[float, float, float], colors: Mapping[int, str]
) -> np.ndarray:
    """Render off-screen: (Y, X, 3) uint8."""
    os.environ.setdefault("PYVISTA_OFF_SCREEN", "true")
    import pyvista

    plotter = pyvista.Plotter(off_screen=True, window_size=(1400, 1200))
    plotter.set_background("white")
    for value, (vertices, faces) in meshes.items():
        cells = np.column_stack([np.full(len(faces), 3), faces]).ravel()
        surface = pyvista.PolyData(np.ascontiguousarray(vertices[:, ::-1]), cells)
        surface = surface.smooth_taubin(n_iter=12, pass_band=0.1)
        plotter.add_mesh(surface, color=colors[value], smooth_shading=True, specular=0.25)
    z, y, x = box_um
    plotter.add_mesh(pyvista.Box((0, x, 0, y, 0, z)), style="wireframe", color="#777777")
    plotter.camera_position = "iso"
    # Shaded corners and anti-aliasing take half a minute without a graphics card; the picture is
    # drawn smaller than it is rendered, which smooths as well.
    picture = np.asarray(plotter.screenshot(return_img=True))
    plotter.close()
    return picture
