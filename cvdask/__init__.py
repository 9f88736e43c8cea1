"""Volume electron microscopy of heart cells, from the microscope's files to numbers.

How does the data travel? Every arrow is a stage: it reads a volume and writes one, it can be run
alone, again, or on another machine, and it meets the next stage on disk only::

    numbered slices, TIFF, MRC, HDF5 …        nothing but a seed
                  │ ingest                            │ phantom
                  └───────────────▶ volume ◀──────────┘
                                      │    one OME-Zarr image: levels 0, 1, 2 …
                                      │    and labels/<name> with levels of their own
              ┌──────────────┬────────┴─────┬──────────────┐
              │ pyramid      │ info         │ verify       │ export
              ▼              ▼              ▼              ▼
        coarser levels   what is in it   is it intact   TIFF, PNG

    volume with annotations ── train_unet ──▶ unet.keras
                                                  │ segment, of any volume
                  scores ◀── evaluate ── labels/classes ── density ──────▶ density image
                                                ├───────── descriptors ──▶ table
                                                ├───────── measure ──────▶ table of objects
                                                └── label ── labels/<class> ── mesh ──▶ surfaces

    labels/classes ── train_gan ──▶ gan.keras ── generate ──▶ ensemble, many volumes in one
                                                                 │ distance, from real ones
                                                        numbers, each beside its floor

1. :func:`ingest` turns microscope files into a volume; :func:`phantom` makes one, with its truth.
2. :func:`pyramid` adds the coarser levels.
3. :func:`info` tells what is there; :func:`verify` reads it all back and compares checksums.
4. :func:`export` cuts a :class:`Box` out for programs that want a TIFF or a PNG.
5. :func:`train_unet` learns from a few annotated slices; :func:`segment` classifies every voxel of
   a volume with what was learned; :func:`evaluate` scores that, class by class.
6. :func:`density` counts one class for each voxel of another around every place;
   :func:`descriptors` describes the classes of a volume by fractions, interfaces, correlations and
   thickness; :func:`label` numbers the objects of a class, :func:`measure` tells size and shape of
   each; :func:`mesh` writes the surfaces of chosen objects, or of classes, as triangles.
7. :func:`train_gan` learns what the label slices of a cell look like; :func:`generate` makes an
   :class:`Ensemble` of label volumes with what was learned; :func:`order` puts independent slices
   into the shortest order; :func:`distance` tells how far they are from real ones.
8. :func:`compare` tests how groups of volumes differ, with the volume as the unit, and draws it;
   :func:`report` makes one HTML page of that.
9. :func:`view` shows samples in a browser.
10. :func:`run` goes the whole way of a config, stage after stage, and passes by what is done;
    :func:`init` writes such a config.

:func:`open` describes a volume at a path or URL as a :class:`Volume`. Each stage is a subcommand of
``cvdask`` too, under the same name and with the same options (``train-unet`` with a hyphen).

Importing this package imports none of the stages: a name is fetched when it is first used, so that
the command's help and every worker start without the libraries they do not need.

>>> import cvdask
>>> cvdask.Box.parse("0:2,:,3", (4, 5, 6)).shape
(2, 5, 1)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvdask.comparison.compare import compare
    from cvdask.comparison.report import report
    from cvdask.morphometry.components import label
    from cvdask.morphometry.density import density
    from cvdask.morphometry.descriptors import descriptors
    from cvdask.morphometry.mesh import mesh
    from cvdask.morphometry.objects import measure
    from cvdask.pipeline.init import init
    from cvdask.pipeline.run import run
    from cvdask.segmentation.evaluate import evaluate
    from cvdask.segmentation.predict import segment
    from cvdask.segmentation.study import study_imbalance
    from cvdask.segmentation.train import train as train_unet
    from cvdask.synthesis.distance import distance
    from cvdask.synthesis.generate import generate
    from cvdask.synthesis.order import order
    from cvdask.synthesis.train import train_gan
    from cvdask.viewer.view import view
    from cvdask.volume.boxes import Box
    from cvdask.volume.ensemble import Ensemble, open_ensemble
    from cvdask.volume.export import export
    from cvdask.volume.info import info
    from cvdask.volume.ingest import ingest
    from cvdask.volume.phantom import phantom
    from cvdask.volume.pyramid import pyramid
    from cvdask.volume.store import Volume
    from cvdask.volume.store import open_volume as open
    from cvdask.volume.verify import verify

__all__ = [
    "Box",
    "Ensemble",
    "Volume",
    "compare",
    "density",
    "descriptors",
    "distance",
    "evaluate",
    "export",
    "generate",
    "info",
    "ingest",
    "init",
    "label",
    "measure",
    "mesh",
    "open",
    "open_ensemble",
    "order",
    "phantom",
    "pyramid",
    "report",
    "run",
    "segment",
    "study_imbalance",
    "train_gan",
    "train_unet",
    "verify",
    "view",
]

__version__ = version("cvdask")

_HOME = {
    "Box": ("cvdask.volume.boxes", "Box"),
    "Ensemble": ("cvdask.volume.ensemble", "Ensemble"),
    "Volume": ("cvdask.volume.store", "Volume"),
    "compare": ("cvdask.comparison.compare", "compare"),
    "density": ("cvdask.morphometry.density", "density"),
    "descriptors": ("cvdask.morphometry.descriptors", "descriptors"),
    "distance": ("cvdask.synthesis.distance", "distance"),
    "evaluate": ("cvdask.segmentation.evaluate", "evaluate"),
    "generate": ("cvdask.synthesis.generate", "generate"),
    "init": ("cvdask.pipeline.init", "init"),
    "label": ("cvdask.morphometry.components", "label"),
    "measure": ("cvdask.morphometry.objects", "measure"),
    "mesh": ("cvdask.morphometry.mesh", "mesh"),
    "open": ("cvdask.volume.store", "open_volume"),
    "open_ensemble": ("cvdask.volume.ensemble", "open_ensemble"),
    "order": ("cvdask.synthesis.order", "order"),
    "report": ("cvdask.comparison.report", "report"),
    "run": ("cvdask.pipeline.run", "run"),
    "segment": ("cvdask.segmentation.predict", "segment"),
    "study_imbalance": ("cvdask.segmentation.study", "study_imbalance"),
    "train_gan": ("cvdask.synthesis.train", "train_gan"),
    "train_unet": ("cvdask.segmentation.train", "train"),
    "view": ("cvdask.viewer.view", "view"),
}  # any other name lives in the module of its own name under cvdask.volume


def __getattr__(name: str) -> object:
    """Fetch a public name from its module on first use, and keep it."""
    if name not in __all__:
        raise AttributeError(f"module 'cvdask' has no attribute {name!r}; it has {__all__}")
    module, attribute = _HOME.get(name, (f"cvdask.volume.{name}", name))
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
