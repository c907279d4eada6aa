"""Change the code on purpose and see whether a test notices: a fixed sample of changes a module.

Works in a copy below .mutants, keeps there what was noticed, and tries the rest again at the next call.
Changes that no test can notice stand with their reasons in tests/mutants.toml.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import tomllib
from argparse import ArgumentParser
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".mutants"
TREE, CACHE = WORK / "tree", WORK / "numba"
GROUPS = {
    "patterns": "smc_ml/patterns/*.py",
    "labels": "smc_ml/labels/*.py",
    "features": "smc_ml/features/*.py",
    "costs": "smc_ml/costs.py",
    "account": "smc_ml/trading/*.py",
    "metrics": "smc_ml/evaluation/*.py",
    "ensemble": "smc_ml/ensemble/*.py",
}
LEFT_OUT = ("config.py", "names.py", "__init__.py")  # settings and words
SLOW = (
    "test_pipeline_end_to_end.py",
    "test_kill_and_resume.py",
    "test_trials_in_experiments.py",
    "test_same_bytes.py",
)
SECONDS = 600  # a test that takes longer has noticed
ALIKE = ("core/RemoveDecorator", "core/ExceptionReplacer")  # numba's decorators change nothing but speed


class Bare(ast.NodeTransformer):
    "Code without annotations and docstrings: what runs."

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def bare(source: str) -> str:
    "The running part of a source, in a form that can be compared."
    return ast.dump(Bare().visit(ast.parse(source)))


def modules(groups: Iterable[str]) -> list[Path]:
    "Paths of the modules of the groups, relative to the project."
    found = [path for group in groups for path in sorted(ROOT.glob(GROUPS[group]))]
    return [path.relative_to(ROOT) for path in found if path.name not in LEFT_OUT]


def dotted(module: Path) -> str:
    "The name under which a module is imported."
    return ".".join(module.with_suffix("").parts)


def imports(path: Path, name: str) -> bool:
    "Whether a file of tests names a module in an import."
    package, _, last = name.rpartition(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in (name, package):
            if node.module == name or last in {alias.name for alias in node.names}:
                return True
    return False


def command(module: Path) -> list[str]:
    "The tests that look at a module: its notebook, and every file of tests that imports it."
    (notebook,) = (ROOT / "nbs" / module.parent.relative_to("smc_ml")).glob(f"[0-9][0-9]_{module.stem}.ipynb")
    name = dotted(module)
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.name not in SLOW]
    chosen = [str(path.relative_to(ROOT)) for path in files if imports(path, name)]
    first = f"tests/test_notebooks.py::test_notebook_runs[{notebook.parent.name}/{notebook.stem}]"
    return ["pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", first, *chosen]


def noticed(module: Path) -> bool:
    "Whether a test of the module fails in the copy, where the module is changed."
    cache = WORK / "numba_now"  # compiled code of other modules may hold the old code of this one
    shutil.rmtree(cache, ignore_errors=True)
    CACHE.mkdir(exist_ok=True)
    shutil.copytree(CACHE, cache, ignore=shutil.ignore_patterns(*stale(module)))
    return fails(module, cache)


def fails(module: Path, cache: Path) -> bool:
    "Whether a test of the module fails in the copy, with compiled code kept in a folder."
    told = {"PYTHONPATH": str(TREE), "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    market = os.environ.get("SMC_ML_MARKET", str(ROOT.parent / "shared" / "market"))
    told |= {"SMC_ML_MARKET": market, "PYTHONHASHSEED": "0"}
    options = {"cwd": TREE, "env": os.environ | told, "capture_output": True, "timeout": SECONDS}
    try:
        return subprocess.run(command(module), **options).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def stale(module: Path) -> list[str]:
    "File patterns of compiled code that rests on a module."
    name = dotted(module)
    users = [path for path in ROOT.glob("smc_ml/**/*.py") if path.name != "_modidx.py" and uses(path, name)]
    return [f"{path.stem}.*" for path in users] + [f"{module.stem}.*"]


def uses(path: Path, name: str) -> bool:
    "Whether a module imports another, directly or not."
    from smc_ml.provenance import import_closure

    closure = import_closure(path.read_text(encoding="utf-8"), ROOT, tuple(dotted(path).split(".")[:-1]))
    return f"{name.replace('.', '/')}.py" in closure


def digest(text: str) -> str:
    "A fixed number of a text."
    return hashlib.sha256(text.encode()).hexdigest()


def changes(module: Path, size: int) -> Iterator[tuple[str, str]]:
    "The changes that are tried, by name, with the changed source: the same while the module is the same."
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / module).read_text(encoding="utf-8")
    real, found, version = bare(source), {}, digest(source)[:8]
    for item in _all_work_items([ROOT / module], {}):
        (mutation,) = item.mutations
        if mutation.operator_name not in ALIKE:
            operator = mutation.operator_name.removeprefix("core/")
            found[f"{module}:{mutation.definition_name}:{operator}:{mutation.occurrence}:{version}"] = (
                mutation
            )
    order = sorted(found, key=digest)
    for name in order:
        changed = mutate_code(source, get_operator(found[name].operator_name)(), found[name].occurrence)
        if changed is not None and bare(changed) != real:
            size -= 1
            yield name, changed
        if size == 0:
            return


def difference(module: Path, changed: str) -> str:
    "The changed line, before and after."
    source = (ROOT / module).read_text(encoding="utf-8")
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    return " → ".join(next((old.strip(), new.strip()) for old, new in pairs if old != new))


def try_module(module: Path, size: int, done: Collection[str], record: TextIO) -> None:
    "Try what was not noticed yet of a module's sample, and write down each answer at once."
    left = [(name, changed) for name, changed in changes(module, size) if name not in done]
    if not left:
        return
    if fails(module, CACHE):
        raise SystemExit(f"{module}: its tests fail without any change: {' '.join(command(module))}")
    for name, changed in tqdm(left, desc=str(module), leave=False):
        copy = TREE / module
        copy.write_text(changed, encoding="utf-8")
        line = {"name": name, "noticed": noticed(module), "change": difference(module, changed)}
        shutil.copy2(ROOT / module, copy)
        record.write(json.dumps(line, ensure_ascii=False) + "\n")
        record.flush()


def copy_project() -> None:
    "The project as it is now: code, notebooks and tests."
    for folder in (TREE, CACHE):
        shutil.rmtree(folder, ignore_errors=True)
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for file in files.splitlines():
        (TREE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, TREE / file)


def report(groups: Iterable[str], record: Path) -> None:
    "How many changes were noticed, by group, and the survivors without a reason."
    lines = {line["name"]: line for line in map(json.loads, record.read_text(encoding="utf-8").splitlines())}
    reasons = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    for group in groups:
        names = {str(module) for module in modules([group])}
        tried = [line for line in lines.values() if line["name"].split(":")[0] in names]
        caught = sum(line["noticed"] for line in tried)
        alike = sum(line["change"] in reasons for line in tried if not line["noticed"])
        print(f"{group}: {caught} of {len(tried)} noticed, {alike} more cannot be")
        for line in tried:
            if not line["noticed"] and line["change"] not in reasons:
                print(f"  {line['name']}\n    {line['change']}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--each", type=int, default=8, help="changes a module")
    asked = parser.parse_args()
    copy_project()
    WORK.joinpath("done.jsonl").touch()
    with WORK.joinpath("done.jsonl").open("r+", encoding="utf-8") as record:
        done = {line["name"] for line in map(json.loads, record) if line["noticed"]}
        for module in modules(asked.groups):
            try_module(module, asked.each, done, record)
    report(asked.groups, WORK / "done.jsonl")
