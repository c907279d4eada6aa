"""Every notebook of the library and of nbs/explore runs from top to bottom, its proofs on the shipped module.

An exported cell is not run a second time: its definitions are imported from the module that nbdev wrote from
it. So a proof tests what a user imports, compiled functions come from their cache, and coverage counts the
lines of `smc_ml`. Stage notebooks run in the end-to-end test.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob

NOTEBOOKS = sorted(path for path in nbglob(as_path=True) if not (path.parent / ".notest").exists())
EXPORTS = {"export", "exporti"}
SKIPPED = {"eval: false", *get_config().tst_flags.split()}


def directives(source: str) -> set[str]:
    return {line.strip() for line in re.findall(r"^#\|(.*)$", source, re.MULTILINE)}


def defined_names(statement: ast.stmt) -> list[str]:
    "Names that a statement binds at the top of a module."
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets += [statement.target] if isinstance(statement, ast.AnnAssign) else []
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def shipped(source: str, module: str) -> str:
    "An exported cell as imports: its own, and those of what it defines, from the module."
    body = ast.parse(source).body
    kept = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [name for node in body for name in defined_names(node)]
    return "\n".join(kept + [f"from {module} import {name}" for name in dict.fromkeys(names)])


def proofs(path: Path) -> list[str]:
    "The code of a notebook, cell by cell, with exported cells as imports."
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    named = re.search(r"^#\| default_exp (\S+)", "\n".join(cells), re.MULTILINE)
    kept = [source for source in cells if not directives(source) & SKIPPED]
    return [
        shipped(source, f"smc_ml.{named[1]}") if directives(source) & EXPORTS else source for source in kept
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(path.parent)
    shell = CaptureShell(path, mpl_format="png")
    for source in proofs(path):
        shell.run(source)
        if shell.exc:
            raise AssertionError(f"{path.name}, in the cell:\n{source}") from shell.exc


def test_an_exported_cell_is_imported_and_not_run_again():
    cell = '#| export\nimport numpy as np\nTWO, _THREE = 2, 3\ndef f(x):\n    return x\nprint("once")\n'
    imports = [
        "import numpy as np",
        "from smc_ml.m import TWO",
        "from smc_ml.m import _THREE",
        "from smc_ml.m import f",
    ]
    assert shipped(cell, "smc_ml.m").splitlines() == imports
