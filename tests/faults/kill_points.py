"""Kill stages at a hundred moments drawn at random: are a hundred results the same?

1. Every stage is run once undisturbed; its output and the number of its operations on files are
   kept.
2. For each *point* a stage is begun anew, the client or a worker is killed at a moment drawn from
   the seed, and the same command is run again.
3. What it leaves must be the undisturbed output, byte for byte. Files that were there when the blow
   fell and are written again are counted.

``make faults``, or ``python -m tests.faults.kill_points --points 100 --seed 0``, ends with 1 where
any result differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.faults import stages
from tests.faults.test_kill import Cluster, finish, identity, wait_for_files
from tests.trees import tree_digest

KINDS = ("client", "worker")


@dataclass(frozen=True)
class Undisturbed:
    """What a stage leaves when nobody kills.

    Parameters
    ----------
    tree : dict of str to str
        Digests of the files.
    n_before : int
        Files that were there before.
    n_operations : int
        Operations on files of the output, in order, without a cluster.
    """

    tree: dict[str, str]
    n_before: int
    n_operations: int


@dataclass(frozen=True)
class Outcome:
    """What came of one point.

    Parameters
    ----------
    stage, kind : str
        What was killed in the midst of what.
    moment : int
        Operation, or number of new files, at which the blow fell.
    same : bool
        Whether the output is the undisturbed one.
    n_kept, n_again : int
        Files of the output that were there when the blow fell, and how many of them were written
        again.
    """

    stage: str
    kind: str
    moment: int
    same: bool
    n_kept: int
    n_again: int


class Ground:
    """A place where one stage at a time is begun, killed and run again.

    Parameters
    ----------
    folder : Path
        Empty. Every output lies at the same place below it: some record where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder / "work/cell.zarr"

    def undisturbed(self, stage: str) -> Undisturbed:
        """Run a stage to its end."""
        start = self.folder / stage
        stages.prepare(stage, start / self.url.name)
        n_before = len(tree_digest(start))
        self._reset(stage)
        process = self._start(stage, "serial", 0)
        told, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return Undisturbed(tree_digest(self.url.parent), n_before, int(told.split()[-1]))

    def strike(
        self, stage: str, kind: str, expected: Undisturbed, chance: random.Random
    ) -> Outcome:
        """Kill at a moment drawn by chance, run again, and compare."""
        self._reset(stage)
        if kind == "client":
            moment = chance.randint(1, expected.n_operations)
            process = self._start(stage, "serial", moment)
            said = process.communicate(timeout=300)[1]
            assert process.returncode == -signal.SIGKILL, said
            kept = self._written(expected)
        else:
            moment = chance.randint(1, max(1, (len(expected.tree) - expected.n_before) // 2))
            kept = self._kill_worker(stage, expected.n_before + moment)
        stages.run(stage, self.url)
        n_again = sum(identity(path) != before for path, before in kept.items())
        same = tree_digest(self.url.parent) == expected.tree
        return Outcome(stage, kind, moment, same, len(kept), n_again)

    def _kill_worker(self, stage: str, n_wanted: int) -> dict[Path, tuple[int, int] | None]:
        """Kill one of two workers when there are so many files; the other one ends the work."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = Cluster(folder, stack)
            process = self._start(stage, cluster.address, 0)
            wait_for_files(process, self.url.parent, n_wanted)
            cluster.workers[0].kill()
            said = finish(process)
            assert process.returncode == 0, said
        return {}

    def _written(self, expected: Undisturbed) -> dict[Path, tuple[int, int] | None]:
        """Return the data that are there already; what describes them is written more than once."""
        paths = (self.url.parent / name for name in expected.tree if not name.endswith(".json"))
        return {path: identity(path) for path in paths if path.exists()}

    def _reset(self, stage: str) -> None:
        shutil.rmtree(self.url.parent, ignore_errors=True)
        shutil.copytree(self.folder / stage, self.url.parent)

    def _start(self, stage: str, client: str, last: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.stages"),
                *(stage, str(self.url), client, str(last)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def strike_all(
    folder: Path, names: Sequence[str], kinds: Sequence[str], n_points: int, seed: int
) -> Iterator[Outcome]:
    """Yield what comes of so many points, stages and kinds taking turns."""
    ground = Ground(folder)
    expected = {stage: ground.undisturbed(stage) for stage in names}
    stages.small_blocks()
    for number in range(n_points):
        stage = names[number % len(names)]
        kind = kinds[number // len(names) % len(kinds)]
        yield ground.strike(stage, kind, expected[stage], random.Random(1000 * seed + number))


def main(arguments: Sequence[str]) -> int:
    """Run as the command line says; 1 where a result differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=stages.STAGES, default=stages.STAGES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args(arguments)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in strike_all(
            Path(folder), options.stages, options.kinds, options.points, options.seed
        ):
            found.append(outcome)
            told = "same" if outcome.same else "DIFFERS"
            print(
                f"{len(found):4d} {outcome.stage:8s} {outcome.kind:6s} at {outcome.moment:5d}: "
                f"{told}, {outcome.n_again} of {outcome.n_kept} files written again",
                flush=True,
            )
    n_same = sum(outcome.same for outcome in found)
    n_kept, n_again = sum(one.n_kept for one in found), sum(one.n_again for one in found)
    print(
        f"{len(found)} kill points, {n_same} identical results; of {n_kept} files that were there, "
        f"{n_again} were written again ({n_again / max(1, n_kept):.1%})"
    )
    return int(n_same < len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
