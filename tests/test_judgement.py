"""The search is judged as it was: every configuration is logged as a trial before it is scored.

And no page tells a Sharpe ratio alone.
"""

import ast
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, stage_cells
from test_pipeline_contract import STAGES, code_of, source_of

from smc_ml.candles import write_candles
from smc_ml.costs import Costs
from smc_ml.evaluation.overfitting import deflated_sharpe_ratio, superior_predictive_ability
from smc_ml.evaluation.trials import (
    backtest_trial,
    count_trials,
    model_trial,
    read_trials,
    trial_id,
    tried_on,
)
from smc_ml.features.catalogue import FeatureCatalogue, FeatureFacts, write_catalogue
from smc_ml.models.config import LSTMConfig, TrainingConfig
from smc_ml.reports.pages import page
from smc_ml.simulation.market import random_walk
from smc_ml.trading.config import BacktestConfig, JudgementConfig
from smc_ml.trading.selection import (
    idle_sentence,
    judge,
    judgement_metrics,
    judgement_sentence,
    overfitting_sentence,
    record_sentence,
    superiority_sentence,
)
from smc_ml.writing import write_table

# The stages write down what they try

WRITERS = {
    "train": "50_train",
    "ensemble": "60_ensemble",
    "backtest": "70_backtest",
    "agent": "72_agent",
    "judgement": "75_judgement",
}
MODELS = ["logistic", "xgboost", "lstm"]


def cells(stage: str) -> list[dict]:
    return stage_cells(ROOT / f"nbs/pipeline/{WRITERS[stage]}.ipynb")


def recorded(stage: str, settings: dict, **passed: str) -> dict:
    "What the stage's notebook knows once it has written its trials, run from its first cell to that one."
    known = {}
    for cell in cells(stage):
        exec(source_of(cell), known)
        if "parameters" in cell["metadata"].get("tags", []):
            known |= {name: value for name, value in (settings | passed).items() if name in known}
        if "record_trials(" in source_of(cell):
            return known
    raise AssertionError(f"{stage} writes no trials")


def search(folder: Path, settings: dict) -> int:
    "Trials after all stages have written theirs, with predictions as they would be written."
    table = pd.DataFrame({"event_id": [0]})
    for model in MODELS:
        known = recorded("train", settings, model=model)
        write_table(
            table,
            folder / f"artifacts/predictions/models/{model}.parquet",
            {"trial": trial_id(known["trial"])},
        )
    write_table(
        table,
        folder / "artifacts/predictions/ensemble.parquet",
        {"trial": trial_id(recorded("ensemble", settings)["trial"])},
    )
    for stage in ("backtest", "judgement"):
        recorded(stage, settings)
    return count_trials(folder / "reports/trials")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    "A folder to work in, with candles and features of two symbols."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()  # by which a stage notebook knows the root of its project
    for symbol in ("A", "B"):
        write_features(tmp_path, symbol)
        write_days(tmp_path, symbol)
    return tmp_path


def write_features(folder: Path, symbol: str, *names: str, rows: int = 1) -> None:
    "Features of a symbol and what is said of them, where the features stage leaves them."
    names = names or ("price_momentum",)
    table = pd.DataFrame(0.0, range(rows), names)
    write_table(table, folder / f"artifacts/features/{symbol}.parquet")
    facts = (
        FeatureFacts(name, "smc", True, None, False, "ATR", "One of them.", 15, ("close",)) for name in names
    )
    write_catalogue(FeatureCatalogue(facts), folder / "artifacts/catalogue.json")


def write_days(folder: Path, symbol: str, start: str = "2024-01-01", days: int = 2, **facts) -> None:
    "Candles of a symbol, where the collect stage leaves them."
    walk = random_walk(288 * days, seed=0)
    walk.index = pd.date_range(start, periods=len(walk), freq="5min", tz="UTC", unit="ns", name="open_time")
    (folder / "artifacts/candles").mkdir(parents=True, exist_ok=True)
    write_candles(walk, folder / f"artifacts/candles/{symbol}_5m.parquet", "5m", **facts)


SETTINGS = {
    **{name: {} for name in ("patterns", "labels", "costs", "features", "ensemble", "backtest")},
    "train": {"models": MODELS},
    "judgement": {"thresholds": [0.0, 0.1, 0.2]},
}


