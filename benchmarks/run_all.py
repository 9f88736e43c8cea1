"""Run every benchmark and write RESULTS.md.

``python benchmarks/run_all.py`` on a machine with nothing else to do: three hours on two cores,
20 GB of disk. ``--only engine store`` runs some and prints them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = (
    "engine",
    "scaling",
    "scale",
    "large",
    "store",
    "phantom",
    "ingest",
    "precision",
    "segment",
    "segment_peers",
    "imbalance",
    "segment_gpu",
    "density",
    "measure",
    "mesh",
    "order",
    "slices",
    "generate",
    "false_positives",
    "compare",
    "gan",
)

HEAD = """# Benchmarks

Figures of one run of `make bench`; each section says its command, machine and date. Ratios were
taken within one run. Absolute figures move with the machine and with its other guests.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME")
    arguments = parser.parse_args()
    sections = []
    for name in arguments.only or BENCHMARKS:
        command = [sys.executable, f"{name}.py"]
        done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        sections.append(done.stdout)
    if arguments.only is None:
        (HERE / "RESULTS.md").write_text(HEAD + "".join(sections))


if __name__ == "__main__":
    main()
