"""Do imports go down only, and does starting cvdask stay light?

1. ``MAY_IMPORT`` is the table of layers. Every import in every file is held against it, also the
   late ones inside functions and the ones for type checkers.
2. ``DOORS`` names the only modules that may know a foreign library.
3. What no reading of the files can tell is tried in a fresh process: which libraries are loaded.

A new module belongs to no row and fails until it is added: that is the moment to think about where
it stands.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import cvdask

ROOT = Path(cvdask.__file__).parent

VALUES = (
    "cvdask.compiled",
    "cvdask.errors",
    "cvdask.volume.boxes",
    "cvdask.volume.colors",
)
STORE = (
    *VALUES,
    "cvdask.volume.array_metadata",
    "cvdask.volume.objects",
    "cvdask.volume.ome",
    "cvdask.volume.shards",
    "cvdask.volume.store",
)
# The version goes into the provenance of what is written; asking for it imports no module.
ENGINE = (*STORE, "cvdask.engine.*", "cvdask.__version__")
VOLUME = (*ENGINE, "cvdask.volume.*")

# A synthetic cell: what all its shapes stand on, and those who put them together.
GROUND = (
    *VALUES,
    *(f"cvdask.volume.cell.{name}" for name in ("chance", "layout", "voxels")),
)
CELL = (*VALUES, "cvdask.volume.cell.*")

# module: what it may import of cvdask. The first row that matches holds.
MAY_IMPORT = {
    # For type checkers only: at run time names are fetched late.
    "cvdask.compiled": (),
    "cvdask": (
        "cvdask.volume.*",
        "cvdask.segmentation.*",
        "cvdask.morphometry.*",
        "cvdask.synthesis.*",
        "cvdask.comparison.*",
        "cvdask.viewer.*",
        "cvdask.pipeline.*",
    ),
    "cvdask.__main__": ("cvdask.cli",),
    "cvdask.errors": (),
    "cvdask.volume": (),
    "cvdask.volume.boxes": (),
    "cvdask.volume.colors": (),
    "cvdask.volume.objects": ("cvdask.errors",),
    "cvdask.volume.array_metadata": (),
    "cvdask.volume.ome": VALUES,
    "cvdask.volume.shards": VALUES,
    "cvdask.volume.store": STORE,
    "cvdask.volume.cell": CELL,
    "cvdask.volume.cell.chance": ("cvdask.compiled",),
    "cvdask.volume.cell.layout": (
        *VALUES,
        "cvdask.compiled",
        "cvdask.volume.cell.chance",
    ),
    "cvdask.volume.cell.rendering": CELL,
    "cvdask.volume.cell.truth": CELL,
    "cvdask.volume.cell.*": GROUND,
    "cvdask.volume.slice_statistics": VALUES,
    "cvdask.volume.sources": (*STORE, "cvdask.volume.sources.*"),
    "cvdask.volume.sources.*": (*STORE, "cvdask.volume.sources", "cvdask.volume.sources.*"),
    "cvdask.engine": (),
    "cvdask.engine.*": ENGINE,
    "cvdask.volume.phantom": (*ENGINE, "cvdask.volume.cell", "cvdask.volume.pyramid"),
    "cvdask.volume.slabs": (
        *STORE,
        "cvdask.engine.ledger",
        "cvdask.volume.sources*",
        "cvdask.volume.slice_statistics",
    ),
    "cvdask.volume.ingest": (
        *ENGINE,
        "cvdask.volume.slabs",
        "cvdask.volume.sources*",
        "cvdask.volume.slice_statistics",
        "cvdask.volume.verify",
        "cvdask.volume.pyramid",
    ),
    "cvdask.volume.pyramid": ENGINE,
    "cvdask.volume.info": ENGINE,
    "cvdask.volume.verify": ENGINE,
    "cvdask.volume.export": ENGINE,
    "cvdask.volume.ensemble": ENGINE,
    "cvdask.volume.classes": STORE,
    "cvdask.volume.parquet": STORE,
    "cvdask.volume.scratch": STORE,
    "cvdask.networks": (),
    "cvdask.networks.*": (*STORE, "cvdask.networks.*"),
    "cvdask.segmentation*": (*VOLUME, "cvdask.networks.*", "cvdask.segmentation*"),
    "cvdask.synthesis*": (*VOLUME, "cvdask.networks.*", "cvdask.synthesis*"),
    "cvdask.morphometry*": (*VOLUME, "cvdask.morphometry*"),
    "cvdask.comparison*": (
        *ENGINE,
        "cvdask.volume.ensemble",
        "cvdask.volume.export",
        "cvdask.volume.parquet",
        "cvdask.synthesis.volume_jaccard",
        "cvdask.comparison*",
    ),
    "cvdask.viewer": (),
    "cvdask.viewer.serving": (),
    "cvdask.viewer.view": (*STORE, "cvdask.viewer.serving", "cvdask.volume.ensemble"),
    "cvdask.pipeline*": ("cvdask", "cvdask.*"),
    "cvdask.cli*": ("cvdask", "cvdask.*"),
}

NETWORKS = ("cvdask.networks.*", "cvdask.segmentation.*", "cvdask.synthesis.*")
STORAGE = (
    "cvdask.volume.objects",
    "cvdask.volume.shards",
    "cvdask.volume.store",
    "cvdask.volume.sources*",
)

# foreign library: the modules that may import it
DOORS = {
    "zarr": STORAGE,
    "obstore": STORAGE,
    "distributed": ("cvdask.engine.*",),
    "dask.distributed": ("cvdask.engine.*",),
    "dask_jobqueue": ("cvdask.engine.launch",),
    "kr8s": ("cvdask.engine.kubernetes",),
    "keras": NETWORKS,
    "tensorflow": NETWORKS,
    "jax": NETWORKS,
    "torch": NETWORKS,
    "openvino": ("cvdask.segmentation.quantise", "cvdask.segmentation.openvino_graph"),
    "nncf": ("cvdask.segmentation.quantise",),
}

FRAMEWORKS = ("keras", "tensorflow", "jax", "torch", "openvino", "nncf")


def module_name(path: Path) -> str:
    """Name the module in a file below the package: ``volume/boxes.py`` is cvdask.volume.boxes."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in FILES.items()}


