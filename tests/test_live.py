"""Live is what was backtested: features, predictions, trades, equity; through holes, outages, restarts."""

import asyncio
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import test_serving
from postgres import postgres, postgres_url  # noqa: F401

from smc_ml.candles import Market
from smc_ml.commands.trading_live import check_follows, prediction_lines, replayed_prediction
from smc_ml.config import UserError
from smc_ml.ensemble.estimator import Ensemble
from smc_ml.ensemble.running import Key
from smc_ml.features.table import feature_tables
from smc_ml.live.broker.walking import market_closes
from smc_ml.live.config import LiveConfig, RiskConfig, SignalConfig
from smc_ml.live.feeds.replay import ReplayFeed
from smc_ml.live.kept import kept_path
from smc_ml.live.path import LivePath
from smc_ml.live.running import LiveError, LiveRun
from smc_ml.live.store.checking import store_faults
from smc_ml.live.store.live_store import LiveStore
from smc_ml.models.config import TrainingConfig
from smc_ml.patterns.detection import detect_market
from smc_ml.serving.bundle import Bundle
from smc_ml.stages.learning import events_of
from smc_ml.tables import read_table
from smc_ml.trading.account import run_backtest, select_trades

project, bundled = test_serving.project, test_serving.bundled  # one small run for all
FEATURES = TrainingConfig().features
FILLED = "its candle was fetched after a gap"


async def played(bundled, feed_of, place, restarts=(), switch=None):
    "What happened at each close, and each close's newest row of features; a new process after each restart."
    results, rows = [], {}
    for stop in [*restarts, None]:
        feed, bundle, store = feed_of(), Bundle.load(bundled), LiveStore(place)
        run = await LiveRun.begin(bundle, feed, store, switch=switch, kept_every=50)
        async with feed:
            async for result in run.closes(feed):
                calculator = run.path.predictor.calculator
                newest = {name: calculator.get_features_for_ml(name, 1) for name in calculator.symbols}
                rows |= {(name, table.index[-1]): table.iloc[-1] for name, table in newest.items()}
                results.append(result)
                if stop is not None and len(results) >= stop:
                    break
        store.close()
    return results, rows


def check_features(rows, tables):
    "Each row as the table has it, to 1e-9 of its size."
    for symbol, table in tables.items():
        live = pd.DataFrame({time: row for (name, time), row in rows.items() if name == symbol}).T
        batch = table.loc[live.index, live.columns]
        np.testing.assert_array_equal(live.isna(), batch.isna())
        typical = table[live.columns].abs().median().fillna(0.0).to_numpy()
        size = np.maximum(batch.abs().to_numpy(), typical)
        assert np.nanmax((live - batch).abs().to_numpy() / np.maximum(size, 1e-12)) < 1e-9


def decided(results):
    "The signals as a table, with what names an event of the labels."
    rows = [
        one._asdict()
        | one.decision._asdict()
        | {"time": one.known_at, "known_at": one.decision.pattern_known_at, "live": one.confidence}
        for result in results
        for one in result.signals
    ]
    return pd.DataFrame(rows)


NAMES = ["symbol", "time", "kind", "direction", "timeframe", "formed_at", "known_at", "top", "bottom"]


def live_predictions(events, signals):
    "What was said live of the events of the batch."
    plain = events.astype({"kind": str, "timeframe": str})
    both = plain.merge(signals[[*NAMES, "live", "reason", "expected_r"]], on=NAMES)
    assert len(both) == len(events)
    said = both.rename(columns={"live": "probability"})[both["reason"] != FILLED]
    return said[["symbol", "time", "event_id", "probability", "expected_r"]]


def same_predictions(bundle, events, tables, signals):
    "The batch's predictions of the events that were decided live, checked against them."
    plain = events.astype({"kind": str, "timeframe": str})
    both = plain.merge(signals[[*NAMES, "live", "reason", "low", "high"]], on=NAMES, how="left")
    assert both["reason"].notna().all()
    said = bundle.predict(tables, events)
    assert len(both) == len(events)
    order = said.merge(both[["event_id", "live", "reason"]], on="event_id", suffixes=("", "_live"))
    np.testing.assert_allclose(order["probability"], order["live"], rtol=0, atol=1e-6)
    return said[~(order["reason_live"] == FILLED).to_numpy()]


