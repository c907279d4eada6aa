"""Change the code on purpose and see whether a test notices: a fixed sample of changes a module.

Works in a copy below .mutants, keeps there what was noticed, and tries the rest again at the next call.
A module is tried by its notebook, then by every file of tests that imports it, the quickest first, up to the
first failure. Left out are files that run whole pipelines or read a year of real candles, and tests that are
long without any change: what only they notice counts as not noticed. Changes that no test can notice stand
with their reasons in tests/mutants.toml.
"""

import ast
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from compileall import compile_dir
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".mutants"
TREE = WORK / "tree"
COMPILED, CACHE = WORK / "numba", WORK / "numba_now"  # of the unchanged code; of the change that is tried
SECONDS, NOW = WORK / "seconds.json", WORK / "now.json"  # of each test: without any change; as it ran now
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
    "test_*_on_real_candles.py",
    "test_candles_with_holes.py",
    "test_controls.py",
    "test_kill_and_resume.py",
    "test_pipeline_end_to_end.py",
    "test_same_bytes.py",
    "test_trials_in_experiments.py",
)
LONGEST = 20.0  # seconds of a test, but for the module's notebook
PATIENCE = 4  # times as long as without a change has noticed it
ALIKE = ("RemoveDecorator", "ExceptionReplacer")  # the ones change speed, the others errors alone
BITS = {"BitAnd", "BitOr", "BitXor", "LShift", "RShift"}
ROOM = (
    400  # blank bytes behind the code of the copy: a change keeps the size, and what numba compiled is valid
)
LOADED = (  # once, before all changes
    "execnb.shell",
    "matplotlib.pyplot",
    "nbdev.doclinks",
    "numba",
    "pandera.pandas",
    "pyarrow.parquet",
    "pydantic",
    "pytest",
    "scipy.stats",
    "seaborn",
    "sklearn.linear_model",
)


class Bare(ast.NodeTransformer):
    "Code without annotations and decorators: what runs, but for its speed."

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns, node.decorator_list = None, []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def bare(source: str) -> str | None:
    "The running part of a source, in a form that can be compared; None where it is no code."
    try:
        return ast.dump(Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None


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


def notebook_test(module: Path) -> str:
    "The test that runs the notebook of a module."
    folder = ROOT / "nbs" / module.parent.relative_to("smc_ml")
    (notebook,) = folder.glob(f"[0-9][0-9]_{module.stem}.ipynb")
    return f"tests/test_notebooks.py::test_notebook_runs[{notebook.parent.name}/{notebook.stem}]"


def tests_of(module: Path) -> list[str]:
    "The files of tests that import a module."
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if not any(map(path.match, SLOW))]
    return [f"tests/{path.name}" for path in files if imports(path, dotted(module))]


class QuickFirst:
    "A plugin of pytest: the quickest file first, in it the quickest test, and no long one but notebooks."

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now = seconds, defaultdict[str, float](float)

    def pytest_collection_modifyitems(self, items: list) -> None:
        "Choose and order the tests."
        known = {item: self.seconds.get(item.nodeid, 0.0) for item in items}
        kept = [item for item in items if known[item] <= LONGEST or len(items) == 1]
        file = defaultdict[str, float](float)
        for item in kept:
            file[item.location[0]] += known[item]
        items[:] = sorted(kept, key=lambda item: (file[item.location[0]], item.location[0], known[item]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        "Count what a test took."
        self.now[report.nodeid] += report.duration


def run_tests(chosen: list[str], seconds: dict[str, float]) -> None:
    "In a process of its own, tests in the copy; the exit status says how they went."
    import pytest

    os.setsid()
    os.chdir(TREE)
    sys.path.insert(0, str(TREE))
    for name in [name for name in sys.modules if name.split(".")[0] == "smc_ml"]:
        del sys.modules[name]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    tests = QuickFirst(seconds)
    status = pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *chosen], [tests])
    if not Path(sys.modules["smc_ml"].__file__ or "").is_relative_to(TREE):
        status = pytest.ExitCode.INTERNAL_ERROR
    NOW.write_text(json.dumps(tests.now), encoding="utf-8")
    os._exit(0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status))  # all are long ones


