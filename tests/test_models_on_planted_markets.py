"""Every family of models finds an edge that was planted, and none of them shows one where there is none."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm

from smc_ml.candles import Market
from smc_ml.controls.markets import PLANTED, PlantedMarket
from smc_ml.controls.planted import share_of_reachable
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.calls import market_events
from smc_ml.stages.comparison import Comparison, compare_models
from smc_ml.stages.config import PipelineSettings
from smc_ml.stages.horizons import bar_targets
from smc_ml.stages.trained import train_and_judge

SMALL = {
    "lstm": {"layers": 1, "hidden": 32},
    "transformer": {"layers": 2, "heads": 4, "width": 32, "feed_forward": 64},
    "patchtst": {
        "patch": 8,
        "stride": 4,
        "layers": 2,
        "heads": 4,
        "width": 32,
        "feed_forward": 64,
        "learning_rate": 0.001,
    },
    "trading": {"filters": 16, "hidden": 32, "layers": 1, "indicators": 32},
    "pooling": {"hidden": 32},
    "fusion": {
        "scales": [1, 6],
        "rows": 4,
        "width": 16,
        "layers": 1,
        "dropout": 0.5,
        "learning_rate": 0.001,
        "epochs": 3,
        "weight_decay": 0.3,
    },
    "hybrid": {"filters": 16},
}  # sizes of networks at which the proof takes minutes
BARS = {
    "width": 64,
    "feed_forward": 128,
    "layers": 2,
    "heads": 4,
    "epochs": 3,
    "samples": {"of": "bars", "timeframe": "15m", "stride": 4},
}  # of the patch Transformer, as in the sample
LOOP = {"epochs": 6, "patience": 3, "learning_rate": 0.003}
FAMILIES = {
    "rows": ("logistic", "mlp", "svm"),
    "boosters": ("xgboost", "lightgbm", "random_forest"),
    "neighbours": ("lorentzian",),
    "light networks": ("lstm", "pooling", "fusion", "hybrid"),
    "heavy networks": ("trading", "transformer", "patchtst"),
}
EVERY = tuple(name for names in FAMILIES.values() for name in names)
CHEAP = tuple(name for name in EVERY if name not in SMALL)
NETWORKS = {name: FAMILIES[name] for name in ("light networks", "heavy networks")}


def planted(edge: float, seed: int, end: str) -> PlantedMarket:
    "Two simulated symbols from 2024 on; an edge of 0 is none."
    config = PLANTED.model_copy(update={"edge": edge, "seed": seed})
    simulated = simulate_market(["A", "B"], "2024-01-01", end, config)
    market = Market({symbol: one.candles for symbol, one in simulated.items()}, "5m")
    return PlantedMarket(market, {symbol: one.truth for symbol, one in simulated.items()})


def compared(market: Market, models: tuple[str, ...], seed: int = 0) -> Comparison:
    "The models on three folds, networks in their small sizes."
    own = {name: {**LOOP, **SMALL[name]} for name in models if name in SMALL}
    train = {"models": models, "steps": 24, "seed": seed, "bytes": "fast", "random_forest": {"trees": 60}}
    settings = PipelineSettings(splits={"n_folds": 3}, train=train | own)
    return compare_models(market, settings, progress=False)


def gains(
    edge: float, models: tuple[str, ...] = EVERY, seed: int = 0, end: str = "2024-07-01"
) -> pd.DataFrame:
    "Gain over the base rate with its interval, and the share of what can be reached, by model."
    one = planted(edge, 11, end)
    found = compared(one.market, models, seed)
    shares = share_of_reachable(found.predictions, found.labels, one.truths).set_index("model")
    table = found.table.set_index("model").join(shares[["reachable_auc", "share", "share_low", "share_high"]])
    gained = ["log_loss_gain", "log_loss_gain_low", "log_loss_gain_high", "auc"]
    return table[["events", *gained, "reachable_auc", "share", "share_low", "share_high", "train_seconds"]]


def on_null_markets(models: tuple[str, ...], markets: int = 20, end: str = "2024-03-01") -> pd.DataFrame:
    "Gain and AUC of each model on each of so many markets without an edge."
    tables = [
        compared(planted(0.0, 100 + seed, end).market, models).table.assign(seed=seed)
        for seed in range(markets)
    ]
    return pd.concat(tables, ignore_index=True)


def above_chance(nulls: pd.DataFrame) -> pd.DataFrame:
    "By model: markets whose interval lies above chance, how likely so many are by luck, and all together."
    rows = {}
    for model, table in nulls.groupby("model", sort=False):
        for name, chance in (("log_loss_gain", 0.0), ("auc", 0.5)):
            low, high = table[f"{name}_low"], table[f"{name}_high"]
            error = np.maximum((high - low) / (2 * norm.ppf(0.975)), 1e-12)
            pooled = (table[name] - chance).sum() / np.sqrt(np.square(error).sum())
            above = int((low > chance).sum())
            rows[model, name] = {
                "markets": len(table),
                "above": above,
                "count_p": binomtest(above, len(table), 0.025, alternative="greater").pvalue,
                "mean": table[name].mean() - chance,
                "pooled_p": float(norm.sf(pooled)),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


@pytest.mark.slow
@pytest.mark.parametrize("edge, end", [(0.3, "2026-01-01"), (0.45, "2024-07-01")])
def test_every_family_finds_a_planted_edge(edge, end):
    """Two symbols; at 0.3 two years and 17,585 judged trades, at 0.45 six months and 3,988.

    Seven minutes of processor time and a minute and a half. Measured at 0.3, where an oracle has an AUC of
    0.605: gains of 0.0035 (lorentzian) to 0.0108 (logistic), every interval above zero, shares of the
    reachable from 47 % (lorentzian) to 81 % (logistic). Two years are the least, in steps of half a year:
    with six months only mlp and svm gain with their whole interval; with a year svm, hybrid, fusion, the
    Transformer and the patch Transformer do not, and of these the last two do not with a year and a half. At
    0.45, where an oracle has 0.663: gains of 0.007 (lorentzian) to 0.023 (mlp), shares from 49 % (lorentzian)
    to 75 % (mlp). The patch Transformer and the fusion network gained nothing there at a learning rate of
    0.003: of four settings of the one and nine of the other, tried on that market, those above are surest.
    """
    found = gains(edge, end=end)
    print(found.round(4).to_string())
    assert (found[["log_loss_gain_low", "share_low"]] > 0).all(axis=None), found


@pytest.mark.slow
@pytest.mark.parametrize("models", [CHEAP, *NETWORKS.values()], ids=["rows", *NETWORKS])
def test_no_family_shows_an_edge_on_twenty_markets_without_one(models):
    """Twenty markets of two months and two symbols; five to fifteen seconds of processor time a market.

    No gain lies above zero; of the AUCs three of twenty lie above one half for svm, two for fusion, none for
    lorentzian, pooling and hybrid, one for every other model; the smallest p-value is 0.013 (svm, by count),
    and 0.0004 would speak of an edge.
    """
    found = above_chance(on_null_markets(models))
    print(found.round(4).to_string())
    assert (found[["count_p", "pooled_p"]].min(axis=1) >= 0.01 / (2 * len(found))).all(), found


@pytest.mark.slow
@pytest.mark.parametrize("networks", NETWORKS.values(), ids=list(NETWORKS))
def test_five_seeds_of_every_network(networks):
    """Three minutes of processor time each, at an edge of 0.45.

    Measured: mean gain and standard deviation are 0.0060 and 0.0038 (fusion), 0.0127 and 0.0021 (hybrid),
    0.0127 and 0.0017 (pooling), 0.0105 and 0.0004 (lstm), 0.0135 and 0.0008 (trading), 0.0142 and 0.0019
    (Transformer), 0.0071 and 0.0038 (patch Transformer); every one of the thirty-five gains.
    """
    found = pd.DataFrame({seed: gains(0.45, networks, seed)["log_loss_gain"] for seed in range(5)})
    print(found.T.agg(["mean", "std", "min", "max"]).T.round(4).to_string())
    assert (found.mean(axis=1) > 0).all(), found


def scores_of_bars(edge: float, seed: int, end: str = "2024-07-01") -> pd.Series:
    "What the patch Transformer makes of bars, by horizon, quantity, measure and baseline."
    market = planted(edge, 11, end).market
    train = {"models": ("logistic", "patchtst"), "seed": seed, "bytes": "fast", "patchtst": BARS}
    settings = PipelineSettings(splits={"n_folds": 3}, train=train)
    events, targets = market_events(market, settings), bar_targets(market).tables
    learnt = events.features, events.catalogue, events.labels, targets
    judged = train_and_judge("patchtst", *learnt, settings.train, settings.splits, progress=False)
    return judged.tables["scores"].set_index(["horizon", "quantity", "measure", "against"])["value"]


@pytest.mark.slow
def test_five_seeds_of_the_patch_transformer_on_bars():
    """A minute of processor time, at an edge of 0.45: 7,552 bars of 15m, one in four.

    Measured over 15m, 1h, 4h and 12h: a mean AUC of rise or fall of 0.524, 0.544, 0.568 and 0.602 (standard
    deviations of 0.011, 0.008, 0.021 and 0.013), a mean skill in drawdowns over the base rate of 0.056,
    0.074, 0.079 and 0.060 (0.023, 0.015, 0.012 and 0.017). In log-loss directions gain nothing on so few
    bars: means of -0.008, -0.003, -0.005 and -0.021 (0.007, 0.006, 0.006 and 0.008), and returns neither.
    """
    found = pd.DataFrame({seed: scores_of_bars(0.45, seed) for seed in range(5)})
    print(found.T.agg(["mean", "std", "min", "max"]).T.round(4).to_string())
    means = found.mean(axis=1)
    assert (means.xs("auc", level="measure") > 0.5).all(), found
    assert (means.xs("drawdown", level="quantity") > 0).all(), found
