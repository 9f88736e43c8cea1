"""How is a SLURM cluster tried on one machine?

::

    python deploy/slurm/loopback.py cvdask cluster check --cluster slurm

1. A folder for this cluster alone gets a key for munge and a configuration: one node with as many
   CPUs as asked for, whatever the machine has.
2. munged, slurmctld and slurmd are started from it as the user who asks, and waited for until the
   node says that it is idle.
3. The command runs with ``SLURM_CONF`` in its environment; ``sbatch``, ``squeue``, ``scancel`` and
   all else that belongs to SLURM find the cluster by it.
4. Jobs are cancelled, the three are stopped and the folder is removed, however the command ended.

Nothing listens beyond 127.0.0.1, and the folder is readable by its owner alone: no other user of
the machine reaches munge, hence none can submit. No systemd, no cgroup, no right of root is needed;
what Debian starts by itself after installing the packages is not touched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "scancel", "squeue", "sbatch")
# Where Debian puts daemons; not on everybody's path.
DAEMONS = "/usr/sbin:/sbin"
START_SECONDS = 120
LOOK_SECONDS = 0.1

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
# Both daemons listen at the addresses given here, not at all of the machine.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# A job that can start does so at once.
SchedulerParameters=batch_sched_delay=0
# The node has the CPUs that stand here, whatever it finds.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={n_cpus} RealMemory={mib}
PartitionName=normal Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that are needed and not there."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


@contextlib.contextmanager
def cluster(n_cpus: int = 4) -> Iterator[dict[str, str]]:
    """Start a cluster, yield the environment in which commands find it, and stop it.

    Parameters
    ----------
    n_cpus : int
        Of its one node.

    Raises
    ------
    FileNotFoundError
        When a program is missing.
    RuntimeError
        When a daemon ends instead of starting, or is not ready in time; with its last lines.
    """
    if missing():
        raise FileNotFoundError(
            f"SLURM or munge is not installed. Missing: {', '.join(missing())}. On Debian: "
            "apt-get install slurmctld slurmd slurm-client munge"
        )
    # Short, because the path of a socket has at most 107 characters; its mode is 0700.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as name,
        contextlib.ExitStack() as running,
    ):
        folder = Path(name)
        environment = _write_configuration(folder, n_cpus)
        munge = [
            *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"),
        ]
        commands = {
            "munged": (munge, ["munge", "--no-input", f"--socket={folder}/munge.socket"], ""),
            "slurmctld": (["slurmctld", "-D"], ["sinfo", "--noheader", "--format=%R"], "normal"),
            "slurmd": (["slurmd", "-D", "-N", "node"], ["sinfo", "--noheader", "-o", "%T"], "idle"),
        }
        for daemon, (command, question, answer) in commands.items():
            log = folder / f"{daemon}.out"
            process = running.enter_context(_daemon(command, environment, log))
            _wait_for(process, daemon, question, answer, environment, log)
        # Before the daemons stop: jobs are theirs.
        running.callback(_cancel_all, environment)
        yield environment


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{DAEMONS}"


def _write_configuration(folder: Path, n_cpus: int) -> dict[str, str]:
    """Write key and configuration, and return the environment that names it."""
    for part in ("state", "spool"):
        (folder / part).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller_port, node_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            user=_user(),
            folder=folder,
            n_cpus=n_cpus,
            mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
            controller_port=controller_port,
            node_port=node_port,
        )
    )
    (folder / "cgroup.conf").write_text(_no_cgroups(folder))
    return {**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)}


def _no_cgroups(folder: Path) -> str:
    """Keep slurmd from asking systemd for a cgroup: releases from 23.02 on can be told so.

    Earlier ones get a hierarchy that they never look into, since no plugin needs it.
    """
    told = subprocess.run(
        ["slurmd", "-V"], env={"PATH": _path()}, capture_output=True, text=True, check=True
    )
    release = tuple(int(part) for part in re.findall(r"\d+", told.stdout)[:2])
    if release >= (23, 2):
        return "CgroupPlugin=disabled\n"
    return f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise RuntimeError(
            f"SLURM runs jobs for users that have a name. User {os.getuid()} has none"
        ) from error


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _daemon(
    command: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a daemon in the foreground, and stop it: at first gently."""
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Control-C is for the command; the daemons end after it.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(
    process: subprocess.Popen[bytes],
    daemon: str,
    question: list[str],
    answer: str,
    environment: Mapping[str, str],
    log: Path,
) -> None:
    """Ask until a daemon answers as it should."""
    end = time.monotonic() + START_SECONDS
    how = f"was not ready within {START_SECONDS} s"
    while time.monotonic() < end:
        asked = subprocess.run(question, env=environment, capture_output=True, text=True)
        if asked.returncode == 0 and answer in [*asked.stdout.split(), ""]:
            return
        try:
            how = f"ended with {process.wait(LOOK_SECONDS)} instead of starting"
        except subprocess.TimeoutExpired:
            continue
        break
    said = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise RuntimeError(f"{daemon} {how}:\n{said}")


def _cancel_all(environment: Mapping[str, str]) -> None:
    """Cancel what is left, and wait until none of it runs."""
    subprocess.run(["scancel", f"--user={_user()}"], env=environment, check=False)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and _queue(environment):
        time.sleep(LOOK_SECONDS)


def _queue(environment: Mapping[str, str]) -> str:
    asked = ["squeue", "--noheader"]
    return subprocess.run(asked, env=environment, capture_output=True, text=True).stdout


def main() -> int:
    """Run a command beside a cluster, and end as it ended."""
    parser = argparse.ArgumentParser(description="Run a command beside a SLURM cluster of its own.")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs of its one node (4)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="and its arguments")
    asked = parser.parse_args()
    if not asked.command:
        parser.error("which command? Such as: cvdask cluster check --cluster slurm")
    # A polite end of this script is one of the cluster, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with cluster(asked.cpus) as environment:
            return subprocess.run(asked.command, env=environment).returncode
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