def check_ensemble(bundle, tables, results, labels):
    "An ensemble that is walked through all events and outcomes at once says what it said live."
    said = [one for result in results for one in result.predictions if one.probability == one.probability]
    asked = pd.DataFrame([one.decision for one in said])
    asked = asked.rename(columns={"known_at": "time", "pattern_known_at": "known_at"})
    bundle.predict(tables, asked, keep=True)
    plain = labels.astype({"kind": str, "timeframe": str}).drop(columns="event_id")
    known = plain.merge(asked[[*NAMES, "event_id"]], on=NAMES)
    bundle.ensemble.update(known)
    learnt = Ensemble(config=bundle.ensemble.config)._learnt(bundle.ensemble.stream_.members(), "won").stream_
    batch = [learnt.answer(learnt.places[key]) for key in map(key_of, said)]
    for name in ("probability", "expected_r", "low", "high"):
        live, walked = ([getattr(one, name) for one in each] for each in (said, batch))
        np.testing.assert_allclose(live, walked, rtol=0, atol=1e-6, err_msg=name)
    return (known["exit_reason"] == "timeout").sum()


def key_of(said):
    "What names an event to an ensemble."
    return Key(said.known_at.value, said.symbol, said.decision.event_id)


def check_account(bundle, market, said, labels, results, end):
    "The same trades, fills and equity."
    config, costs = bundle.settings["backtest"], bundle.settings["costs"]
    mine = labels[labels["event_id"].isin(said["event_id"])]
    trades = select_trades(said, mine, config, costs, market)
    first = results[0].known_at - market.step
    account = run_backtest(trades, market, first, end - market.step, config, costs)
    fills = [fill for result in results for fill in result.fills]
    left = {fill.order_id: fill for fill in fills if fill.what not in ("entry", "cancelled")}
    live = [(entry, left[entry.order_id]) for entry in fills if entry.what == "entry"]
    batch = account.trades.sort_values(["entry_at", "symbol"])
    live.sort(key=lambda pair: (pair[0].time, pair[0].symbol))
    assert [one.symbol for one, _ in live] == batch["symbol"].tolist()
    assert [one.time for one, _ in live] == batch["entry_at"].tolist()
    assert [one.what for _, one in live] == batch["exit_reason"].astype(str).tolist()
    pairs = {"units": 0, "entry": 0, "exit_price": 1, "profit": 1}
    fields = {"units": "units", "entry": "price", "exit_price": "price", "profit": "profit"}
    for column, side in pairs.items():
        values = [getattr(pair[side], fields[column]) for pair in live]
        np.testing.assert_allclose(values, batch[column], rtol=1e-9)
    equity = pd.Series({result.known_at: result.account.equity for result in results})
    known = account.equity["equity"].reindex(equity.index).dropna()
    np.testing.assert_allclose(equity[known.index], known, rtol=1e-9)
    return len(live)


def live_as_batch(bundled, market, start, end, outages, restarts, place):
    "The whole proof on one market; how many trades were compared."

    def feed_of():
        return ReplayFeed(market, start, end, outages=outages)

    results, rows = asyncio.run(played(bundled, feed_of, place, restarts))
    assert len(results) == len({result.known_at for result in results})
    flat = max(place for place, one in enumerate(results) if not one.account.positions)
    results = results[: flat + 1]
    cut = results[-1].known_at
    whole = market.map(lambda candles: candles[candles.index < cut])
    bundle = Bundle.load(bundled).until(results[0].known_at - market.step)
    run = events_of(whole, labels=bundle.settings["labels"])
    rows = {key: row for key, row in rows.items() if key[1] < cut}
    check_features(rows, feature_tables(whole, detect_market(whole), wanted=FEATURES))
    signals = decided(results)
    late = pd.concat([signals[signals["time"].between(*span, inclusive="left")] for span in outages])
    assert len(late) and (late["reason"] == FILLED).all()  # nothing is traded on what came after a gap
    begin = results[0].known_at
    events = run.labels[run.labels["time"] >= begin].reset_index(drop=True)
    if bundle.ensemble.config.method != "mean":
        assert check_ensemble(bundle.until(begin - market.step), run.features, results, run.labels) > 0
        said = live_predictions(events, signals)
    else:
        said = same_predictions(bundle, events, run.features, signals)
    return check_account(bundle, whole, said, run.labels, results, cut)


@pytest.fixture(scope="module")
def holed(project):
    "The candles of the small run with single candles and two hours missing after its training."
    candles = read_table(project / "artifacts/candles/SIM_5m.parquet")
    gone = candles.index[(candles.index >= "2024-02-09 14:00") & (candles.index < "2024-02-09 16:00")]
    single = pd.DatetimeIndex(["2024-02-07 04:35", "2024-02-07 11:55", "2024-02-08 01:05"], tz="UTC")
    return Market({"SIM": candles.drop(gone.union(single))}, "5m")


