"""Measure what the style asks for: lengths of functions, and public names that stand in two modules.

`python tools/measure.py` prints both by package; `tests/test_repository.py` holds them to their limits.
"""

import ast
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMPILED = {"njit", "jit", "vectorize", "guvectorize"}  # decorators of numba: kernels may be long
REGISTERED = {"make", "save", "load"}  # of every model's module: one meaning, called through the registry
FACED = {"judge", "resample", "walk_forward"}  # of the facade: the same, of what a session has at hand
MEDIAN, NINETIETH, LONGEST = 10, 30, 60  # lines of a formatted function


class Function(NamedTuple):
    "A function or method of the package."

    package: str
    place: str  # module:name
    lines: int
    compiled: bool  # by numba


def modules() -> list[Path]:
    "Modules that are made from notebooks."
    return sorted(path for path in (ROOT / "smc_ml").rglob("*.py") if path.name[0] != "_")


def is_compiled(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    "Whether numba compiles it."
    names = {
        node.id for each in function.decorator_list for node in ast.walk(each) if isinstance(node, ast.Name)
    }
    return bool(names & COMPILED)


def functions() -> list[Function]:
    "All functions and methods with their lines, from `def` to the last."
    found = []
    for path in modules():
        package = path.parent.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                found.append(
                    Function(package, f"{package}/{path.stem}:{node.name}", lines, is_compiled(node))
                )
    return found


def too_long(found: list[Function]) -> list[str]:
    "Functions above the limit that are no kernels."
    return [f"{each.place} {each.lines}" for each in found if each.lines > LONGEST and not each.compiled]


def public_names(path: Path) -> list[str]:
    "What a module exports."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def names_in_two_modules() -> dict[str, list[str]]:
    "Public names that mean two things, with their modules."
    places = defaultdict(list)
    for path in modules():
        named = REGISTERED | (FACED if path.parent.name == "facade" else set())
        for name in set(public_names(path)) - named:
            places[name].append(path.relative_to(ROOT).as_posix())
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def ninetieth(lines: list[int]) -> float:
    "The 90th percentile."
    return quantiles(lines, n=10, method="inclusive")[-1] if len(lines) > 1 else lines[0]


def main() -> None:
    "Print a row for each package, then what is too long and what is ambiguous."
    found = functions()
    for package in ["smc_ml (all)", *dict.fromkeys(each.package for each in found)]:
        lines = [each.lines for each in found if package in ("smc_ml (all)", each.package)]
        row = (
            f"{len(lines):5} functions, median {median(lines):4.0f}, 90th percentile {ninetieth(lines):4.0f}"
        )
        print(f"{package:28} {row}, longest {max(lines)}")
    print("too long:", *too_long(found) or ["none"], sep="\n  ")
    doubled = [f"{name}: {', '.join(places)}" for name, places in names_in_two_modules().items()]
    print("public names in two modules:", *doubled or ["none"], sep="\n  ")


if __name__ == "__main__":
    main()
