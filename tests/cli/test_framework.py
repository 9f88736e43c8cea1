"""What a network framework is told before it is loaded."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from cvdask.cli.framework import load_framework

FLAG = "TF_ENABLE_ONEDNN_OPTS"


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just begun; what would be loaded is empty."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setitem(sys.modules, "cvdask.segmentation.layers", ModuleType("layers"))
    # Set first, so that they are put back.
    for name in (FLAG, "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize("verbose", [False, True])
def test_trainings_use_onednn(verbose: bool):
    load_framework(verbose)
    assert FLAG not in os.environ
    load_framework(verbose, training=True)
    assert os.environ[FLAG] == "1"


@pytest.mark.usefixtures("not_loaded")
def test_who_runs_it_decides(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FLAG, "0")
    load_framework(False, training=True)
    assert os.environ[FLAG] == "0"


@pytest.mark.usefixtures("not_loaded")
def test_what_is_loaded_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "keras", ModuleType("keras"))
    load_framework(False, training=True)
    assert FLAG not in os.environ


def test_commands_that_train_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path):
    from cvdask.cli import pipeline

    asked: list[bool] = []
    monkeypatch.setattr(
        pipeline, "load_framework", lambda verbose, *, training: asked.append(training)
    )
    sample = '[[sample]]\nname = "a"\nvolume = "a.zarr"\n'
    for stages in ("[train-gan]\n", "[train-gan]\n[generate]\n", "[train-unet]\n[segment]\n", ""):
        (tmp_path / "run.toml").write_text(f'[run]\nout = "out"\n{sample}{stages}')
        pipeline._load_networks(str(tmp_path / "run.toml"), False)
    assert asked == [True, False, False]
