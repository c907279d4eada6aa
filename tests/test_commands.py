"""What the terminal offers, and numbers of the README that name their artefact."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import claims
import pytest
from typer.testing import CliRunner

from smc_ml.cli import app
from smc_ml.commands.demo import DEMO_MARKET, DEMO_SPAN, DEMO_SYMBOLS
from smc_ml.runs.repro import result_sentences
from smc_ml.settings import check_settings

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}


def smc(*words: str, folder: Path = ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "smc_ml.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_examples_of_itself(command):
    said = CliRunner().invoke(app, [command, "--help"]).stdout
    examples = said.split("Examples:\n")[1].strip().splitlines()
    assert examples and all(line.strip().startswith(f"smc {command}") for line in examples)


def test_a_command_of_make_is_one_of_smc_s():
    used = re.findall(r"^\tsmc (\w+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert used and set(used) <= COMMANDS


def test_a_new_project_takes_candles_checks_and_says_the_next_step(tmp_path):
    rows = "".join(f"{1704067200 + 300 * n},1,2,0.5,1.5,3\n" for n in range(600))
    (tmp_path / "BTCUSDT_5m.csv").write_text("time,open,high,low,close,volume\n" + rows)
    made = smc("init", "mine", "BTCUSDT_5m.csv", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    *_, taken, following = made.stdout.splitlines()
    assert taken == "5m candles: BTCUSDT 600 from 2024-01-01 to 2024-01-03"
    assert following.startswith("Next: cd mine && smc run")
    own = check_settings(tmp_path / "mine/params.yaml")["collect"]
    assert own.files == {"BTCUSDT": str(tmp_path / "BTCUSDT_5m.csv")}
    again = smc("init", "mine", folder=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "is there and not empty" in again.stderr


def test_the_demo_s_market_is_the_sample_s():
    collect = check_settings(ROOT / "params.yaml")["collect"]
    assert (collect.start, collect.end) == DEMO_SPAN and tuple(collect.symbols) == DEMO_SYMBOLS
    assert collect.simulated == DEMO_MARKET


def test_a_run_ends_with_the_numbers_of_its_headline():
    found = json.loads((ROOT / "headline.json").read_text())
    said = "\n".join(result_sentences(ROOT))
    assert f"{found['auc']:.3f} (95 % CI" in said and f"{found['trades']:,} trades" in said


def test_a_number_follows_its_artefact(tmp_path):
    (tmp_path / "a.json").write_text('{"b": {"c": -0.51}, "d": [null, 1234]}')

    def said(key, form=""):
        return claims.renewed(f"x <!-- claim: a.json#{key}{form} -->old<!-- /claim --> y", tmp_path)

    assert said("b.c", " .1f") == "x <!-- claim: a.json#b.c .1f -->−0.5<!-- /claim --> y"
    assert ">not known<" in said("d.0", " .2f") and ">1,234<" in said("d.1", " ,")
    with pytest.raises(claims.ClaimError, match="a.json has no b.e"):
        said("b.e")
    with pytest.raises(claims.ClaimError, match="no such artefact"):
        claims.renewed("<!-- claim: none.json#a --><!-- /claim -->", tmp_path)
    with pytest.raises(claims.ClaimError, match="not a claim"):
        claims.renewed("<!-- claim: a.json -->1", tmp_path)


def test_numbers_of_the_readme_name_their_artefacts():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(claims.CLAIM.findall(text)) > 8 and claims.renewed(text) == text
    assert claims.unbound("It took 9 min and 0.61 of `0.5`, <details>7 %</details>") == ["9 min", "0.61"]
    assert claims.unbound(text.partition("## In detail")[0]) == []


def _prose(path: Path) -> str:
    "What a page of the documentation says in words."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def test_numbers_of_the_docs_name_their_artefacts():
    words = ("faq.md", "glossary.md", "index.md", "limits.md", "own_data.md", "own_pattern.md", "scale.md")
    lessons = sorted((ROOT / "nbs/docs").glob("0[0-5]_*.ipynb"))
    pages = {path.name: _prose(path) for path in [*(ROOT / "nbs/docs" / name for name in words), *lessons]}
    assert len(pages) > 12
    assert {name: found for name, text in pages.items() if (found := claims.unbound(text))} == {}
    assert sum(len(claims.CLAIM.findall(text)) for text in pages.values()) >= 4


def test_the_picture_of_the_readme_is_small():
    assert "(nbs/chart.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert 10_000 < (ROOT / "nbs/chart.png").stat().st_size < 250_000
