"""The words of a command line, and the values they become."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.cli.options import (
    class_names,
    count_or,
    extents,
    integers,
    join_numbers,
    numbers,
    slice_range,
)
from tests.cli.command_lines import Call


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        ("a --voxel-nm 20 b", ["a", "--voxel-nm=20", "b"]),
        ("a --voxel-nm 5 5 5 b", ["a", "--voxel-nm=5 5 5", "b"]),
        ("--voxel-nm 1 2 3 4", ["--voxel-nm=1 2 3", "4"]),  # the fourth is an argument
        ("--voxel-nm=5 b", ["--voxel-nm=5", "b"]),
        ("--range -1 1e3 b", ["--range=-1 1e3", "b"]),  # -1 is no option
        ("--range --json", ["--range", "--json"]),  # left to the parser to refuse
        ("--size-um 1 2 3 --seed 4", ["--size-um=1 2 3", "--seed", "4"]),
        ("a -- --voxel-nm 5 5", ["a", "--", "--voxel-nm", "5", "5"]),
        ("--block-yx 64 128 --json", ["--block-yx=64 128", "--json"]),
        ("--seed 1 2", ["--seed", "1", "2"]),  # takes one, so nothing is joined
    ],
)
def test_numbers_are_joined(arguments: str, joined: list[str]):
    assert join_numbers(arguments.split()) == joined


@given(
    st.lists(st.sampled_from(["--voxel-nm", "--range", "--seed", "5", "-0.5", "a", "--", "1,2"]))
)
def test_joining_keeps_every_word_in_its_place(arguments: list[str]):
    joined = join_numbers(arguments)
    words = [w for argument in joined for w in re.split(r"(?<=[a-z])=| ", argument)]
    assert words == arguments


@pytest.mark.parametrize(
    ("option", "shape"),
    [
        ("--voxel-nm 40", (25, 50, 50)),
        ("--voxel-nm 50 40 20", (20, 50, 100)),
        ("--voxel-nm=50,40,20", (20, 50, 100)),
        ("--voxel-nm '50 40 20'", (20, 50, 100)),
    ],
)
def test_a_voxel_size_is_one_number_or_three(call: Call, tmp_path: Path, option, shape):
    code, out, _ = call(f"phantom {tmp_path}/c.zarr --size-um 1 2 2 {option} --dry-run --json")
    assert code == 0
    assert json.loads(out)["plans"][0]["shape"] == list(shape)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("a,b, c", ["a", "b", "c"]),
        ("1=a,7=b", {1: "a", 7: "b"}),
    ],
)
def test_class_names(text: str, classes: Any):
    assert class_names(text) == classes


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (numbers, "40 10,10", (40.0, 10.0, 10.0)),
        (integers, "3, 7", (3, 7)),
        (slice_range, "0:10", (0, 10)),
        (slice_range, "14:15", (14, 15)),
        (extents, "64 128", (64, 128)),
    ],
)
def test_text_becomes_values(read: Any, text: str, value: Any):
    assert read("--option", text) == value


def test_a_word_means_no_limit():
    assert count_or("--n-patches", "12", "all") == 12
    assert count_or("--n-patches", "all", "all") is None


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (numbers, "40 ten"),
        (integers, "3;7"),
        (slice_range, "10"),  # one slice is 10:11
        (slice_range, "10:10"),
        (slice_range, "-3:10"),
        (slice_range, "3:"),  # how many slices there are is not known here
        (slice_range, "a:b"),
        (extents, "64"),
        (extents, "64 12.5"),
    ],
)
def test_text_that_means_nothing_is_refused_with_the_option(read: Any, text: str):
    with pytest.raises(ValueError, match=f"--option.*{re.escape(repr(text))}"):
        read("--option", text)


def test_a_count_names_the_word_it_would_take():
    with pytest.raises(ValueError, match=r"--patience.*never.*'always'"):
        count_or("--patience", "always", "never")