def test_a_rerun_counts_once_and_leaves_every_byte(place):
    assert (
        search(place, SETTINGS) == 3 + 1 + 4 * 3
    )  # models, ensemble, accounts; the one of the backtest is among them
    ledger = place / "reports/trials"
    files = sorted(ledger.rglob("*.jsonl"))
    written = [file.read_bytes() for file in files]
    assert [file.relative_to(ledger).as_posix() for file in files] == [
        "backtest.jsonl",
        "ensemble.jsonl",
        "judgement.jsonl",
        "models/logistic.jsonl",
        "models/lstm.jsonl",
        "models/xgboost.jsonl",
    ]
    assert search(place, SETTINGS) == 16 and [file.read_bytes() for file in files] == written
    assert not any(str(place).encode() in content for content in written)


@pytest.mark.parametrize(
    "section, change, new",
    [
        ("labels", {"target_r": 2.0}, 16),
        ("patterns", {"pivot_length": 4}, 16),
        ("features", {"momentum_bars": 24}, 16),
        ("costs", {"fee_rate": 0.001}, 16),
        ("train", {"seed": 1}, 16),
        (
            "train",
            {"xgboost": {"depth": 5}},
            1 + 1 + 2 * 3,
        ),  # one model, the ensemble, and the accounts of both
        ("ensemble", {"temperature": 0.1}, 1 + 3),
        ("backtest", {"risk_per_trade": 0.01}, 12),
        ("judgement", {"thresholds": [0.0, 0.1, 0.3]}, 4),
        ("backtest", {"minimum_expected_r": 0.05}, 4),
        ("backtest", {"minimum_expected_r": 0.1}, 0),  # a threshold that was judged before is not new
        ("train", {"threads": 2}, 0),
        ("backtest", {"seed": 1, "draws": 200}, 0),
        ("judgement", {"draws": 200, "blocks": 8}, 0),
    ],
)
def test_a_changed_setting_is_a_new_trial_of_all_that_depend_on_it(place, section, change, new):
    before = search(place, SETTINGS)
    assert search(place, SETTINGS | {section: SETTINGS[section] | change}) == before + new
    assert search(place, SETTINGS) == before + new  # going back adds nothing and forgets nothing


def test_another_market_is_a_new_trial_and_more_days_are_not(place):
    before = search(place, SETTINGS)
    write_features(place, "A", rows=2)
    assert search(place, SETTINGS) == before
    write_features(place, "C")
    assert search(place, SETTINGS) == 2 * before


def test_a_setting_that_is_added_later_changes_no_trial():
    class LaterBacktest(BacktestConfig):
        later: float = 1.0

    class LaterTraining(TrainingConfig):
        later: int = 3
        gru: LSTMConfig = LSTMConfig()

    observed = {"A": ["price_momentum"]}
    names = {trial_id(backtest_trial("a", config(), Costs())) for config in (BacktestConfig, LaterBacktest)}
    assert len(names) == 1
    assert trial_id(backtest_trial("a", LaterBacktest(later=2.0), Costs())) not in names
    names = {trial_id(model_trial("lstm", observed, config())) for config in (TrainingConfig, LaterTraining)}
    assert len(names) == 1
    assert trial_id(model_trial("lstm", observed, LaterTraining(later=4))) not in names


def test_fewer_features_are_a_new_trial(place):
    "Whoever tries the half of them without a setting that says so has tried."
    for symbol in ("A", "B"):
        write_features(place, symbol, "price_momentum", "atr_normalized")
    before = search(place, SETTINGS)
    for symbol in ("A", "B"):
        write_features(place, symbol)
    assert search(place, SETTINGS) == 2 * before


def present(place: Path) -> int:
    "Trials that count for the candles that lie there."
    return count_trials(place / "reports/trials", data=tried_on(place / "artifacts/candles"))


def test_a_first_run_on_other_candles_begins_with_no_trial(place):
    for symbol in ("A", "B"):
        write_days(place, symbol, source="simulated", simulation={"seed": 7, "end": "2024-05-30"})
    assert search(place, SETTINGS) == present(place) == 16
    for symbol in ("A", "B"):  # the same names and days, but real candles
        write_days(place, symbol, source="files")
    assert present(place) == 0 and search(place, SETTINGS) == present(place) == 16
    for symbol in ("A", "B"):  # the same settings on another simulated market
        write_days(place, symbol, source="simulated", simulation={"seed": 8, "end": "2024-05-30"})
    assert present(place) == 0


