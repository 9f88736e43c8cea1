"""Kill a training or a segmentation anywhere, run the same command again: the same network, bytes?

A process counts what it does to the files of its output, and kills itself, as the system would, at
a number drawn at random. So every moment between two of these can be hit exactly: behind a line of
the log and before the state it belongs to, behind a block and before its marker. A second way kills
from outside, in the middle of whatever goes on.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage

import cvdask
from cvdask.volume.colors import UNANNOTATED
from tests.faults.test_kill import Cluster, identity, n_files, wait_for_files
from tests.samples import write_sample
from tests.trees import tree_digest

pytestmark = pytest.mark.faults

# FOLDER is what is counted in, LAST the number of the operation that is not done, 0 for none.
PROGRAM = """
import os, signal, sys
folder, last, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
seen = 0

def look(event, values):
    global seen
    if event in ("open", "os.rename", "os.remove", "os.rmdir") and folder in str(values[0]):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(look)
from cvdask import cli
try:
    sys.argv[1:] = arguments
    cli.main()
finally:
    print(seen)
"""
TRAINING = (
    *("--base-width", "4", "--depth", "1", "--patch-size", "64", "--crop", "32"),
    *("--batch-size", "4", "--n-patches", "12", "--steps-per-epoch", "3", "--epochs", "2"),
    *("--folds", "2", "--patience", "never"),
)
SEGMENTING = ("--block-yx", "32", "48", "--probabilities", "--client", "serial")
# Between two looks at what another process has written.
LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Undisturbed:
    """What comes out when nobody kills.

    Parameters
    ----------
    model : Path
    weights : dict of str to bytes
        Of the network and of every fold's.
    scores : object
    tree : dict of str to str
        Digests of the segmented sample's files.
    n_training, n_segmenting : int
        Operations on files.
    """

    model: Path
    weights: dict[str, bytes]
    scores: object
    tree: dict[str, str]
    n_training: int
    n_segmenting: int


def write_cell(url: Path) -> None:
    """Write blobs on noise, annotated in two of six slices."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((6, 128, 192)), (0, 4, 4))
    truth = (blobs > 0.8 * blobs.std()).astype(np.uint8)
    image = 90 + 50 * truth + rng.normal(0, 5, truth.shape)
    labels = np.full(truth.shape, UNANNOTATED, np.uint8)
    labels[[1, 4]] = truth[[1, 4]]
    shapes = {"chunk_shape": (2, 64, 64), "shard_shape": (6, 128, 192)}
    write_sample(url, image.astype(np.uint8), **shapes)
    write_sample(url, labels, labels="annotations", classes={1: "mitochondria"}, **shapes)


