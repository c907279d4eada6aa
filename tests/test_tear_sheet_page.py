"The page of the tear sheet: its answer first, no ratio alone, the same bytes, an account without a trade."

import re

import pandas as pd

from smc_ml.reports.tear_sheet_page import tear_sheet_html
from smc_ml.trading.account import Backtest

TIMES = pd.date_range("2024-01-01", periods=40, freq="6h", tz="UTC")
JUDGED = {"trials": 12, "independent_maximum": 1.5, "independent_dsr": 0.4, "pbo": 0.3}
NUMBERS = "entry stop target exit_price gross_r cost_r mae_r mfe_r fees slippage funding".split()


def _account(trades: int) -> Backtest:
    "An account with trades that win 2 R and lose 1 R by turns."
    table = pd.DataFrame({name: [1.0] * trades for name in NUMBERS})
    table = table.assign(
        time=TIMES[:trades],
        entry_at=TIMES[:trades],
        exit_at=TIMES[1 : trades + 1],
        symbol="<b>",
        kind="order_block",
        direction=1,
        exit_reason="stop",
        realised_r=[2.0, -1.0] * (trades // 2),
        profit=[40.0, -10.0] * (trades // 2),
    )
    equity = pd.Series(1000.0, TIMES)
    equity.iloc[5:] += 15.0 * trades
    table_of = {"equity": equity, "drawdown": 0.0, "buy_and_hold": 1000.0, "exposure": 0.0}
    return Backtest(table, pd.DataFrame(table_of))


def test_it_opens_with_its_answer_and_no_ratio_stands_alone():
    page = tear_sheet_html(_account(8), JUDGED, 1000.0)
    assert page == tear_sheet_html(_account(8), JUDGED, 1000.0)
    assert page.index("gained 12.0 %") < page.index("Every trade")
    assert page.count("12 trials") == 5, "the opening; what rolls; Sharpe, Sortino, Calmar"
    assert re.search(r"money lost by losers</small></td><td[^>]*>4\.00<", page), "in money"
    assert re.search(r"risk taken as one</small></td><td[^>]*>2\.00<", page), "in R"
    assert "&lt;b&gt;" in page and "<td><b>" not in page and "<b></td>" not in page


def test_an_account_without_a_trade_has_a_page():
    assert "No trade was taken" in tear_sheet_html(_account(0), JUDGED, 1000.0)


def test_no_section_has_a_sharpe_ratio_without_trials_dsr_and_pbo():
    long = pd.date_range("2024-01-01", periods=120, freq="1D", tz="UTC")
    equity = pd.DataFrame({"equity": [1000.0 + 3 * day + 20 * (day % 3) for day in range(120)]}, long)
    equity = equity.assign(drawdown=-0.01, buy_and_hold=1000.0, exposure=0.5)
    page = tear_sheet_html(Backtest(_account(8).trades, equity), JUDGED, 1000.0)
    sections = [
        part for part in page.split("<main")[1].split("<script>")[0].split("<h2>") if "Sharpe" in part
    ]
    assert len(sections) == 3, "the opening, what rolls, and the ratios"
    for section in sections:
        assert re.search(r"Sharpe ratio \d", section), "a number, not a dash"
        assert all(word in section for word in ("12 trials", "DSR 0.40", "PBO 0.30")), section[:200]
