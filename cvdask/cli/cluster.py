"""The commands that look after clusters: is one fit for work?"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from cvdask.cli.options import COMMON, AsJson, Client, Workers, where
from cvdask.cli.printing import FAILED, clean, print_json, print_lines

group = typer.Typer()
cluster = typer.Typer(name="cluster", help="Look after clusters.", no_args_is_help=True)
group.add_typer(cluster)

SIDE = 32  # voxels along each axis of the block that is tried


@cluster.command(epilog="Example: cvdask cluster check --client local --workers 1")
def check(
    client: Client = "local",
    workers: Workers = None,
    volume: Annotated[
        str | None,
        typer.Option(metavar="VOL", help="Can workers read this?", rich_help_panel=COMMON),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start or find a cluster, try each kind of work on it, and tell what it has."""
    from cvdask.engine.cluster import connect
    from cvdask.engine.cluster_check import findings, installed, survey_workers

    where(client, workers, dry_run=False)
    trials = {"label": label_block, "measure": measure_block}
    reach = partial(read_voxel, volume) if volume else None
    with connect(client, workers=workers) as pool:
        reports = survey_workers(pool, trials, {"network": find_gpu}, reach)
    wrong = [clean(line) for line in findings(reports, installed())]
    if as_json:
        print_json(
            {
                "command": "cluster check",
                "ok": not wrong,
                "workers": [report.as_dict() for report in reports],
                "findings": wrong,
            }
        )
    else:
        for report in reports:
            tried = ", ".join(f"{kind} {took}" for kind, took in report.work.items())
            print_lines(
                [
                    f"{report.name} ({report.group}) on {report.host}: {report.threads} threads, "
                    f"{report.cores} cores, {report.memory_bytes / 2**30:.1f} GiB, "
                    f"GPUs {', '.join(report.devices) or 'none'}, "
                    f"clock {report.clock_seconds:+.3f} s, volume {clean(report.store)}"
                    + (f", tried (s): {clean(tried)}" if tried else "")
                ]
            )
        print_lines([f"wrong: {line}" for line in wrong] or ["all is well"])
    if wrong:
        raise typer.Exit(FAILED)


def read_voxel(url: str) -> None:
    """Open a volume and read its first voxel."""
    from cvdask.volume.boxes import Box
    from cvdask.volume.store import open_volume

    opened = open_volume(url)
    n_axes = len(opened.shape)
    opened.read(Box((0,) * n_axes, (1,) * n_axes))


def find_gpu() -> None:
    """Load the network framework, and see that it finds the GPU."""
    from cvdask.networks.device import has_gpu

    if not has_gpu():
        raise OSError("the network framework finds no GPU: is it installed with its GPU part?")


def label_block() -> None:
    """Label the two objects of a small block, and see that they are two."""
    import cc3d
    import numpy as np

    block = np.zeros((SIDE, SIDE, SIDE), np.uint8)
    block[2:5, 2:5, 2:5] = block[20:25, 20:25, 20:25] = 1
    _, n_objects = cc3d.connected_components(block, return_N=True)
    if n_objects != 2:
        raise ArithmeticError(f"a block with 2 objects was found to have {n_objects}")


def measure_block() -> None:
    """Count the voxels of a small block in a compiled loop, and see that the count is right."""
    import numba
    import numpy as np

    @numba.njit
    def count(voxels):  # type: ignore[no-untyped-def]
        total = 0
        for value in voxels.ravel():
            total += value
        return total

    found = count(np.ones((SIDE, SIDE, SIDE), np.uint8))
    if found != SIDE**3:
        raise ArithmeticError(f"a block of {SIDE**3} voxels was found to have {found}")
