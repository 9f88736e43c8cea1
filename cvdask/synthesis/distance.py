"""How far is a generated ensemble from real volumes, and is that far?

Every number stands beside what real slices have: a floor, a share or an extent.

1. Both are opened as squares of the ensemble's resolution, of the same classes, and at the places
   that the generator was shown: the centre, or anywhere.
2. Fréchet and kernel distance, density and coverage, beside those of two halves of the real slices
   (``synthesis.frechet``).
3. Shares of the classes; distance to the nearest real slice (``synthesis.memorisation``).
4. Along z: Jaccard distance of neighbouring slices, and extents of components
   (``synthesis.stacks``).
5. With the model, the perceptual path length (``synthesis.path_length``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvdask.synthesis.frechet import ENOUGH_SLICES, Distance, fit_reference
from cvdask.synthesis.memorisation import Memorisation, memorisation
from cvdask.synthesis.slice_sources import Crop
from cvdask.synthesis.slices import SliceSet, open_slices
from cvdask.synthesis.stacks import extents, longest_run, neighbour_distance
from cvdask.volume.classes import open_classes
from cvdask.volume.ensemble import Ensemble, is_ensemble, open_ensemble
from cvdask.volume.objects import redact
from cvdask.volume.store import Volume, open_volume

# Stacks of each kind that components are looked for in.
STACKS = 8
# Label images of a generated volume, the better first.
GENERATED_LABELS = ("ordered", "classes")


@dataclass(frozen=True)
class EnsembleDistance:
    """How far an ensemble is from real volumes.

    Parameters
    ----------
    distance, floor : Distance
        Of the generated slices from the real ones, and of one half of the real ones from the other.
    ratio : float
        Fréchet distance in units of the floor.
    fractions : mapping of class to (generated, real)
        Mean share of the pixels.
    memorisation : Memorisation
    neighbours : (generated, real)
        J(1): mean Jaccard distance of neighbouring slices.
    extents : mapping of class to (generated, real)
        Slices that components span, a mean over voxels.
    depth : int
        Slices of the stacks that components were looked for in.
    path_length : float, or None
    labels : str
        Label image of the generated volumes that was compared.
    notes : tuple of str
    """

    distance: Distance
    floor: Distance
    ratio: float
    fractions: dict[str, tuple[float, float]]
    memorisation: Memorisation
    neighbours: tuple[float, float]
    extents: dict[str, tuple[float, float]]
    depth: int
    path_length: float | None
    labels: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready values; None where there is none."""
        return {
            "labels": self.labels,
            "distance": self.distance.as_dict(),
            "floor": self.floor.as_dict(),
            "ratio": _number(self.ratio),
            "fractions": {name: _pair(*both) for name, both in self.fractions.items()},
            "memorisation": self.memorisation.as_dict(),
            "neighbour_distance": _pair(*self.neighbours),
            "extent_slices": {name: _pair(*both) for name, both in self.extents.items()},
            "depth": self.depth,
            "path_length": self.path_length,
        }


