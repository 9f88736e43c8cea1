"""Cut a box out of a volume for programs that want a TIFF or a PNG.

1. The box is read in slabs as deep as the store's chunks, so that memory is bounded by a slab.
2. Slices are written one behind the other: a TIFF stack with its voxel size, a PNG of one slice, or
   a folder of numbered PNGs.
3. ``overlay`` draws a label image over the grey values, in the colours of its classes.

The file appears under its name when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Box, Grid
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.objects import is_remote
from cvdask.volume.store import Level, Volume, open_volume, read_box

OVERLAY_OPACITY = 0.45
NUMBERED_PNG = re.compile(r"z\d{6,}\.png")


def export(
    volume: Volume | str,
    out: str | os.PathLike[str],
    *,
    box: Box | str | None = None,
    level: int = 0,
    labels: str | None = None,
    overlay: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path | Plan:
    """Write a box of a level as TIFF or PNG.

    Parameters
    ----------
    volume : Volume or str
        A sample.
    out : str or path
        ``name.tif`` or ``name.tiff``: a stack, BigTIFF from 4 GB on. ``name.png``: a single slice.
        A name without an ending: a folder of numbered PNGs.
    box : Box or str, optional
        Voxels of that level, as ``z0:z1,y0:y1,x0:x1``; by default all, and for a ``.png`` the
        middle slice.
    level : int
        0 is the finest.
    labels : str, optional
        Export this label image instead of the image.
    overlay : str, optional
        Draw this label image over the image; the result is RGB.
    overwrite : bool
        Replace an existing file.
    dry_run : bool
        Return the plan and write nothing.

    Returns
    -------
    Path
        What was written; or the plan.

    Raises
    ------
    ValueError
        When the ending, the box or the combination of options breaks its rule.
    FileExistsError
        When ``out`` exists and ``overwrite`` was not asked for.
    """
    if isinstance(volume, str):
        volume = open_volume(volume)
    if labels is not None and overlay is not None:
        raise ValueError(
            "export takes labels or overlay, not both: an overlay is drawn on the image"
        )
    target = Path(os.fspath(out))
    suffix = target.suffix.lower()
    if is_remote(os.fspath(out)) or suffix not in (".tif", ".tiff", ".png", ""):
        raise ValueError(
            f"export writes a local .tif, .tiff or .png, or a folder of PNGs. Received: {out}"
        )
    source = volume.label(labels) if labels is not None else volume
    drawn = volume.label(overlay) if overlay is not None else None
    description = source.level(level)
    region = _region(box, description, suffix)
    if suffix == ".png" and region.shape[0] != 1:
        raise ValueError(
            f"a .png holds one slice. Received along z: {region.start[0]}:{region.stop[0]}. Give "
            f"one z, or a folder to write numbered PNGs"
        )
    if drawn is not None and drawn.level(level).shape != description.shape:
        raise ValueError(
            f"{overlay!r} has shape {drawn.level(level).shape} at level {level}, the image "
            f"{description.shape}: only labels of the same shape can be drawn over it"
        )
    if suffix in (".png", "") and drawn is None and source.dtype not in ("uint8", "uint16"):
        raise ValueError(
            f"PNG holds uint8 or uint16. {source.name} is {source.dtype}: export a .tif"
        )
    plan = _plan(source, description, region, target, drawn is not None)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists. Give another name, or --overwrite to replace it")
    if target.is_dir() and (foreign := _foreign_entry(target)):
        raise FileExistsError(
            f"only a folder of nothing but numbered PNGs is replaced. {target} holds {foreign}: "
            f"remove it yourself, or give another name"
        )
    if dry_run:
        return plan
    slices = _slices(source, drawn, level, plan.grid)
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)  # a killed run leaves it, perhaps with slices of another box
    try:
        _write(partial, slices, plan, description, suffix)
        if target.is_dir():
            _remove(target)
        partial.replace(target)
    except BaseException:
        _remove(partial)
        raise
    return target


def _foreign_entry(folder: Path) -> str | None:
    """Name something in a folder that export did not write: a mistyped name must not cost it."""
    names = (entry.name for entry in folder.iterdir())
    return next((name for name in names if not NUMBERED_PNG.fullmatch(name)), None)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _region(box: Box | str | None, level: Level, suffix: str) -> Box:
    if isinstance(box, str):
        return Box.parse(box, level.shape)
    if box is not None:
        if not level.box.contains(box) or box.size == 0:
            raise ValueError(f"a box must lie inside the level, {level.box}. Received: {box}")
        return box
    if suffix == ".png":
        return Box.parse(f"{level.shape[0] // 2},:,:", level.shape)
    return level.box


def _plan(volume: Volume, level: Level, region: Box, target: Path, rgb: bool) -> Plan:
    """Blocks are slabs one chunk deep, as far as they lie in the region."""
    depth = level.chunk_shape[0]
    grid = Grid(level.shape, (depth, *level.shape[1:]), roi=region)
    itemsize = 3 if rgb else volume.dtype.itemsize
    return Plan(
        stage="export",
        grid=grid,
        output=str(target.absolute()),
        read_bytes=region.size * volume.dtype.itemsize,
        write_bytes=region.size * itemsize,
        task_bytes=2 * depth * region.shape[1] * region.shape[2] * (itemsize + 1),
        stored_bytes=region.size * itemsize,
        notes={"box": str(region), "slices": region.shape[0]},
    )


def _slices(volume: Volume, drawn: Volume | None, level: int, grid: Grid) -> Iterator[np.ndarray]:
    """Yield the slices of the grid's region, (Y, X) or (Y, X, 3), reading a slab at a time."""
    description = volume.level(level)
    assert grid.roi is not None
    for block in grid:
        part = block.write.intersect(grid.roi)
        data = read_box(volume.url, description, part)
        if drawn is None:
            yield from data
        else:
            classes = read_box(drawn.url, drawn.level(level), part)
            for grey, values in zip(data, classes, strict=True):
                yield draw_overlay(grey, values, drawn.colors)


