"""The whole way on real volumes, from their TIFF files to a report.

    CVDASK_DATA=FOLDER python examples/real_data.py hippocampus --out hippocampus
    python examples/real_data.py urocell --data FOLDER --out urocell

``hippocampus`` is a stack of 20 slices with its classes, ``epfl6-hippocampus/raw.tif`` and
``labels.tif`` below FOLDER (EPFL, CA1 hippocampus, FIB-SEM); ``urocell`` are the classes of two
volumes, ``urocell-labels-fib1-3-3-0/labels.tif`` and ``urocell-labels-fib1-4-3-0/labels.tif``
(UroCell, bladder). Where they are not, the example says so and ends.

Of a volume on a public server, a box is cut out first; then it is files like any others::

    cvdask export https://host/cell.zarr raw.tif --box 0:64,0:512,0:512
    cvdask export https://host/cell.zarr labels.tif --labels classes --box 0:64,0:512,0:512
    cvdask init cell.toml       # and source = "raw.tif", labels = "labels.tif"
    cvdask run cell.toml
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from cvdask import cli
from cvdask.pipeline.config import read_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Put a config beside its results, with the folder of the data in it, and run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["hippocampus", "urocell"])
    parser.add_argument("--data", default=os.environ.get("CVDASK_DATA"), help="folder of the data")
    parser.add_argument("--out", type=Path, help="folder to write; by default the name")
    parser.add_argument("--until", metavar="STAGE", help="last stage to take")
    options = parser.parse_args(arguments)
    if not options.data:
        print("no data: give --data FOLDER, or set CVDASK_DATA")
        return
    out: Path = options.out or Path(options.name)
    out.mkdir(parents=True, exist_ok=True)
    text = Path(__file__).with_name(f"{options.name}.toml").read_text()
    config = out / f"{options.name}.toml"
    config.write_text(text.replace("DATA/", f"{Path(options.data).absolute()}/"))
    absent = [s.origin for s in read_config(config).samples if not Path(s.origin).exists()]
    if absent:
        print(f"no data: {absent[0]} is not there")
        return
    line = ["run", str(config), *(["--until", options.until] if options.until else [])]
    print(f"$ cvdask {shlex.join(line)}", flush=True)
    code = cli.run(line)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
