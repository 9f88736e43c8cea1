"""``cvdask cluster check``: what is told of a cluster, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from distributed import Client

from tests.cli.command_lines import Call
from tests.samples import write_sample


def test_a_cluster_that_is_well(distributed_client: Client, call: Call, tmp_path: Path):
    volume = tmp_path / "cell.zarr"
    write_sample(volume, np.ones((8, 8, 8), np.uint8))
    address = distributed_client.scheduler.address
    code, out, _ = call(f"cluster check --cluster {address} --volume {volume} --json")
    told = json.loads(out)
    assert (code, told["ok"], told["findings"]) == (0, True, [])
    assert {worker["store"] for worker in told["workers"]} == {"reached"}
    assert set(told["workers"][0]["work"]) == {"label", "measure"}


def test_a_volume_that_is_not_there(call: Call, tmp_path: Path):
    absent = str(tmp_path / "absent.zarr")
    code, out, _ = call(f"cluster check --client serial --volume {absent}")
    assert code == 1
    assert "wrong: this process: does not reach the volume" in out


def test_a_cluster_of_no_kind(call: Call):
    code, _, err = call("cluster check --client slrum")
    assert code == 2
    assert "Did you mean slurm?" in err


def test_workers_of_a_running_cluster(call: Call):
    code, _, err = call("cluster check --client tcp://127.0.0.1:1 --workers 2")
    assert code == 2
    assert "a running cluster has its own workers" in err