def test_live_is_what_was_backtested(bundled, holed, tmp_path):
    outage = [("2024-02-08 09:02", "2024-02-08 10:31")]
    trades = live_as_batch(
        bundled, holed, "2024-02-07", "2024-02-10", outage, (1, 200, 431), tmp_path / "live.sqlite"
    )
    assert trades >= 8


@pytest.fixture(scope="module")
def rests(project, tmp_path_factory):
    "The bundle of a run on the same candles that enters by limit orders."
    market = Market({"SIM": read_table(project / "artifacts/candles/SIM_5m.parquet")}, "5m")
    place, labels = tmp_path_factory.mktemp("rests"), {"entry": "limit_edge", "limit_expiry": 100}
    learns = {"method": "hedge", "learning_rate": 1.0}
    test_serving.finished(place, market, "simulated", ("logistic", "lstm"), labels=labels, ensemble=learns)
    assert test_serving.smc(place, "bundle").exit_code == 0
    return place / "artifacts/bundles/5m"


def test_limit_orders_live_are_what_was_backtested(rests, holed, tmp_path):
    outage, book = [("2024-02-08 09:02", "2024-02-08 10:31")], tmp_path / "live.sqlite"
    trades = live_as_batch(rests, holed, "2024-02-07", "2024-02-10", outage, (1, 200, 431), book)
    assert trades >= 5
    with LiveStore(book) as store:
        assert not store_faults(store)
        limits = {order.order_id: order.limit_price for order in store.orders()}
        entries = [fill for fill in store.fills() if fill.what == "entry"]
        inside = [fill for fill in entries if fill.price == limits[fill.order_id]]
        assert 0 < len(inside) <= len(entries) < len(limits)


def test_what_is_no_new_closed_candle_is_refused_and_nothing_has_changed(bundled, holed):
    begin = pd.Timestamp("2024-02-07", tz="UTC")
    path = LivePath(Bundle.load(bundled), holed.map(lambda candles: candles[candles.index < begin]))
    closes = list(market_closes(holed.map(lambda candles: candles[candles.index >= begin][:4])))
    for closed in closes[:3]:
        path.take(closed)
    before, (row,) = kept_path(path), closes[3].candles.values()
    last = closes[2].candles["SIM"]
    for wrong in (
        closes[0],  # of the past
        closes[2],  # twice
        closes[2]._replace(candles={"SIM": last | {"close": last["high"]}}),  # twice, with another close
        closes[3]._replace(known_at=closes[3].known_at - pd.Timedelta("1min")),  # open still
        closes[3]._replace(known_at=closes[3].known_at + path.step),  # called by another close's name
        closes[3]._replace(candles={"SIM": row | {"high": np.nan}}),
        closes[3]._replace(candles={"SIM": row | {"high": row["low"] / 2}}),
    ):
        with pytest.raises(UserError):
            path.take(wrong)
        assert kept_path(path) == before
    old = path.take(closes[3], closes[3].known_at + pd.Timedelta("11min"))
    assert not old.orders and all(signal.side == "NEUTRAL" for signal in old.signals)


def test_a_book_has_one_writer_and_one_end(bundled, holed, tmp_path):
    span = "2024-02-07", "2024-02-07 00:20"

    async def both():
        runs = []
        for store in (LiveStore(tmp_path / "live.sqlite"), LiveStore(tmp_path / "live.sqlite")):
            feed = ReplayFeed(holed, *span)
            runs.append((await LiveRun.begin(Bundle.load(bundled), feed, store), feed))
        (first, feed), (second, other) = runs
        first.take(await anext(feed))
        with pytest.raises(LiveError, match="another process writes it"):
            second.take(await anext(other))
        async for _ in first.closes(feed):
            pass
        with pytest.raises(UserError, match="has all closes up to 2024-02-07 00:20"):
            check_follows(ReplayFeed(holed, *span), first.store)
        check_follows(ReplayFeed(holed, span[0], "2024-02-07 00:25"), first.store)

    asyncio.run(both())


def test_a_stored_prediction_is_computed_once_more_to_the_bit(bundled, holed, tmp_path):
    place, span = tmp_path / "live.sqlite", ("2024-02-07", "2024-02-08")
    asyncio.run(played(bundled, lambda: ReplayFeed(holed, *span), place, (150,)))
    sections = SignalConfig(), RiskConfig(), LiveConfig()
    with LiveStore(place) as store:
        last = store.predictions(newest=1)[-1]
        stored, found = replayed_prediction(last.prediction_id, store, Bundle.load(bundled), sections)
    same, lines = prediction_lines(stored, found)
    assert same and lines[-1].endswith("is the same, to the last bit")
    other = stored._replace(models=dict(stored.models) | {"lstm": stored.models["lstm"] + 1e-9})
    assert not prediction_lines(other, found)[0]


