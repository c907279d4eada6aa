"""Bundles change while one trades: no close is lost, whoever answered is named, a restart says the same."""

import asyncio
import shutil

import pandas as pd
import pytest
import test_serving

from smc_ml.candles import Market
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
CONFIG = DeploymentConfig(look_every=1e-9, canary_share=0.5, slowest_ms=60_000)
AT = pd.Timestamp("2024-03-01", tz="UTC")


@pytest.fixture(scope="module")
def market(project):
    return Market({"SIM": read_table(project / "artifacts/candles/SIM_5m.parquet")}, "5m")


def another(bundled, folder, name):
    "The same bundle with another digest."

    def fill(place):
        shutil.copytree(bundled, place, dirs_exist_ok=True)
        (place / MANIFEST).unlink()
        (place / "name.txt").write_text(name)

    write_bundle(folder / name, fill)
    return folder / name


@pytest.fixture(scope="module")
def bundles(bundled, tmp_path_factory):
    "Three bundles with the same models, by name."
    folder = tmp_path_factory.mktemp("bundles")
    return {"a": bundled} | {name: another(bundled, folder, name) for name in "bc"}


def finder(slots):
    "Bundles of a folder of slots."
    return lambda digest: Bundle.load(slots.place(digest), digest)


async def played(market, slots, place, at_close, restarts=(), load=None, span=SPAN, config=CONFIG):
    "The results; `at_close` is called with the number of closes before each; a new process after restarts."
    results = []
    for stop in [*restarts, None]:
        feed, store = ReplayFeed(market, *span), LiveStore(place)
        first = finder(slots)(slots.read().champion)
        run = await LiveRun.begin(first, feed, store, kept_every=50, find=finder(slots), deployment=config)
        run.follow(slots.folder, now=lambda: AT, **({"load": load} if load else {}))
        async with feed:
            at_close(len(results))
            async for result in run.closes(feed):
                results.append(result)
                at_close(len(results))
                if len(results) == stop:
                    break
        store.close()
    return results


def test_a_new_bundle_answers_the_next_close_and_a_restart_says_the_same(market, bundles, tmp_path):
    slots = BundleSlots(tmp_path / "5m", CONFIG)
    a, b, c = (slots.put(folder) for folder in bundles.values())
    slots.deploy(a, "anna", "the first", AT)

    def changed(closes):
        if closes == 40 and slots.read().champion == a:
            slots.deploy(b, "anna", "better", AT)
        if closes == 80 and not slots.read().candidate:
            slots.deploy(c, "anna", "a try", AT, "canary")
        if closes == 120 and slots.read().candidate:
            slots.rollback("anna", "no better", AT)

    results = asyncio.run(played(market, slots, tmp_path / "live.sqlite", changed, (70, 95)))
    assert len({one.known_at for one in results}) == len(results) == 144  # no close is lost
    times = [one.known_at for one in results]
    with LiveStore(tmp_path / "live.sqlite") as store:
        assert not store_faults(store)
        said, signals, notices = store.predictions(), store.signals(), store.notices()
        events, resolved = store.model_events(), store.resolved()
    assert not [one for one in notices if "something else" in one.what]
    acted = {one.key: one.model_version for one in signals}
    assert {acted[one.key] for one in signals if one.known_at < times[40]} == {a}
    assert {acted[one.key] for one in signals if times[40] <= one.known_at < times[80]} == {b}
    assert {acted[one.key] for one in signals if times[80] <= one.known_at < times[120]} == {b, c}
    assert {acted[one.key] for one in signals if one.known_at >= times[120]} == {b}
    roles = {(one.model_version, one.role) for one in said}
    assert roles == {(a, "champion"), (a, "previous"), (b, "champion"), (c, "canary"), (c, "challenger")}
    for one in said:
        if one.model_version == c:
            assert (one.role == "canary") == (acted[one.key] == c)
    trial = [one for one in said if times[80] <= one.known_at < times[120]]
    assert len(trial) == 2 * len({one.key for one in trial})  # both of them, of every event
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
