"""Patches: where annotation is, there they lie; what shows the same tissue stays together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.segmentation.patches import (
    SHARES,
    Candidate,
    Patch,
    choose_classes,
    draw,
    fit_size,
    read_patch,
    regions,
    select,
    split,
    survey,
    tile,
)
from cvdask.volume.boxes import Box
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.store import Volume, open_volume
from tests.samples import write_sample

NAMES = {1: "mitochondria", 3: "z_discs"}


def write_pair(url, labels: np.ndarray, *, image=None, classes=NAMES, **how) -> Volume:
    """Write an image of noise and its annotations."""
    if image is None:
        image = np.random.default_rng(0).integers(0, 255, labels.shape, np.uint8)
    depth = -(-labels.shape[0] // 4) * 4
    shapes = {"chunk_shape": (4, 64, 64), "shard_shape": (depth, 128, 128)}
    write_sample(url, image, **shapes)
    write_sample(url, labels, labels="annotations", classes=classes, **shapes, **how)
    return open_volume(url)


def dense(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Half background, and of the rest one in ten class 3."""
    return np.random.default_rng(seed).choice(
        np.array([0, 1, 3], np.uint8), shape, p=[0.5, 0.45, 0.05]
    )


def sparse(shape: tuple[int, int, int], slices: tuple[int, ...]) -> np.ndarray:
    labels = np.full(shape, UNANNOTATED, np.uint8)
    labels[list(slices)] = dense((len(slices), *shape[1:]))
    return labels


def patch(z: int, y: int, x: int, size: int = 8, url: str = "a") -> Patch:
    return Patch(url, "annotations", z, y, x, size)


# ---------------------------------------------------------------------------------------------
# What is annotated


def test_survey_finds_the_annotated_part_of_each_slice(tmp_path):
    labels = np.full((9, 12, 20), UNANNOTATED, np.uint8)
    labels[2, 3:7, 5:9] = 0
    labels[2, 4, 6] = 3
    labels[8, 0, 19] = 1
    labels[8, 11, 10] = 1
    volume = write_pair(tmp_path / "a.zarr", labels)
    first, second = survey(volume.label("annotations"))
    assert (first.z, first.box, first.counts) == (2, Box((3, 5), (7, 9)), {0: 15, 3: 1})
    assert (second.z, second.box, second.counts) == (8, Box((0, 10), (12, 20)), {1: 2})
    (only,) = survey(volume.label("annotations"), (3, 9))
    assert only == second


def test_survey_counts_wide_types_alike(tmp_path):
    labels = sparse((5, 12, 20), (1, 4))
    narrow = write_pair(tmp_path / "a.zarr", labels).label("annotations")
    wide = write_pair(tmp_path / "b.zarr", labels.astype(np.uint32)).label("annotations")
    assert survey(narrow) == survey(wide)
    assert sum(sum(one.counts.values()) for one in survey(wide)) == 2 * 12 * 20


@pytest.mark.parametrize("z_range", [(0, 6), (3, 3), (-1, 2)])
def test_slices_outside_the_volume_are_refused(tmp_path, z_range):
    volume = write_pair(tmp_path / "a.zarr", dense((5, 8, 8)))
    with pytest.raises(ValueError, match=rf"z: {z_range[0]}:{z_range[1]}.* 5 slices"):
        survey(volume.label("annotations"), z_range)