def test_an_agent_is_one_trial_whatever_its_interval(place):
    def tried(**changed: dict) -> int:
        recorded("agent", SETTINGS | {"agent": {}} | changed)
        return count_trials(place / "reports/trials")

    assert (tried(), tried()) == (1, 1)
    assert tried(backtest={"draws": 200, "seed": 1}) == 1
    changes = {"costs": {"fee_rate": 0.001}, "agent": {"drawdown_penalty": 0.1}, "splits": {"n_folds": 2}}
    changes |= {"backtest": {"leverage_limit": 2.0}, "patterns": {"pivot_length": 4}}
    for number, (section, change) in enumerate(changes.items(), 2):
        assert tried(**{section: change}) == number
    assert tried() == len(changes) + 1


def test_a_trial_counts_where_symbols_and_days_meet(place):
    search(place, SETTINGS)
    write_days(place, "A", "2024-01-02", days=9)  # B stays where it was
    assert present(place) == 16
    for symbol in ("A", "B"):
        write_days(place, symbol, "2024-01-03", days=9)
    assert present(place) == 0
    search(place, SETTINGS)
    assert present(place) == 16 and count_trials(place / "reports/trials") == 16
    for symbol in ("A", "B"):
        write_days(place, symbol, "2024-01-01", days=20)
    assert present(place) == 16
    for file in (place / "artifacts/candles").iterdir():
        file.unlink()
    write_days(place, "C", "2024-01-01", days=20)
    assert present(place) == 0


def test_more_days_lengthen_the_line_of_a_trial(place):
    search(place, SETTINGS)
    for days in (3, 4):
        for symbol in ("A", "B"):
            write_days(place, symbol, days=days)
        search(place, SETTINGS)
    (row,) = (place / "reports/trials/backtest.jsonl").read_text().splitlines()
    assert json.loads(row)["data"] == {name: ["2024-01-01 00:00:00", "2024-01-04 23:55:00"] for name in "AB"}


def test_lines_of_older_ledgers_count_for_their_symbols(place):
    "They say all settings, and neither the data nor the code."
    ledger = place / "reports/trials"
    ledger.mkdir(parents=True)
    shutil.copy(ROOT / "tests/older_trials.jsonl", ledger / "older.jsonl")
    older = (ledger / "older.jsonl").read_bytes()
    assert count_trials(ledger) == 3 and present(place) == 0
    write_days(place, "BTC-USDT")
    assert present(place) == 0
    write_days(place, "SIM-A")
    assert present(place) == 3
    search(place, SETTINGS)
    assert (ledger / "older.jsonl").read_bytes() == older


COMPUTING = {
    "train": "train_and_judge",
    "ensemble": "combine_models",
    "agent": "trade_agent",
    "backtest": "follow_predictions",
    "judgement": "judge_strategies",
}


