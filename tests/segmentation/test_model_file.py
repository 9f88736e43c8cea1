"""A network comes back as it was saved; a file that was tampered with is refused or harmless."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.segmentation import model_file
from cvdask.segmentation.model_file import UNet, describe, digest, load, save
from cvdask.segmentation.unet import Architecture, build, n_parameters

# Keras reads its own variables in a way that NumPy 2 would like to be asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

PRESETS = {
    "paper": Architecture(n_classes=3, preset="paper", base_width=2, depth=1, n_dense=2),
    "fast": Architecture(n_classes=3, base_width=2, depth=1),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
KERNEL = "layers/conv2d/vars/0"  # of the first convolution, (3, 3, 1, 2)


def network(preset: str = "fast") -> tuple[UNet, keras.Model]:
    """Make a tiny network with weights that differ from any initial ones."""
    unet = UNet(
        architecture=PRESETS[preset],
        classes={7: "z_disc", 2: "mitochondria"},
        mean=121.5,
        sd=30.25,
        voxel_size_nm=(40, 10, 10),
        image_dtype="uint8",
        run={"seed": 3, "scores": {"f1": [0.5, 0.75]}, "versions": {"cvdask": "0.1.0"}},
    )
    model = build(unet.architecture)
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return unet, model


def apply(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(IMAGES, training=False))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(*network(), tmp_path / "unet.keras")
    return tmp_path / "unet.keras"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, contents: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def edit_weights(path: Path, edit: Callable[[h5py.File], object]) -> None:
    contents = members(path)
    buffer = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        edit(file)
    rewrite(path, {**contents, "model.weights.h5": buffer.getvalue()})


def edit_metadata(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    contents = members(path)
    values = json.loads(contents["cvdask.json"])
    edit(values)
    rewrite(path, {**contents, "cvdask.json": json.dumps(values).encode()})


# ---------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("preset", PRESETS)
def test_loaded_equals_saved(tmp_path, preset):
    unet, model = network(preset)
    save(unet, model, tmp_path / "unet.keras")
    again, loaded = load(tmp_path / "unet.keras")
    assert again == describe(tmp_path / "unet.keras") == unet
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(apply(loaded), apply(model))


@pytest.mark.parametrize("preset", PRESETS)
def test_keras_alone_reads_the_same_network(tmp_path, preset):
    unet, model = network(preset)
    save(unet, model, tmp_path / "unet.keras")
    by_keras = keras.saving.load_model(tmp_path / "unet.keras", safe_mode=True)
    np.testing.assert_array_equal(apply(by_keras), apply(load(tmp_path / "unet.keras")[1]))


def test_what_is_written_about_a_network(saved):
    assert list(members(saved)) == [
        "metadata.json", "config.json", "model.weights.h5", "cvdask.json",
    ]  # fmt: skip
    assert json.loads(members(saved)["cvdask.json"]) == {
        "format": 1,
        "architecture": {
            "n_classes": 3,
            "preset": "fast",
            "base_width": 2,
            "depth": 1,
            "n_dense": 0,
            "in_channels": 1,
        },
        "classes": {"2": "mitochondria", "7": "z_disc"},
        "mean": 121.5,
        "sd": 30.25,
        "voxel_size_nm": [40.0, 10.0, 10.0],
        "image_dtype": "uint8",
        "run": {"seed": 3, "scores": {"f1": [0.5, 0.75]}, "versions": {"cvdask": "0.1.0"}},
    }


def test_neither_optimizer_nor_precision_are_kept(tmp_path):
    unet, model = network()
    trained = build(unet.architecture, precision="mixed_bfloat16")
    trained.set_weights(model.get_weights())
    trained.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy")
    trained.optimizer.build(trained.trainable_variables)
    save(unet, trained, tmp_path / "unet.keras")
    assert b"bfloat16" not in members(tmp_path / "unet.keras")["config.json"]
    with h5py.File(io.BytesIO(members(tmp_path / "unet.keras")["model.weights.h5"])) as file:
        assert "optimizer" not in file
    reduced = load(tmp_path / "unet.keras", precision="mixed_bfloat16")[1]
    np.testing.assert_array_equal(apply(reduced), apply(trained))


def test_saving_again_replaces_the_file_and_leaves_nothing_beside(saved):
    unet, model = network()
    before = digest(saved)
    save(replace(unet, mean=1.0), model, saved)
    assert describe(saved).mean == 1.0
    assert digest(saved) != before
    assert [path.name for path in saved.parent.iterdir()] == ["unet.keras"]


def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = digest(saved)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "write_object", full)
    with pytest.raises(OSError, match="No space"):
        save(*network(), saved)
    assert digest(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["unet.keras"]


def test_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "abc.keras").write_bytes(b"abc")
    assert digest(tmp_path / "abc.keras") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_describing_loads_no_framework(saved):
    program = """
        import sys
        from cvdask.segmentation.model_file import describe
        from cvdask.segmentation.unet import flops_per_pixel, halo, n_parameters
        architecture = describe(sys.argv[1]).architecture
        print(halo(architecture), n_parameters(architecture), flops_per_pixel(architecture) > 0)
        assert not {"keras", "tensorflow", "jax", "torch"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in program.splitlines()), saved],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", str(n_parameters(PRESETS["fast"])), "True"]


