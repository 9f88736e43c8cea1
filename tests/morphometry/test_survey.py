"""Surveys: blocks, parts and numbers; everything else is seen by its users, label and measure."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.engine.cluster import connect
from cvdask.morphometry import survey as survey_module
from cvdask.morphometry.partials import KEY, N_VOXELS
from cvdask.morphometry.survey import (
    MOST_BLOCK_VOXELS,
    MOST_PARTS,
    PART_VOXELS,
    Survey,
    carry_out,
    contract,
    describe_survey,
    numbering,
    parts_of,
    plan_survey,
    survey_block_shape,
    total_rows,
)
from cvdask.volume.boxes import Block
from cvdask.volume.classes import measured_box
from cvdask.volume.store import Level
from tests.morphometry.by_hand import canonical, components, write_cell


def survey_of(folder: Path, data: np.ndarray, **options) -> Survey:
    image = write_cell(folder, data, names=options.pop("names", {1: "a", 2: "b"})).label("classes")
    options = {"class_": None, "connectivity": 26, "block_shape": (2, 2, 3), **options}
    region = measured_box(image, options.pop("box", None))
    return describe_survey(image, region, scratch=(str(folder), "scratch"), **options)


def count_only(survey: Survey, part: Block):
    rows, _ = total_rows(survey, part.index)
    n_kinds = len(survey.kinds) + 1
    return {"objects": np.bincount(rows[:, 1], minlength=n_kinds).tolist(), "small": 0}


def surveyed(survey: Survey) -> tuple[Survey, np.ndarray]:
    """Carry a survey out; return the rows of all parts, one after the other."""
    with connect(None) as pool:
        survey = carry_out(survey, pool, count_only)
    parts = [total_rows(survey, part)[0] for part in range(survey.n_parts)]
    return survey, np.concatenate(parts)


def random_classes(shape=(5, 6, 7), seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice([0, 1, 2], shape, p=(0.7, 0.2, 0.1)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Blocks


@given(
    st.tuples(*[st.integers(1, 5000)] * 3),
    st.tuples(*[st.sampled_from([1, 16, 32, 64, 256])] * 3),
    st.tuples(*[st.integers(1, 16)] * 3),
)
def test_blocks_are_made_of_whole_chunks(shape, chunk, per_shard):
    shard = tuple(c * n for c, n in zip(chunk, per_shard, strict=True))
    block = survey_block_shape(Level("0", shape, "uint8", chunk, shard, None))
    assert all(b % c == 0 for b, c in zip(block, chunk, strict=True))
    divisible = [s % (2 * c) == 0 for s, c in zip(block, chunk, strict=True)]
    assert math.prod(block) <= MOST_BLOCK_VOXELS or not any(divisible)
    if math.prod(shard) <= MOST_BLOCK_VOXELS:
        assert all(b % s == 0 for b, s in zip(block, shard, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2), (-1, 3, 3)])
def test_odd_blocks_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="three extents"):
        survey_of(tmp_path, random_classes(), block_shape=shape)


def test_blocks_whose_moments_overflow_are_refused(tmp_path, monkeypatch):
    survey = survey_of(tmp_path, random_classes(), block_shape=(10**9,) * 3)
    assert survey.block_shape == (10**9,) * 3  # the volume is small
    image = write_cell(tmp_path / "b", random_classes()).label("classes")
    long = replace(image.levels[0], shape=(1, 40, 10**6))
    monkeypatch.setattr(survey_module, "volume_digest", lambda _: "")
    image = replace(image, levels=(long,))
    options = {"class_": 1, "connectivity": 26, "scratch": ("", "")}
    region = measured_box(image, None)
    describe_survey(image, region, block_shape=(1, 4, 10**6), **options)
    with pytest.raises(ValueError, match=r"2⁶².*\(1, 40, 1000000\)"):
        describe_survey(image, region, block_shape=(1, 40, 10**6), **options)


# ---------------------------------------------------------------------------------------------
# Parts


@given(st.integers(1, 10**18))
def test_parts_are_few_and_not_too_large(n_voxels):
    n = parts_of(n_voxels)
    assert 1 <= n <= MOST_PARTS
    assert n == MOST_PARTS or (n - 1) * PART_VOXELS < n_voxels <= n * PART_VOXELS


@pytest.mark.parametrize("part_voxels", [1, 7, 50, 210, 1000])
def test_keys_lie_in_parts_in_their_order(tmp_path, monkeypatch, part_voxels):
    monkeypatch.setattr(survey_module, "PART_VOXELS", part_voxels)
    survey = survey_of(tmp_path, random_classes())
    parts = survey.part(np.arange(5 * 6 * 7))
    assert (parts[0], parts[-1] < survey.n_parts, (np.diff(parts) >= 0).all()) == (0, True, True)
    instances = replace(survey, connectivity=None)
    for largest in (0, 1, 5, 210, 2**40, 2**63 - 1):
        own = replace(instances, largest=largest)
        keys = np.unique([min(1, largest), largest // 2, largest])
        parts = own.part(keys)
        assert 0 <= parts.min() <= parts.max() < own.n_parts
        assert (np.diff(parts) >= 0).all()


@pytest.mark.parametrize("part_voxels", [13, 10**6])
@pytest.mark.parametrize("connectivity", [6, 26])
def test_objects_are_counted_in_the_part_of_their_first_voxel(
    tmp_path, monkeypatch, part_voxels, connectivity
):
    monkeypatch.setattr(survey_module, "PART_VOXELS", part_voxels)
    data = random_classes()
    survey, rows = surveyed(survey_of(tmp_path, data, connectivity=connectivity))
    labels = components(data, connectivity)
    assert rows[:, KEY].tolist() == [
        int(np.flatnonzero(labels == n)[0]) for n in range(1, labels.max() + 1)
    ]
    assert rows[:, N_VOXELS].tolist() == np.bincount(labels.ravel())[1:].tolist()
    numbers = numbering(survey)
    assert len(numbers.before) == survey.n_parts + 1
    of_class = [len(np.unique(labels[data == value])) for value in (1, 2)]
    assert numbers.totals == (0, *of_class)
    assert list(numbers.before) == sorted(numbers.before)


def test_instances_are_one_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "PART_VOXELS", 13)
    data = np.random.default_rng(1).choice([0, 3, 7, 200, 2**63 - 1], (5, 6, 7)).astype(np.uint64)
    survey, rows = surveyed(survey_of(tmp_path, data, names=None, connectivity=None))
    assert survey.largest == 2**63 - 1
    assert rows[:, KEY].tolist() == [3, 7, 200, 2**63 - 1]
    assert rows[:, N_VOXELS].tolist() == [int((data == n).sum()) for n in (3, 7, 200, 2**63 - 1)]
    assert numbering(survey).totals == (4,)


def test_a_region_does_not_begin_at_a_block(tmp_path):
    data = random_classes()
    survey, rows = surveyed(survey_of(tmp_path, data, box="1:4,1:6,2:7"))
    cut = components(data[1:4, 1:6, 2:7], 26)
    whole = np.zeros(data.shape, int)
    whole[1:4, 1:6, 2:7] = cut
    assert rows[:, KEY].tolist() == [
        int(np.flatnonzero(whole == n)[0]) for n in range(1, cut.max() + 1)
    ]
    assert rows[:, N_VOXELS].tolist() == np.bincount(cut.ravel())[1:].tolist()
    assert np.array_equal(canonical(whole), whole)
    assert survey.grid.roi == survey.region


def test_temporary_files_of_a_killed_writer_do_not_count(tmp_path):
    data = random_classes()
    survey, rows = surveyed(survey_of(tmp_path, data))
    for path in list(tmp_path.glob("scratch/gathered/*/*")):
        path.with_name(path.name + ".0123456789abcdef.partial").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(total_rows(survey, 0)[0], rows)


def test_another_content_is_not_taken_for_what_is_in_memory(tmp_path):
    """Volumes of others have no digest of their voxels: two surveys may look the same."""
    line = np.array([[[1, 1, 1, 1, 1, 1, 0, 1, 1]]], np.uint8)
    survey = survey_of(tmp_path / "a", line, block_shape=(1, 1, 3))
    assert surveyed(survey)[1][:, N_VOXELS].tolist() == [6, 2]
    (tmp_path / "a").rename(tmp_path / "old")
    other = np.array([[[0, 1, 1, 0, 1, 1, 1, 1, 1]]], np.uint8)
    again = survey_of(tmp_path / "a", other, block_shape=(1, 1, 3))
    again = replace(again, digest=survey.digest)
    assert again == survey
    assert surveyed(again)[1][:, N_VOXELS].tolist() == [2, 5]


# ---------------------------------------------------------------------------------------------
# Chains


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1),
    st.integers(1, 5),
)
def test_contraction_in_any_tree(pairs, size):
    edges = np.array(pairs)
    at_once = contract([edges])
    parts = [contract([edges[n : n + size]]) for n in range(0, len(edges), size)]
    np.testing.assert_array_equal(contract(parts), at_once)
    np.testing.assert_array_equal(contract([at_once]), at_once)
    sets = {n: {n} for n in range(16)}
    for one, other in pairs:
        together = sets[one] | sets[other]
        sets |= dict.fromkeys(together, together)
    joined = [[n, min(sets[n])] for n in range(16) if min(sets[n]) != n]
    assert at_once.tolist() == joined


def test_a_long_chain():
    n = 100_000
    chain = np.stack([np.arange(1, n), np.arange(n - 1)], axis=1)
    found = contract([np.random.default_rng(0).permutation(chain)])
    assert np.array_equal(found[:, 0], np.arange(1, n))
    assert not found[:, 1].any()
    assert contract([np.zeros((0, 2), np.int64)]).shape == (0, 2)


# ---------------------------------------------------------------------------------------------
# Plans


def test_only_the_scan_reads_voxels(tmp_path):
    plans = plan_survey(survey_of(tmp_path, random_classes(), box="1:4,1:6,2:7"))
    assert [plan.stage for plan in plans] == ["scan", "seam", "gather", "total"]
    assert [plan.read_bytes for plan in plans] == [3 * 5 * 5, 0, 0, 0]
    assert plans[0].task_bytes >= 2 * 2 * 3
    assert not (tmp_path / "scratch").exists()


def test_nothing_to_measure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no class names"):
        survey_of(tmp_path, random_classes(), names=None)
    with pytest.raises(ValueError, match=r"'fat'"):
        survey_of(tmp_path / "b", random_classes(), class_="fat")
