"""Peers' features on real candles do not look ahead, span no hole, and turn; so does what an event says."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.baselines.alpha158 import alpha158_features
from smc_ml.baselines.event_facts import event_facts
from smc_ml.baselines.freqai import freqai_features
from smc_ml.baselines.oriented import PeerFeatures
from smc_ml.candles import Market
from smc_ml.causality import LookAheadError, assert_causal, poisoned
from smc_ml.labels.config import LabelingConfig
from smc_ml.stages.learning import events_of

PEERS = {"alpha158": (alpha158_features, 158), "freqai": (freqai_features, 380)}
ROWS = 1500


@pytest.fixture(scope="module")
def both(bitcoin, ether) -> Market:
    "Five days of two real symbols."
    return Market({"BTCUSDT": bitcoin[:ROWS], "ETHUSDT": ether[:ROWS]}, "5m")


def beside(make, market: Market):
    "Candles of the first symbol -> its features, the second one's candles cut where the first's end."
    first, second = market

    def features(candles: pd.DataFrame) -> pd.DataFrame:
        other = market[second].reindex(candles.index)
        return make(Market({first: candles, second: other}, "5m")).tables[first].astype(float)

    return features


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_does_not_look_ahead_and_a_leak_would_be_seen(peer, both):
    make, columns = PEERS[peer]
    features = beside(make, both)
    candles = both["BTCUSDT"]
    assert features(candles).shape == (ROWS, columns)
    assert_causal(features, candles, cuts=10, first=400)
    with pytest.raises(LookAheadError):
        assert_causal(lambda cut: features(cut).shift(-1), candles, cuts=3, first=400)


@pytest.mark.parametrize("peer", PEERS)
def test_another_future_changes_nothing_of_a_peer(peer, both):
    make, _ = PEERS[peer]
    known = make(both).tables
    other = make(both.map(lambda candles: poisoned(candles, 1000, "random prices", 3))).tables
    for symbol in both:
        pd.testing.assert_frame_equal(other[symbol][:1000], known[symbol][:1000])
        assert (other[symbol][1000:] != known[symbol][1000:]).any(axis=None)


@pytest.mark.parametrize("peer", PEERS)
def test_no_window_of_a_peer_spans_a_hole(peer, both):
    make, _ = PEERS[peer]
    holed = both.map(lambda candles: candles.drop(candles.index[700:760]))
    after = both.map(lambda candles: candles[760:])
    for symbol in both:
        pd.testing.assert_frame_equal(make(holed).tables[symbol][700:], make(after).tables[symbol])


@pytest.mark.parametrize("peer", PEERS)
def test_quiet_candles_give_numbers_or_nothing(peer, bitcoin, ether):
    "The halt of the exchange, without a trade in three candles, and a flat market after it."
    halt = slice("2023-09-11", "2023-09-12 12:00")
    flat = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 100.0), bitcoin.loc[halt].index[-90:])
    make, _ = PEERS[peer]

    def quiet(candles: pd.DataFrame) -> pd.DataFrame:
        part = candles.loc[halt].copy()
        part.loc[flat.index, flat.columns] = flat
        return part

    market = Market({"BTCUSDT": quiet(bitcoin), "ETHUSDT": quiet(ether)}, "5m")
    found = make(market).tables["BTCUSDT"]
    assert (market["BTCUSDT"]["volume"] == 0).sum() >= 3
    ratios = found.loc[:, ~found.columns.str.startswith("raw_")]
    assert not np.isinf(found.to_numpy()).any() and ratios.abs().max().max() < 1e4


@pytest.mark.parametrize("peer", PEERS)
def test_every_turn_undoes_itself(peer, both):
    found: PeerFeatures = PEERS[peer][0](both)
    names = set(found.tables["BTCUSDT"])
    assert found.signed <= names and set(found.partners) <= names
    for name, partner in found.partners.items():
        assert found.partners[partner] == name
        assert (name in found.signed) == (partner in found.signed)


def test_what_an_event_says_is_known_when_it_is_decided(bitcoin):
    candles = bitcoin[:6000]
    labels = events_of(Market({"BTCUSDT": candles}, "5m"), wanted=["fvg_size"]).labels
    config = LabelingConfig()
    rules = config.kinds, config.stop_buffer, config.minimum_risk
    known = event_facts(labels, {"BTCUSDT": candles}, *rules)
    assert len(known) > 200 and known.notna().all(axis=None)
    assert known.filter(like="kind_").sum(axis=1).eq(1).all() and known["risk"].min() >= config.minimum_risk
    for row in np.random.default_rng(0).choice(labels["row"], 20, replace=False):
        events = labels["row"] <= row
        cut = {"BTCUSDT": candles[: row + 1]}
        pd.testing.assert_frame_equal(event_facts(labels[events], cut, *rules), known[events])