# ---------------------------------------------------------------------------------------------
# The value


@given(
    classes=st.dictionaries(st.integers(1, 254), st.text(min_size=1), min_size=1).filter(
        lambda classes: len(set(classes.values())) == len(classes)
    ),
    mean=st.floats(-1e6, 1e6),
    sd=st.floats(1e-6, 1e6),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_a_value_comes_back_from_json_and_from_a_worker(classes, mean, sd, dtype):
    unet = UNet(Architecture(len(classes) + 1), classes, mean, sd, (40, 10, 10), dtype)
    assert UNet.from_dict(json.loads(json.dumps(unet.as_dict()))) == unet
    assert pickle.loads(pickle.dumps(unet)) == unet
    assert unet.values == (0, *sorted(classes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": {0: "a", 1: "b"}}, r"1 to 254.*0 for 'a'"),
        ({"classes": {1: "a", 255: "b"}}, r"255 for 'b'"),
        ({"classes": {True: "a", 2: "b"}}, r"True for 'a'"),
        ({"classes": {1: "a", 2: ""}}, r"'' for value 2"),
        ({"classes": {1: "a", 2: "a"}}, r"of its own.*\{1: 'a', 2: 'a'\}"),
        ({"classes": {1: "a"}}, r"3 outputs.*2 classes.*1 classes: \{1: 'a'\}"),
        ({"mean": float("nan")}, r"mean.*nan"),
        ({"mean": "0"}, r"mean.*'0'"),
        ({"sd": 0.0}, r"sd.*0\.0"),
        ({"sd": float("inf")}, r"sd.*inf"),
        ({"voxel_size_nm": (10, 10)}, r"z, y, x.*\(10\.0, 10\.0\)"),
        ({"voxel_size_nm": (40, 0, 10)}, r"z, y, x.*\(40\.0, 0\.0, 10\.0\)"),
        ({"image_dtype": "complex64"}, r"uint8.*'complex64'"),
        ({"image_dtype": "grey"}, r"uint8.*'grey'"),
    ],
)
def test_what_cannot_describe_a_network_is_refused(options, message):
    unet, _ = network()
    with pytest.raises(ValueError, match=message):
        replace(unet, **options)


def test_a_model_of_another_architecture_is_not_saved(tmp_path):
    unet, model = network()
    other = replace(unet, architecture=replace(unet.architecture, base_width=3))
    with pytest.raises(ValueError, match=rf"{n_parameters(unet.architecture)} numbers$"):
        save(other, model, tmp_path / "unet.keras")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"\.keras.*unet\.h5"):
        save(*network(), tmp_path / "unet.h5")


