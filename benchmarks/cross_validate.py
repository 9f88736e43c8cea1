"""How well is each image segmented by a network that has not seen it?

Takes what ``cvdask train-unet VOL --split-by slice --folds K --out NAME.keras`` has left: the
networks of all folds and the record of which slices each was validated on. Every network segments
its own slices, whole, as ``cvdask segment --tta --probabilities`` does, and they are scored as
``cvdask evaluate`` does: V_Rand and V_Info at the best of eleven thresholds, as published ones are.
``--plain`` leaves the averaging over flipped slices out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from report import report

import cvdask

SCORES = ("f1", "jaccard", "v_rand", "v_info")


def score_folds(volume: str, labels: str, model: Path, tta: bool) -> list[list[str]]:
    """Return a row per fold and class, and the means over the folds.

    The label images are written into a copy of the sample, which is thrown away.
    """
    record = json.loads(model.with_suffix(".run.json").read_text())
    patches = record["selection"]["patches"]
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        copy = f"{folder}/sample.zarr"
        _copy(volume, Path(copy))
        for number, fold in enumerate(record["selection"]["folds"], 1):
            slices = sorted({patches[i]["z"] for i in fold["validation"]})
            minutes = record["folds"][number - 1]["minutes"]
            for z in slices:
                name = f"fold{number}_{z}"
                cvdask.segment(
                    copy,
                    model.with_name(f"{model.stem}.fold{number}.keras"),
                    name=name,
                    probabilities=True,
                    tta=tta,
                    z_range=(z, z + 1),
                    client="threads",
                )
                scored = cvdask.evaluate(
                    copy, prediction=name, truth=labels, probabilities=name, z_range=(z, z + 1)
                )
                for one in scored.classes:
                    scores = [one.scores()[key] for key in SCORES]
                    found.setdefault(one.name, []).append(scores)
                    text = [f"{score:.4f}" for score in scores]
                    rows.append([str(number), str(z), one.name, f"{minutes:.1f}", *text])
    for name, scores in found.items():
        rows.append(["mean", "", name, "", *(f"{s:.4f}" for s in np.mean(scores, 0))])
    return rows


def _copy(volume: str, copy: Path) -> None:
    """Make a sample of the same files, to which labels can be added."""
    source = Path(volume).resolve()
    for path in source.rglob("*"):
        target = copy / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volume", help="sample that was trained on, on a local disk")
    parser.add_argument("model", type=Path, help="NAME.keras of that training")
    parser.add_argument("--labels", default="annotations")
    parser.add_argument("--plain", action="store_true", help="no test-time augmentation")
    options = parser.parse_args()
    report(
        f"Cross-validation by slice{'' if options.plain else ', flipped slices averaged'}",
        ["fold", "slice", "class", "minutes", *SCORES],
        score_folds(options.volume, options.labels, options.model, not options.plain),
    )


if __name__ == "__main__":
    main()
