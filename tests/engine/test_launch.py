"""Are clusters started as asked for, encrypted beyond loopback, and closed before the walltime?"""

from __future__ import annotations

import os
import signal
import ssl
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cvdask.engine import launch
from cvdask.engine.cluster import Limits, check_client, connect
from cvdask.engine.cluster_options import VARIABLE, ClusterOptions, GpuGroup
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.launch import (
    WORKER_ENVIRONMENT,
    add_gpu_jobs,
    batch_cluster,
    check_startable,
    cuda_workers,
    launched,
    open_client,
    security_of,
    visible_gpus,
)

GIB = 2**30

# A batch system that runs each job at once on this machine, and keeps the script.
SUBMIT = """#!/bin/sh
test $# -gt 0 && cp "$1" "{jobs}/$$.sh" || cat > "{jobs}/$$.sh"
setsid sh "{jobs}/$$.sh" > "{jobs}/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
CANCEL = """#!/bin/sh
echo "$1" >> "{jobs}/cancelled"
kill -TERM -- "-$1" 2> /dev/null || true
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in for a batch system on the path; return where its scripts are kept."""
    pytest.importorskip("dask_jobqueue", reason="needs the extra 'cluster'")
    kept = tmp_path / "jobs"
    kept.mkdir()
    for name in ("sbatch", "qsub", "bsub"):
        program(tmp_path / "bin", name, SUBMIT.format(jobs=kept))
    for name in ("scancel", "qdel", "bkill"):
        program(tmp_path / "bin", name, CANCEL.format(jobs=kept))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    return kept


@pytest.fixture
def batch(tmp_path: Path) -> ClusterOptions:
    return ClusterOptions(
        cores=2,
        memory="2 GB",
        walltime="1-02:00:00",
        queue="normal",
        account="heart",
        interface="lo",
        shared_folder=str(tmp_path / "shared"),
        prologue=("module load python",),
        worker_extra=("--resources", "SSD=1"),
        start_seconds=120,
    )


# Job scripts, as dask-jobqueue renders them


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "slurm",
            [
                "#SBATCH -p normal",
                "#SBATCH -A heart",
                "#SBATCH --cpus-per-task=2",
                "#SBATCH -t 1-02:00:00",
            ],
        ),
        (
            "pbs",
            [
                "#PBS -q normal",
                "#PBS -A heart",
                "#PBS -l select=1:ncpus=2:mem=1908MB",
                "#PBS -l walltime=26:00:00",
            ],
        ),
        ("lsf", ["#BSUB -q normal", '#BSUB -P "heart"', "#BSUB -n 2", "#BSUB -W 26:00"]),
    ],
)
def test_job_scripts(kind: str, lines: list[str], batch: ClusterOptions) -> None:
    with batch_cluster(kind, batch) as started:
        script = started.job_script()
    assert set(lines) <= set(script.splitlines())
    assert "module load python\n" in script
    assert all(f"export {name}={value}\n" in script for name, value in WORKER_ENVIRONMENT.items())
    command = script.splitlines()[-1]
    # 26 hours are 93 600 s
    assert "--lifetime 84240s --lifetime-stagger 4680s" in command
    assert "--nthreads 1 --memory-limit 0.93GiB --nworkers 2" in command
    assert "--resources SSD=1" in command
    assert " tls://127.0.0.1:" in command
    assert "--protocol tls://" in command


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("kind", "word"), [("slurm", " -t "), ("pbs", "walltime="), ("lsf", " -W ")]
)
def test_without_a_walltime_the_queue_decides(kind: str, word: str, batch: ClusterOptions) -> None:
    with batch_cluster(kind, batch) as started:
        assert word in started.job_script()
    with batch_cluster(kind, replace(batch, walltime=None)) as started:
        script = started.job_script()
    assert word not in script
    assert "--lifetime" not in script


@pytest.mark.usefixtures("jobs")
def test_keys_of_jobs_are_in_files_of_mine_alone(batch: ClusterOptions) -> None:
    with batch_cluster("slurm", batch) as started:
        script = started.job_script()
        words = script.split()
        key = Path(words[words.index("--tls-key") + 1])
        assert "PRIVATE KEY" in key.read_text()
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert "PRIVATE KEY" not in script


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("slurm", "#SBATCH --gres=gpu:1"),
        ("pbs", "#PBS -l select=1:ncpus=3:mem=3815MB:ngpus=1"),
        ("lsf", '#BSUB -gpu "num=1"'),
    ],
)
def test_jobs_with_a_gpu(
    kind: str, line: str, batch: ClusterOptions, jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = GpuGroup(n_workers=2, cores=3, memory="4 GB", queue="fast")
    with batch_cluster(kind, batch) as started:
        monkeypatch.setattr(started, "scale", lambda jobs: None)  # described, not submitted
        add_gpu_jobs(started, kind, batch, group)
        described = list(started.worker_spec.values())
        scripts = [d["cls"]("tls://x:1", name="w", **d["options"]).job_script() for d in described]
        started.worker_spec.clear()
    assert len(scripts) == 2
    for script in scripts:
        assert line in script.splitlines()
        assert "--nthreads 3" in script
        assert script.splitlines()[-1].count("--resources GPU=1") == 1
        assert "--lifetime 84240s" in script
        assert "export TF_FORCE_GPU_ALLOW_GROWTH=true" in script
        assert "fast" in script
    assert list(jobs.iterdir()) == []


# Clusters that run


def gpu_of_worker() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_workers_keep_memory_for_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def given() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}

    for name in WORKER_ENVIRONMENT:
        monkeypatch.setenv(name, "1")  # the workers' memory is the user's before it is ours
    with connect("local", workers=1) as pool:
        assert pool.submit(given).result() == dict.fromkeys(WORKER_ENVIRONMENT, "1")
    for name in WORKER_ENVIRONMENT:
        monkeypatch.delenv(name)
    with connect("local", workers=1) as pool:
        assert pool.submit(given).result() == WORKER_ENVIRONMENT


def test_jobs_work_over_tls_and_are_cancelled(batch: ClusterOptions, jobs: Path) -> None:
    group = GpuGroup(cores=1, memory="1 GB")
    options = replace(batch, walltime=None, prologue=(), gpu=group)
    with connect("slurm", options=options) as pool:
        assert isinstance(pool, DaskPool)
        assert pool.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert pool.slots == 3
        assert pool.submit(os.getpid).result() != os.getpid()
        with_gpu = DaskPool(pool.client, {"GPU": 1})
        assert with_gpu.slots == 1
        worker = with_gpu.submit(os.getpid).result()
        assert psutil.Process(worker).is_running()
    assert len(list(jobs.glob("*.sh"))) == 2
    assert len((jobs / "cancelled").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "walltime"), [(1, "00:10:00"), (2, None)])
def test_a_job_that_ends_is_replaced(
    batch: ClusterOptions,
    jobs: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    walltime: str | None,
) -> None:
    monkeypatch.setattr(launch, "LOST_SECONDS", 1)
    options = replace(batch, cores=cores, prologue=(), walltime=walltime)
    with connect("slurm", options=options) as pool:
        assert isinstance(pool, DaskPool)
        worker = pool.submit(os.getpid).result()
        os.killpg(os.getpgid(worker), signal.SIGKILL)
        # The call waits until another job has brought another worker.
        assert pool.submit(os.getpid).result(timeout=120) != worker
    assert len(list(jobs.glob("*.sh"))) >= 2


@pytest.mark.usefixtures("jobs")
def test_two_wishes_for_the_number_of_jobs(batch: ClusterOptions) -> None:
    options = replace(batch, minimum=1, maximum=3)
    with pytest.raises(ValueError, match=r"leave --workers out.*--workers 7"):
        check_startable("slurm", options, 7)
    check_startable("slurm", options)


def test_encrypted_on_this_machine() -> None:
    with (
        launched("local", ClusterOptions(tls=True), 1, Limits(1, 4 * GIB)) as (client, slots),
    ):
        assert slots is None
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        (worker,) = client.scheduler_info()["workers"]
        assert worker.startswith("tls://127.0.0.1:")
        assert client.submit(os.getpid).result() != os.getpid()
        refuse_strangers(client.scheduler.address)


def refuse_strangers(address: str) -> None:
    """Knock without the key: with none, and with another. Neither leaves a thread behind."""
    before = event_loops()
    for security in (None, security_of(ClusterOptions())):
        with pytest.raises((OSError, ssl.SSLError, TypeError, RuntimeError)):
            open_client(address, security, 2)
    assert event_loops() == before


def event_loops() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "IO loop"}


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend to a driver that shows two GPUs."""
    text = "#!/bin/sh\nprintf 'GPU-aaaa\\nGPU-bbbb\\n'\n"
    program(tmp_path / "bin", "nvidia-smi", text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("granted", "visible"),
    [
        ({}, ["GPU-aaaa", "GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["GPU-bbbb", "GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}, ["GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["GPU-aaaa"]),
    ],
)
def test_visible_gpus(granted: dict[str, str], visible: list[str]) -> None:
    assert visible_gpus(granted) == visible


def test_one_process_for_each_gpu(two_gpus: None) -> None:
    described = cuda_workers({}, ["GPU-a", "GPU-b"], Limits(7, 10 * GIB))
    assert [d["options"]["nthreads"] for d in described.values()] == [3, 3]
    options = ClusterOptions(tls=True)
    with launched("cuda", options, None, Limits(2, 4 * GIB)) as (client, _):
        workers = client.scheduler_info()["workers"]
        assert [w["resources"] for w in workers.values()] == [{"GPU": 1}] * 2
        seen = client.run(gpu_of_worker)
        assert sorted(seen.values()) == ["GPU-aaaa", "GPU-bbbb"]
        assert all(address.startswith("tls://127.0.0.1:") for address in workers)


# What is refused


@pytest.fixture
def nothing_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nothing_on_path")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"one worker for each GPU.*none"):
        check_client("cuda", None)


@pytest.mark.usefixtures("two_gpus")
def test_more_workers_than_gpus() -> None:
    with pytest.raises(ValueError, match=r"2 are there.*--workers 3"):
        check_client("cuda", 3)


@pytest.mark.usefixtures("nothing_on_path")
@pytest.mark.parametrize(("kind", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_no_batch_system(kind: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=f"{command}, which is not found.*login node"):
        check_client(kind, None)


@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "kubernetes"])
def test_without_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"extra 'cluster'.*cvdask\[cluster\]"):
        check_startable(kind, ClusterOptions())


def test_a_name_nearly_right() -> None:
    with pytest.raises(ValueError, match=r"'slrum'.*Did you mean slurm"):
        check_client("slrum", None)


def test_a_faulty_file_is_found_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[cluster]\ncore = 1")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.toml"))
    with pytest.raises(ValueError, match="did you mean cores"):
        check_client("local", None)


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    missing: dict[str, Any] = dict.fromkeys(("tls_ca_file", "tls_cert", "tls_key"), "/absent.pem")
    with pytest.raises(FileNotFoundError, match=r"/absent\.pem"):
        security_of(ClusterOptions(**missing))


def test_certificates_that_were_given(tmp_path: Path) -> None:
    made = security_of(ClusterOptions())
    files = {
        "tls_ca_file": made.tls_ca_file,
        "tls_cert": made.tls_client_cert,
        "tls_key": made.tls_client_key,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    options = ClusterOptions(**{name: str(tmp_path / name) for name in files})
    given = security_of(options)
    assert options.encrypted
    assert given.require_encryption
    for role in ("client", "scheduler", "worker"):
        assert given.get_tls_config_for_role(role)["key"] == str(tmp_path / "tls_key")
