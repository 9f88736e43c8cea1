"""Colours and values that every label image shares."""

from __future__ import annotations

# Colours that colour-blind people can tell apart (Okabe and Ito 2008).
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

# Value of voxels that nobody has annotated: neither background nor any class.
UNANNOTATED = 255
