"""The verdict is one: sentence, tile and tables of the pages say the same, and no more than the data."""

import re

import numpy as np
import pandas as pd
import pytest

from smc_ml.controls.nulls import null_sentences
from smc_ml.controls.planted import power_curve, power_sentences
from smc_ml.controls.record import models_of
from smc_ml.reports.index import index_html
from smc_ml.reports.numbers import shown
from smc_ml.reports.run import RunSummary
from smc_ml.reports.summary import findings_of, headline_of, verdict_of

EDGES = (0.0, 0.15, 0.3, 0.45)


def curve(seen_from: float):
    "The power curve of markets in which every edge from one size on is seen, and no smaller one."
    return power_curve(
        pd.DataFrame({"edge": np.repeat(EDGES, 20), "found": np.repeat(EDGES, 20) >= seen_from})
    )


def headline(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def models(gain: float, auc: float) -> pd.DataFrame:
    "The scores of the ensemble, and of a model that says nothing."
    own = headline("log_loss_gain", gain, 0.003) | headline("auc", auc, 0.03)
    nothing = headline("log_loss_gain", -0.004, 0.003) | headline("auc", 0.5, 0.03)
    accuracy = headline("accuracy", 0.57, 0.02) | {"majority_rate": 0.58, "events": 3000}
    return pd.DataFrame([{"model": "logistic"} | nothing | accuracy, {"model": "ensemble"} | own | accuracy])


def page(scores: pd.DataFrame, expectancy: float, dsr_is_credible: bool, seen: tuple[float, float]):
    "Index page of a run, its verdict, and what its controls say."
    backtest = headline("mean_r", expectancy, 0.1) | {"trades": 400}
    information, profit = map(curve, seen)
    said = " ".join(power_sentences(information, profit))
    controls = {"power": {"edge": information.edge}, "power_after_costs": {"edge": profit.edge}}
    controls |= {"largest_edge": EDGES[-1], "sentences": {"smallest edge that would be seen": said}}
    judgement = {"credible": dsr_is_credible, "sentence": "The search.", "independent_dsr": 0.97}
    ensemble = scores.set_index("model").loc["ensemble"].to_dict()
    found = verdict_of(ensemble, backtest, judgement, controls)
    summary = RunSummary(
        verdict=found,
        simulated=False,
        scores=scores,
        backtest=backtest,
        spans=pd.DataFrame(),
        parameters={},
        results="1",
        lock_hash="2",
        findings=findings_of(judgement, controls),
        headline=headline_of(ensemble, backtest, judgement),
    )
    return re.sub(r"<style>.*?</style>", "", index_html(summary, []), flags=re.DOTALL), found, said


NONE, SEEN, NEVER = models(-0.002, 0.505), models(0.005, 0.56), 0.9
RUNS = {
    "shown": (SEEN, 0.2, True, (0.15, 0.3), "shown"),
    "shown, whatever the controls see": (SEEN, 0.2, True, (NEVER, NEVER), "shown"),
    "found by a search": (SEEN, 0.2, False, (0.15, 0.3), "unknown"),
    "nothing, and it would be seen": (NONE, 0.0, False, (0.3, 0.45), "absent"),
    "nothing, and it would not be seen": (NONE, 0.0, False, (NEVER, NEVER), "unknown"),
    "information, and a profit would be seen": (SEEN, 0.0, False, (0.15, 0.3), "absent"),
    "information, and a profit would not be seen": (SEEN, 0.0, False, (0.15, NEVER), "unknown"),
    "a profit that nothing explains": (NONE, 0.2, True, (0.15, 0.3), "unknown"),
    "too near to tell": (SEEN, 0.08, False, (0.15, 0.3), "unknown"),
}


@pytest.mark.parametrize("name", RUNS)
def test_sentence_numbers_table_and_controls_agree(name):
    *run, kind = RUNS[name]
    html, found, said = page(*run)
    assert found.kind == kind
    answer = re.search(r'<p class="verdict">(.*?)</p>', html)[1]
    tiles = re.findall(r'<div class="value">(.*?)</div>', html)[:3]
    assert answer.replace("&#39;", "'") == found.answer
    auc, expectancy = run[0]["auc"].iloc[-1], run[1]
    assert tiles == [shown(auc, "score"), shown(expectancy, "r"), "0.970"]
    informed = re.findall(r"<td>(yes|not shown)</td>", html)
    assert informed == ["not shown", "yes" if run[0] is SEEN else "not shown"]
    assert ("model ranks setups better than chance" in found.reasons) == (run[0] is SEEN)
    sentences = {"shown": "is shown.", "absent": "No edge", "unknown": "cannot tell"}
    assert {one: words in answer for one, words in sentences.items()} == {
        one: one == kind for one in sentences
    }
    if kind == "absent":
        least = re.search(r"at least (0\.\d\d)", answer)[1]
        assert f"an edge of {least} is seen" in said
    if "this amount of data cannot show it" in said.split(". ")[0]:
        assert "No edge" not in answer


def test_the_headlines_come_in_the_order_of_what_they_see():
    html = page(*RUNS["shown"][:-1])[0]
    places = [html.index(f"<th>{name}") for name in ("gain in log-loss", "AUC", "accuracy", "majority-class")]
    assert places == sorted(places)


def test_numbers_of_the_controls_bear_the_names_of_their_models_unless_they_are_those_of_the_run():
    nulls, real = pd.DataFrame({"mean_r": [-0.1, 0.0]}), {"mean_r": -0.0103}
    fast, run = ("logistic", "xgboost"), ("logistic", "xgboost", "lstm")
    said = null_sentences(real, nulls, ["mean_r"], models_of(fast, run))[0]
    assert said.startswith("The mean R after costs of logistic and xgboost alone, −0.010, lies")
    assert null_sentences(real, nulls, ["mean_r"], models_of(run, run))[0].startswith(
        "The mean R after costs, −0.010"
    )
