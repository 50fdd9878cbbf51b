"""Imports point upstream: a package imports only packages to its left in DESIGN's line."""

import ast
from pathlib import Path

import pytest

import impact_lightning

ROOT = Path(impact_lightning.__file__).parent
FLOW = [
    {"types"},
    {"ranks", "files", "random_bits", "steps", "measuring", "product"},
    {"results"},
    {"metrics"},
    {"data"},
    {"backbones"},
    {"activations"},
    {"sparsity"},
    {"neurons", "sae", "circuits", "attribution"},
    {"collapse", "replacement", "bridges"},
    {"suite"},
    {"report"},
    {"training", "mistakes"},
    {"impact"},
    {"cli"},
]
TIER = {name: tier for tier, names in enumerate(FLOW) for name in names}
PATHS = sorted(path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith("__"))


def imports(path: Path) -> set[tuple[str, ...]]:
    here = (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}  # `from package import sae` counts too
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_upstream(path: Path) -> None:
    own = package_of(path)
    used = {name[1] for name in imports(path) if name[0] == ROOT.name and len(name) > 1} & TIER.keys()
    wrong = {other for other in used if other != own and TIER[other] >= TIER[own]}
    assert not wrong, f"{own} imports {wrong}"


def test_every_package_has_a_place_in_the_flow() -> None:
    assert {package_of(path) for path in PATHS} <= TIER.keys()


@pytest.mark.parametrize("name", ["wandb", "jsonargparse", "matplotlib", "h5py", "datasets"])
def test_optional_packages_are_imported_only_inside_functions(name: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in PATHS
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and name in ast.unparse(node).replace(",", " ").replace(".", " ").split()
    }
    assert importers <= {"cli.py"}