def draw_overlay(grey: np.ndarray, values: np.ndarray, colors: Mapping[int, str]) -> np.ndarray:
    """Draw labels over a slice in colour.

    Parameters
    ----------
    grey : (Y, X)
        Grey values; uint8 as they are, other types stretched between their extremes.
    values : (Y, X) integer
        0 and 255 (not annotated) stay uncoloured.
    colors : mapping of int to ``#rrggbb``
        Other values take the palette in turn.

    Returns
    -------
    (Y, X, 3) uint8
    """
    if grey.dtype != np.uint8:
        low, high = float(grey.min()), float(grey.max())
        grey = ((grey - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)
    out = np.repeat(grey[..., None], 3, axis=-1)
    for value in np.unique(values):
        if value in (0, UNANNOTATED):
            continue
        color = colors.get(int(value), PALETTE[(int(value) - 1) % len(PALETTE)])
        rgb = np.array(list(bytes.fromhex(color.lstrip("#"))))
        where = values == value
        mixed = (1 - OVERLAY_OPACITY) * out[where] + OVERLAY_OPACITY * rgb
        out[where] = mixed.round().astype(np.uint8)
    return out


def _write(
    partial: Path, slices: Iterator[np.ndarray], plan: Plan, level: Level, suffix: str
) -> None:
    if suffix == ".png":
        partial.write_bytes(imagecodecs.png_encode(next(slices)))
    elif suffix == "":
        partial.mkdir(parents=True, exist_ok=True)
        assert plan.grid.roi is not None
        for z, image in enumerate(slices, start=plan.grid.roi.start[0]):
            (partial / f"z{z:06d}.png").write_bytes(imagecodecs.png_encode(image))
    else:
        _write_tiff(partial, slices, plan, level)


def _write_tiff(partial: Path, slices: Iterator[np.ndarray], plan: Plan, level: Level) -> None:
    """Write pages one by one, with the voxel size where ImageJ and OME readers look for it."""
    big = plan.write_bytes > 2**32 - 2**25
    spacing = level.voxel_size_nm
    options: dict[str, Any] = {"contiguous": True}
    if spacing is not None:
        # ImageJ counts in the unit that its description names, so the tag's own unit is none.
        options["resolution"] = (1 / spacing[2], 1 / spacing[1])
        options["resolutionunit"] = "NONE"
    with tifffile.TiffWriter(partial, bigtiff=big) as writer:
        for image in slices:
            text = None if spacing is None else _imagej_description(plan, spacing[0])
            photometric = "rgb" if image.ndim == 3 else "minisblack"
            writer.write(image, photometric=photometric, description=text, metadata=None, **options)


def _imagej_description(plan: Plan, spacing_z_nm: float) -> str:
    """Say the number of slices and their distance in the form that ImageJ reads."""
    n = plan.notes["slices"]
    return f"ImageJ=1.11a\nimages={n}\nslices={n}\nunit=nm\nspacing={spacing_z_nm:g}\nloop=false\n"
