"""The whole way on a synthetic cell, by the commands a reader would type.

1. A synthetic heart cell stands in for the microscope: its image and its truth become TIFF stacks.
2. ``demo.toml`` is put beside them and run: the stacks are ingested, a network learns from ten
   slices and classifies the others, objects are counted, a generator learns what slices look like
   and makes volumes, which are ordered, measured and compared with the cell.
3. The cell is described and verified, and its middle slice is drawn, with the classes in colour.

Each command is printed before it runs. Running the demo again is fine: what is there is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

import cvdask
from cvdask import cli
from cvdask.pipeline.outcome import figures_line
from cvdask.volume.export import draw_overlay

CONFIG = Path(__file__).with_name("demo.toml")


def main(arguments: list[str] | None = None) -> None:
    """Run the demo; its last lines name the report and the main figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write")
    parser.add_argument("--size-um", nargs=3, default=["2", "4", "6"], metavar=("Z", "Y", "X"))
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is run")
    parser.add_argument("--until", metavar="STAGE", help="last stage to take")
    options = parser.parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    phantom = shlex.quote(str(out / "phantom.zarr"))
    cvdask_command(f"phantom {phantom} --size-um {' '.join(options.size_um)} --voxel-nm 20")
    export(phantom, out / "raw.tif")
    export(phantom, out / "truth.tif", "--labels truth")
    config = out / "demo.toml"
    config.write_text(options.config.read_text())
    until = f" --until {shlex.quote(options.until)}" if options.until else ""
    cvdask_command(f"run {shlex.quote(str(config))}{until}")
    cell = out / "samples" / "cell.zarr"
    cvdask_command(f"info {shlex.quote(str(cell))}")
    cvdask_command(f"verify {shlex.quote(str(cell))}")

    picture = out / "middle_slice.png"
    draw_middle_slice(cell, picture)
    record = json.loads((out / "run.json").read_text())
    print(f"\nlook at the middle slice with its classes drawn over it: {picture}")
    page = out / "comparison" / "report.html"
    if page.exists():
        print(f"open the report in a browser: {page}")
    print(f"main figures: {figures_line(record['figures'])}")


def export(phantom: str, stack: Path, more: str = "") -> None:
    """Make a TIFF stack of the phantom, once: a file that is newer counts as another."""
    if not stack.exists():
        cvdask_command(f"export {phantom} {shlex.quote(str(stack))} {more}".rstrip())


def cvdask_command(line: str) -> None:
    """Show a command as a reader would type it, then run it; end the demo where it fails."""
    print(f"\n$ cvdask {line}", flush=True)
    code = cli.run(shlex.split(line))
    if code:
        raise SystemExit(code)


def draw_middle_slice(cell: Path, picture: Path) -> None:
    """Draw a slice twice, plain and with its labels in colour, with a scale bar and a legend."""
    image = cvdask.open(cell)
    found = "classes" if "classes" in image.label_names() else "truth"
    labels = image.label(found)
    middle = cvdask.Box.parse(f"{image.shape[0] // 2},:,:", image.shape)
    grey, values = image.read(middle)[0], labels.read(middle)[0]  # (Y, X) each
    assert image.voxel_size_nm is not None
    voxel_um = image.voxel_size_nm[2] / 1000

    height, width = grey.shape
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 6 * height / width + 0.7), layout="constrained", dpi=150
    )
    axes[0].imshow(grey, cmap="gray", vmin=0, vmax=255)
    axes[1].imshow(draw_overlay(grey, values, labels.colors))
    for panel, title in zip(axes, ("image", f"with its {found}"), strict=True):
        panel.set_title(f"{title}, z = {middle.start[0]}")
        panel.set_axis_off()
    bar = min(1.0, width * voxel_um / 4)  # µm
    axes[0].plot([8, 8 + bar / voxel_um], [height - 8] * 2, color="black", linewidth=5)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2}
    axes[0].text(8, height - 13, f"{bar:g} µm", va="bottom", fontsize=11, bbox=box)
    patches = [
        Patch(color=labels.colors[value], label=name.replace("_", " "))
        for value, name in labels.classes.items()
        if value and (values == value).any()
    ]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", ncols=len(patches), frameon=False
        )
    figure.savefig(picture)
    plt.close(figure)


if __name__ == "__main__":
    main()
