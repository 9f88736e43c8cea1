"""From nothing to a verified volume and a picture, by the commands a reader would type.

1. A synthetic heart cell stands in for the microscope: its image and its truth become TIFF stacks.
2. The stacks are ingested as own files would be, described and verified.
3. The middle slice is drawn, with the truth in colour.

Each command is printed before it runs. Running the demo again is fine: the cell is kept, what
follows from it is made anew.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

import cvdask
from cvdask import cli
from cvdask.volume.export import draw_overlay

CLASSES = "mitochondria,myofibrils,z_discs,nucleus"


def main(arguments: list[str] | None = None) -> None:
    """Run the demo; its last line names the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write")
    parser.add_argument("--size-um", nargs=3, default=["2", "4", "6"], metavar=("Z", "Y", "X"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    phantom, raw, truth, cell, picture = (
        shlex.quote(str(options.out / name))
        for name in ("phantom.zarr", "raw.tif", "truth.tif", "cell.zarr", "middle_slice.png")
    )

    cvdask_command(f"phantom {phantom} --size-um {' '.join(options.size_um)} --voxel-nm 20")
    cvdask_command(f"export {phantom} {raw} --overwrite")
    cvdask_command(f"export {phantom} {truth} --labels truth --overwrite")
    cvdask_command(
        f"ingest {raw} {cell} --voxel-nm 20 --labels {truth} --label-name truth "
        f"--classes {CLASSES} --overwrite"
    )
    cvdask_command(f"info {cell}")
    cvdask_command(f"verify {cell}")

    draw_middle_slice(options.out / "cell.zarr", options.out / "middle_slice.png")
    print(f"\nlook at the middle slice with the truth drawn over it: {picture}")


def cvdask_command(line: str) -> None:
    """Show a command as a reader would type it, then run it; end the demo where it fails."""
    print(f"\n$ cvdask {line}", flush=True)
    code = cli.run(shlex.split(line))
    if code:
        raise SystemExit(code)


def draw_middle_slice(cell: Path, picture: Path) -> None:
    """Draw a slice twice, plain and with its labels in colour, with a scale bar and a legend."""
    image = cvdask.open(cell)
    truth = image.label("truth")
    middle = cvdask.Box.parse(f"{image.shape[0] // 2},:,:", image.shape)
    grey, values = image.read(middle)[0], truth.read(middle)[0]  # (Y, X) each
    assert image.voxel_size_nm is not None
    voxel_um = image.voxel_size_nm[2] / 1000

    height, width = grey.shape
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 6 * height / width + 0.7), layout="constrained", dpi=150
    )
    axes[0].imshow(grey, cmap="gray", vmin=0, vmax=255)
    axes[1].imshow(draw_overlay(grey, values, truth.colors))
    for panel, title in zip(axes, ("image", "with the truth"), strict=True):
        panel.set_title(f"{title}, z = {middle.start[0]}")
        panel.set_axis_off()
    bar = min(1.0, width * voxel_um / 4)  # µm
    axes[0].plot([8, 8 + bar / voxel_um], [height - 8] * 2, color="black", linewidth=5)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2}
    axes[0].text(8, height - 13, f"{bar:g} µm", va="bottom", fontsize=11, bbox=box)
    patches = [
        Patch(color=truth.colors[value], label=name.replace("_", " "))
        for value, name in truth.classes.items()
        if (values == value).any()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.savefig(picture)
    plt.close(figure)


if __name__ == "__main__":
    main()
