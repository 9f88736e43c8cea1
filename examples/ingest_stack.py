"""Numbered slices with a gap and two annotated slices become a volume: the Python API.

What would be your microscope's files is made on the spot, in a temporary folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import tifffile

import cvdask


def main() -> None:
    """Ingest a small folder of slices and look at what is there."""
    with tempfile.TemporaryDirectory() as folder:
        slices, annotated, out = (Path(folder) / n for n in ("slices", "truth.tif", "cell.zarr"))
        slices.mkdir()
        random = np.random.default_rng(0)
        base = random.integers(60, 180, (96, 128), dtype=np.uint8)
        for number in [*range(20), *range(21, 40)]:  # slice 20 was lost
            noise = random.integers(0, 20, base.shape, dtype=np.uint8)
            tifffile.imwrite(slices / f"slice_{number:04d}.tif", base + noise)
        tifffile.imwrite(annotated, (np.stack([base, base]) > 120).astype(np.uint8))

        done = cvdask.ingest(
            slices,
            out,
            voxel_nm=(25, 10, 10),
            damaged="interpolate",  # the default, refuse, would end with an error that names z = 20
            labels=annotated,
            label_slices=[0, 30],
            classes=["cell"],
            client="threads",
        )
        print(*done.summaries, *done.warnings, sep="\n")

        volume = cvdask.open(out)
        box = cvdask.Box.parse("18:23,:,:", volume.shape)
        print("mean grey value of slices 18 to 22:", volume.read(box).mean(axis=(1, 2)).round(1))
        print("annotated:", volume.label("annotations").attributes["slices"]["annotated"])
        image = volume.to_xarray()  # lazy, with coordinates in µm
        print("at z = 0.5 µm:", int(image.sel(z=0.5, method="nearest").mean()))


if __name__ == "__main__":
    main()
