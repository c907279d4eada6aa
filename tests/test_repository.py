"""The repository is what it says: notebooks clean, modules and README made from them, the lock complete."""

import ast
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from statistics import median

import measure

from smc_ml.provenance import notebook_source, stage_notebooks

ROOT = Path(__file__).resolve().parents[1]


def test_notebooks_are_clean_and_modules_and_readme_equal_them():
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    done = subprocess.run(
        ["bash", "tools/check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_links_between_notebooks_lead_somewhere():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for link in re.findall(r"\]\(([^():#]+\.(?:ipynb|md))\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).is_file(), f"{path.relative_to(ROOT)}: {link}"


def test_every_requirement_but_torch_is_locked_with_hashes():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = {
        re.match(r"[\w.-]+", entry)[0].lower().replace("_", "-").replace(".", "-")
        for key, value in settings["DEFAULT"].items()
        if key.endswith("requirements")
        for entry in value.split()
    }
    locked = (ROOT / "requirements.lock").read_text()
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==", locked, re.MULTILINE)}
    assert wanted - pinned == {"torch"}
    assert locked.count("--hash=sha256:") >= len(pinned) and "://" not in locked


def test_nothing_unpickles():
    for path in (ROOT / "smc_ml").rglob("*.py"):
        assert not re.search(r"\bpickle\b|joblib\.load|torch\.load|allow_pickle", path.read_text()), path.name


def python(code: str) -> str:
    "What a fresh interpreter prints."
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_functions_are_short():
    found = measure.functions()
    lines = [each.lines for each in found]
    assert not measure.too_long(found), f"longer than {measure.LONGEST} lines and no kernel"
    assert median(lines) <= measure.MEDIAN and measure.ninetieth(lines) <= measure.NINETIETH


def test_a_public_name_means_one_thing():
    assert measure.names_in_two_modules() == {}


def imports_of(source: str) -> list[tuple[str, str]]:
    "Module and name of each import from the package."
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smc_ml")
        for alias in node.names
    ]


def test_what_a_stage_imports_is_there():
    for name, path in stage_notebooks(ROOT).items():
        for module, imported in imports_of(notebook_source(ROOT / path)):
            text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
            assert re.search(rf"^(?:(?:def|class) |(?:\w+, )*){imported}\b", text, re.MULTILINE), (
                f"{name}: {module} has no {imported}"
            )


def test_importing_the_package_is_quick():
    clock = "import time; start = time.process_time(); import smc_ml; print(time.process_time() - start)"
    assert min(float(python(clock)) for _ in range(3)) < 0.3


def test_help_needs_no_heavy_library():
    heavy = {"numpy", "pandas", "matplotlib", "plotly", "torch", "sklearn", "numba", "papermill", "yaml"}
    loaded = python("import smc_ml.cli, sys; print(*sys.modules)").split()
    assert "typer" in loaded and not heavy & set(loaded)


def test_drawing_waits_for_seaborn():
    loaded = python(
        "import smc_ml.reports.summary, smc_ml.figures.controls, sys; print(*sys.modules)"
    ).split()
    assert "matplotlib.pyplot" in loaded and "seaborn" not in loaded
