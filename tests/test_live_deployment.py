"""Bundles change while one trades: no close is lost, whoever answered is named, a restart says the same."""

import asyncio
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import test_serving

from smc_ml.candles import Market
from smc_ml.commands.trading_live import prediction_lines, replayed_prediction
from smc_ml.live.arms import ARMS, ArmFilter, arm_book, experiment_lines, split_experiment
from smc_ml.live.config import LiveConfig, RiskConfig, SignalConfig
from smc_ml.live.feeds.replay import ReplayFeed
from smc_ml.live.running import LiveRun
from smc_ml.live.store.checking import store_faults
from smc_ml.live.store.live_store import LiveStore
from smc_ml.serving.bundle import Bundle
from smc_ml.serving.manifest import MANIFEST, write_bundle
from smc_ml.tables import read_table
from smc_ml.tracking.config import DeploymentConfig
from smc_ml.tracking.slots import BundleSlots

project, bundled = test_serving.project, test_serving.bundled  # one small run for all
SPAN = "2024-02-07", "2024-02-07 12:00"
BROKEN = "2024-02-07", "2024-02-07 05:30"
CONFIG = DeploymentConfig(look_every=1e-9, canary_share=0.5, slowest_ms=60_000)
AT = pd.Timestamp("2024-03-01", tz="UTC")


@pytest.fixture(scope="module")
def market(project):
    return Market({"SIM": read_table(project / "artifacts/candles/SIM_5m.parquet")}, "5m")


def another(bundled, folder, name, **costs):
    "The same bundle with another digest, and other costs if any are given."

    def fill(place):
        shutil.copytree(bundled, place, dirs_exist_ok=True)
        (place / MANIFEST).unlink()
        told = json.loads((place / "bundle.json").read_text())
        told["settings"]["costs"] |= costs
        (place / "bundle.json").write_text(json.dumps(told | {"name": name}))

    write_bundle(folder / name, fill)
    return folder / name


@pytest.fixture(scope="module")
def bundles(bundled, tmp_path_factory):
    "Bundles with the same models, by name; one has other costs."
    folder = tmp_path_factory.mktemp("bundles")
    others = {name: another(bundled, folder, name) for name in "bc"}
    return {"a": bundled} | others | {"dear": another(bundled, folder, "dear", slippage_rate=0.001)}


def finder(slots):
    "Bundles of a folder of slots."
    return lambda digest: Bundle.load(slots.place(digest), digest)


async def played(market, slots, place, before, restarts=(), span=SPAN, config=CONFIG):
    "The results; `before` is told of each close that comes, and the run; a new process after each restart."
    results = []
    for stop in [*restarts, None]:
        feed, store = ReplayFeed(market, *span), LiveStore(place)
        first = finder(slots)(slots.read().champion)
        more = {"find": finder(slots), "deployment": config, "kept_every": 50}
        run = await LiveRun.begin(first, feed, store, **more)
        run.follow(slots.folder, now=lambda: AT)
        async with feed:
            before(len(results), run)
            async for result in run.closes(feed):
                results.append(result)
                before(len(results), run)
                if len(results) == stop:
                    break
        store.close()
    return results


@pytest.fixture(scope="module")
def changed(market, bundles, tmp_path_factory):
    "A replay in which a second bundle is deployed, a third tried and taken back; two restarts within."
    folder = tmp_path_factory.mktemp("changed")
    slots = BundleSlots(folder / "5m", CONFIG)
    a, b, c, _ = (slots.put(folder) for folder in bundles.values())
    slots.deploy(a, "anna", "the first", AT)

    def change(closes, run):
        pointer = slots.read()
        if closes == 40 and pointer.champion == a:
            slots.deploy(b, "anna", "better", AT)
        if closes == 80 and not pointer.candidate:
            slots.deploy(c, "anna", "a try", AT, "canary")
        if closes == 120 and pointer.candidate:
            slots.rollback("anna", "no better", AT)

    results = asyncio.run(played(market, slots, folder / "live.sqlite", change, (70, 95)))
    return SimpleNamespace(
        slots=slots, names=(a, b, c), results=results, place=folder / "live.sqlite", market=market
    )


def test_a_new_bundle_answers_the_next_close_and_a_restart_says_the_same(changed):
    a, b, c = changed.names
    times = [one.known_at for one in changed.results]
    assert len(set(times)) == len(times) == 144  # no close is lost
    with LiveStore(changed.place) as store:
        assert not store_faults(store)
        said, signals, notices = store.predictions(), store.signals(), store.notices()
        events, resolved = store.model_events(), store.resolved()
    assert not [one for one in notices if "something else" in one.what]
    acted = {one.key: one.model_version for one in signals}
    spans = {(0, 40): {a}, (40, 80): {b}, (80, 120): {b, c}, (120, 143): {b}}
    for (first, last), who in spans.items():
        assert {acted[one.key] for one in signals if times[first] <= one.known_at < times[last]} == who
    roles = {(one.model_version, one.role) for one in said}
    assert roles == {(a, "champion"), (a, "previous"), (b, "champion"), (c, "canary"), (c, "challenger")}
    assert all((one.role == "canary") == (acted[one.key] == c) for one in said if one.model_version == c)
    trial = [one for one in said if times[80] <= one.known_at < times[120]]
    assert len(trial) == 2 * len({one.key for one in trial}) > 2  # both of them, of every event
    assert resolved.groupby("prediction_id").size().max() == 1 and {a, b, c} == {*resolved["model_version"]}
    told = [(one.model_version, one.role, one.what, times.index(one.known_at)) for one in events]
    assert told == [
        (a, "champion", "loaded", 0),
        (b, "champion", "loaded", 40),
        (b, "champion", "promoted", 40),
        (c, "canary", "loaded", 80),
        (c, "canary", "rolled_back", 120),
    ]
    assert "better" in next(one.what for one in notices if f"bundle {b[:12]} answers" in one.what)