# ---------------------------------------------------------------------------------------------
# Squares


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.data(),
)
def test_squares_tile_without_overlap_and_cover_what_they_can(plane_shape, data):
    size = data.draw(st.integers(1, min(plane_shape)))
    y, x = (data.draw(st.integers(0, n - 1)) for n in plane_shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip((y, x), plane_shape, strict=True))
    box = Box((y, x), stop)
    jitter = np.array([data.draw(st.floats(0, 1)) for _ in range(2)])
    hits = np.zeros(plane_shape, int)
    for square in tile(box, size, plane_shape, jitter):
        assert square.shape == (size, size)
        assert Box.whole(plane_shape).contains(square)
        hits[square.slices] += 1
    assert hits.max() == 1
    inside = hits[box.slices].sum()
    least = [size * (n // size) if n >= size else n for n in box.shape]
    assert inside == least[0] * least[1]


@pytest.mark.parametrize(
    ("size", "stride", "shapes", "fitted"),
    [
        (512, 16, [(5, 1024, 1024)], 512),
        (512, 16, [(5, 1024, 1024), (1, 300, 400)], 288),  # the smallest slice decides
        (500, 16, [(5, 1024, 1024)], 496),  # a multiple of the stride
    ],
)
def test_patches_fit_all_slices(size, stride, shapes, fitted):
    assert fit_size(size, stride, shapes) == fitted


def test_a_slice_smaller_than_the_stride_is_refused():
    with pytest.raises(ValueError, match=r"stride of 16.* 512.* 10 "):
        fit_size(512, 16, [(4, 10, 99)])


# ---------------------------------------------------------------------------------------------
# Drawing


def candidates(counts: list[dict[int, int]], per_slice: int = 2) -> list[Candidate]:
    return [
        Candidate(patch(10 * (i // per_slice), 0, 8 * (i % per_slice)), count)
        for i, count in enumerate(counts)
    ]


def test_patches_are_spread_over_the_slices():
    pool = candidates([{0: 64}] * 12, per_slice=4)
    drawn = draw(pool, 6, (), seed=3)
    assert Counter(one.patch.z for one in drawn) == {0: 2, 10: 2, 20: 2}


def test_rare_classes_are_guaranteed_patches():
    pool = candidates([{0: 60, 1: 4}] * 37 + [{0: 60, 3: 4}] * 3)
    for seed in range(20):
        drawn = draw(pool, 6, (1, 3), seed=seed)
        assert sum(3 in one.counts for one in drawn) >= 2
    unbalanced = [
        sum(3 in one.counts for one in draw(pool, 6, (1, 3), balanced=False, seed=seed))
        for seed in range(20)
    ]
    assert min(unbalanced) == 0


def test_drawing_again_draws_the_same():
    pool = candidates([{0: 60, 1: i + 1} for i in range(30)])
    assert draw(pool, 9, (1,), seed=5) == draw(pool, 9, (1,), seed=5)
    assert draw(pool, 9, (1,), seed=5) != draw(pool, 9, (1,), seed=6)


def test_more_patches_than_there_are_gives_all():
    pool = candidates([{0: 64}] * 5)
    assert draw(pool, 30, ()) == pool


def test_drawing_one_or_from_nothing_is_refused():
    with pytest.raises(ValueError, match=r"Received: 1$"):
        draw(candidates([{0: 64}]), 1, ())
    with pytest.raises(ValueError, match=r"64 annotated.* none"):
        draw([], 30, ())


# ---------------------------------------------------------------------------------------------
# Regions and parts


def test_near_slices_of_one_place_are_one_region():
    patches = [
        patch(0, 0, 0),
        patch(5, 7, 7),  # overlaps by one voxel, five slices away: the first region
        patch(6, 0, 0),  # by a chain, over the one before
        patch(0, 20, 0),  # beside them
        patch(0, 0, 0, url="b"),  # of another sample
        patch(12, 0, 0),  # six slices away from the nearest
    ]
    assert regions(patches) == [0, 0, 0, 1, 2, 3]
    assert regions(patches, by="slice") == [0, 1, 2, 0, 3, 4]


def test_thirty_patches_are_split_20_5_5():
    pool = candidates([{0: 32, 1: 32}] * 30)
    parts = split(pool, range(30), SHARES, (1,))
    assert [len(part) for part in parts] == [20, 5, 5]


def test_rare_classes_reach_every_part():
    pool = candidates([{0: 64}] * 24 + [{0: 32, 3: 32}] * 6)
    for seed in range(10):
        parts = split(pool, range(30), SHARES, (3,), seed=seed)
        assert [sum(3 in pool[i].counts for i in part) for part in parts] == [4, 1, 1]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 3)),
        min_size=2,
        max_size=25,
    ),
    st.integers(2, 6),
    st.sampled_from(["region", "slice"]),
    st.integers(0, 5),
)
def test_no_region_is_ever_on_both_sides(places, n_parts, by, seed):
    pool = [Candidate(patch(z, 5 * y, 5 * x), {0: 10, 1: 5 * y}) for z, y, x in places]
    groups = regions([one.patch for one in pool], by=by)
    parts = split(pool, groups, (1.0,) * n_parts, (1,), seed=seed)
    assert sorted(i for part in parts for i in part) == list(range(len(pool)))
    assert sum(bool(part) for part in parts) == min(n_parts, len(set(groups)))
    for part in parts:
        for i in part:
            for j in set(range(len(pool))) - set(part):
                one, other = pool[i].patch, pool[j].patch
                if by == "slice":
                    assert one.z != other.z
                else:
                    apart = max(abs(one.y - other.y), abs(one.x - other.x)) >= 8
                    assert apart or abs(one.z - other.z) > 5


# ---------------------------------------------------------------------------------------------
# All together


def test_select_takes_what_is_annotated(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", sparse((20, 128, 256), (2, 17)))
    chosen = select([volume], "annotations", n_patches=8, size=64, stride=16)
    assert chosen.classes == NAMES
    assert chosen.size == 64
    assert {one.patch.z for one in chosen.candidates} == {2, 17}
    assert len(chosen.candidates) == len({one.patch for one in chosen.candidates}) == 8
    (fold,) = chosen.folds
    assert [len(part) for part in (fold.train, fold.validation, fold.test)] == [6, 1, 1]
    assert (chosen.voxel_size_nm, chosen.image_dtype) == ((40.0, 10.0, 10.0), "uint8")
    for one in chosen.candidates:
        assert one.n_annotated == 64 * 64
        target = read_patch(one.patch, tuple(chosen.classes))[1]
        assert one.counts == {
            0: (target == 0).sum(),
            1: (target == 1).sum(),
            3: (target == 2).sum(),
        }


def test_each_patch_validates_once_in_cross_validation(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((3, 128, 128)))
    chosen = select([volume], "annotations", n_patches=None, size=64, folds=3, split_by="slice")
    assert sorted(i for fold in chosen.folds for i in fold.validation) == list(range(12))
    for fold in chosen.folds:
        assert {chosen.candidates[i].patch.z for i in fold.validation}.isdisjoint(
            chosen.candidates[i].patch.z for i in fold.train
        )
        assert len(fold.train) + len(fold.validation) == 12


def test_patches_are_halved_for_more_regions_and_it_is_said(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((1, 256, 256)))
    chosen = select([volume], "annotations", n_patches=4, size=512, stride=16)
    assert chosen.size == 128
    assert any("256" in note and "512" in note for note in chosen.notes)
    assert any("128 instead of 256" in note for note in chosen.notes)


def test_fewer_patches_than_wanted_is_said(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((1, 128, 128)))
    chosen = select([volume], "annotations", n_patches=30, size=64)
    assert len(chosen.candidates) == 4
    assert any("4 patches instead of 30" in note for note in chosen.notes)


def test_a_dense_stack_is_thinned_out_but_rare_classes_stay(tmp_path):
    labels = np.zeros((60, 128, 128), np.uint8)
    labels[:, ::2] = 1
    labels[31] = 3
    volume = write_pair(tmp_path / "a.zarr", labels)
    for seed in range(3):
        chosen = select([volume], "annotations", n_patches=6, size=64, seed=seed)
        assert sum(one.patch.z == 31 for one in chosen.candidates) >= 2


def test_some_classes_can_be_chosen_and_the_others_are_background(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((1, 128, 128)))
    chosen = select([volume], "annotations", size=64, classes=["z_discs"])
    assert chosen.classes == {3: "z_discs"}
    one = chosen.candidates[0]
    target = read_patch(one.patch, (3,))[1]
    assert set(np.unique(target)) == {0, 1}
    assert (target == 1).sum() == one.counts[3]


def test_a_patch_is_read_with_its_channels(tmp_path):
    labels = np.array([[[0, 1, 3, 255], [3, 3, 1, 0], [255] * 4, [0, 0, 1, 3]]], np.uint8)
    image = np.arange(16, dtype=np.uint16).reshape(1, 4, 4)
    volume = write_pair(tmp_path / "a.zarr", labels, image=image)
    read, target = read_patch(Patch(volume.url, "annotations", 0, 0, 1, 3), (1, 3))
    np.testing.assert_array_equal(read, image[0, :3, 1:])
    np.testing.assert_array_equal(target, [[1, 2, 255], [2, 1, 0], [255, 255, 255]])


def test_a_selection_is_described_for_people_and_machines(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((1, 128, 128)))
    chosen = select([volume], "annotations", size=64)
    assert "4 patches of 64 × 64" in str(chosen)
    assert "z_discs: " in str(chosen)
    described = chosen.as_dict()
    assert described["patches"][0]["size"] == 64
    assert described["folds"] == [
        {key: list(value) for key, value in vars(fold).items()} for fold in chosen.folds
    ]


# ---------------------------------------------------------------------------------------------
# What cannot be learned from


def test_labels_of_another_shape_are_refused(tmp_path):
    write_sample(tmp_path / "a.zarr", np.zeros((4, 64, 64), np.uint8))
    write_sample(tmp_path / "a.zarr", dense((4, 64, 32)), labels="annotations", classes=NAMES)
    with pytest.raises(ValueError, match=r"shape.*\(4, 64, 64\).*\(4, 64, 32\)"):
        select([open_volume(tmp_path / "a.zarr")], "annotations")


def test_labels_of_another_voxel_size_are_refused(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((4, 64, 64)), voxel_size_nm=(40, 10, 11))
    with pytest.raises(ValueError, match=r"voxel size.*10\.0\).*11\.0\)"):
        select([volume], "annotations")


def test_labels_that_are_not_there_are_refused_with_those_that_are(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((4, 64, 64)))
    with pytest.raises(ValueError, match=r"'annotations'.*'truth'"):
        select([volume], "truth")


def test_a_value_without_a_class_is_refused(tmp_path):
    labels = dense((4, 64, 64))
    labels[0, 0, 0] = 9
    volume = write_pair(tmp_path / "a.zarr", labels)
    with pytest.raises(ValueError, match=r"\[9\].*mitochondria"):
        select([volume], "annotations", size=32)
    chosen = select([volume], "annotations", size=32, classes={**NAMES, 9: "lipid"}, n_patches=None)
    assert chosen.classes == {1: "mitochondria", 3: "z_discs", 9: "lipid"}


@pytest.mark.parametrize(
    ("classes", "found", "choice", "words"),
    [
        ([{1: "a"}, {1: "b"}], {1}, None, "1 is 'a' and 'b'"),  # samples disagree
        ([{1: "a"}], {1}, ["c"], r"\['a'\].*\['c'\]"),  # unknown
        ([{1: "a"}], {1}, [], r"\['a'\].*\[\]"),  # none chosen
        ([{}], {0, 255}, None, "background"),  # nothing but background
        ([{1: "a", 2: "a"}], {1}, None, "1: 'a', 2: 'a'"),  # two of one name
        ([{1: "a", 300: "b"}], {1}, None, "300"),  # no uint8
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, classes, found, choice, words):
    described = [Volume("a", "labels/annotations", (), names) for names in classes]
    with pytest.raises(ValueError, match=words):
        choose_classes(described, found, choice)


def test_a_class_that_no_training_patch_shows_is_named(tmp_path):
    labels = np.zeros((1, 128, 256), np.uint8)
    labels[0, :, ::2] = 1
    volume = write_pair(tmp_path / "a.zarr", labels)
    with pytest.raises(ValueError, match=r"class 3 \(z_discs\) has 0 voxels in the \d+ training"):
        select([volume], "annotations", size=64, classes=["mitochondria", "z_discs"])
    # Nobody has asked for it: it is left out, and that is said.
    chosen = select([volume], "annotations", size=64)
    assert chosen.classes == {1: "mitochondria"}
    assert any("z_discs" in note for note in chosen.notes)


def test_a_fold_without_foreground_is_refused(tmp_path):
    labels = np.zeros((3, 128, 128), np.uint8)
    labels[:2] = 1
    volume = write_pair(tmp_path / "a.zarr", labels, classes={1: "mitochondria"})
    with pytest.raises(ValueError, match=r"fold \d.* 0 voxels of mitochondria"):
        select([volume], "annotations", size=64, folds=3, split_by="slice", n_patches=None)


def test_too_little_annotation_is_refused_with_the_number(tmp_path):
    labels = np.full((20, 64, 64), UNANNOTATED, np.uint8)
    labels[::10, :20, :20] = 1
    volume = write_pair(tmp_path / "a.zarr", labels, classes={1: "mitochondria"})
    with pytest.raises(ValueError, match=r"4096 annotated.*400 in 1"):
        select([volume], "annotations", size=64)


def test_one_region_cannot_be_divided(tmp_path):
    volume = write_pair(tmp_path / "a.zarr", dense((4, 64, 64)))
    with pytest.raises(ValueError, match=r"2 different regions.*in 1\."):
        select([volume], "annotations", size=64)
    with pytest.raises(ValueError, match=r"5 different slices.*in 4\."):
        select([volume], "annotations", size=64, folds=5, split_by="slice")


def test_samples_of_other_voxels_or_types_are_refused(tmp_path):
    first = write_pair(tmp_path / "a.zarr", dense((1, 64, 64)))
    wide = write_pair(
        tmp_path / "b.zarr", dense((1, 64, 64)), image=np.zeros((1, 64, 64), np.uint16)
    )
    with pytest.raises(ValueError, match=r"uint8.*uint16"):
        select([first, wide], "annotations")
    write_sample(tmp_path / "c.zarr", np.zeros((1, 64, 64), np.uint8), voxel_size_nm=(40, 12, 12))
    write_sample(
        tmp_path / "c.zarr",
        dense((1, 64, 64)),
        labels="annotations",
        classes=NAMES,
        voxel_size_nm=(40, 12, 12),
    )
    with pytest.raises(ValueError, match=r"10\.0, 10\.0.*12\.0, 12\.0"):
        select([first, open_volume(tmp_path / "c.zarr")], "annotations")
    with pytest.raises(ValueError, match="none"):
        select([], "annotations")
