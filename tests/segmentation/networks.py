"""Small trained networks on disk: random weights, as a training could have left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvdask.segmentation import model_file
from cvdask.segmentation.forward import supports_bfloat16
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.unet import Architecture, build, stride

needs_bfloat16 = pytest.mark.skipif(
    not supports_bfloat16(), reason="this processor has no bfloat16 instructions"
)

# Sees 21 voxels to each side; a halo and a stride that 61 × 83 slices do not divide by.
TINY = Architecture(n_classes=3, base_width=4, depth=2)
CLASSES = {2: "mitochondria", 7: "z disc"}


def write_network(path: Path, architecture: Architecture = TINY, **changes: Any) -> UNet:
    """Write a network with random weights to a file.

    Parameters
    ----------
    path : Path
    architecture : Architecture
        With as many outputs as ``classes``, and background.
    **changes
        Fields of :class:`UNet` other than those of uint8 images of 40 × 10 × 10 nm voxels.
    """
    fields = {
        "classes": CLASSES,
        "mean": 120.0,
        "sd": 50.0,
        "voxel_size_nm": (40.0, 10.0, 10.0),
        "image_dtype": "uint8",
        **changes,
    }
    unet = UNet(architecture, **fields)
    model = build(architecture)
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "kernel":
            gain = np.prod(weight.shape[:-1]) ** -0.5 * (4 if "logits" in weight.path else 1)
            weight.assign(random.normal(0, gain, weight.shape))
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.5, 2, weight.shape))
        else:
            weight.assign(weight + random.normal(0, 0.2, weight.shape))
    model_file.save(unet, model, path)
    return unet


def texture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Draw grey values with structures of a few voxels, so that classes form patches."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (shape[0], shape[1] // 5 + 1, shape[2] // 5 + 1))
    grey = coarse.repeat(5, 1).repeat(5, 2)[:, : shape[1], : shape[2]]
    return (grey + random.integers(0, 56, shape)).astype(np.uint8)


def whole_slices(path: Path, image: np.ndarray) -> np.ndarray:
    """Return class probabilities of whole slices, by Keras alone: (Z, Y, X, C) float32."""
    import keras

    unet, model = model_file.load(path)
    step = stride(unet.architecture)
    grey = (image.astype(np.float32) - unet.mean) / unet.sd
    padded = np.pad(grey, [(0, 0), (0, -image.shape[1] % step), (0, -image.shape[2] % step)])
    out = keras.ops.convert_to_numpy(model(padded[..., None], training=False))
    return np.asarray(out[:, : image.shape[1], : image.shape[2]])


def clear_of_ties(probabilities: np.ndarray, margin: float = 1e-4) -> np.ndarray:
    """Tell where the likeliest class leads by more than rounding can change."""
    two = np.sort(probabilities, axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0] > margin