def test_outcomes_are_counted_once_for_the_guard_also_after_restarts(changed):
    run = asyncio.run(resumed(changed))
    counts = {digest: count for digest, (count, _) in run.path.source.panel.losses.items()}
    with LiveStore(changed.place) as store:
        resolved = store.resolved()
    heard = {outcome for result in changed.results for outcome in result.outcomes}
    assert len(heard) == len(resolved)
    last = max(one.known_at for one in changed.results if one.signals)  # until then they were given on
    given = [one.prediction_id for one in heard if one.known_at <= last]
    expected = resolved[resolved["prediction_id"].isin(given)]["model_version"].value_counts().to_dict()
    assert counts == expected and sum(counts.values()) > 5


async def resumed(changed):
    "The run of a book, restored and walked again to its last close."
    store, feed = LiveStore(changed.place), ReplayFeed(changed.market, *SPAN)
    find = finder(changed.slots)
    run = await LiveRun.begin(find(changed.names[1]), feed, store, find=find, deployment=CONFIG)
    store.close()
    return run


def test_a_prediction_of_any_bundle_in_the_slots_is_computed_once_more(changed):
    with LiveStore(changed.place) as store:
        said = [one for one in store.predictions() if one.model_version == changed.names[2]]
        bundle = finder(changed.slots)(changed.names[2])
        sections = SignalConfig(), RiskConfig(), LiveConfig()
        stored, found = replayed_prediction(said[-1].prediction_id, store, bundle, sections)
    same, lines = prediction_lines(stored, found)
    assert same, lines


class Broken:
    "A model that fails."

    def predict_proba(self, windows):
        raise RuntimeError("broken on purpose")


def test_a_bundle_that_breaks_while_one_trades_is_left_in_the_same_close(market, bundles, tmp_path):
    config = CONFIG.model_copy(update={"failures": 2})
    slots = BundleSlots(tmp_path / "5m", config)
    a, b, _, dear = (slots.put(folder) for folder in bundles.values())
    for digest in (a, b):
        slots.deploy(digest, "anna", "a drill", AT)

    def change(closes, run):
        if closes == 5:
            slots.deploy(dear, "anna", "cheaper", AT, "canary")
        if closes == 8:
            slots.rollback("anna", "it is refused", AT)
        if closes >= 20 and b in run.path.source.bundles:
            run.path.source.bundles[b].models["logistic"] = Broken()

    results = asyncio.run(played(market, slots, tmp_path / "live.sqlite", change, (25,), BROKEN, config))
    with LiveStore(tmp_path / "live.sqlite") as store:
        assert not store_faults(store)
        signals, notices, events = store.signals(), store.notices(), store.model_events()
    assert {one.model_version for one in signals if one.known_at > results[20].known_at} == {a}
    assert any(one.acted_on for one in signals)
    last = slots.history()[-1]
    assert (last.who, last.what, last.after) == ("automatic", "rolled back", a)
    assert "broken on purpose" in last.why
    said = " | ".join(one.what for one in notices)
    assert f"bundle {b[:12]} was taken out of service: 2 of the last" in said
    assert f"bundle {dear[:12]} is not asked: its settings of costs are not those of the book" in said
    assert "something else" not in said
    assert (b, "rolled_back") in [(one.model_version, one.what) for one in events]


async def both_arms(market, bundles, place, span, stop):
    "Champion and challenger on one feed, until so many closes; what the experiment comes to."
    experiment, stores, runs = split_experiment("trees"), [], []
    feed = ReplayFeed(market, *span)
    for arm, name in zip(ARMS, "ab", strict=True):
        stores.append(LiveStore(place, arm_book("trees", arm)))
        filters = (ArmFilter(experiment, arm),)
        runs.append(await LiveRun.begin(Bundle.load(bundles[name]), feed, stores[-1], filters=filters))
    runs[0].beside.append(runs[1])
    count = 0
    async with feed:
        async for _ in runs[0].closes(feed):
            count += 1
            if count == stop:
                break
    told = [store.signals() for store in stores], [store.predictions() for store in stores]
    lines = experiment_lines(experiment, dict(zip(ARMS, stores, strict=True)))
    counts = [len(store.equity()) for store in stores]
    for store in stores:
        store.close()
    return *told, counts, lines


def test_each_arm_trades_its_decisions_on_its_own_account(market, bundles, tmp_path):
    span = "2024-02-07 02:00", "2024-02-07 05:30"
    asyncio.run(both_arms(market, bundles, tmp_path / "live.sqlite", span, 10))
    signals, said, counts, lines = asyncio.run(
        both_arms(market, bundles, tmp_path / "live.sqlite", span, None)
    )
    experiment, wanted = split_experiment("trees"), 0
    assert counts == [42, 42] and len(said[0]) == len(said[1]) > 3  # both say what they think of all
    for one, other in zip(*signals, strict=True):
        assert one.key == other.key and one.model_version != other.model_version
        if one.side != "NEUTRAL":
            wanted += 1
            acts = ARMS[0] if one.acted_on else ARMS[1]
            assert one.acted_on != other.acted_on and experiment.arm(one.key) == acts
    assert wanted > 1
    assert [line.split(":")[0] for line in (lines[0], lines[1], lines[-1])] == [*ARMS, "trees"]