def test_a_run_that_is_no_json_is_not_saved(tmp_path):
    unet, model = network()
    for run in ({"path": tmp_path}, {"loss": float("nan")}):
        with pytest.raises(ValueError, match="JSON"):
            save(replace(unet, run=run), model, tmp_path / "unet.keras")


# ---------------------------------------------------------------------------------------------
# Damaged


def test_a_file_that_is_not_there(tmp_path):
    for read in (describe, load, digest):
        with pytest.raises(FileNotFoundError, match=r"none\.keras"):
            read(tmp_path / "none.keras")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -30])
def test_a_file_that_was_cut_off(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    for read in (describe, load):
        with pytest.raises(ValueError, match=r"unet\.keras is no \.keras file"):
            read(saved)


@pytest.mark.parametrize("name", ["cvdask.json", "model.weights.h5"])
def test_a_flipped_bit(saved, name):
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        member = archive.getinfo(name)
    data[member.header_offset + 200 + member.file_size // 2] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged: Bad CRC"):
        load(saved)


def test_a_network_of_keras_that_is_not_ours(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    for read in (describe, load):
        with pytest.raises(ValueError, match=r"cvdask\.json once.*0 times, among 3 members"):
            read(tmp_path / "other.keras")


def test_weights_that_are_missing(saved):
    contents = members(saved)
    del contents["model.weights.h5"]
    rewrite(saved, contents)
    with pytest.raises(ValueError, match=r"model\.weights\.h5 once.*0 times"):
        load(saved)
    assert describe(saved) == network()[0]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_member_that_is_there_twice(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("cvdask.json", "{}")
    with pytest.raises(ValueError, match=r"cvdask\.json once.*2 times"):
        describe(saved)


def test_members_that_would_grow_when_they_are_read(saved):
    rewrite(saved, members(saved), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"uncompressed.*method 8"):
        describe(saved)


def test_metadata_that_is_too_large(saved, monkeypatch):
    size = len(members(saved)["cvdask.json"])
    monkeypatch.setattr(model_file, "LARGEST_METADATA", size - 1)
    with pytest.raises(ValueError, match=rf"{size - 1} bytes\. Received: {size}"):
        describe(saved)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}', b"null"]
)
def test_metadata_that_is_no_network(saved, text):
    rewrite(saved, {**members(saved), "cvdask.json": text})
    with pytest.raises(ValueError, match=r"unet\.keras: cvdask\.json"):
        describe(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, r"mean.*NoneType"),
        ({"mean": True}, r"mean.*True"),
        ({"sd": -1}, r"sd.*-1"),
        ({"mean": 10**400}, r"cvdask\.json"),
        ({"classes": {"x": "a", "2": "b"}}, r"\['2', 'x'\]"),
        ({"classes": ["a", "b"]}, r"classes.*list"),
        ({"classes": {"1": ["a"], "2": "b"}}, r"\['a'\]"),
        ({"voxel_size_nm": [1, 1, "1"]}, r"voxel_size_nm.*'1'"),
        ({"image_dtype": "O"}, r"image_dtype.*'O'"),
        ({"architecture": {"preset": "fast"}}, r"architecture.*\['preset'\]"),
        ({"extra": 1}, r"'extra'"),
    ],
)
def test_metadata_with_values_that_do_not_fit(saved, change, message):
    edit_metadata(saved, lambda values: values.update(change))
    with pytest.raises(ValueError, match=message):
        describe(saved)


@pytest.mark.parametrize("width", [1, 1024])
def test_weights_of_another_size_are_not_even_read(saved, width):
    edit_metadata(saved, lambda values: values["architecture"].update(base_width=width))
    n_bytes = 4 * n_parameters(replace(PRESETS["fast"], base_width=width))
    if width == 1:  # a smaller network fits into the bytes; its shapes do not
        with pytest.raises(ValueError, match=r"\(3, 3, 1, 1\) float32.*\(3, 3, 1, 2\)"):
            load(saved)
    else:
        with pytest.raises(ValueError, match=rf"{n_bytes} bytes.*of \d+ bytes"):
            load(saved)


