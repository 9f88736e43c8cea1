"""Distance of ensembles: every number beside that of real slices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cvdask.synthesis import gan_file
from cvdask.synthesis.distance import distance
from cvdask.volume.ensemble import Ensemble, create_ensemble, publish_ensemble
from cvdask.volume.store import open_volume, update_attributes
from tests.samples import write_sample
from tests.synthesis.test_generate import tiny_gan

NAMES = {1: "mitochondria", 4: "z_discs"}


def tissue(
    seed: int, n: int = 64, side: int = 32, along: float = 4.0, width: float = 2.0
) -> np.ndarray:
    """Draw a stack of two classes that changes slowly along z; background is the most."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, 3))
    field = gaussian_filter(noise, (along, width, width, 0))
    field[..., 0] += 0.5 * field.std()
    return np.uint8([0, 1, 4])[field.argmax(-1)]


def write(url: Path, data: np.ndarray, size: float = 20, label: str = "classes") -> str:
    options = {"voxel_size_nm": (40, size, size), "shard_shape": (32, 64, 64)}
    if label != "ordered":  # that is added to a sample
        write_sample(url, np.zeros(data.shape, np.uint8), **options)
    write_sample(url, data, labels=label, classes=NAMES, **options)
    return str(url)


def ensemble_of(url: Path, *members: np.ndarray) -> Ensemble:
    ensemble = create_ensemble(url, len(members), {"stage": "generate"})
    for number, data in enumerate(members):
        write(Path(ensemble.member_url(number)), data)
    return publish_ensemble(ensemble)


def test_tissue_of_one_kind_is_near(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0, 128))
    near = distance(ensemble_of(tmp_path / "a.zarr", tissue(1), tissue(2)), real=real)
    coarse = tissue(1, along=0.1, width=4.0)
    far = distance(ensemble_of(tmp_path / "b.zarr", coarse), real=real)
    assert near.ratio < 2 < far.ratio
    assert near.memorisation.passed
    assert near.fractions["mitochondria"][0] == pytest.approx(
        (np.stack([tissue(1), tissue(2)]) == 1).mean()
    )
    assert near.neighbours[0] == pytest.approx(near.neighbours[1], rel=0.1)
    assert far.neighbours[0] > 2 * far.neighbours[1]
    assert near.depth == 64
    assert near.extents["z_discs"][0] == pytest.approx(near.extents["z_discs"][1], rel=0.5)
    assert (near.distance.n_slices, near.distance.n_reference) == (128, 128)
    told = json.loads(json.dumps(near.as_dict(), allow_nan=False))
    assert told["ratio"] == near.ratio
    assert told["neighbour_distance"]["ratio"] == pytest.approx(1, rel=0.1)
    assert told["path_length"] is None


def test_a_copy_is_found_out(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0, 128))
    copied = distance(ensemble_of(tmp_path / "a.zarr", tissue(0, 128)[:64]), real=real)
    assert not copied.memorisation.passed
    # Against slices that it was not trained on it is no copy.
    honest = distance(
        str(tmp_path / "a.zarr"), real=real, z_range=(80, 128), unseen_z_range=(0, 60)
    )
    assert honest.memorisation.passed
    assert not honest.memorisation.stand_in


def test_slices_of_a_volume_that_was_not_trained_on(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0, 128))
    other = write(tmp_path / "other.zarr", tissue(1, 96))
    made = ensemble_of(tmp_path / "a.zarr", tissue(2, 64))
    found = distance(made, real=real, unseen=other).memorisation
    assert (found.n_unseen, found.stand_in, found.passed) == (96, False, True)
    copied = distance(
        ensemble_of(tmp_path / "b.zarr", tissue(0, 128)[:64]), real=real, unseen=other
    )
    assert not copied.memorisation.passed
    with pytest.raises(ValueError, match="Received: both"):
        distance(made, real=real, unseen=[other], unseen_z_range=(0, 60))


def test_squares_as_in_the_training(tmp_path):
    data = tissue(0, 128, 64)
    data[:, 16:48, 16:48][data[:, 16:48, 16:48] == 1] = 0  # none in the centre
    real = write(tmp_path / "real.zarr", data)
    made = ensemble_of(tmp_path / "a.zarr", tissue(1))
    centred, anywhere = (distance(made, real=real, crop=crop) for crop in ("centre", "random"))
    assert centred.fractions["mitochondria"][1] == 0 < anywhere.fractions["mitochondria"][1]
    assert anywhere.ratio < centred.ratio
    # Along z the squares stay where they are.
    assert anywhere.neighbours == centred.neighbours
    assert distance(made, real=real).as_dict() == centred.as_dict()
    told = {"stage": "generate", "options": {"crop": "random"}}
    update_attributes(open_volume(made.member_url(0)), provenance=told)
    assert distance(made, real=real).as_dict() == anywhere.as_dict()


def test_real_voxels_are_reduced_to_generated_ones(tmp_path):
    fine = tissue(0).repeat(2, 1).repeat(2, 2)
    real = write(tmp_path / "real.zarr", fine, size=10)
    made = ensemble_of(tmp_path / "a.zarr", tissue(0))
    found = distance(made, real=[real])
    assert found.distance.frechet == pytest.approx(0, abs=1e-6)
    odd = write(tmp_path / "odd.zarr", fine, size=13)
    with pytest.raises(ValueError, match=r"20\.0.*13\.0"):
        distance(made, real=odd)


def test_ordered_slices_are_preferred(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0))
    data = tissue(1)
    made = ensemble_of(tmp_path / "a.zarr", data[np.random.default_rng(0).permutation(64)])
    before = distance(made, real=real)
    write(Path(made.member_url(0)), data, label="ordered")
    after = distance(made, real=real)
    assert (before.labels, after.labels) == ("classes", "ordered")
    assert after.neighbours[0] < 0.5 * before.neighbours[0]
    again = distance(made, real=real, generated_labels="classes")
    assert again.neighbours == before.neighbours


def test_labels_of_the_real_ones_where_there_are_none_of_the_usual(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0), label="truth")
    found = distance(real, real=real, labels="truth")
    assert found.labels == "truth"
    assert found.distance.frechet == pytest.approx(0, abs=1e-6)


def test_a_single_volume_and_its_path_length(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0))
    gan_file.save(tiny_gan(), tmp_path / "gan.keras")
    found = distance(real, real=real, model=tmp_path / "gan.keras")
    assert found.path_length is not None
    assert found.path_length > 0
    assert found.distance.frechet == pytest.approx(0, abs=1e-6)


def test_other_classes_are_refused(tmp_path):
    real = write(tmp_path / "real.zarr", tissue(0))
    url = tmp_path / "made.zarr"
    write_sample(url, tissue(1), voxel_size_nm=(40, 20, 20))
    write_sample(url, tissue(1), labels="classes", classes={1: "nucleus", 4: "z_discs"},
                 voxel_size_nm=(40, 20, 20))  # fmt: skip
    with pytest.raises(ValueError, match="nucleus"):
        distance(str(url), real=real)
