"""What a Sharpe ratio is worth: published and constructed cases, invariances.

And no Sharpe ratio without its trials, DSR and PBO.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from smc_ml.evaluation import overfitting
from smc_ml.evaluation.metrics import coverage_accuracy, score, weighted_spearman
from smc_ml.evaluation.overfitting import (
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    minimum_track_record_length,
    probabilistic_sharpe_ratio,
    probability_of_backtest_overfitting,
    sharpe_report,
    superior_predictive_ability,
)
from smc_ml.evaluation.trials import Trial, count_trials, read_trials, record_trials

ROOT = Path(__file__).resolve().parents[1]


def noise(seed: int, periods: int = 320, strategies: int = 20) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(periods, strategies)))


# Published cases


def test_the_worked_example_of_the_deflated_sharpe_ratio_comes_out():
    example = dict(sharpe=2.5 / 250**0.5, periods=5 * 250, skewness=-3.0, kurtosis=10.0)
    assert round(expected_maximum_sharpe(100, 0.5 / 250), 4) == 0.1132
    assert round(deflated_sharpe_ratio(**example, trials=100, variance=0.5 / 250), 4) == 0.9004
    assert round(deflated_sharpe_ratio(**example, trials=46, variance=0.5 / 250), 4) == 0.9505
    assert (
        round(
            deflated_sharpe_ratio(
                **example | {"skewness": 0.0, "kurtosis": 3.0}, trials=88, variance=0.5 / 250
            ),
            4,
        )
        == 0.9505
    )


@pytest.mark.parametrize(
    "a_year, skewness, kurtosis, years",
    [(252, 0.0, 3.0, 2.73), (52, 0.0, 3.0, 2.83), (12, 0.0, 3.0, 3.24), (12, -0.72, 5.78, 4.99)],
)
def test_the_published_track_records_come_out(a_year, skewness, kurtosis, years):
    assert (
        round(minimum_track_record_length(2 / a_year**0.5, skewness, kurtosis, 1 / a_year**0.5) / a_year, 2)
        == years
    )


# Constructed cases


def test_the_best_of_many_without_merit_is_a_coin_toss_afterwards():
    found = [probability_of_backtest_overfitting(noise(seed, strategies=60), 8).pbo for seed in range(60)]
    assert 0.43 < np.mean(found) < 0.57


def test_a_truly_better_strategy_stays_the_best():
    for seed in range(10):
        assert probability_of_backtest_overfitting(noise(seed) + 0.5 * (np.arange(20) == 4), 8).pbo == 0


def test_strategies_that_turn_around_are_always_overfitted():
    drift = np.repeat([1.0, -1.0], 40)[:, None] * np.linspace(0.5, 1.5, 8)  # whoever gains most loses most
    found = probability_of_backtest_overfitting(drift + noise(0, 80, 8).to_numpy() / 100, 2)
    assert found.pbo == 1.0 and found.slope < 0


def test_hansens_test_of_one_strategy_is_the_plain_test():
    for seed in range(5):
        returns = noise(seed, 400, 1) + 0.05
        assert (
            abs(
                superior_predictive_ability(returns, block=1, draws=2000).p_upper
                - ttest_1samp(returns[0], 0, alternative="greater").pvalue
            )
            < 0.05
        )


def test_the_superior_ones_are_named_and_no_others():
    better = noise(3, 500, 12).add_prefix("rule ")
    better[["rule 2", "rule 9"]] += 0.4
    found = superior_predictive_ability(better, draws=500)
    assert found.p_value < 0.01 and set(found.superior) == {"rule 2", "rule 9"}


def test_all_can_be_superior_and_a_wild_one_hides_none():
    # not in the first step, but in a later one
    for seed in (6, 9, 11):
        assert superior_predictive_ability(noise(seed, 300, 5) + 0.14, draws=200).superior == (0, 1, 2, 3, 4)
    assert (
        1
        in superior_predictive_ability(
            (noise(3, 300, 5) + 0.5 * (np.arange(5) == 1)) * [1, 1, 1, 1000, 1], draws=200
        ).superior
    )


def test_a_benchmark_as_good_as_the_best_leaves_nothing_superior():
    returns = noise(3, 500, 5) + 0.3
    found = superior_predictive_ability(
        returns, benchmark=np.random.default_rng(9).normal(0.4, 1, 500), draws=500
    )
    assert found.p_value > 0.05 and found.superior == ()


def test_the_deflated_ratio_of_the_best_of_noise_passes_as_seldom_as_it_promises():
    passed = 0
    for seed in range(200):
        returns = noise(seed, 250, 30)
        passed += (
            sharpe_report(returns[(returns.mean() / returns.std()).idxmax()], 30, returns, blocks=2).dsr
            > 0.95
        )
    assert passed <= 10  # the plain test passes in more than half of them


# Invariances

seeds = st.integers(0, 10_000)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds, order=st.permutations(range(6)), scale=st.lists(st.floats(1e-4, 1e4), min_size=6, max_size=6)
)
def test_neither_the_order_nor_the_scale_of_strategies_matters_for_overfitting(seed, order, scale):
    returns = noise(seed, 48, 6)
    one, two = (
        probability_of_backtest_overfitting(table, 6) for table in (returns, (returns * scale)[order])
    )
    assert one.pbo == two.pbo
    np.testing.assert_allclose(one.logits, two.logits)
    np.testing.assert_allclose(one.out_of_sample, two.out_of_sample, rtol=1e-6, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(
    seed=seeds, order=st.permutations(range(5)), scale=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5)
)
def test_neither_order_nor_scale_matters_for_superiority(seed, order, scale):
    returns = noise(seed, 40, 5) + 0.2
    one, two = (
        superior_predictive_ability(table, draws=100) for table in (returns, (returns * scale)[order])
    )
    assert one.p_value == pytest.approx(two.p_value, abs=0.011) and set(one.superior) == set(two.superior)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(1e-4, 1e4), trials=st.integers(12, 10_000))
def test_a_report_does_not_depend_on_the_leverage(seed, scale, trials):
    returns = noise(seed, 64, 12)
    one, two = (sharpe_report(table[0], trials, table, blocks=4) for table in (returns, returns * scale))
    for name in (
        "sharpe",
        "sharpe_low",
        "sharpe_high",
        "dsr",
        "psr",
        "expected_maximum",
        "skewness",
        "kurtosis",
    ):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-6, abs=1e-9), name
    assert one.pbo == two.pbo


@settings(max_examples=100, deadline=None)
@given(
    sharpe=st.floats(-0.5, 0.5),
    periods=st.integers(20, 5000),
    skewness=st.floats(-3, 3),
    extra=st.floats(0.5, 20),
    trials=st.integers(1, 10_000),
    more=st.integers(1, 1000),
    variance=st.floats(1e-6, 0.1),
)
def test_more_trials_never_make_a_ratio_more_credible(
    sharpe, periods, skewness, extra, trials, more, variance
):
    shape = dict(periods=periods, skewness=skewness, kurtosis=1 + skewness**2 + extra)
    plain, few, many = (
        probabilistic_sharpe_ratio(sharpe, **shape),
        *(
            deflated_sharpe_ratio(sharpe, **shape, trials=count, variance=variance)
            for count in (trials, trials + more)
        ),
    )
    assert 0 <= many <= few <= plain <= 1


@settings(max_examples=100, deadline=None)
@given(
    sharpe=st.floats(0.01, 0.5),
    skewness=st.floats(-3, 3),
    extra=st.floats(0.5, 20),
    confidence=st.floats(0.6, 0.99),
)
def test_after_the_minimum_track_record_the_confidence_is_reached(sharpe, skewness, extra, confidence):
    shape = dict(skewness=skewness, kurtosis=1 + skewness**2 + extra)
    length = minimum_track_record_length(sharpe, **shape, confidence=confidence)
    if length >= 2:
        assert probabilistic_sharpe_ratio(sharpe, length, **shape) == pytest.approx(confidence, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_rank_correlation_sees_only_the_ranks(seed):
    random = np.random.default_rng(seed)
    said, came, weights = (
        random.integers(0, 9, 40),
        random.normal(size=40),
        random.integers(0, 3, (5, 40)).astype(float),
    )
    order, value = random.permutation(40), weighted_spearman(said, came, weights)
    np.testing.assert_allclose(value, weighted_spearman(np.exp(said), came**3, weights))
    np.testing.assert_allclose(value, -weighted_spearman(-said, came, weights))
    np.testing.assert_allclose(value, weighted_spearman(said[order], came[order], weights[:, order]))


def predicted(seed: int, events: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(seed)
    time = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(
        np.sort(random.integers(0, 60 * 288, events)) * 5, unit="min"
    )
    chance = random.uniform(0.1, 0.9, events).round(2)
    labels = pd.DataFrame(
        {
            "symbol": "ONE",
            "time": time,
            "event_id": range(events),
            "exit_at": time + pd.Timedelta("1h"),
            "won": random.random(events) < chance,
        }
    )
    labels["gross_r"] = np.where(labels["won"], 1.5, -1.0)
    labels["realised_r"] = np.where(labels["won"], 1.4, -1.05)
    return labels[["symbol", "time", "event_id"]].assign(
        model="rule", fold=np.arange(events) * 3 // events, probability=chance, expected_r=chance - 0.5
    ), labels


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_the_order_of_events_does_not_matter_for_the_scores(seed):
    predictions, labels = predicted(seed)
    shuffled = predictions.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(score(predictions, labels), score(shuffled, labels), rtol=1e-9)
    pd.testing.assert_frame_equal(
        coverage_accuracy(predictions, labels),
        coverage_accuracy(shuffled, labels),
        rtol=1e-9,
    )


# No Sharpe ratio alone

BESIDE = (r"\btrials\b", r"\bdsr\b|deflated", r"\bpbo\b|overfitting")
# a ratio under no name, and vectorbt's table, which holds one
RAW = r"\.mean\([^()]*\)\s*/\s*[^\n]*\.std\(|\.stats\("


def lonely_sharpe(source: str) -> list[str]:
    "Definitions with a Sharpe ratio without trials, DSR and PBO; comments and docstrings do not count."
    found = []
    for node in ast.parse(source).body:
        for part in ast.walk(node):
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part) is not None:
                part.body = part.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and not found:
            continue
        text = re.sub(r"\b(sharpe_report|SharpeReport)\b", "", ast.unparse(node))
        if (
            re.search(RAW, text)
            or re.search("sharpe", text, re.I)
            and not all(re.search(word, text, re.I) for word in BESIDE)
        ):
            found.append(text)
    return found


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    return "\n".join(
        line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))
    )


# The page that draws ratios from their parts: test_tear_sheet_page holds it to the rule, section by section.
TEAR_SHEET = {
    ROOT / "smc_ml" / name
    for name in ("trading/tear_sheet.py", "figures/tear_sheet.py", "reports/tear_sheet_page.py")
}
# Records that are watched: their ratio is a `SharpeReport`, which says its trials and what luck alone shows;
# without a search there is no PBO. The command hands it the trials of the run; the table of tracking shows
# the deflated ratio alone.
RECORDS = {
    ROOT / "smc_ml" / name
    for name in (
        "commands/trading_live.py",
        "live/config.py",
        "live/signals/processor.py",
        "live/signals/track_record.py",
        "monitoring/performance.py",
        "reports/monitoring_page.py",
        "tracking/experiments.py",
    )
}
SOURCES = [
    path
    for path in sorted([*(ROOT / "smc_ml").rglob("*.py"), *(ROOT / "nbs" / "pipeline").glob("*.ipynb")])
    if path.name not in ("_modidx.py", "overfitting.py") and path not in TEAR_SHEET | RECORDS
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_code_has_a_sharpe_ratio_without_trials_dsr_and_pbo(path):
    assert lonely_sharpe(code_of(path)) == []


@pytest.mark.parametrize("path", sorted(RECORDS), ids=lambda path: path.name)
def test_the_ratio_of_a_record_that_is_watched_comes_from_a_report_with_its_trials(path):
    text = code_of(path)
    assert not re.search(RAW, text)
    assert re.search(r"sharpe_report|SharpeFilter|sharpe_trials|independent_dsr|\{report\.sharpe\}", text)


def test_what_a_report_of_a_ratio_says_names_its_trials():
    days = pd.date_range("2024-01-01", periods=200, tz="UTC")
    told = str(sharpe_report(pd.Series(np.random.default_rng(0).normal(0.1, 1, 200), days), 5))
    assert "5 trials" in told and re.search("deflated|DSR", told)


@pytest.mark.parametrize(
    "source",
    [
        "def ratio(returns): return returns.mean() / returns.std()",
        "page = 'Sharpe ratio {{ sharpe }}'",
        "print(portfolio.sharpe_ratio())",
        "def page(record): return f'Sharpe {record.sharpe} after {record.trials} trials'",
        "from vectorbt.returns.nb import sharpe_ratio_nb",
        "table = portfolio.stats()",
    ],
)
def test_a_sharpe_ratio_alone_would_be_found(source):
    assert lonely_sharpe(source)


@pytest.mark.parametrize(
    "source",
    [
        "from smc_ml.evaluation.overfitting import sharpe_report",
        "def page(r): return r.sharpe, r.trials, r.dsr, r.pbo",
        "def f(x):\n    'The Sharpe ratio.'\n    return x",
    ],
)
def test_a_sharpe_ratio_in_company_passes(source):
    assert not lonely_sharpe(source)


def test_the_record_is_the_only_way_to_a_sharpe_ratio():
    public = {name for name in overfitting.__all__ if "sharpe" in name.lower()}
    assert public == {
        "probabilistic_sharpe_ratio",
        "expected_maximum_sharpe",
        "deflated_sharpe_ratio",
        "SharpeReport",
        "sharpe_report",
    }
    fields = overfitting.SharpeReport._fields
    assert fields[:6] == ("sharpe", "sharpe_low", "sharpe_high", "trials", "dsr", "pbo")
    returns = noise(0, 100, 12)
    said = str(sharpe_report(returns[0], 40, returns, blocks=4))
    assert all(
        re.search(word, said)
        for word in ("40 trials", "deflated Sharpe ratio [01]", "backtest overfitting [01]")
    )
    assert "not known" in str(sharpe_report(returns[0], 40)) and "nan" not in str(
        sharpe_report(returns[0], 40)
    )


def lonely_keys(value: object) -> list[str]:
    "Keys with a Sharpe ratio in dictionaries that lack trials, dsr or pbo."
    if isinstance(value, list):
        return [key for item in value for key in lonely_keys(item)]
    if not isinstance(value, dict):
        return []
    alone = (
        [key for key in value if "sharpe" in key.lower() and not isinstance(value[key], dict)]
        if not {"trials", "dsr", "pbo"} <= set(value)
        else []
    )
    return alone + [key for item in value.values() for key in lonely_keys(item)]


def test_no_metrics_of_a_stage_hold_a_sharpe_ratio_alone():
    assert lonely_keys({"backtest": {"sharpe": 1.2, "trials": 3}}) == ["sharpe"]
    for path in (ROOT / "reports" / "metrics").glob("*.json"):
        assert lonely_keys(json.loads(path.read_text(encoding="utf-8"))) == [], path.name


# Not enough data


def test_nothing_that_cannot_be_computed_is_shown_as_a_number():
    for returns in (pd.Series(np.zeros(100)), pd.Series(np.full(100, 0.1)), noise(0)[0][:10]):
        record = sharpe_report(returns, 5)
        assert (record.sharpe, record.sharpe_low, record.dsr, record.pbo, record.psr) == (
            None,
        ) * 5 and "not enough data" in str(record)
    assert sharpe_report(-noise(0, 200)[0].abs(), 5).minimum_track_record is None


def test_scores_of_one_class_and_few_days_have_no_numbers():
    predictions, labels = predicted(0)
    row = score(predictions, labels.assign(won=False, gross_r=-1.0, realised_r=-1.0)).iloc[0]
    assert (
        row[["auc", "balanced_accuracy", "mcc", "ic"]].isna().all()
        and row["accuracy"] > 0
        and row["majority_rate"] == 1
    )
    few = predictions[predictions["time"] < "2024-01-04"]
    row = score(few, labels).iloc[0]
    assert (
        row["days"] == 3
        and row[[name for name in row.index if name.endswith(("_low", "_high"))]].isna().all()
    )


# The ledger


def test_what_was_tried_is_counted_once_and_never_forgotten(tmp_path):
    first = [Trial("tune", "tuning", {"depth": depth}) for depth in range(5)]
    assert record_trials(tmp_path / "tune.jsonl", first) == 5
    written = (tmp_path / "tune.jsonl").read_bytes()
    assert (
        record_trials(tmp_path / "tune.jsonl", first[::-1]) == 0
        and (tmp_path / "tune.jsonl").read_bytes() == written
    )
    assert record_trials(tmp_path / "tune.jsonl", [Trial("tune", "tuning", {"depth": 9})]) == 1
    assert (tmp_path / "tune.jsonl").read_bytes().startswith(written) and count_trials(tmp_path) == 6


@settings(max_examples=50, deadline=None)
@given(
    keys=st.permutations(["a", "b", "c"]),
    value=st.one_of(
        st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.lists(st.booleans())
    ),
)
def test_the_name_of_a_trial_depends_on_its_settings_alone(tmp_path_factory, keys, value):
    path = tmp_path_factory.mktemp("ledger") / "one.jsonl"
    settings = {"a": value, "b": 1, "c": [value]}
    assert (
        record_trials(
            path,
            [
                Trial("train", "model", settings),
                Trial("train", "model", {key: settings[key] for key in keys}),
            ],
        )
        == 1
    )
    assert read_trials(path)["settings"].tolist() == [settings]


PIPELINE = """stages:
  tune:
    matrix: {item: [one, two]}
    cmd: python tune.py ${item.item} ${depth}
    deps: [tune.py]
    params: [depth]
    outs:
      - reports/trials/${item.item}.jsonl: {cache: false, persist: true}
  count:
    cmd: python count.py
    deps: [count.py, reports/trials/one.jsonl, reports/trials/two.jsonl]
    outs:
      - count
      - reports/trials/count.jsonl: {cache: false, persist: true}
"""
TUNE = """import sys
from smc_ml.evaluation.trials import Trial, record_trials
item, depth = sys.argv[1], int(sys.argv[2])
record_trials(f"reports/trials/{item}.jsonl", [Trial("tune", "tuning", {"item": item, "depth": depth})])
"""
COUNT = """from pathlib import Path
from smc_ml.evaluation.trials import Trial, count_trials, record_trials
record_trials("reports/trials/count.jsonl", [Trial("count", "backtest", {"item": "own"})])
Path("count").write_text(str(count_trials("reports/trials")))
"""


@pytest.mark.slow
def test_the_ledger_survives_the_pipeline_that_writes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for name, text in (("dvc.yaml", PIPELINE), ("tune.py", TUNE), ("count.py", COUNT)):
        (tmp_path / name).write_text(text)
    subprocess.run(["dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    counts = []
    for depth in (1, 2, 1):  # the third run goes back to what was tried before
        (tmp_path / "params.yaml").write_text(f"depth: {depth}\n")
        subprocess.run(["dvc", "repro", "-q"], cwd=tmp_path, check=True)
        counts.append((tmp_path / "count").read_text())
    assert counts == ["3", "5", "5"]
