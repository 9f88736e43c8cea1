"""Loading the network framework without its noise."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module


def load_framework(verbose: bool, *, training: bool = False) -> None:
    """Import the network framework without what its C++ parts write past Python on loading.

    A dozen lines about the processor and drivers that are absent hide what we have to say. They
    are shown with ``-v``, and when the import fails.

    Parameters
    ----------
    verbose : bool
    training : bool
        Whether networks will be trained, and not run on volumes. TensorFlow then uses oneDNN, also
        on processors where it would not by itself: with AVX2 a training step takes 0.6 to 0.8 of
        the time, though a forward pass alone takes longer.
    """
    if "keras" in sys.modules:
        return
    if training:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if verbose:
        return
    # Read by TensorFlow when it is loaded, here and in the processes that are started from here:
    # errors about a GPU that is not there are its habit too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            import_module("cvdask.segmentation.layers")
        except BaseException:
            kept.seek(0)
            os.write(standard_error, kept.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