def calls_of(code: str, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


@pytest.mark.parametrize("stage", WRITERS)
def test_trials_are_written_before_anything_is_computed(stage):
    code = "\n".join(source_of(cell) for cell in cells(stage))
    calls = [call.lineno for name in (r"record_trials", COMPUTING[stage]) for call in calls_of(code, name)]
    assert len(calls) == 2 and calls[0] < calls[1]


def test_every_ledger_is_kept_by_git_and_never_deleted_and_the_judgement_waits_for_all():
    declared = {}
    for name, stage in STAGES.items():
        outs = {
            path: options for out in stage["outs"] if isinstance(out, dict) for path, options in out.items()
        }
        for path in re.findall(r'record_trials\(\s*f?"([^"]+)"', code_of(name)):
            path = path.replace("{model}", "${item.model}")
            assert outs.get(path) == {"cache": False, "persist": True}, f"{name} does not declare {path}"
            models = MODELS if "matrix" in stage else [""]
            declared |= {path.replace("${item.model}", model): name for model in models}
    assert len(declared) == len(MODELS) + 4
    awaited = [path for path in STAGES["judgement"]["deps"] if path.startswith("reports/trials")]
    for path, name in declared.items():
        assert name == "judgement" or {path, str(Path(path).parent)} & set(awaited), path


def test_the_ledger_of_this_repository_is_whole():
    trials = read_trials(ROOT / "reports/trials")
    assert set(trials["kind"]) <= {"model", "tuning", "backtest"} and trials["trial"].is_unique


# No page tells a Sharpe ratio alone

COMPANY = (r"\btrials\b", r"\bdsr\b|deflated", r"\bpbo\b|overfitting")
TOLD = r"(?<!\bno )sharpe[^.;]{0,40}?[-+−]?\d"  # a ratio with a number behind it


def lonely(text: str) -> bool:
    return bool(re.search(TOLD, text, re.I)) and not all(re.search(word, text, re.I) for word in COMPANY)


def outputs_of(path: Path) -> list[str]:
    "The texts that an executed notebook shows, one a cell."
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        texts = [
            "".join(
                output.get(
                    "text",
                    output.get("data", {}).get("text/html", output.get("data", {}).get("text/plain", "")),
                )
            )
            for output in cell.get("outputs", [])
        ]
        if texts:
            found.append(re.sub(r"<[^>]+>", " ", "\n".join(texts)))
    return found


def text_of(path: Path) -> str:
    return html.unescape(
        re.sub(
            r"<script.*?</script>|<style.*?</style>|<[^>]+>",
            " ",
            path.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
    )


def test_no_page_and_no_output_of_a_stage_tells_a_sharpe_ratio_alone():
    for path in sorted([*(ROOT / "reports").glob("index.html"), *(ROOT / "reports/pages").glob("*.html")]):
        text = text_of(path)
        assert "sharpe" not in text.lower() or all(re.search(word, text, re.I) for word in COMPANY), path.name
    for path in sorted((ROOT / "reports/notebooks").glob("*.ipynb")):
        assert [text for text in outputs_of(path) if lonely(text)] == [], path.name
    for path in sorted((ROOT / "reports/metrics").glob("*.json")):
        assert not lonely(str(json.loads(path.read_text(encoding="utf-8")).get("sentence", ""))), path.name


@pytest.mark.parametrize(
    "text",
    ["Sharpe ratio 1.8 a year", "sharpe  \n 3.1  dsr 0.2", "a Sharpe of 2 after 24 trials", "Sharpe: -0.3"],
)
def test_a_sharpe_ratio_alone_on_a_page_would_be_found(text):
    assert lonely(text)


def judged(seed: int, days: int = 120, edge: float = 0.0, idle: int = 2, trials: int = 40):
    returns = pd.DataFrame(
        np.random.default_rng(seed).normal(0, 0.01, (days, 10)),
        index=pd.date_range("2024-01-01", periods=days, tz="UTC"),
    ).add_prefix("rule ")
    returns["rule 3"] += edge
    return judge(
        returns.assign(**{f"idle {number}": 0.0 for number in range(idle)}),
        "rule 3",
        trials,
        JudgementConfig(draws=200, blocks=8),
    )


def sentences(found) -> list[str]:
    return [
        write(found)
        for write in (
            record_sentence,
            overfitting_sentence,
            superiority_sentence,
            idle_sentence,
            judgement_sentence,
        )
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "days, edge", [(120, 0.0), (120, 0.01), (120, -0.01), (21, 0.0), (12, 0.0), (2, 0.0)]
)
def test_every_judgement_is_in_company_and_holds_no_nan(seed, days, edge):
    found = judged(seed, days, edge)
    assert not any(
        lonely(sentence) or re.search(r"\bnan\b|None(?! of \d)", sentence) for sentence in sentences(found)
    )
    assert "NaN" not in json.dumps(judgement_metrics(found)) and {"sharpe", "trials", "dsr", "pbo"} <= set(
        judgement_metrics(found)
    )


def test_a_page_of_the_judgement_is_in_company(tmp_path):
    found = judged(0, edge=0.004)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "\n".join(sentences(found))},
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"text/html": pd.DataFrame({"chosen": found.record._asdict()}, dtype=object).to_html()},
        },
    ]
    cells = [
        {"id": "one", "cell_type": "markdown", "metadata": {}, "source": "# Judgement\n\n> What → is found."},
        {
            "id": "two",
            "cell_type": "code",
            "execution_count": 1,
            "metadata": {},
            "outputs": outputs,
            "source": "1",
        },
    ]
    (tmp_path / "75_judgement.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    page(tmp_path / "75_judgement.ipynb", tmp_path / "judgement.html")
    text = text_of(tmp_path / "judgement.html")
    assert (
        re.search(TOLD, text, re.I)
        and not lonely(text)
        and [one for one in outputs_of(tmp_path / "75_judgement.ipynb") if lonely(one)] == []
    )


# What the judgement finds


def test_luck_in_choosing_passes_for_merit_as_seldom_as_it_promises():
    named, credible = 0, 0
    for seed in range(60):
        returns = pd.DataFrame(
            np.random.default_rng(seed).normal(0, 0.01, (120, 10)),
            index=pd.date_range("2024-01-01", periods=120, tz="UTC"),
        ).add_prefix("rule ")
        found = judge(returns, returns.mean().idxmax(), 10, JudgementConfig(draws=200, blocks=2))
        named, credible = (
            named + bool(found.superiority.superior),
            credible + ("is better than selection bias" in judgement_sentence(found)),
        )
    assert named <= 8 and credible <= 4


def test_a_true_edge_is_told_from_luck():
    found = [judged(seed, days=365, edge=0.008) for seed in range(5)]
    assert all(
        "is better than selection bias explains" in judgement_sentence(one)
        and "rule 3" in one.superiority.superior
        for one in found
    )
    assert sum(len(one.superiority.superior) for one in found) <= 6


def test_strategies_that_never_trade_change_nothing_but_the_trials_that_must_be_counted():
    one, two = judged(1, edge=0.004, idle=0), judged(1, edge=0.004, idle=5)
    assert one.record == two.record and one.superiority == two.superiority and len(two.idle) == 5
    assert two.superiority == superior_predictive_ability(
        pd.DataFrame(np.random.default_rng(1).normal(0, 0.01, (120, 10)))
        .add_prefix("rule ")
        .assign(**{"rule 3": lambda t: t["rule 3"] + 0.004}),
        draws=200,
        seed=7,
    )


def market_of_strategies(seed: int, edge: float, days: int = 240) -> pd.DataFrame:
    """Four models at five thresholds that differ in what they pay.

    `edge`: daily mean in daily standard deviations, before costs.
    """
    random = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=days, tz="UTC")
    market, returns = random.normal(size=days), {}
    for model in ("logistic", "xgboost", "lstm", "ensemble"):
        own = 0.7 * market + 0.7 * random.normal(size=days) + edge
        for threshold, cost in ((-0.2, 0.8), (-0.1, 0.5), (0.0, 0.2), (0.1, 0.05), (0.2, 0.0)):
            returns[f"{model} above {threshold:g} R"] = 0.01 * (own + 0.4 * random.normal(size=days) - cost)
    return pd.DataFrame(returns, index=index)


