"""Which tables and keys may a config have, and what values?

The keys of a stage are the keywords of its Python function, without those that the run itself
knows: where the stage reads and writes, and how it runs. A test holds the two together; nothing is
imported for it, because the classes of some options load a network framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Stages in the order in which they are taken. ``measure-generated`` has no table: it repeats what
# is measured of real samples.
STAGES = (
    "ingest",
    "train-unet",
    "segment",
    "evaluate",
    "label",
    "measure",
    "density",
    "descriptors",
    "train-gan",
    "generate",
    "order",
    "measure-generated",
    "distance",
    "compare",
    "report",
)


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Parameters
    ----------
    words : str
        For messages: "a whole number".
    accepts : callable
        Tells whether a value is of this kind.
    convert : callable
        Makes of a value what the function takes.
    is_path : bool
        Whether relative values are meant from the config's folder.
    """

    words: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    is_path: bool = False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _all(value: Any, test: Callable[[Any], bool], *lengths: int) -> bool:
    return (
        isinstance(value, list)
        and all(map(test, value))
        and (len(value) in lengths if lengths else True)
    )


def _is_range(value: Any) -> bool:
    return _all(value, _is_whole, 2) and 0 <= value[0] < value[1]


def _is_naming(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(k.isdecimal() and _is_text(v) for k, v in value.items())
    return _all(value, _is_text) and bool(value)


def _name_values(value: Any) -> Any:
    return {int(k): v for k, v in value.items()} if isinstance(value, dict) else value


def one_of(*words: str) -> Kind:
    """Describe a choice between words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in words)


def whole_or(word: str) -> Kind:
    """Describe a whole number, or a word for no limit: TOML has no None."""
    return Kind(
        f'a whole number or "{word}"',
        lambda value: _is_whole(value) or value == word,
        lambda value: None if value == word else value,
    )


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", _is_number)
TEXT = Kind("a text", _is_text)
PATH = Kind("a path or a URL", _is_text, is_path=True)
TEXTS = Kind("a list of texts", lambda value: _all(value, _is_text) and bool(value))
PATHS = Kind("a list of paths", lambda value: _all(value, _is_text), is_path=True)
WHOLES = Kind("a list of whole numbers", lambda value: _all(value, _is_whole))
RANGE = Kind("[first, one past the last]", _is_range, tuple)
SIZES = Kind(
    "a number, or three: z, y, x", lambda value: _is_number(value) or _all(value, _is_number, 3)
)
THREE = Kind("three numbers: z, y, x", lambda value: _all(value, _is_number, 3))
THREE_WHOLE = Kind("three whole numbers: z, y, x", lambda value: _all(value, _is_whole, 3))
TWO = Kind("two numbers", lambda value: _all(value, _is_number, 2), tuple)
TWO_WHOLE = Kind("two whole numbers", lambda value: _all(value, _is_whole, 2), tuple)
CLASS = Kind("the name or value of a class", lambda value: _is_text(value) or _is_whole(value))
CLASSES = Kind(
    "the name or value of a class, or a list of them",
    lambda value: CLASS.accepts(value) or (_all(value, CLASS.accepts) and bool(value)),
)
NAMES = Kind("a text or a list of texts", lambda value: _is_text(value) or (TEXTS.accepts(value)))
NAMING = Kind(
    'a list of names for the values 1, 2, 3 …, or names by value: {1 = "nucleus"}',
    _is_naming,
    _name_values,
)
DIRECTION = Kind(
    "z, y, x, estimate, or three numbers",
    lambda value: value in ("z", "y", "x", "estimate") or _all(value, _is_number, 3),
)
NUMBERS_BY_NAME = Kind(
    "numbers by name: {sphericity = 0.05}",
    lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
)

Keys = Mapping[str, Kind]

# Which samples a stage is for; by default all that can be.
SAMPLES: Keys = {"samples": TEXTS}

RUN: Keys = {
    "out": PATH,
    "store": PATH,
    "client": TEXT,
    "workers": WHOLE,
    "seed": WHOLE,
}

INGEST: Keys = {
    "voxel_nm": SIZES,
    "labels": PATH,
    "label_name": TEXT,
    "classes": NAMING,
    "label_slices": WHOLES,
    "dataset": TEXT,
    "pattern": TEXT,
    "channel": WHOLE,
    "dtype": one_of("uint8", "uint16"),
    "value_range": TWO,
    "damaged": one_of("refuse", "hole", "interpolate"),
    "bad_slices": WHOLES,
    "n_levels": WHOLE,
    "check": FLAG,
}
PHANTOM: Keys = {"size_um": THREE, "voxel_nm": SIZES, "seed": WHOLE, "n_levels": WHOLE}

# A sample has a name, may have a group, and is one of three: what its first key says.
SAMPLE: Keys = {"name": TEXT, "group": TEXT}
SOURCES: Mapping[str, tuple[Kind, Keys]] = {
    "source": (PATH, INGEST),
    "volume": (PATH, {}),
    "phantom": (one_of("healthy", "diabetic"), PHANTOM),
}

TRAIN_UNET: Keys = {
    "labels": TEXT,
    "preset": one_of("fast", "paper"),
    "base_width": WHOLE,
    "depth": WHOLE,
    "n_dense": WHOLE,
    "folds": WHOLE,
    "split_by": one_of("region", "slice"),
    "refit": FLAG,
    "n_patches": whole_or("all"),
    "patch_size": WHOLE,
    "crop": WHOLE,
    "batch_size": WHOLE,
    "epochs": WHOLE,
    "max_minutes": NUMBER,
    "steps_per_epoch": WHOLE,
    "patience": whole_or("never"),
    "learning_rate": NUMBER,
    "weight_decay": NUMBER,
    "ema": NUMBER,
    "dice": NUMBER,
    "boundary": NUMBER,
    "mixed_precision": one_of("auto", "float32", "mixed_float16", "mixed_bfloat16"),
    "z_range": RANGE,
    "classes": NAMING,
    "alone": TEXT,
    "augment": FLAG,
    "upright": FLAG,
    "balanced": FLAG,
    "seed": WHOLE,
}
SEGMENT: Keys = {
    "model": PATH,
    "name": TEXT,
    "probabilities": FLAG,
    "tta": FLAG,
    "axes": one_of("z", "zyx"),
    "precision": one_of("float32", "bfloat16", "int8"),
    "runtime": one_of("keras", "openvino"),
    "max_changed": NUMBER,
    "max_loss": NUMBER,
    "roi": TEXT,
    "mask": PATH,
    "z_range": RANGE,
    "batch_size": WHOLE,
    "block_yx": TWO_WHOLE,
    "gpu": FLAG,
}
EVALUATE: Keys = {
    "prediction": TEXT,
    "truth": TEXT,
    "probabilities": TEXT,
    "z_range": RANGE,
    "box": TEXT,
}
LABEL: Keys = {
    "labels": TEXT,
    "class_": CLASSES,
    "name": TEXT,
    "connectivity": WHOLE,
    "min_voxels": WHOLE,
    "n_levels": WHOLE,
    "box": TEXT,
    "block_shape": THREE_WHOLE,
}
MEASURE: Keys = {
    "labels": TEXT,
    "class_": CLASSES,
    "instances": FLAG,
    "connectivity": WHOLE,
    "min_voxels": WHOLE,
    "intensity": FLAG,
    "contacts": FLAG,
    "fibre": DIRECTION,
    "voxel_extent": FLAG,
    "csv": FLAG,
    "chart": FLAG,
    "box": TEXT,
    "block_shape": THREE_WHOLE,
}
DENSITY: Keys = {
    "labels": TEXT,
    "numerator": CLASSES,
    "denominator": CLASSES,
    "kernel_um": NUMBER,
    "stride_um": NUMBER,
    "box": TEXT,
}
DESCRIPTORS: Keys = {
    "labels": TEXT,
    "classes": CLASSES,
    "only": NAMES,
    "max_distance_um": NUMBER,
    "max_thickness_um": NUMBER,
    "thickness_step_um": NUMBER,
    "z_blocks": WHOLE,
    "box": TEXT,
}
TRAIN_GAN: Keys = {
    "labels": TEXT,
    "preset": one_of("default", "paper"),
    "continuity": one_of("order", "volume"),
    "resolution": WHOLE,
    "classes": CLASSES,
    "z_range": RANGE,
    "exclude": WHOLES,
    "crop": one_of("centre", "random"),
    "reduction": WHOLE,
    "kimg": NUMBER,
    "max_minutes": NUMBER,
    "batch_size": WHOLE,
    "width": WHOLE,
    "max_width": WHOLE,
    "latent": WHOLE,
    "n_mapping": WHOLE,
    "head": one_of("straight-through", "softmax"),
    "loss": one_of("non_saturating", "rpgan_r1_r2"),
    "learning_rate": NUMBER,
    "gamma": NUMBER,
    "penalty_every": WHOLE,
    "path_every": WHOLE,
    "mixing": NUMBER,
    "noise": FLAG,
    "share_weight": NUMBER,
    "augment": FLAG,
    "ema_kimg": NUMBER,
    "mixed_precision": one_of("auto", "float32", "mixed_bfloat16"),
    "n_devices": WHOLE,
    "report_kimg": NUMBER,
    "n_judged": WHOLE,
    "seed": WHOLE,
}
GENERATE: Keys = {
    "model": PATH,
    "volumes": WHOLE,
    "slices": WHOLE,
    "seed": WHOLE,
    "truncation": NUMBER,
    "z_range": RANGE,
    "mix_seed": WHOLE,
    "mix_layer": WHOLE,
    "interpolate_to": WHOLE,
    "batch_size": WHOLE,
}
ORDER: Keys = {"labels": TEXT, "name": TEXT, "n_kicks": WHOLE, "seed": WHOLE}
DISTANCE: Keys = {
    "labels": TEXT,
    "generated_labels": TEXT,
    "z_range": RANGE,
    "unseen": PATHS,
    "unseen_z_range": RANGE,
    "crop": one_of("centre", "random"),
    "most": WHOLE,
    "seed": WHOLE,
}
COMPARE: Keys = {
    "labels": TEXT,
    "classes": NAMES,
    "measures": NAMES,
    "margin": NUMBER,
    "margins": NUMBERS_BY_NAME,
    "z_blocks": WHOLE,
    "whole_objects": FLAG,
    "figures": FLAG,
    "seed": WHOLE,
}
REPORT: Keys = {"title": TEXT}

# Keys of the tables of stages, as a config has them.
TABLES: Mapping[str, Keys] = {
    "ingest": {name: kind for name, kind in INGEST.items() if name != "labels"},
    "train-unet": {**TRAIN_UNET, **SAMPLES},
    "segment": {**SEGMENT, **SAMPLES},
    "evaluate": {**EVALUATE, **SAMPLES},
    "label": {**LABEL, **SAMPLES},
    "measure": {**MEASURE, **SAMPLES},
    "density": {**DENSITY, **SAMPLES},
    "descriptors": {**DESCRIPTORS, **SAMPLES},
    "train-gan": {**TRAIN_GAN, **SAMPLES},
    "generate": GENERATE,
    "order": ORDER,
    "distance": DISTANCE,
    "compare": {**COMPARE, **SAMPLES},
    "report": REPORT,
}
# Stages whose chance follows ``seed`` of the run where they have none of their own.
SEEDED = tuple(name for name, keys in TABLES.items() if "seed" in keys)
# What a table must have.
NEEDED = {"label": ("class_",), "density": ("numerator", "denominator")}