def start(counted: Path, last: int, *arguments: str) -> subprocess.Popen[str]:
    root = str(Path(cvdask.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(counted), str(last), *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def completed(counted: Path, *arguments: str) -> int:
    """Run a command to its end; return how many operations on files it took."""
    process = start(counted, 0, *arguments)
    printed, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return int(printed.splitlines()[-1])


def killed(counted: Path, last: int, *arguments: str) -> None:
    process = start(counted, last, *arguments)
    _, said = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said


def training(cell: Path, out: Path) -> Sequence[str]:
    return ("train-unet", str(cell), "--out", str(out), *TRAINING)


def segmenting(cell: Path, model: Path) -> Sequence[str]:
    return ("segment", str(cell), "--model", str(model), *SEGMENTING)


def weights(folder: Path) -> dict[str, bytes]:
    """Read the numbers of every network in a folder; the files hold times as well."""
    found = {}
    for path in sorted(folder.glob("*.keras")):
        with zipfile.ZipFile(path) as archive:
            data = archive.read("model.weights.h5")
        with h5py.File(io.BytesIO(data)) as file:
            arrays: list[bytes] = []
            file.visititems(
                lambda name, item, arrays=arrays: (
                    arrays.append(name.encode() + item[()].tobytes())
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
        found[path.name] = b"".join(arrays)
    return found


def scores(record: Path) -> object:
    """Read a run's scores, without the time that they took."""
    folds = json.loads(record.read_text())["folds"]
    return [{key: value for key, value in fold.items() if key != "minutes"} for fold in folds]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_cell(folder / "cell.zarr")
    model = folder / "nets" / "net.keras"
    model.parent.mkdir()
    n_training = completed(model.parent, *training(folder / "cell.zarr", model))
    n_segmenting = completed(folder / "cell.zarr", *segmenting(folder / "cell.zarr", model))
    return Undisturbed(
        model,
        weights(model.parent),
        scores(model.with_suffix(".run.json")),
        tree_digest(folder / "cell.zarr"),
        n_training,
        n_segmenting,
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


MOMENTS = [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 25)]]


def assert_trained(nets: Path, undisturbed: Undisturbed) -> None:
    assert weights(nets) == undisturbed.weights
    assert scores(nets / "net.run.json") == undisturbed.scores
    rows = [json.loads(line) for line in (nets / "net.jsonl").read_text().splitlines()]
    assert [(row["fold"], row["epoch"]) for row in rows] == [
        (fold, epoch) for fold in (1, 2) for epoch in (1, 2)
    ]
    assert not [path for path in nets.iterdir() if path.suffix in (".npz", ".partial")]


@pytest.mark.parametrize("seed", MOMENTS)
def test_a_training_is_killed_at_any_operation(
    tmp_path: Path, undisturbed: Undisturbed, seed: int
) -> None:
    write_cell(tmp_path / "cell.zarr")
    nets = tmp_path / "nets"
    nets.mkdir()
    command = training(tmp_path / "cell.zarr", nets / "net.keras")
    last = random.Random(seed).randint(1, undisturbed.n_training)
    killed(nets, last, *command)
    n_again = completed(nets, *command)
    assert_trained(nets, undisturbed)
    # Epochs that had ended are not trained again: at most one is, and the files are looked at.
    assert n_again < undisturbed.n_training - last + 16


@pytest.mark.slow
def test_a_training_is_killed_at_its_last_operation(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    write_cell(tmp_path / "cell.zarr")
    nets = tmp_path / "nets"
    nets.mkdir()
    command = training(tmp_path / "cell.zarr", nets / "net.keras")
    killed(nets, undisturbed.n_training, *command)
    assert (nets / "net.state.npz").exists()
    completed(nets, *command)
    assert_trained(nets, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_training_is_killed_from_outside_twice(
    tmp_path: Path, undisturbed: Undisturbed, seed: int
) -> None:
    write_cell(tmp_path / "cell.zarr")
    nets = tmp_path / "nets"
    nets.mkdir()
    command = training(tmp_path / "cell.zarr", nets / "net.keras")
    draw = random.Random(seed)
    log = nets / "net.jsonl"
    for n_lines in sorted(draw.sample(range(4), 2)):
        process = start(nets, 0, *command)
        looks = draw.randint(0, 40)
        while looks:
            try:
                process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                looks -= log.exists() and log.read_text().count("\n") >= n_lines
                continue
            break
        process.kill()
        process.communicate()
    completed(nets, *command)
    assert_trained(nets, undisturbed)


@pytest.mark.parametrize("seed", MOMENTS)
def test_a_segmentation_is_killed_at_any_operation(
    tmp_path: Path, undisturbed: Undisturbed, seed: int
) -> None:
    cell = tmp_path / "cell.zarr"
    write_cell(cell)
    command = segmenting(cell, undisturbed.model)
    last = random.Random(seed).randint(1, undisturbed.n_segmenting)
    killed(cell, last, *command)
    shards = {path: identity(path) for path in done_shards(cell)}
    completed(cell, *command)
    assert tree_digest(cell) == undisturbed.tree
    assert {path: identity(path) for path in shards} == shards


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_is_killed_while_it_segments(
    tmp_path: Path, stack: ExitStack, undisturbed: Undisturbed, seed: int
) -> None:
    cell = tmp_path / "cell.zarr"
    write_cell(cell)
    cluster = Cluster(tmp_path, stack)
    command = [*segmenting(cell, undisturbed.model)[:-1], cluster.address]
    process = start(cell, 0, *command)
    begun = n_files(cell)
    wait_for_files(process, cell, begun + random.Random(seed).randint(5, 40))
    cluster.workers[0].kill()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert tree_digest(cell) == undisturbed.tree


def done_shards(cell: Path) -> list[Path]:
    """Return the shards that markers attest: they need not be written again."""
    level = cell / "labels" / "classes" / "0"
    markers = (level / ".cvdask").rglob("*.jsonl")
    records = [json.loads(line) for path in markers for line in path.read_text().splitlines()]
    keys = [key for one in records for key in one.get("shards", {}).get("labels/classes/0", {})]
    return [level / key for key in keys if (level / key).exists()]