def distance(
    ensemble: Ensemble | Volume | str | os.PathLike[str],
    *,
    real: Volume | str | Sequence[Volume | str],
    labels: str = "classes",
    generated_labels: str | None = None,
    z_range: tuple[int, int] | None = None,
    unseen: Volume | str | Sequence[Volume | str] = (),
    unseen_z_range: tuple[int, int] | None = None,
    model: str | os.PathLike[str] | None = None,
    crop: Crop | None = None,
    most: int = ENOUGH_SLICES,
    seed: int = 0,
) -> EnsembleDistance:
    """Compare an ensemble with real volumes.

    Parameters
    ----------
    ensemble : Ensemble, Volume, str or path
        Generated; a single volume works too.
    real : Volume, str or sequence of them
        What the generator was trained on, and may be more.
    labels : str
        Label image of the real volumes.
    generated_labels : str, optional
        Label image of the generated ones; by default ``ordered``, where ``order`` has written it,
        else ``classes``, else that of the real ones.
    z_range : (int, int), optional
        Slices of the real volumes that the generator was trained on; by default all.
    unseen : Volume, str or sequence of them
        Real volumes that it was not trained on, for the memorisation test.
    unseen_z_range : (int, int), optional
        Slices of ``real`` that it was not trained on, for the same. With neither, training slices
        that lie apart stand in.
    model : str or path, optional
        The generator: its path length is measured too.
    crop : {"centre", "random"}, optional
        Squares of the real slices; by default as in the generator's training, which the ensemble
        tells, else centred. Stacks along z are centred always.
    most : int
        Slices of each kind, at most, spread over all there are.
    seed : int
        Of the path length, and of random squares.

    Returns
    -------
    EnsembleDistance

    Raises
    ------
    ValueError
        When classes or voxel sizes of the two do not agree, there are too few slices, or both
        ``unseen`` and ``unseen_z_range`` are given.
    """
    if unseen and unseen_z_range is not None:
        raise ValueError(
            "unseen slices are those of other volumes, or a range of the real ones: give unseen or "
            "unseen_z_range. Received: both"
        )
    members = _members(ensemble)
    chosen = generated_labels or _best_labels(members[0], labels)
    notes: list[str] = []
    made = _opened(notes, members, chosen)
    originals, others = _listed(real), _listed(unseen)
    same: dict[str, Any] = {
        "classes": list(made.names[1:]),
        "resolution": made.resolution,
        "reduction": _reduction(made, open_classes(originals[0], labels)),
    }
    stacks = _opened(notes, originals, labels, z_range=z_range, **same)
    crop = crop or _crop_of(members[0])
    squares = {**same, "crop": crop, "seed": seed}
    trained = stacks
    if crop != "centre":
        trained = _opened([], originals, labels, z_range=z_range, **squares)
    if trained.names != made.names:
        raise ValueError(
            f"classes must come in the same order of values. Received: {trained.names} in the real "
            f"volumes, {made.names} in the generated ones"
        )
    apart = None
    if others or unseen_z_range is not None:
        held_out = _opened(notes, others or originals, labels, z_range=unseen_z_range, **squares)
        apart, _ = held_out.examples(most)
    known, index = trained.examples(most)
    z, volume = trained.z[index], trained.volume[index]
    reference = fit_reference(known, made.n_channels, volume=volume)
    slices = made.read(made.spread(most))
    found = reference.distance(slices)
    shares = [(slices == channel).mean() for channel in range(made.n_channels)]
    pairs = zip(made.names, shares, reference.fractions.mean(axis=0), strict=True)
    depth = min(longest_run(made), longest_run(stacks))
    spans = [extents(one, depth, STACKS) for one in (made, stacks)]
    return EnsembleDistance(
        distance=found,
        floor=reference.floor,
        ratio=reference.ratio(found),
        fractions={name: (float(share), float(other)) for name, share, other in pairs},
        memorisation=memorisation(slices, known, made.n_channels, unseen=apart, z=z, volume=volume),
        neighbours=(neighbour_distance(made), neighbour_distance(stacks)),
        extents={name: (spans[0][name], spans[1][name]) for name in made.names[1:]},
        depth=depth,
        path_length=None if model is None else _path_length(model, seed),
        labels=chosen,
        notes=tuple(notes),
    )


def _listed(volumes: Volume | str | Sequence[Volume | str]) -> list[Volume | str]:
    return [volumes] if isinstance(volumes, Volume | str) else list(volumes)


def _members(ensemble: Ensemble | Volume | str | os.PathLike[str]) -> list[Volume | str]:
    if isinstance(ensemble, Volume):
        return [ensemble]
    if not isinstance(ensemble, Ensemble):
        if not is_ensemble(ensemble):
            return [os.fspath(ensemble)]
        ensemble = open_ensemble(ensemble)
    return list(ensemble)


def _best_labels(member: Volume | str, real_labels: str) -> str:
    names = (open_volume(member) if isinstance(member, str) else member).label_names()
    wanted = (*GENERATED_LABELS, real_labels)
    return next((name for name in wanted if name in names), GENERATED_LABELS[-1])


def _crop_of(member: Volume | str) -> Crop:
    """Return which squares a generator was shown, as its ensemble tells."""
    volume = open_volume(member) if isinstance(member, str) else member
    options = volume.attributes.get("provenance", {}).get("options", {})
    return "random" if options.get("crop") == "random" else "centre"


def _opened(
    notes: list[str], volumes: Sequence[Volume | str], labels: str, **options: Any
) -> SliceSet:
    """Open slices; what is said of them goes to the notes, and few of them are no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = open_slices(volumes, labels, **options)
    notes += [note for note in found.notes if "left out" in note]
    return found


def _reduction(made: SliceSet, original: Volume) -> int:
    """Return how many real voxels make one generated voxel along y and x."""
    assert original.voxel_size_nm is not None
    ratios = np.divide(made.voxel_size_nm, original.voxel_size_nm)
    factor = max(1, round(ratios[1]))
    if not np.allclose(ratios, (1, factor, factor), rtol=0.01):
        raise ValueError(
            f"generated voxels are real ones, or whole numbers of them along y and x. Received: "
            f"{made.voxel_size_nm} nm generated, {original.voxel_size_nm} nm in "
            f"{redact(original.url)}"
        )
    return factor


def _path_length(model: str | os.PathLike[str], seed: int) -> float:
    from cvdask.synthesis.gan_file import load
    from cvdask.synthesis.path_length import path_length

    gan = load(model)
    return path_length(gan.generator(), places=gan.places, seed=seed)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pair(generated: float, real: float) -> dict[str, float | None]:
    ratio = generated / real if real else float("nan")
    return {
        "generated": _number(generated),
        "real": _number(real),
        "ratio": _number(ratio),
    }
