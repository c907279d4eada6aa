"""The live run is watched: it says at each day's end what a batch says of the same days."""

import asyncio
import shutil

import pandas as pd
import pytest
import test_serving
import yaml

from smc_ml.candles import Market
from smc_ml.commands.monitoring import monitored
from smc_ml.commands.retraining import keep_schedule
from smc_ml.features.table import feature_tables
from smc_ml.live.feeds.replay import ReplayFeed
from smc_ml.live.messages import AccountState
from smc_ml.live.running import LiveRun
from smc_ml.live.store.live_store import LiveStore
from smc_ml.monitoring.config import DriftConfig, MonitoringConfig, NotifyConfig, PerformanceConfig
from smc_ml.monitoring.notifying import Notifiers
from smc_ml.monitoring.watching import watch
from smc_ml.retraining.config import RetrainingConfig
from smc_ml.retraining.pipeline import AutomatedTrainingPipeline
from smc_ml.retraining.steps import StepAnswer
from smc_ml.service.metrics import LiveMetrics
from smc_ml.service.watching import LiveWatch, alert_notice, told_by_book, watched_book, wins_learnt
from smc_ml.serving.bundle import Bundle
from smc_ml.tables import read_table

project, bundled = test_serving.project, test_serving.bundled  # one small run for all
WATCHED = ("price_momentum", "volatility_ratio", "stop_loss_distance")
CONFIG = MonitoringConfig(
    features=WATCHED,
    drift=DriftConfig(alarms_a_month=6, broken_alarms_a_month=6, reference_days=12),
    performance=PerformanceConfig(horizon_hours=2.0, window_blocks=10),
)
START = pd.Timestamp("2024-02-06", tz="UTC")


class Kept:
    "Who is told, and of what."

    def __init__(self):
        self.alerts = []

    def tell(self, alert):
        self.alerts.append(alert)


class Page:
    alerts = ()


@pytest.fixture(scope="module")
def faulty(project):
    "The candles of the small run with a volume that stands still on a day, and wild ones on another."
    candles = read_table(project / "artifacts/candles/SIM_5m.parquet").copy()
    candles.loc["2024-02-07", "volume"] = candles.loc["2024-02-07", "volume"].iloc[0]
    middle = candles.loc["2024-02-08", "close"].mean()
    for name in ("open", "high", "low", "close"):
        candles.loc["2024-02-08", name] = middle + 9 * (candles.loc["2024-02-08", name] - middle)
    return Market({"SIM": candles[: pd.Timestamp("2024-02-09 02:00", tz="UTC")]}, "5m")


async def watched(bundled, market, place, restarts=(), served=None):
    "Alerts of a live run by process, who was told, and what its page and gauges show at the end."
    told, alerts, page, metrics = Kept(), [], Page(), LiveMetrics()
    for stop in [*restarts, None]:
        feed, store = ReplayFeed(market, START), LiveStore(place, book="replay")
        run = await LiveRun.begin(Bundle.load(bundled), feed, store, kept_every=100)
        seen = LiveWatch(
            run, feed, page, metrics, CONFIG, notifiers=Notifiers([told], NotifyConfig(every_hours=0))
        )
        await seen.begin()
        async for result in run.closes(feed):
            if served is not None:
                served(run.path.predictor.calculator, result.known_at)
            await seen.closed(result.known_at)
            if stop is not None and result.known_at >= pd.Timestamp(stop, tz="UTC"):
                break
        await seen.end()
        alerts.append(seen.alerts)
        store.close()
    return alerts, told.alerts, page.alerts, metrics


@pytest.fixture(scope="module")
def ran(bundled, faulty, tmp_path_factory):
    place = tmp_path_factory.mktemp("watched") / "live.sqlite"
    return place, asyncio.run(watched(bundled, faulty, place, ["2024-02-07 13:00"]))


def in_batch(bundled, market, store):
    "What `watch` says of the tables of a whole run, and of what the book predicted."
    tables = feature_tables(market, wanted=WATCHED)
    first = pd.Timestamp("2024-01-25", tz="UTC")
    began, until = START + pd.Timedelta("5min"), pd.Timestamp("2024-02-09", tz="UTC")
    told, base = told_by_book(store, until), wins_learnt(Bundle.load(bundled), began)
    cut = {name: table[table.index >= first] for name, table in tables.items()}
    raw = {name: table[table.index >= first] for name, table in market.items()}
    return watch(cut, raw, *told, CONFIG, since=began, until=until, base=base)