PLAYED = """
import asyncio, sys
from smc_ml.candles import Market
from smc_ml.live.feeds.replay import ReplayFeed
from smc_ml.live.running import LiveError, LiveRun
from smc_ml.live.store.live_store import LiveStore
from smc_ml.serving.bundle import Bundle
from smc_ml.tables import read_table

async def play(bundle, candles, place):
    feed = ReplayFeed(Market({"SIM": read_table(candles)}, "5m"), "2024-02-07", "2024-02-08")
    run = await LiveRun.begin(Bundle.load(bundle), feed, LiveStore(place), kept_every=20)
    print("begun", flush=True)
    async for result in run.closes(feed):
        print(result.known_at, flush=True)

asyncio.run(play(*sys.argv[1:]))
"""


def killed_runs(bundled, candles, place, kills, seed):
    "Processes that are killed at random closes, and one that ends by itself."
    moments = np.random.default_rng(seed).integers(1, 12, kills)
    command = [sys.executable, "-c", PLAYED, str(bundled), str(candles), str(place)]
    for closes in [*moments, None]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for number, _ in enumerate(process.stdout):
            if closes is not None and number >= closes:
                process.kill()
                break
        process.stdout.close()
        code = process.wait()
    assert code == 0


def check_killed(bundled, project, urls, kills):
    "Whatever was killed when: every row is there once, and what one run writes that nobody killed."
    candles = project / "artifacts/candles/SIM_5m.parquet"
    whole, broken = urls
    killed_runs(bundled, candles, whole, 0, 0)
    killed_runs(bundled, candles, broken, kills, 7)
    with LiveStore(whole) as one, LiveStore(broken) as other:
        assert not store_faults(other)
        assert len(one.signals()) > 10
        for what in ("signals", "orders", "fills", "predictions"):
            assert repr(getattr(one, what)()) == repr(getattr(other, what)())  # NaN is not equal to itself
        pd.testing.assert_frame_equal(one.equity(), other.equity(), check_exact=True)


def test_killed_at_any_moment_nothing_is_lost_or_doubled(bundled, project, tmp_path):
    check_killed(bundled, project, (tmp_path / "whole.sqlite", tmp_path / "killed.sqlite"), 1)


@pytest.mark.slow
def test_killed_fifty_times_on_sqlite_and_on_postgresql(bundled, project, tmp_path, postgres_url):  # noqa: F811
    check_killed(bundled, project, (tmp_path / "whole.sqlite", tmp_path / "killed.sqlite"), 25)
    check_killed(bundled, project, (tmp_path / "other.sqlite", postgres_url), 25)


@pytest.mark.slow
def test_limit_orders_survive_fifty_kills(rests, project, tmp_path, postgres_url):  # noqa: F811
    check_killed(rests, project, (tmp_path / "whole.sqlite", tmp_path / "killed.sqlite"), 25)
    check_killed(rests, project, (tmp_path / "other.sqlite", postgres_url), 25)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["next_open", "limit_edge"])
def test_two_months_of_real_candles_are_what_was_backtested(bitcoin, ether, tmp_path, entry):
    whole = {"BTCUSDT": bitcoin[:"2023-08-31"], "ETHUSDT": ether[:"2023-08-31"]}
    gone = pd.date_range("2023-07-03", "2023-08-28", freq="97h", tz="UTC").floor("5min")
    whole["ETHUSDT"] = whole["ETHUSDT"].drop(gone)
    market = Market(whole, "5m")
    learnt = market.map(lambda candles: candles[:"2023-06-30"])
    all_of_them = {"minimum_expected_r": -1.0}  # so that there is much to compare
    labels = {} if entry == "next_open" else {"entry": entry, "limit_expiry": 100}
    test_serving.finished(tmp_path, learnt, "binance", backtest=all_of_them, labels=labels)
    assert test_serving.smc(tmp_path, "bundle").exit_code == 0
    outages = [("2023-07-10 09:02", "2023-07-10 10:31"), ("2023-08-01 23:00", "2023-08-02 02:00")]
    place, bundled = tmp_path / "live.sqlite", tmp_path / "artifacts/bundles/5m"
    trades = live_as_batch(bundled, market, "2023-07-01", "2023-09-01", outages, (4000, 11_000), place)
    print(f"{trades} trades")
    assert trades > 100
