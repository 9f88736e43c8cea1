"""Are the keys of a config the keywords of the functions, and are its choices theirs?"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import cvdask
from cvdask.pipeline import schema
from cvdask.pipeline.schema import Keys, Kind

# What a run knows by itself: where a stage reads and writes, and how it runs.
BY_ITSELF = {
    "volume", "volumes", "out", "client", "workers", "resume", "overwrite", "dry_run", "callback",
    "options",
}  # fmt: skip

STAGES: list[tuple[str, Keys, set[str]]] = [
    ("ingest", schema.INGEST, {"source", "as_labels"}),
    ("phantom", schema.PHANTOM, {"kind"}),
    ("train_unet", schema.TRAIN_UNET, set()),
    ("segment", schema.SEGMENT, set()),
    ("evaluate", schema.EVALUATE, set()),
    ("label", schema.LABEL, set()),
    ("measure", schema.MEASURE, set()),
    ("density", schema.DENSITY, {"name"}),
    ("descriptors", schema.DESCRIPTORS, set()),
    ("train_gan", schema.TRAIN_GAN, set()),
    ("order", schema.ORDER, {"real", "real_labels"}),
    ("distance", schema.DISTANCE, {"ensemble", "real", "model"}),
    ("compare", schema.COMPARE, {"inputs", "groups", "scores"}),
    ("report", schema.REPORT, {"comparison"}),
]


def options_of(function: str) -> dict[str, Any]:
    """Return keywords and defaults of a stage; of a training, the fields of its options."""
    parameters = inspect.signature(getattr(cvdask, function)).parameters
    found = {name: parameter.default for name, parameter in parameters.items()}
    if function == "train_unet":
        from cvdask.segmentation.train import TrainingOptions

        found |= {field.name: field.default for field in fields(TrainingOptions)}
    if function == "train_gan":
        from cvdask.synthesis.train import GanOptions

        found |= {field.name: field.default for field in fields(GanOptions)}
    return found


@pytest.mark.parametrize(("function", "keys", "known"), STAGES, ids=[one[0] for one in STAGES])
def test_keys_are_the_keywords_of_the_function(function: str, keys: Keys, known: set[str]):
    options = options_of(function)
    assert set(keys) == set(options) - BY_ITSELF - known
    for name, kind in keys.items():
        default = options[name]
        if default is None or default is inspect.Parameter.empty or default == ():
            continue
        value = list(default) if isinstance(default, tuple) else default
        assert kind.accepts(value), (name, default, kind.words)


def test_keys_of_generate():
    # Its ``volumes`` is a number, and no name of a place.
    options = options_of("generate")
    assert set(schema.GENERATE) == set(options) - (BY_ITSELF - {"volumes"})


def test_choices_are_those_of_the_options():
    from typing import get_args

    from cvdask.synthesis import train as gan
    from cvdask.synthesis.architecture import Continuity, Head, Preset
    from cvdask.synthesis.losses import Loss

    choices = {"preset": Preset, "continuity": Continuity, "head": Head, "loss": Loss}
    for name, kind in choices.items():
        words = schema.one_of(*get_args(kind)).words
        assert schema.TRAIN_GAN[name].words == words
    assert schema.TRAIN_GAN["mixed_precision"].words == schema.one_of(*gan.PRECISIONS).words


def test_every_stage_has_a_table_but_one():
    assert set(schema.STAGES) == {*schema.TABLES, "measure-generated"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (schema.WHOLE, [0, -3], [True, 1.0, "1"]),
        (schema.NUMBER, [0, 1.5], [False, "1.5"]),
        (schema.FLAG, [True], [1, "true"]),
        (schema.RANGE, [[0, 3]], [[3, 0], [1], "0:3", [0, 1.5]]),
        (schema.SIZES, [5, [5, 5, 5.5]], [[5, 5], "5", [True, 1, 1]]),
        (schema.CLASSES, ["a", 3, ["a", 3]], [[], [1.5], ""]),
        (schema.NAMING, [["a"], {"7": "b"}], [[], {}, {"x": "b"}, {"1": 2}]),
        (schema.DIRECTION, ["x", "estimate", [0, 1, 1]], ["w", [1, 2]]),
        (schema.NUMBERS_BY_NAME, [{"a": 1}], [{"a": "b"}, [1]]),
        (schema.whole_or("all"), [3, "all"], ["some", 1.5]),
    ],
    ids=lambda value: value.words if isinstance(value, Kind) else "",
)
def test_kinds(kind: Kind, good: list[Any], bad: list[Any]):
    assert all(map(kind.accepts, good))
    assert not any(map(kind.accepts, bad))


def test_words_and_values_become_what_functions_take():
    assert schema.whole_or("all").convert("all") is None
    assert schema.NAMING.convert({"7": "b"}) == {7: "b"}
    assert schema.RANGE.convert([0, 3]) == (0, 3)