def judged_market(seed: int, edge: float):
    "The judgement of the strategy with the best ratio, as a search would choose."
    returns = market_of_strategies(seed, edge)
    best = (returns.mean() / returns.std()).idxmax()
    return judge(returns, best, 24, JudgementConfig(draws=100, blocks=4))


def test_thresholds_that_differ_in_cost_do_not_hide_a_strong_edge():
    "The deflated ratio by the variation among the thresholds was near zero here."
    for seed in range(10):
        returns, found = market_of_strategies(seed, edge=0.4), judged_market(seed, edge=0.4)
        ratios, record = returns.mean() / returns.std(), found.record
        assert deflated_sharpe_ratio(ratios.max(), len(returns), 0.0, 3.0, 24, ratios.var()) < 0.5
        assert record.independent_dsr > 0.99 and record.dsr > 0.95
        assert 4 <= record.independent_trials < 20 and record.independent_maximum < record.expected_maximum
        assert "is better than selection bias explains" in judgement_sentence(found)
        metrics = judgement_metrics(found)
        assert {"trials", "dsr", "independent_trials", "independent_dsr"} <= set(metrics)
        assert f"as {record.independent_trials} independent ones" in record_sentence(found)


def test_a_market_without_an_edge_is_seldom_credible():
    records = [judged_market(seed, edge=0.0).record for seed in range(100)]
    free = [  # and where nothing is paid
        judge(table, (table.mean() / table.std()).idxmax(), 20, JudgementConfig(draws=100, blocks=2)).record
        for table in (
            market_of_strategies(seed, 0.0)
            .filter(regex=r"above 0\.2")
            .assign(
                **{
                    f"copy {number}": lambda t, number=number: (
                        t.iloc[:, 0] + np.random.default_rng(number).normal(0, 0.004, len(t))
                    )
                    for number in range(8)
                }
            )
            for seed in range(100)
        )
    ]
    for found in (records, free):
        assert sum(record.independent_dsr >= 0.95 for record in found) <= 8
        assert sum(record.dsr >= 0.95 for record in found) <= 4