def fails(chosen: list[str], seconds: dict[str, float], limit: float | None = None) -> bool:
    "Whether one of the tests fails in the copy, or all of them take longer than the limit."
    tests = multiprocessing.get_context("fork").Process(target=run_tests, args=(chosen, seconds))
    tests.start()
    tests.join(limit)
    late = tests.is_alive()
    if late and tests.pid:
        os.killpg(tests.pid, signal.SIGKILL)
        tests.join()
    return late or tests.exitcode != 0


def copy_compiled(source: Path, target: Path, without: Iterable[str] = ()) -> None:
    "Compiled code of one folder in the place of another's, without files of some patterns."
    shutil.rmtree(target, ignore_errors=True)
    source.mkdir(exist_ok=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))


def unchanged(chosen: list[str]) -> tuple[dict[str, float], float]:
    "The shortest seconds that each test took without any change, and those of all that are chosen."
    known = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.exists() else {}
    copy_compiled(COMPILED, CACHE)
    if fails(chosen, known):
        raise SystemExit(f"tests fail without any change: {' '.join(chosen)}")
    copy_compiled(CACHE, COMPILED)
    now = json.loads(NOW.read_text(encoding="utf-8"))
    known |= {name: min(took, known.get(name, took)) for name, took in now.items()}
    SECONDS.write_text(json.dumps(known, indent=0), encoding="utf-8")
    return known, sum(now.values())


def compiled_lines(source: str) -> set[int]:
    "Lines of the code on which compiled code rests: compiled functions, and what stands in no function."
    body = ast.parse(source).body
    functions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    plain = [node for node in functions if "jit" not in "".join(map(ast.unparse, node.decorator_list))]
    everything = set(range(1, len(source.splitlines()) + 1))
    return everything.difference(*(range(node.lineno, (node.end_lineno or 0) + 1) for node in plain))


def write_copy(module: Path, source: str) -> None:
    "A source in its place in the copy, as long and as old as the unchanged one with its blank bytes."
    copy, original = TREE / module, ROOT / module
    size = original.stat().st_size + ROOM
    copy.write_bytes(source.encode().ljust(size, b"\n"))
    os.utime(copy, ns=(original.stat().st_atime_ns, original.stat().st_mtime_ns))
    Path(cache_from_source(str(copy))).unlink(missing_ok=True)


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


class Change(NamedTuple):
    "A changed source, and the line that differs."

    source: str
    line: int
    words: str  # the line before → the line after


def tells(operator: str) -> bool:
    "Whether changes of a kind tell more than that their line runs: a sum made a shift is a mere TypeError."
    kind, *operands = operator.split("_")
    if kind == "ReplaceComparisonOperator":
        return operands in (["Is", "IsNot"], ["IsNot", "Is"]) or not {"Is", "IsNot"} & set(operands)
    if kind == "ReplaceBinaryOperator":
        return (operands[0] in BITS) == (operands[1] in BITS)
    return operator not in ALIKE


def changes(module: Path, size: int) -> Iterator[tuple[str, Change]]:
    "The changes that are tried, by name: the same while the module is the same."
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / module).read_text(encoding="utf-8")
    real, found = bare(source), {}
    for item in _all_work_items([ROOT / module], {}):
        (mutation,) = item.mutations
        operator = mutation.operator_name.removeprefix("core/")
        if tells(operator):
            name = f"{module}:{mutation.definition_name}:{operator}:{mutation.occurrence}:{version(module)}"
            found[name] = mutation
    for name in sorted(found, key=digest):
        if size == 0:
            return
        changed = mutate_code(source, get_operator(found[name].operator_name)(), found[name].occurrence)
        if changed is not None and bare(changed) not in (real, None):
            size -= 1
            yield name, Change(changed, found[name].start_pos[0], difference(source, changed))