def test_a_live_run_says_at_each_day_s_end_what_a_batch_says(bundled, faulty, ran):
    place, (parts, told, shown, metrics) = ran
    alerts = [alert for part in parts for alert in part]
    with LiveStore(place, book="replay") as store:
        whole, book = in_batch(bundled, faulty, store), watched_book(store, Bundle.load(bundled), CONFIG)
        notices, events = store.notices(), store.model_events()
    assert list(whole.alerts) == alerts == list(book.alerts) == told
    assert ("volume", "volume is constant") in [(each.metric, each.what) for each in alerts]
    assert any(each.source == "drift" and each.known_at.day == 9 for each in alerts)
    assert set(map(alert_notice, alerts)) <= set(notices)
    graver = {
        each.what for each in alerts if each.source in ("performance", "concept") and each.level != "warning"
    }
    assert {one.why for one in events if one.what in ("degraded", "recovered")} == graver
    on = [each for each in alerts if each.source == "drift" and each.known_at.day == 9]
    assert {one["metric"] for one in shown if one["source"] == "drift"} == {each.metric for each in on}
    assert metrics.value("smc_drift_alarm", kind="distribution") == 1
    assert metrics.value("smc_data_broken", column="volume") in (0, None)  # it is over


def test_a_feature_that_is_served_wrong_is_named_on_its_day(bundled, faulty, tmp_path):
    def flipped(calculator, known_at):
        if known_at >= pd.Timestamp("2024-02-06", tz="UTC"):
            held = calculator.symbols["SIM"].held["5m"]
            place = calculator.names.index("price_momentum")
            held._values[held._end - 1, place] *= -1

    market = faulty.map(lambda candles: candles[: pd.Timestamp("2024-02-07 00:30", tz="UTC")])
    parts, *_ = asyncio.run(watched(bundled, market, tmp_path / "live.sqlite", served=flipped))
    found = [each for each in parts[0] if each.what.startswith("served")]
    assert [(each.metric, each.level) for each in found] == [("price_momentum", "degraded")]
    assert found[0].known_at == pd.Timestamp("2024-02-07", tz="UTC") and "sign-flipped" in found[0].what


def test_a_past_that_is_too_short_is_waited_for_and_nothing_stops(bundled, faulty, tmp_path):
    "Without three weeks of candles before it nothing is judged; a feed that fails is said."

    class Lost(ReplayFeed):
        async def history(self, candles):
            if candles > 9000:
                raise OSError("no route to the exchange")
            return await super().history(candles)

    async def run_it():
        market = faulty.map(lambda candles: candles[: pd.Timestamp("2024-02-06 00:30", tz="UTC")])
        feed = Lost(market, pd.Timestamp("2024-02-05 23:00", tz="UTC"))
        with LiveStore(tmp_path / "live.sqlite") as store:
            run = await LiveRun.begin(Bundle.load(bundled), feed, store)
            seen = LiveWatch(run, feed, config=MonitoringConfig())
            await seen.begin()
            accounts = []
            async for result in run.closes(feed):
                await seen.closed(result.known_at)
                accounts.append(result.account)
            await seen.end()
            return accounts, [one.what for one in store.notices()]

    accounts, said = asyncio.run(run_it())
    assert len(accounts) == 19 and isinstance(accounts[-1], AccountState)
    assert any("no route to the exchange" in each for each in said), said


@pytest.fixture
def root(bundled, project, ran, tmp_path):
    "The small run with the book of the live run."
    root, (place, _) = shutil.copytree(project, tmp_path / "project"), ran
    (root / "artifacts/live").mkdir(exist_ok=True)
    shutil.copy(place, root / "artifacts/live/live.sqlite")
    return root


def test_features_that_moved_begin_a_retraining_once(root):
    def begun(**settings):
        config = RetrainingConfig(cron="", on_performance="never", **settings)
        steps = {"train": lambda context: StepAnswer(context.cause)}
        pipeline = AutomatedTrainingPipeline(root, config, steps=steps)
        pipeline.follow_service = lambda: ""  # there is no registry
        lines = list(keep_schedule(pipeline, rounds=2, wait=lambda _: None, every=3600, monitoring=CONFIG))
        history = pipeline.history()
        pipeline.close()
        return lines, history

    assert not begun(on_drift="concept")[0]
    lines, history = begun(on_drift="any")
    assert len(lines) == 1 and lines[0].endswith("promoted: drift"), lines
    why, due = history["why"].item(), history["due"].item()
    assert why.split(":")[0] in WATCHED and "was unusual" in why
    assert due == pd.Timestamp("2024-02-09", tz="UTC")  # when the wild day was over
    assert not begun(on_drift="any")[0]


def test_the_page_of_a_book(root):
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["monitoring"] = CONFIG.model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    lines = monitored(root, book="replay")
    assert "Simulated" in lines[0] and lines[-1].endswith("/reports/monitoring_replay.html")
    page = (root / "reports/monitoring_replay.html").read_text(encoding="utf-8")
    assert "volume is constant" in page and "Simulated" in page
