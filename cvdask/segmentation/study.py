"""Does a rare class gain when the network must learn its surroundings too?

1. The patches are drawn once, for all classes, and divided once.
2. One network learns all classes on them; a second learns the rare class alone, everything else
   being background. Both have the same preset, seed, steps and time.
3. Both are scored on the same patches that neither has learned from: the test patches, or, when
   cross-validating, those that each fold validates on.

The published comparison was of Z-discs: Khadangi et al. 2022 found them better when mitochondria
and myofibrils were learned beside them.

``<out>/together.keras`` and ``<out>/alone.keras`` are ordinary trainings with their records beside
them, so an interrupted study goes on where it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cvdask.networks.files import write_json_file
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.patches import Selection
from cvdask.segmentation.train import train
from cvdask.volume.store import Volume

WAYS = ("together", "alone")


@dataclass(frozen=True)
class FoldScores:
    """F1 of the class in one fold; NaN where neither truth nor prediction shows it.

    Parameters
    ----------
    fold : int
    together : float
        Of the network that has learned all classes.
    alone : float
        Of the network that has learned this class only.
    """

    fold: int
    together: float
    alone: float

    @property
    def difference(self) -> float:
        """How much better it is found by the network that has learned all classes."""
        return self.together - self.alone


@dataclass(frozen=True)
class Study:
    """What :func:`study_imbalance` found.

    Parameters
    ----------
    class_ : str
    share : float
        Of the class among the annotated voxels of the patches, 0–1.
    judged_on : {"test", "validation"}
        Patches that the scores are of.
    folds : tuple of FoldScores
    """

    class_: str
    share: float
    judged_on: str
    folds: tuple[FoldScores, ...]

    def mean(self) -> FoldScores:
        """Return the means over the folds, as fold 0.

        >>> folds = (FoldScores(1, 0.75, 0.5), FoldScores(2, 0.25, 0.25))
        >>> Study("z_discs", 0.01, "validation", folds).mean()
        FoldScores(fold=0, together=0.5, alone=0.375)
        """
        return FoldScores(
            0,
            _mean([one.together for one in self.folds]),
            _mean([one.alone for one in self.folds]),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; a score without a value is None."""
        return {
            "class": self.class_,
            "share": self.share,
            "judged_on": self.judged_on,
            "score": "f1",
            "folds": [_as_dict(one) for one in self.folds],
            "mean": _as_dict(self.mean()),
        }

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return rows of text, the head first.

        >>> Study("z_discs", 0.01, "test", (FoldScores(1, 0.75, 0.5),)).table()
        [('F1', 'all together', 'alone', 'difference'), ('z_discs', '0.7500', '0.5000', '+0.2500')]
        """
        rows = [("F1", "all together", "alone", "difference")]
        scores = [(self.class_, self.mean())]
        if len(self.folds) > 1:
            scores = [(f"fold {one.fold}", one) for one in self.folds] + scores
        for title, one in scores:
            rows.append(
                (title, _text(one.together), _text(one.alone), _text(one.difference, sign="+"))
            )
        return rows

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the scores of every fold and their mean as bars, in a PNG file."""
        # Late: only at the end of a study is anything drawn.
        from matplotlib.figure import Figure

        shown = [*self.folds, self.mean()] if len(self.folds) > 1 else [*self.folds]
        titles = [f"fold {one.fold}" if one.fold else "mean" for one in shown]
        figure = Figure(figsize=(2.5 + 1.1 * len(shown), 3.6), layout="constrained")
        axes = figure.subplots()
        for offset, way, color in ((-0.2, "together", "#0072b2"), (0.2, "alone", "#e69f00")):
            heights = [getattr(one, way) for one in shown]
            places = [place + offset for place in range(len(shown))]
            label = "all classes together" if way == "together" else f"{self.class_} alone"
            bars = axes.bar(places, heights, 0.38, color=color, label=label)
            axes.bar_label(bars, fmt="%.3f", fontsize=8)
        axes.set_xticks(range(len(shown)), titles)
        axes.set(ylabel=f"F1 of {self.class_} ({self.judged_on} patches)", ylim=(0, 1.12))
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        partial = Path(path).with_name(Path(path).name + ".partial")
        figure.savefig(partial, format="png", dpi=130)
        os.replace(partial, path)


