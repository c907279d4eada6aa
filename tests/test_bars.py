"""Models of bars in the pipeline, folds side by side, and the settings of the full sizes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from smc_ml.cli import check_everything
from smc_ml.datasets.bars import bar_timeframe
from smc_ml.features.table import feature_catalogue
from smc_ml.models.config import TrainingConfig
from smc_ml.settings import check_settings
from smc_ml.stages.checks import refusals
from smc_ml.stages.config import pipeline_settings
from smc_ml.stages.kept import learn

FULL = ROOT / "params/full.yaml"
MEANT = {"models", "steps", "workers", "lstm", "patchtst", "trading", "hybrid"}  # of the section train


def sections(path: Path) -> dict:
    return {name: section.model_dump() for name, section in check_settings(path).items()}


def test_the_full_sizes_are_valid_and_differ_from_the_sample_in_nothing_else():
    check_everything(FULL)
    sample, full = sections(ROOT / "params.yaml"), sections(FULL)
    assert {name for name in sample if sample[name] != full[name]} == {"train", "agent"}
    assert {name for name, value in full["train"].items() if value != sample["train"][name]} == MEANT


def test_the_full_sizes_are_those_of_the_networks():
    settings = check_settings(FULL)
    train: TrainingConfig = settings["train"]
    steps = {"lstm": 60, "transformer": 120, "patchtst": 96, "trading": 60, "hybrid": 100}
    assert {model: train.steps_of(model) for model in steps} == steps
    assert (train.lstm.layers, train.lstm.hidden) == (3, 128)
    assert (train.transformer.layers, train.transformer.heads) == (4, 8)
    bars = train.samples_of("patchtst")
    assert (bars.of, bar_timeframe(bars.timeframe, "5m"), bars.stride) == ("bars", "15m", 1)
    facts = feature_catalogue(settings["features"], settings["patterns"], settings["collect"].timeframe)
    assert len(facts.chosen(bars.features)) == 240
    assert set(train.models) >= set(steps) and train.models_of("bars") == ("patchtst",)


def test_a_run_of_models_of_bars_alone_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    first, last = text.index("  - logistic\n"), text.index("  - patchtst\n")
    path.write_text(text[:first] + text[last:], encoding="utf-8")
    refused = "no model of train.models (patchtst) learns from events, which ensemble and account follow"
    with pytest.raises(ValueError, match=r"learns from events") as error:
        check_everything(path)
    assert str(error.value) == f"{path}: train: {refused}: add one, such as logistic"
    with pytest.raises(ValueError, match=r"no model of train.models \(patchtst\) learns from events"):
        learn({}, pipeline_settings(["patchtst"]))


@pytest.mark.parametrize(
    "model, samples, sentence",
    [
        (
            "lstm",
            {"steps": 90},
            "lstm learns from windows of 90 rows, but events have 60 complete rows before",
        ),
        ("xgboost", {"of": "bars", "timeframe": "7m"}, "there is no timeframe '7m'"),
        ("patchtst", {"timeframe": "12m"}, "bars of 12m are no multiple of 5m candles"),
        (
            "lightgbm",
            {"of": "bars", "timeframe": "1m"},
            "bars of 1m are shorter than 5m candles: set train.lightgbm.samples.timeframe to 5m or",
        ),
        ("patchtst", {"features": ["momentun"]}, "there is no feature or family momentun"),
        ("patchtst", {"steps": 8}, "windows of 8 rows, but 16 rows per patch"),
        (
            "event_facts",
            {"of": "bars"},
            "event_facts looks at event facts, which events have and bars have not",
        ),
        ("logistic", {"of": "bars"}, "logistic is a classifier and cannot learn Horizons of return_15m"),
        ("lightgbm", {"features": ["smc"]}, "lightgbm learns from events, which have the features of train"),
    ],
)
def test_samples_that_there_are_not_are_refused_before_anything_runs(tmp_path, model, samples, sentence):
    import yaml

    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings["train"]["models"] = sorted({*settings["train"]["models"], model})
    settings["train"][model] = (settings["train"][model] or {}) | {"samples": samples}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="train: ") as error:
        check_everything(path)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["params.yaml", "params/full.yaml"])
def test_the_lists_of_models_fit_longer_candles_and_a_timeframe_that_does_not_is_refused(name):
    sections = check_settings(ROOT / name)
    hours = sections["collect"].model_copy(update={"timeframe": "1h", "timeframes": ("4h", "1d")})
    fault = (
        "bars of 15m are shorter than 1h candles: set train.patchtst.samples.timeframe to 1h or a multiple"
    )

    def said_of_training(timeframe):
        train = sections["train"]
        samples = train.patchtst.samples.model_copy(update={"timeframe": timeframe})
        own = train.patchtst.model_copy(update={"samples": samples})
        changed = {"collect": hours, "train": train.model_copy(update={"patchtst": own})}
        return [line for line in refusals(sections | changed) if line.startswith("train: ")]

    assert said_of_training(sections["train"].patchtst.samples.timeframe) == []
    assert said_of_training("4h") == []
    assert said_of_training("15m") == [f"train: {fault} of it"]


SIDE_BY_SIDE = """
from smc_ml.processor import hold_processor
hold_processor()
import sys
from test_networks import horizons_of, samples
import numpy as np, pandas as pd
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.checkpoints import fingerprint
from smc_ml.models.config import TrainingConfig
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.tasks import Binary, Horizons
X, y = samples(600)
time = pd.date_range("2024-01-01", periods=600, freq="1h", tz="UTC")
labels = pd.DataFrame({"symbol": "A", "time": time, "exit_at": time + pd.Timedelta("4h")})
labels = labels.assign(event_id=range(600), won=y.astype(bool), realised_r=y * 2.5 - 1)
labels = pd.concat([labels, horizons_of(y)], axis=1)
small = {"layers": 1, "epochs": 2}
config = TrainingConfig(lstm=small | {"hidden": 8}, patchtst=small | {"patch": 4, "stride": 2, "width": 16})
for model, task in (("lstm", Binary()), ("patchtst", Horizons())):
    run = out_of_fold(model, X, labels, config, SplitsConfig(), False, task, int(sys.argv[1]))
    tables = [run.predictions, run.folds, run.history]
    weights = [part.cpu() for part in run.model.network_.state_dict().values()]
    print(fingerprint(weights, [table.to_json(double_precision=15) for table in tables] + [run.description]))
"""


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit():
    "Of predictions, learning curves, weights and descriptions, of a model of events and of one of bars."
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    told = [
        subprocess.run(
            [sys.executable, "-c", SIDE_BY_SIDE, workers],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for workers in ("1", "2", "3")
    ]
    assert len(told[0].splitlines()) == 2 and told[0] == told[1] == told[2]


ASLEEP = """
import time
from functools import partial
from smc_ml.runs.workers import in_processes
in_processes([partial(time.sleep, 600)] * 2, 2, progress=False)
"""


@pytest.mark.slow
def test_workers_end_with_their_parent():
    "However it ends."
    parent = psutil.Process(subprocess.Popen([sys.executable, "-c", ASLEEP], cwd=ROOT).pid)
    until = time.monotonic() + 60
    while sum("loky" in " ".join(child.cmdline()) for child in parent.children()) < 2:
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(5)
    children = parent.children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, json.dumps([child.cmdline() for child in alive])
