"""The repository is what it says: notebooks clean, modules and README made from them, the lock complete."""

import os
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_notebooks_are_clean_and_modules_and_readme_equal_them():
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    done = subprocess.run(
        ["bash", "tools/check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
