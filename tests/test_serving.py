"""A bundle says what the run said, from its folders to its command; a calculator what the table says."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from smc_ml.candles import Market, read_candles, write_candles
from smc_ml.cli import app
from smc_ml.features.catalogue import write_catalogue
from smc_ml.features.table import feature_tables
from smc_ml.labels.config import LabelingConfig, SplitsConfig
from smc_ml.models.config import TrainingConfig
from smc_ml.models.predictions import EVENT_KEYS
from smc_ml.models.saving import save_model
from smc_ml.patterns.detection import detect_market
from smc_ml.service.asking import ModelsAsked
from smc_ml.serving.answering import LivePredictor
from smc_ml.serving.bundle import Bundle
from smc_ml.serving.calculator import RealTimeCalculator, restore_calculator, save_calculator
from smc_ml.serving.finished import _STAGES
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.bars import train_bars
from smc_ml.stages.horizons import bar_targets
from smc_ml.stages.learning import events_of
from smc_ml.stages.train import train_model
from smc_ml.tables import read_table, write_metrics, write_tables
from smc_ml.writing import write_table

TINY = {"layers": 1, "hidden": 8, "epochs": 1, "batch_size": 64}
BARS = {"of": "bars", "timeframe": "1h", "steps": 16}
PATCHES = {"layers": 1, "heads": 2, "width": 8, "feed_forward": 8, "epochs": 1, "patch": 4, "stride": 4}
TRAIN = {"models": ["logistic", "lstm", "patchtst"], "lstm": TINY, "patchtst": PATCHES | {"samples": BARS}}


def trained(events, ahead, train):
    "Each model on two folds."
    learnt = events.features, events.catalogue
    for model in train.models:
        if train.samples_of(model).of == "bars":
            run = train_bars(model, *learnt, ahead, train, SplitsConfig(n_folds=2), progress=False).run
        else:
            run = train_model(model, *learnt, events.labels, train, SplitsConfig(n_folds=2), False).run
        yield model, run


_MADE = {}  # the project, for all modules that ask for it


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A small finished run on simulated candles, made once."
    if "project" not in _MADE:
        market = simulate_market(["SIM"], "2024-01-01", "2024-02-12", SimulationConfig(edge=0.4))
        market = Market({"SIM": market["SIM"].candles}, "5m")
        _MADE["project"] = finished(tmp_path_factory.mktemp("project"), market, "simulated")
    return _MADE["project"]


def finished(root, market, source, models=TRAIN["models"], **sections):
    "The folders of a small finished run, as the stages write them."
    told = TRAIN | {"models": list(models)}
    labels = LabelingConfig(**sections.get("labels", {}))
    events, ahead = events_of(market, labels=labels), bar_targets(market).tables
    train = TrainingConfig(**told)
    for symbol, candles in market.items():
        write_candles(candles, root / f"artifacts/candles/{symbol}_5m.parquet", "5m", source=source)
    write_tables(events.features, root / "artifacts/features")
    write_catalogue(events.catalogue, root / "artifacts/catalogue.json")
    write_table(events.labels, root / "artifacts/labels/labels.parquet")
    for model, run in trained(events, ahead, train):
        write_table(run.predictions, root / f"artifacts/predictions/models/{model}.parquet")
        write_tables({"folds": run.folds}, root / f"artifacts/training/{model}")
        save_model(run.model, root / f"artifacts/models/{model}", run.description)
        write_metrics({"model": model}, root / f"reports/metrics/train_{model}.json")
    write_metrics({"ensemble": {"auc": 0.5}}, root / "reports/metrics/ensemble.json")
    write_metrics({"auc": 0.5}, root / "headline.json")
    (root / "dvc.yaml").touch()
    settings = {"train": told, "ensemble": {"method": "mean"}} | sections
    mixed = settings["ensemble"]
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    noted = {"params": {"params.yaml": {"ensemble": mixed, "train.lstm": TINY}}}
    stages = dict.fromkeys((*_STAGES, *(f"train@{model}" for model in train.models)), noted)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return root


def smc(project, *words):
    "A command in the project."
    with contextlib.chdir(project):
        return CliRunner().invoke(app, [*words])


@pytest.fixture(scope="module")
def bundled(project):
    "Its bundle, made by the command."
    done = smc(project, "bundle")
    assert done.exit_code == 0, done.stderr
    assert "models of events: logistic, lstm; of bars: patchtst" in done.stdout
    assert "its candles are simulated" in done.stdout
    return project / "artifacts/bundles/5m"


def test_a_bundle_says_what_the_run_said(project, bundled):
    bundle, features = Bundle.load(bundled), {"SIM": read_table(project / "artifacts/features/SIM.parquet")}
    assert bundle.models["lstm"].backend == "onnxruntime"
    run = {
        name: read_table(project / f"artifacts/predictions/models/{name}.parquet") for name in TRAIN["models"]
    }
    last = run["logistic"][run["logistic"]["fold"] == 1]
    labels = read_table(project / "artifacts/labels/labels.parquet")
    events = last[list(EVENT_KEYS)].merge(labels, on=list(EVENT_KEYS))
    said = bundle.predict(features, events)
    for name in ("logistic", "lstm"):
        both = said.merge(run[name], on=list(EVENT_KEYS), suffixes=("", "_run"))
        assert len(both) == len(last) > 50
        np.testing.assert_allclose(both[f"probability_{name}"], both["probability_run"], rtol=0, atol=1e-6)
    bars = run["patchtst"][run["patchtst"]["fold"] == 1]
    ahead = bundle.forecast(features, bars["time"].unique())
    both = ahead.merge(bars, on=["symbol", "time", "target"], suffixes=("", "_run"))
    assert len(both) == len(bars) > 100
    for column in ("expected_return", "probability_up", "expected_drawdown"):
        np.testing.assert_allclose(both[column], both[f"{column}_run"], rtol=0, atol=1e-6)


def test_models_asked_by_hand_say_what_the_bundle_says(project, bundled):
    bundle, candles = Bundle.load(bundled), read_candles(project / "artifacts/candles/SIM_5m.parquet")
    predictor = LivePredictor(bundle, Market({"SIM": candles[-7200:]}, "5m"))
    asked = ModelsAsked(predictor)
    said, table = asked.ask("SIM", 1).iloc[0], predictor.calculator.get_features_for_ml("SIM", None)
    event = {"symbol": "SIM", "time": table.index[-1] + bundle.step, "event_id": -1, "direction": 1}
    expected = bundle.predict({"SIM": table}, pd.DataFrame([event])).iloc[0]
    assert said["probability"] == expected["probability"] and 0 < said["probability"] < 1
    rows = table[list(bundle.inputs.names)][-60:]
    again = asked.ask("SIM", 1, rows.to_numpy().tolist()).iloc[0]
    assert again["probability"] == said["probability"]
    assert asked.ask("SIM", -1).iloc[0]["probability"] != said["probability"]
    other = asked.ask("OTHER", 1).iloc[0]
    assert other["signal"] == "NEUTRAL" and "none of the symbols" in other["reason"]
    early = LivePredictor(bundle, Market({"SIM": candles[-600:]}, "5m"))
    why = ModelsAsked(early).ask("SIM", 1).iloc[0]
    assert (why["signal"], why["reason"]) == ("NEUTRAL", "the features before it are not complete")
    assert len(bundle.ensemble.stream_) == len(Bundle.load(bundled).ensemble.stream_)


def test_the_command_makes_the_same_bytes_and_refuses_what_is_not_of_one_run(project, bundled):
    before = (bundled / "manifest.json").read_bytes()
    assert smc(project, "bundle", "--into", "other").exit_code == 0
    assert (project / "other/manifest.json").read_bytes() == before
    assert "every file is there and unchanged" in smc(project, "bundle", "--check", "other").stdout
    (project / "other/models/lstm/network.onnx").unlink()
    refused = smc(project, "bundle", "--check", "other")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "models/lstm/network.onnx is missing" in refused.stderr
    settings = project / "params.yaml"
    kept = settings.read_text()
    settings.write_text(kept.replace("hidden: 8", "hidden: 9"))
    refused = smc(project, "bundle")
    settings.write_text(kept)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("train.lstm was changed since the stage ")
    assert (bundled / "manifest.json").read_bytes() == before


def test_a_bundle_holds_nothing_that_runs_and_says_where_it_comes_from(bundled):
    kinds = {path.suffix for path in bundled.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".onnx", ".safetensors", ".txt"}
    told = json.loads((bundled / "bundle.json").read_text())
    assert told["market"]["series"]["SIM"]["content"] and told["models"]["lstm"]["data_hash"]
    assert (
        told["models"]["logistic"]["worth"]["mean_r_won"]
        > 0
        > told["models"]["logistic"]["worth"]["mean_r_lost"]
    )


@pytest.mark.slow
def test_a_calculator_says_what_the_table_says_on_real_candles(bitcoin, ether, tmp_path):
    begin, end = 60_000, 72_000
    whole = {"BTCUSDT": bitcoin.iloc[begin - 10_000 : end], "ETHUSDT": ether.iloc[begin - 10_000 : end]}
    whole["ETHUSDT"] = whole["ETHUSDT"].drop(whole["ETHUSDT"].index[[10_100, *range(10_700, 10_710)]])
    market = Market(whole, "5m")
    tables = feature_tables(market, detect_market(market))
    cut = bitcoin.index[begin]
    calculator = RealTimeCalculator(market.map(lambda candles: candles[candles.index < cut]))
    scale = {symbol: table.abs().median().fillna(0.0).to_numpy() for symbol, table in tables.items()}
    largest = 0.0
    for number, opened in enumerate(bitcoin.index[begin : begin + 2000]):
        if number in (500, 1300):
            save_calculator(calculator, tmp_path / "saved")
            calculator = restore_calculator(tmp_path / "saved")
        here = {
            s: {"open_time": opened} | c.loc[opened].to_dict() for s, c in whole.items() if opened in c.index
        }
        for symbol, row in calculator.update(here).items():
            expected = tables[symbol].loc[opened].to_numpy()
            np.testing.assert_array_equal(np.isnan(row), np.isnan(expected))
            apart = np.abs(row - expected) / np.maximum(np.maximum(np.abs(expected), scale[symbol]), 1e-12)
            largest = max(largest, np.nanmax(apart))
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-9
    assert pd.notna(row).mean() > 0.9
