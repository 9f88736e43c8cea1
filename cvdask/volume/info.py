"""What is in this volume? Read from its metadata alone."""

from __future__ import annotations

from typing import Any

from cvdask.volume.objects import redact
from cvdask.volume.store import Volume, open_volume


def info(volume: Volume | str) -> dict[str, Any]:
    """Describe a sample: levels, voxel size, label images, provenance.

    Parameters
    ----------
    volume : Volume or str
        A sample.

    Returns
    -------
    dict
        JSON-ready; lengths in nm where the key says so, sizes of the volume in µm.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`cvdask.volume.store.open_volume`.
    """
    if isinstance(volume, str):
        volume = open_volume(volume)
    labels = [] if volume.is_labels else volume.label_names()
    return {
        "url": redact(volume.url),
        "ome_zarr": volume.version,
        **_describe(volume),
        "labels": {name: _describe(open_volume(volume.url, labels=name)) for name in labels},
    }


def _describe(volume: Volume) -> dict[str, Any]:
    spacing = volume.voxel_size_nm
    own = volume.attributes
    extent = (
        [round(n * s / 1000, 6) for n, s in zip(volume.shape, spacing, strict=True)]
        if spacing
        else None
    )
    return {
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_size_nm": list(spacing) if spacing else None,
        "size_um": extent,
        "levels": [
            {
                "path": level.path,
                "shape": list(level.shape),
                "voxel_size_nm": list(level.voxel_size_nm) if level.voxel_size_nm else None,
                "chunk_shape": list(level.chunk_shape),
                "shard_shape": list(level.shard_shape),
                "n_shards": len(level.shards),
                "uncompressed_bytes": level.nbytes,
            }
            for level in volume.levels
        ],
        "classes": {str(value): name for value, name in volume.classes.items()},
        **{key: own[key] for key in ("slices", "provenance") if key in own},
    }
