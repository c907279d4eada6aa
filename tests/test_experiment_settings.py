"""`dvc exp run -S section.key=value` changes the line of that key in `params.yaml`, and nothing else.

DVC writes the file anew, through Hydra and ruamel.yaml: the file stands in the form that this gives.
"""

import difflib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from dvc.utils.hydra import apply_overrides

from smc_ml.settings import check_settings, with_files

SETTINGS = (ROOT / "params.yaml").read_text(encoding="utf-8")


def overridden(folder: Path, text: str, override: str) -> str:
    "The text after one `-S`."
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    apply_overrides(str(path), [override])
    return path.read_text(encoding="utf-8")


def changed(before: str, after: str) -> list[str]:
    "The lines that were taken (-) and put (+)."
    return [
        f"{line[0]}{line[2:]}"
        for line in difflib.ndiff(before.splitlines(), after.splitlines())
        if line[0] in "+-"
    ]


@pytest.mark.parametrize(
    "override, expected",
    [
        ("report.candles=2000", []),
        ("labels.target_r=2.0", ["-  target_r: 1.5", "+  target_r: 2.0"]),
        ("train.models=[logistic,xgboost]", ["-  - lightgbm", "-  - lstm", "-  - patchtst"]),
        ("splits.train_days=90", None),
        ("collect.calendar=forex", None),
        ("collect.end='2024-10-01'", None),
        ("costs.fee_rate=null", None),
        ("patterns.day_start=17h00", ["-  day_start: 00:00", "+  day_start: 17h00"]),
        ("collect.cross_check_tolerance=0.00001", None),
    ],
)
def test_an_override_changes_its_own_line_and_the_settings_stay_valid(tmp_path, override, expected):
    after = overridden(tmp_path, SETTINGS, override)
    lines = changed(SETTINGS, after)
    if expected is None:
        name = override.split("=")[0].split(".")[-1]
        assert [line[1:].split(":")[0].strip() for line in lines] == [name, name]
        assert lines[0].partition("#")[2] == lines[1].partition("#")[2]
    else:
        assert lines == expected
    check_settings(tmp_path / "params.yaml")


def test_the_files_of_a_run_are_written_in_the_same_form(tmp_path):
    text = with_files(SETTINGS, ["BTC=a b.csv", "ETH=one", "ETH=two"], "1" * 12)
    assert overridden(tmp_path, text, "report.candles=2000") == text
    collect = yaml.safe_load(text)["collect"]
    assert collect["files"] == {"BTC": "a b.csv", "ETH": ["one", "two"]}
    assert (collect["symbols"], collect["files_digest"], collect["end"]) == (["BTC", "ETH"], "1" * 12, None)
