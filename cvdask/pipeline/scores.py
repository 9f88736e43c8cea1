"""What ``evaluate`` and ``distance`` found, kept as a file each.

The two only tell. Their numbers are kept with the inputs and options that they are for, so that a
later run need not count again; the same inputs give the same bytes. ``compare`` reads the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cvdask
from cvdask.engine.ledger import standing
from cvdask.engine.plan import Plan
from cvdask.volume.ensemble import open_ensemble
from cvdask.volume.objects import read_json, write_json
from cvdask.volume.store import open_volume, volume_digest


def keep_scores(
    volume: str,
    out: str,
    options: Mapping[str, Any],
    *,
    overwrite: bool,
    dry_run: bool,
    **ways: Any,
) -> Plan | None:
    """Score a segmentation and write ``out``, and a bar chart beside it.

    Parameters
    ----------
    volume : str
    out : str
        ``.json`` file to write.
    options : mapping
        Keywords of ``evaluate``.
    overwrite, dry_run : bool
    **ways
        ``client``, ``workers``.

    Returns
    -------
    Plan or None
        With ``dry_run`` the plan.
    """
    prediction = options.get("prediction", "classes")
    names = [prediction, options.get("truth", "annotations")]
    if options.get("probabilities"):
        opened = open_volume(volume).label_names()
        names += [n for n in opened if n.startswith(f"{options['probabilities']}_p_")]
    inputs = [
        {"volume": f"labels/{name}", "digest": volume_digest(open_volume(volume).label(name))}
        for name in names
    ]
    provenance = _provenance("evaluate", options, inputs)
    if _stands(out, provenance, overwrite) and not dry_run:
        return None
    found = cvdask.evaluate(volume, **options, dry_run=dry_run, **ways)
    if isinstance(found, Plan):
        return found
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    found.draw(Path(out).with_suffix(".png"))
    told = {**found.as_dict(), "warnings": list(found.warnings)}
    _write(out, {"command": "evaluate", "provenance": provenance, **told})
    return None


def keep_distance(
    ensemble: str,
    real: Sequence[str],
    out: str,
    options: Mapping[str, Any],
    *,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Measure how far an ensemble is from real volumes, and write ``out``.

    Parameters
    ----------
    ensemble : str
    real : sequence of str
    out : str
        ``.json`` file to write.
    options : mapping
        Keywords of ``distance``.
    overwrite, dry_run : bool
    """
    labels = options.get("labels", "classes")
    made = open_ensemble(ensemble)
    chosen = options["generated_labels"]
    inputs = [
        {"volume": member, "digest": volume_digest(volume.label(chosen))}
        for member, volume in zip(made.members, made, strict=True)
    ]
    inputs += [
        {"volume": f"labels/{labels}", "digest": volume_digest(open_volume(url).label(labels))}
        for url in real
    ]
    provenance = _provenance("distance", options, inputs)
    if _stands(out, provenance, overwrite) or dry_run:
        return
    found = cvdask.distance(ensemble, real=list(real), **options)
    told = {**found.as_dict(), "warnings": list(found.notes)}
    _write(out, {"command": "distance", "provenance": provenance, **told})


def _provenance(
    stage: str, options: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "stage": stage,
        "version": cvdask.__version__,
        "options": dict(options),
        "inputs": list(inputs),
    }


def _stands(out: str, provenance: Mapping[str, Any], overwrite: bool) -> bool:
    """Tell whether the file is there for these inputs; refuse one that is for others."""
    parent, _, name = out.rpartition("/")
    existing = read_json(parent, name)
    if existing is not None and not overwrite:
        existing = {**existing, "state": "complete"}
    return standing(out, existing, provenance, overwrite=overwrite) == "complete"


def _write(out: str, value: Mapping[str, Any]) -> None:
    parent, _, name = out.rpartition("/")
    write_json(parent, name, value)