def study_imbalance(
    volumes: Volume | str | os.PathLike[str] | Sequence[Volume | str | os.PathLike[str]],
    *,
    class_: str,
    out: str | os.PathLike[str],
    labels: str = "annotations",
    callback: Callable[[str, Mapping[str, Any]], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Study | Selection:
    """Train on all classes together and on one alone, and compare how well that one is found.

    Parameters
    ----------
    volumes, labels
        As in :func:`cvdask.train_unet`.
    class_ : str
        Name of the class in question.
    out : str or path
        Folder for ``study.json``, ``study.png`` and both networks, on a local disk.
    callback : callable, optional
        Called after each epoch with "together" or "alone", and what was written to the log.
    resume, overwrite : bool
        As in :func:`cvdask.train_unet`, of both trainings; an interrupted one is always continued.
    dry_run : bool
        Return the selection of patches and write nothing.
    **options
        Fields of :class:`cvdask.segmentation.train.TrainingOptions`, except ``alone``.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        When the class is unknown, is the only one, or a training cannot work.
    """
    if "alone" in options:
        raise ValueError(
            f"the class that is learned alone is named by class_. Received: alone="
            f"{options['alone']!r} as well. Leave it out"
        )
    if not isinstance(class_, str):
        raise ValueError(f"class_ is the name of one class. Received: {class_!r}")

    # Refuse before the first of two long trainings what only the second would notice.
    begun = {"labels": labels, "resume": resume, "overwrite": overwrite, **options}
    folder = Path(out)
    selection = cast(
        Selection, train(volumes, out=folder / "together.keras", dry_run=True, **begun)
    )
    selection.only(class_)
    if len(selection.classes) < 2:
        raise ValueError(
            f"a comparison needs at least two classes, the one in question and others. Received: "
            f"{list(selection.classes.values())}"
        )
    if dry_run:
        return selection

    runs = {}
    for way in WAYS:

        def report(record: Mapping[str, Any], way: str = way) -> None:
            if callback is not None:
                callback(way, record)

        alone: dict[str, Any] = {"alone": class_} if way == "alone" else {}
        written = train(volumes, out=folder / f"{way}.keras", callback=report, **begun, **alone)
        runs[way] = cast(UNet, written).run

    study = compare(selection, class_, runs["together"]["scores"], runs["alone"]["scores"])
    study.draw(folder / "study.png")
    trainings = {way: {key: runs[way][key] for key in ("options", "inputs")} for way in WAYS}
    write_json_file(folder / "study.json", {**study.as_dict(), "trainings": trainings})
    return study


def compare(
    selection: Selection, class_: str, together: Mapping[str, Any], alone: Mapping[str, Any]
) -> Study:
    """Put the scores of both trainings side by side.

    Parameters
    ----------
    selection : Selection
        The patches of both, with all classes.
    class_ : str
    together, alone : mapping
        From :func:`cvdask.segmentation.train.summarize`.
    """
    tested = all(fold.test for fold in selection.folds)
    key = "test_f1" if tested else "f1"
    pairs = zip(together["folds"], alone["folds"], strict=True)
    folds = tuple(
        FoldScores(one["fold"], _score(one[key][class_]), _score(other[key][class_]))
        for one, other in pairs
        if one["validated"]
    )
    value = next(value for value, name in selection.classes.items() if name == class_)
    n_voxels = sum(one.counts.get(value, 0) for one in selection.candidates)
    share = n_voxels / sum(one.n_annotated for one in selection.candidates)
    return Study(class_, share, "test" if tested else "validation", folds)


def _score(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(scores: Sequence[float]) -> float:
    known = [score for score in scores if math.isfinite(score)]
    return sum(known) / len(known) if known else math.nan


def _text(score: float, sign: str = "") -> str:
    return f"{score:{sign}.4f}" if math.isfinite(score) else "–"


def _as_dict(scores: FoldScores) -> dict[str, float | int | None]:
    values = {way: getattr(scores, way) for way in (*WAYS, "difference")}
    known = {way: value if math.isfinite(value) else None for way, value in values.items()}
    return {"fold": scores.fold, **known} if scores.fold else known
