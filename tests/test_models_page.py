"""The page of all models: numbers are recomputed, the sentence fits them, the table sorts, cards agree."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from smc_ml.evaluation.config import LeaderboardConfig
from smc_ml.evaluation.leaderboard import BASE_RATE
from smc_ml.features.catalogue import FeatureCatalogue, FeatureFacts
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.config import TrainingConfig
from smc_ml.models.saving import save_model
from smc_ml.reports.cards import card_of
from smc_ml.reports.pages import rendered
from smc_ml.reports.sorting import Cell, Column, models_table, sortable_table
from smc_ml.stages.leaderboard import Leaderboard, baseline_predictions, build_leaderboard
from smc_ml.stages.train import train_model
from smc_ml.tables import write_tables
from smc_ml.writing import write_table

NAMES = ("momentum", "spread", "volume")
SPLITS = SplitsConfig(n_folds=3)
MODELS = ("logistic", "xgboost", "lstm")
CONFIG = TrainingConfig(
    steps=3, xgboost={"trees": 30}, lstm={"layers": 1, "hidden": 4, "epochs": 2, "batch_size": 32}
)


def catalogue() -> FeatureCatalogue:
    facts = [FeatureFacts(name, "smc", False, None, False, "", "", 1, ()) for name in NAMES]
    return FeatureCatalogue(facts)


def market(share, count=1000, seed=0) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    "Features of one symbol, and trades that win as often as `share` says of their momentum."
    random = np.random.default_rng(seed)
    opens = pd.date_range("2024-01-01", periods=20_000, freq="5min", tz="UTC", unit="ns", name="open_time")
    table = pd.DataFrame(random.normal(size=(20_000, 3)), index=opens, columns=list(NAMES))
    labels = pd.DataFrame({"row": np.sort(random.integers(20, 19_000, count)), "symbol": "A", "direction": 1})
    labels["time"] = opens[labels["row"]] + pd.Timedelta("5min")
    labels["exit_at"] = labels["time"] + pd.Timedelta("2h")
    labels = labels.assign(event_id=np.arange(count))
    momentum = table["momentum"].to_numpy()[labels["row"]]
    labels["won"] = random.random(count) < share(momentum)
    labels["gross_r"] = np.where(labels["won"], 1.4, -1.0)
    return {"A": table}, labels.assign(realised_r=labels["gross_r"] - 0.1)


def trained(place: Path, features, labels, models=MODELS, config=CONFIG) -> Leaderboard:
    "Models of a market, saved as the stage that trains saves them, and all of them side by side."
    predictions, histories = {}, {}
    for model in models:
        run = train_model(model, features, catalogue(), labels, config, SPLITS, progress=False).run
        save_model(run.model, place / f"artifacts/models/{model}", run.description)
        write_tables({"folds": run.folds, "history": run.history}, place / f"artifacts/training/{model}")
        write_table(run.predictions, place / f"artifacts/predictions/models/{model}.parquet")
        predictions[model], histories[model] = run.predictions, run.history
    peer = baseline_predictions(predictions["logistic"].assign(set="freqai", probability=0.4))
    observed, folder = (features, catalogue()), place / "artifacts/models"
    sizes = LeaderboardConfig(importance_events=200)
    board = build_leaderboard(folder, predictions, histories, labels, observed, peer, sizes)
    write_tables(board.tables(), place / "artifacts/leaderboard")
    return board


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    place = tmp_path_factory.mktemp("planted")
    features, labels = market(**RULE)
    calibrated = CONFIG.model_copy(update={"calibration": "platt"})
    return place, labels, trained(place, features, labels, config=calibrated)


RULE = {"share": lambda momentum: np.where(momentum > 0, 0.6, 0.25)}


def kept(place: Path, kind: str = "predictions/models/{}") -> dict[str, pd.DataFrame]:
    "A table of every model, from its file."
    return {name: pd.read_parquet(place / f"artifacts/{kind.format(name)}.parquet") for name in MODELS}


def beside(place: Path, labels, more=None, events=200) -> Leaderboard:
    "All models of a place side by side, with predictions of further ones."
    predictions, histories = kept(place), kept(place, "training/{}/history")
    histories |= dict.fromkeys(more or {}, histories["lstm"])
    peer = baseline_predictions(predictions["logistic"].assign(set="freqai", probability=0.4))
    observed, sizes = (market(**RULE)[0], catalogue()), LeaderboardConfig(importance_events=events)
    folder = place / "artifacts/models"
    return build_leaderboard(folder, predictions | (more or {}), histories, labels, observed, peer, sizes)


def cells_of(html: str) -> dict[str, list[str]]:
    "The cells of each row as one reads them, by its first."
    rows = re.findall(r"<tr[^>]*>(<td.*?)</tr>", html, re.DOTALL)
    texts = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    plain = [[re.sub("<[^>]+>", " ", text).strip() for text in row] for row in texts]
    return {row[0]: row[1:] for row in plain}


def test_the_numbers_of_the_page_are_those_that_one_computes_anew(planted):
    place, labels, board = planted
    shown = cells_of(models_table(board.table, MODELS).text)
    assert set(shown) == {*MODELS, "base rate", "freqai with logistic"}
    for model in MODELS:
        said = pd.read_parquet(place / f"artifacts/predictions/models/{model}.parquet")
        told = said.merge(labels, on=["symbol", "time", "event_id"])
        base = np.empty(len(told))
        for fold, part in told.groupby("fold"):
            known = labels[labels["exit_at"] < part["time"].min()]["won"]
            base[told["fold"] == fold] = (known.sum() + 1) / (len(known) + 2)
        gain = log_loss(told["won"], base) - log_loss(told["won"], told["probability"])
        assert shown[model][0].split()[0] == f"{gain:.4f}".replace("-", "−")
        sizes = told.groupby("fold").size()
        areas = [roc_auc_score(part["won"], part["probability"]) for _, part in told.groupby("fold")]
        assert shown[model][2].split()[0] == f"{np.average(areas, weights=sizes):.3f}"
        right = (told["probability"] > 0.5) == told["won"]
        assert shown[model][3].split(" %")[0] == f"{100 * right.mean():.1f}"
        certain = (told["probability"] - 0.5).abs()
        surest = right[certain.round(12) >= np.sort(certain.round(12))[-int(np.ceil(len(told) / 10))]]
        assert shown[model][4].split(" %")[0] == f"{100 * surest.mean():.1f}"
        tops = [
            part.nlargest(int(np.ceil(len(part) / 10)), "expected_r", keep="all")
            for _, part in told.groupby("fold")
        ]
        earned = pd.concat(tops)["realised_r"]
        assert abs(float(shown[model][5].split()[0].replace("−", "-")) - earned.mean()) < 0.0006
        bins = told.sort_values("probability", kind="stable").reset_index(drop=True)
        groups = bins.groupby(np.arange(len(bins)) * 10 // len(bins))[["probability", "won"]].mean()
        away = (groups["probability"] - groups["won"]).abs().mean()
        assert abs(float(shown[model][6].split()[0]) / 100 - away) < 0.002


def test_a_gain_over_another_model_is_that_of_the_same_events(planted):
    _, _, board = planted
    rows = board.table.set_index("model")
    assert board.simplest == "logistic" and np.isnan(rows.loc["logistic", "gain_over_simplest"])
    for name in ("xgboost", "lstm", BASE_RATE):
        difference = rows.loc[name, "log_loss_gain"] - rows.loc["logistic", "log_loss_gain"]
        assert rows.loc[name, "gain_over_simplest"] == pytest.approx(difference, abs=1e-12)
    widths = {
        name: rows[f"{name}_high"] - rows[f"{name}_low"] for name in ("log_loss_gain", "gain_over_simplest")
    }
    assert widths["gain_over_simplest"]["xgboost"] < widths["log_loss_gain"]["xgboost"]


def test_the_planted_rule_is_found_and_leant_on(planted):
    _, _, board = planted
    assert "logistic" in board.sentence().split(" the base rate")[0] and " beat" in board.sentence()
    first = board.importance.groupby("model").first()
    assert (first["feature"] == "momentum").all() and (first["low"] > 0).sum() >= 2
    assert set(board.reliability["model"]) == set(MODELS)


def test_the_card_of_a_model_says_what_the_table_says(planted):
    place, _, board = planted
    shown = cells_of(models_table(board.table, MODELS).text)["lstm"]
    values = card_of(place, "lstm", "none.ipynb").values
    judged = [value for _, value in values["judged"]]
    assert judged[0].split(" (")[0] == shown[0].split()[0] and f"{shown[6].split()[0]} points" in judged[-1]
    assert {"How it was trained", "Before and after the calibration"} < set(values["figures"])
    assert ("calibration", "platt", "none") in values["settings"]
    assert [row[5] for row in values["folds"]] == [
        f"{size:,}" for size in kept(place)["lstm"].groupby("fold").size()
    ]
    assert {path for path, _, _ in values["files"]} >= {"artifacts/models/lstm/description.json"}


def test_the_same_models_give_the_same_page(planted):
    place, labels, board = planted
    again = beside(place, labels)
    assert models_table(again.table).text == models_table(board.table).text
    pd.testing.assert_frame_equal(again.importance, board.importance, check_exact=True)


def test_where_nothing_is_no_model_beats_the_base_rate_and_a_worse_one_is_named(tmp_path):
    learnt_by_heart = {"trees": 100, "learning_rate": 0.5, "leaf_weight": 1.0}
    wild = CONFIG.model_copy(update={"xgboost": CONFIG.xgboost.model_copy(update=learnt_by_heart)})
    features, labels = market(lambda momentum: np.full(len(momentum), 0.43), seed=1)
    sentence = trained(tmp_path, features, labels, ("logistic", "xgboost"), wild).sentence()
    assert sentence.startswith("None of the 2 models beats the base rate")
    assert "xgboost is worse than the base rate (−" in sentence


def test_a_model_of_bars_has_its_costs_and_a_card_and_no_row_among_those_of_events(planted, tmp_path):
    place, labels, board = planted
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    for kind in ("models", "training"):
        shutil.copytree(tmp_path / f"artifacts/{kind}/lstm", tmp_path / f"artifacts/{kind}/patchtst")
    line = {"horizon": "4h", "quantity": "return", "measure": "skill", "against": "no change", "value": 0.01}
    scores = pd.DataFrame([line | {"low": 0.002, "high": 0.02, "chance": 0.0, "bars": 900}])
    write_table(scores, tmp_path / "artifacts/training/patchtst/scores.parquet")
    bars = kept(place)["lstm"].drop(columns="event_id").assign(target="4h")
    found = beside(tmp_path, labels, {"patchtst": bars}, events=20)
    assert "patchtst" not in set(found.table["model"]) and "patchtst" in set(found.costs["model"])
    assert found.table["log_loss_gain"].tolist() == board.table["log_loss_gain"].tolist()
    card = card_of(tmp_path, "patchtst", "none.ipynb").values
    assert card["sentence"].endswith("1 of 1 measures has an interval above chance.")
    assert list(card["figures"]) == ["Horizon by horizon", "How it was trained"]


COLUMNS = [Column("name", ascending=True), Column("gain")]
ROWS = [
    [Cell("b", "b"), Cell("−0.5", -0.5)],
    [Cell("a", "a"), Cell("–", None)],
    [Cell("c", "c"), Cell("10.0", 10.0)],
    [Cell("d", "d"), Cell("9.0", 9.0)],
]
PRESS = """<script>
const told = [];
const all = (chosen, text) => [...document.querySelectorAll(chosen)].map(text).join("");
const note = () => told.push(
  all("td:first-child", c => c.textContent) + all("th", h => h.getAttribute("aria-sort")[0]));
const [name, gain] = document.querySelectorAll("th button");
note(); gain.click(); note(); gain.click(); note(); name.click(); note();
gain.focus(); told.push(String(document.activeElement === gain && gain.tabIndex === 0));
document.title = "sorted " + told.join(" ") + " end";
</script>"""


def test_the_table_sorts_in_a_browser_unknown_last(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is at hand")
    page = rendered("page.html.j2", title="x", links=[], home="", script=None)
    path = tmp_path / "page.html"
    table = sortable_table(COLUMNS, ROWS, 0).text
    path.write_text(page.replace("</main>", f"{table}{PRESS}</main>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"<title>sorted (.*) end</title>", done.stdout)
    assert found, done.stderr[-500:]
    assert found[1].split() == ["bacdan", "cdband", "bdcana", "abcdan", "true"]
