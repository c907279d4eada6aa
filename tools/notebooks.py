"""Run a notebook cell by cell on the shipped module: for the tests, and for the pages of `make docs`.

An exported cell is not run a second time: its definitions are imported from the module that nbdev wrote from
it. So a proof tests what a user imports, compiled functions come from their cache, and coverage counts the
lines of `smc_ml`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob

EXPORTS = {"export", "exporti"}
SKIPPED = {"eval: false", *get_config().tst_flags.split()}


def notebooks_that_run() -> list[Path]:
    "Every notebook but those of the stages, which run in the pipeline."
    return sorted(path for path in nbglob(as_path=True) if not (path.parent / ".notest").exists())


def directives(source: str) -> set[str]:
    "What stands behind `#|` in a cell."
    return {line.strip() for line in re.findall(r"^#\|(.*)$", source, re.MULTILINE)}


def module_of(cells: list[nbformat.NotebookNode]) -> str | None:
    "The module that a notebook makes; None: it makes none."
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    named = re.search(r"^#\| default_exp (\S+)", code, re.MULTILINE)
    return f"smc_ml.{named[1]}" if named else None


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


def runnable(
    cells: list[nbformat.NotebookNode],  # of a notebook
    skipped: frozenset[str] = frozenset(SKIPPED),  # directives of cells that do not run
) -> Iterator[tuple[nbformat.NotebookNode, str]]:
    "Each code cell that runs, with the code that stands for it."
    module = module_of(cells)
    for cell in cells:
        if cell.cell_type == "code" and not directives(cell.source) & skipped:
            exported = directives(cell.source) & EXPORTS
            yield cell, shipped(cell.source, str(module)) if exported else cell.source


def outputs_of(shell: CaptureShell, source: str, where: str) -> list[dict[str, Any]]:
    "What a cell puts out; an AssertionError that shows the cell where it fails."
    found = shell.run(source)
    if shell.exc:
        raise AssertionError(f"{where}, in the cell:\n{source}") from shell.exc
    return list(found)
