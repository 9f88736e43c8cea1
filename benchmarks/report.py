"""What every benchmark prints: the machine, the command, a table. Markdown, as in RESULTS.md."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import psutil


def machine() -> str:
    """Describe processor, cores and memory in one line."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a section: title, command, machine, date, table."""
    arguments = " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(f"\n## {title}\n")
    python = f"Python {platform.python_version()}"
    print(f"`python {arguments}` · {machine()} · {python} · {date.today()}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()