def version(module: Path) -> str:
    "A short name of a module as it is now."
    return digest((ROOT / module).read_text(encoding="utf-8"))[:8]


def difference(source: str, changed: str) -> str:
    "The changed line, before and after."
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    return " → ".join(next((old.strip(), new.strip()) for old, new in pairs if old != new))


def try_module(module: Path, size: int, done: Collection[str], record: TextIO) -> None:
    "Try what was not noticed yet of a module's sample, and write down each answer at once."
    left = [(name, change) for name, change in changes(module, size) if name not in done]
    write_copy(module, source := (ROOT / module).read_text(encoding="utf-8"))
    rests = compiled_lines(source)
    for chosen in filter(None, ([notebook_test(module)], tests_of(module))):
        seconds, whole = unchanged(chosen) if left else ({}, 0.0)
        missed = []
        for name, change in tqdm(left, desc=str(module), leave=False):
            copy_compiled(COMPILED, CACHE, stale(module) if change.line in rests else ())
            write_copy(module, change.source)
            if fails(chosen, seconds, 60 + PATIENCE * whole):
                write_line(record, name, change, True)
            else:
                missed.append((name, change))
        write_copy(module, source)
        left = missed
    for name, change in left:
        write_line(record, name, change, False)


def write_line(record: TextIO, name: str, change: Change, noticed: bool) -> None:
    "Write down one answer."
    line = {"name": name, "noticed": noticed, "change": change.words}
    record.write(json.dumps(line, ensure_ascii=False) + "\n")
    record.flush()


def copy_project() -> None:
    "The project as it is now: code, notebooks and tests; compiled code stays while the code does."
    shutil.rmtree(TREE, ignore_errors=True)
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for file in filter(os.path.exists, files.splitlines()):
        (TREE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, TREE / file)
    compile_dir(TREE / "smc_ml", quiet=1)
    for module in modules(GROUPS):
        write_copy(module, (ROOT / module).read_text(encoding="utf-8"))
    code, kept = digest("".join(version(path) for path in sorted(ROOT.glob("smc_ml/**/*.py")))), WORK / "code"
    if not kept.exists() or kept.read_text() != code:
        shutil.rmtree(COMPILED, ignore_errors=True)
    kept.write_text(code)


def prepare() -> None:
    "What every run of tests shares: the copy, the environment and the loaded libraries."
    copy_project()
    market = os.environ.get("SMC_ML_MARKET", str(ROOT.parent / "shared" / "market"))
    os.environ |= {"PYTHONPATH": str(TREE), "NUMBA_CACHE_DIR": str(CACHE), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"SMC_ML_MARKET": market, "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
    sys.dont_write_bytecode = True
    for name in LOADED:
        import_module(name)


def report(groups: Iterable[str], record: Path) -> None:
    "How many changes were noticed, by group, and the survivors without a reason."
    lines = {line["name"]: line for line in map(json.loads, record.read_text(encoding="utf-8").splitlines())}
    reasons = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    for group in groups:
        now = {str(module): version(module) for module in modules([group])}
        tried = [line for name, line in lines.items() if now.get(name.split(":")[0]) == name.split(":")[-1]]
        missed = [line for line in tried if not line["noticed"]]
        alike = [line for line in missed if line["change"] in reasons.get(line["name"].split(":")[0], {})]
        print(f"{group}: {len(tried) - len(missed)} of {len(tried)} noticed, {len(alike)} more cannot be")
        for line in missed:
            if line not in alike:
                print(f"  {line['name']}\n    {line['change']}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--each", type=int, default=8, help="changes a module")
    asked = parser.parse_args()
    prepare()
    WORK.joinpath("done.jsonl").touch()
    with WORK.joinpath("done.jsonl").open("r+", encoding="utf-8") as record:
        done = {line["name"] for line in map(json.loads, record) if line["noticed"]}
        for module in modules(asked.groups):
            try_module(module, asked.each, done, record)
    report(asked.groups, WORK / "done.jsonl")
