"""A config to begin with: which stages there are, and what can be said of each.

:func:`init` copies one of two texts that lie beside this module: ``begin.toml``, whose stages suit
a first run on a machine without GPU, and ``paper.toml``, the experiment of the paper.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from cvdask.volume.objects import is_remote

BEGIN, PAPER = "begin.toml", "paper.toml"


def init(
    path: str | os.PathLike[str] = "cvdask.toml", *, paper: bool = False, overwrite: bool = False
) -> Path:
    """Write a commented config.

    Parameters
    ----------
    path : str or path
        File to write, ``.toml``.
    paper : bool
        The experiment of the paper instead of a first run.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        When it is no local ``.toml`` file.
    FileExistsError
        When it is there.
    """
    target = Path(path)
    if is_remote(os.fspath(path)) or target.suffix != ".toml":
        raise ValueError(f"a config is a local file that ends in .toml. Received: {path}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists. Give another name, or --overwrite to replace it")
    text = files("cvdask.pipeline").joinpath(PAPER if paper else BEGIN).read_text("utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(target)
    return target