def imports_of(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Yield the module behind every import of a file, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                keep = len(module.split(".")) - node.level + is_package
                source = ".".join([*module.split(".")[:keep], *source.split(".")]).rstrip(".")
            for alias in node.names:
                # "from package import name" means the module of that name, if there is one.
                submodule = f"{source}.{alias.name}"
                named = submodule in known or submodule in (*DOORS, "cvdask.__version__")
                yield submodule if named else source
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            name = node.args[0]
            is_text = isinstance(name, ast.Constant) and isinstance(name.value, str)
            if called in ("import_module", "__import__") and is_text:
                yield name.value


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def broken_rules(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> list[str]:
    """List in words what a file imports and must not."""
    row = next((row for row in MAY_IMPORT if fnmatchcase(module, row)), None)
    if row is None:
        return [f"{module} stands in no row of MAY_IMPORT: add it where it belongs"]
    broken = []
    for target in imports_of(tree, module, is_package, known):
        of_cvdask = target == "cvdask" or target.startswith("cvdask.")
        if of_cvdask and not matches(target, MAY_IMPORT[row]):
            broken.append(f"{module} must not import {target}; it may import {MAY_IMPORT[row]}")
        for library, doors in DOORS.items():
            if f"{target}.".startswith(f"{library}.") and not matches(module, doors):
                broken.append(f"{module} must not import {target}; only {doors} may")
    return broken


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module: str):
    is_package = FILES[module].name == "__init__.py"
    assert broken_rules(TREES[module], module, is_package, set(FILES)) == []


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("cvdask.volume.boxes", "import cvdask", "cvdask"),
        ("cvdask.volume.store", "from cvdask.engine import blockwise", "cvdask.engine.blockwise"),
        ("cvdask.volume.store", "from ..engine.blockwise import run", "cvdask.engine.blockwise"),
        ("cvdask.volume.pyramid", "from . import ingest", "cvdask.volume.ingest"),
        ("cvdask.volume.info", "def f():\n    import cvdask.cli", "cvdask.cli"),
        ("cvdask.volume.info", "import_module('cvdask.cli')", "cvdask.cli"),
        ("cvdask.volume.info", "importlib.import_module('zarr')", "zarr"),
        ("cvdask.volume.info", "if TYPE_CHECKING:\n    import zarr.storage", "zarr.storage"),
        ("cvdask.volume.ingest", "from dask import distributed", "dask.distributed"),
        ("cvdask.volume.ingest", "from distributed import Client", "distributed"),
        ("cvdask.morphometry.objects", "import keras", "keras"),
        (
            "cvdask.synthesis.order",
            "from cvdask.segmentation.metrics import f1",
            "cvdask.segmentation.metrics",
        ),
        ("cvdask.volume.extras", "", "MAY_IMPORT"),  # unknown
    ],
)
def test_the_table_refuses(module: str, source: str, target: str):
    known = {*FILES, "cvdask.engine.blockwise", "cvdask.volume.ingest"}
    (broken,) = broken_rules(ast.parse(source), module, False, known)
    assert module in broken
    assert target in broken


def test_every_door_is_allowed_to_open():
    tree = ast.parse("import zarr\nfrom cvdask.volume.boxes import Box")
    assert broken_rules(tree, "cvdask.volume.store", False, set(FILES)) == []


def loaded_after(code: str) -> list[str]:
    """Run code in a fresh Python and return which network frameworks it loaded."""
    program = textwrap.dedent(code) + textwrap.dedent(f"""
        import sys
        print("loaded:", *(name for name in {FRAMEWORKS} if name in sys.modules))
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_loaded_after_sees_what_is_loaded():
    code = "import sys, types; sys.modules['keras'] = types.ModuleType('keras')"
    assert loaded_after(code) == ["keras"]


def test_importing_cvdask_loads_no_framework_and_no_stage():
    code = """
        import sys
        import cvdask
        early = [name for name in sys.modules if name.startswith("cvdask.")]
        assert early == [], early
        assert "numpy" not in sys.modules
    """
    assert loaded_after(code) == []


def test_volume_and_engine_load_no_framework():
    parts = ("cvdask.volume", "cvdask.engine")
    modules = [module for module in FILES if module.startswith(parts)]
    assert len(modules) > len(parts)
    assert loaded_after("\n".join(f"import {module}" for module in modules)) == []


def test_help_loads_no_framework():
    code = """
        import sys
        from cvdask.cli import main
        sys.argv = ["cvdask", "--help"]
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
    """
    assert loaded_after(code) == []


def test_nothing_is_called_utils():
    vague = {"utils", "util", "tools", "misc", "common"}
    assert [module for module in FILES if vague & set(module.split("."))] == []


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions and classes of a file, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


@pytest.mark.parametrize("module", FILES)
def test_everything_public_has_a_docstring(module: str):
    without = [
        name for name, node in public_definitions(TREES[module]) if not ast.get_docstring(node)
    ]
    assert without == []


def test_every_public_name_is_found():
    for name in cvdask.__all__:
        assert callable(getattr(cvdask, name)), name
    assert set(cvdask.__all__) <= set(dir(cvdask))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'ingset'.*'ingest'"):
        _ = cvdask.ingset