def replaced(file: h5py.File, **options: Any) -> None:
    """Put another array in the place of the first kernel."""
    data = file[KERNEL][()]
    del file[KERNEL]
    file.create_dataset(KERNEL, **{"data": data, **options})


def linked(file: h5py.File, link: Any) -> None:
    file["elsewhere"] = file[KERNEL][()]
    del file[KERNEL]
    file[KERNEL] = link


def virtual(file: h5py.File) -> None:
    file["elsewhere"] = file[KERNEL][()]
    layout = h5py.VirtualLayout((3, 3, 1, 2), np.float32)
    layout[...] = h5py.VirtualSource(".", "elsewhere", (3, 3, 1, 2))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def external(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 1, 2), np.float32, external=[("/dev/zero", 0, 72)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: replaced(file, shape=(3, 3, 2, 1)), r"\(3, 3, 1, 2\).*\(3, 3, 2, 1\)"),
        (lambda file: replaced(file, dtype=np.float64), r"float32.*float64"),
        (lambda file: replaced(file, chunks=(3, 3, 1, 2), compression="gzip"), "in one piece"),
        (lambda file: linked(file, h5py.SoftLink("/elsewhere")), r"vars/0.*SoftLink"),
        (lambda file: linked(file, h5py.ExternalLink("a.h5", "/x")), r"vars/0.*ExternalLink"),
        (virtual, "in the file itself"),
        (external, "in the file itself"),
        (lambda file: file[KERNEL].write_direct(np.full((3, 3, 1, 2), np.nan)), "finite"),
        (lambda file: file.pop(KERNEL), r"vars/0.*nothing"),
        (lambda file: file.pop("layers/conv2d"), "down0 is missing"),
        (lambda file: file.pop("layers"), r"/layers.*nothing"),
        (lambda file: (file.pop("layers"), file.create_dataset("layers", data=1)), "Dataset"),
    ],
)
def test_arrays_that_are_not_those_of_the_network(saved, edit, message):
    edit_weights(saved, edit)
    with pytest.raises(ValueError, match=rf"(?s)unet\.keras: model\.weights\.h5.*{message}"):
        load(saved)


def test_weights_that_are_no_hdf5(saved):
    contents = members(saved)
    rewrite(saved, {**contents, "model.weights.h5": bytes(len(contents["model.weights.h5"]))})
    with pytest.raises(ValueError, match=r"model\.weights\.h5 does not hold"):
        load(saved)


# ---------------------------------------------------------------------------------------------
# Malicious


def test_code_in_a_file_is_never_executed(saved, tmp_path):
    trace = tmp_path / "it ran"
    path = str(trace)
    image = keras.Input((None, None, 1))
    payload = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1])
    trap = keras.Model(image, payload(image))
    config = trap.to_json().encode()
    rewrite(tmp_path / "trap.keras", {**members(saved), "config.json": config})

    # The trap works: whoever lets Keras read it without its safe mode runs what it says.
    trace.unlink(missing_ok=True)
    keras.saving.load_model(tmp_path / "trap.keras", safe_mode=False)
    assert trace.exists()

    trace.unlink()
    assert describe(tmp_path / "trap.keras") == network()[0]
    np.testing.assert_array_equal(apply(load(tmp_path / "trap.keras")[1]), apply(network()[1]))
    assert not trace.exists()


@pytest.mark.parametrize("config", [None, b"not JSON", b"import"])
def test_the_configuration_of_keras_is_not_looked_at(saved, tmp_path, config):
    contents = members(saved)
    trace = tmp_path / "it ran"
    if config is None:
        del contents["config.json"]
    elif config == b"import":
        call = {"module": "os", "class_name": "system", "config": f"touch '{trace}'"}
        contents["config.json"] = json.dumps({**call, "registered_name": "system"}).encode()
    else:
        contents["config.json"] = config
    rewrite(saved, contents)
    np.testing.assert_array_equal(apply(load(saved)[1]), apply(network()[1]))
    assert not trace.exists()
