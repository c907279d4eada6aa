"""Every kind of defect put into real candles is found and named with its time; garbage is reported."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc_ml.candles import PRICES, TIMEFRAMES, CandleError, resample, validate_candles
from smc_ml.data.quality.assessment import assess_quality
from smc_ml.data.quality.config import RepairConfig
from smc_ml.data.quality.repair import repair
from smc_ml.data.quality.report import QualityReport

STEP, PIECE = pd.Timedelta("5min"), 8_000
TABLES = (
    "gaps",
    "duplicates",
    "out_of_order",
    "off_grid",
    "violations",
    "frozen",
    "spikes",
    "splices",
    "clock",
    "outside",
    "disagreements",
)


@pytest.fixture(scope="session")
def pieces(bitcoin, ether):
    "Four weeks of BTC and ETH, other ones for each seed; none holds the halt of the year."
    starts = {
        seed: int(start)
        for seed, start in enumerate(
            np.random.default_rng(7).choice(
                [0, 12_000, 24_000, 36_000, 50_000, 80_000, 92_000], 3, replace=False
            )
        )
    }
    return {
        seed: (bitcoin.iloc[start : start + PIECE], ether.iloc[start : start + PIECE])
        for seed, start in starts.items()
    }


@pytest.fixture(params=range(3))
def piece(request, pieces):
    return (*pieces[request.param], np.random.default_rng(request.param))


def defects(report: QualityReport) -> set[str]:
    return {name for name in TABLES if len(getattr(report, name))}


def whole(prices: np.ndarray) -> np.ndarray:
    "Highs and lows that fit the other prices."
    prices = prices.copy()
    prices[:, 1], prices[:, 2] = prices.max(axis=1), prices.min(axis=1)
    return prices


def with_prices(candles: pd.DataFrame, change) -> pd.DataFrame:
    prices = candles[list(PRICES)].to_numpy().copy()
    change(prices)
    return candles.assign(**dict(zip(PRICES, whole(prices).T, strict=True)))


def somewhere(rng, rows=PIECE) -> int:
    return int(rng.integers(600, rows - 600))


def test_nothing_is_found_in_sound_pieces(bitcoin, ether):
    """False alarms: none in 40 random pieces of 4,000 candles, alone or with the other symbol.

    Three of them hold the halt, which is no error.
    """
    rng, alarms = np.random.default_rng(0), []
    for _ in range(10):
        start = int(rng.integers(0, len(bitcoin) - 4000))
        one, two = bitcoin.iloc[start : start + 4000], ether.iloc[start : start + 4000]
        for candles, other in ((one, None), (two, None), (one, two), (two, one)):
            report = assess_quality(candles, "5m", other=other)
            if not report.clean:
                alarms.append((str(candles.index[0]), defects(report)))
    assert alarms == []


@pytest.mark.parametrize("timeframe", ["10m", "45m", "1h", "4h", "12h", "1d"])
def test_longer_candles_are_judged_alike(bitcoin, ether, timeframe):
    "A year of any timeframe is sound beside the other symbol; what is taken out of it is missing."
    one, two = (resample(candles, "5m", timeframe) for candles in (bitcoin, ether))
    assert assess_quality(one, timeframe, other=two).clean
    report = assess_quality(one.drop(one.index[[40, 41, 90]]), timeframe, other=two)
    assert (defects(report), report.gaps["missing"].tolist()) == ({"gaps"}, [2, 1])
    assert report.gaps["end"].tolist() == one.index[[42, 91]].tolist()


def test_gaps(piece):
    candles, other, rng = piece
    places = np.sort(rng.choice(np.arange(50, PIECE - 50, 100), 20, replace=False))
    sizes = rng.integers(1, 40, 20)
    lost = np.concatenate([np.arange(place, place + size) for place, size in zip(places, sizes, strict=True)])
    report = assess_quality(candles.drop(candles.index[lost]), "5m", other=other)
    assert (
        report.gaps["start"].tolist() == candles.index[places].tolist()
        and report.gaps["missing"].tolist() == sizes.tolist() == report.gaps["other_has"].tolist()
    )
    assert defects(report) == {"gaps"}


def test_duplicates_and_rows_out_of_order(piece):
    candles, _, rng = piece
    equal, changed = np.sort(rng.choice(PIECE, 30, replace=False)).reshape(2, 15)
    table = pd.concat(
        [
            candles,
            candles.iloc[equal],
            candles.iloc[changed]
            .assign(volume=-1.0)
            .assign(volume=lambda rows: candles["volume"].iloc[changed] + 1),
        ]
    )
    report = assess_quality(table, "5m")
    exact = report.duplicates["exact"]
    assert report.duplicates.loc[exact, "time"].tolist() == sorted(
        candles.index[equal]
    ) and report.duplicates.loc[~exact, "time"].tolist() == sorted(candles.index[changed])
    assert len(report.out_of_order) == 30 and defects(report) == {"duplicates", "out_of_order"}
    turned = assess_quality(candles.sample(frac=1, random_state=1), "5m")
    assert defects(turned) == {"out_of_order"} and repair(
        candles.sample(frac=1, random_state=1), turned, RepairConfig(sort=True)
    )[0].equals(candles)


@pytest.mark.parametrize(
    "column, value, what",
    [
        ("open", np.nan, "is not a number"),
        ("close", np.inf, "is infinite"),
        ("low", 0.0, "is not positive"),
        ("low", -3.0, "is not positive"),
        ("high", 1.0, "is below another price"),
        ("low", 1e9, "is above another price"),
        ("volume", -1.0, "is negative"),
        ("volume", np.nan, "is not a number"),
    ],
)
def test_impossible_values(piece, column, value, what):
    candles, _, rng = piece
    rows = np.sort(rng.choice(PIECE, 5, replace=False))
    broken = candles.copy()
    broken.iloc[rows, broken.columns.get_loc(column)] = value
    report = assess_quality(broken, "5m")
    named = report.violations[(report.violations["column"] == column) & (report.violations["what"] == what)]
    assert named["time"].tolist() == candles.index[rows].tolist() and set(report.violations["row"]) == set(
        rows
    )
    mended, counts = repair(broken, report, RepairConfig(drop_impossible=True))
    assert counts["impossible_dropped"] == 5 and mended.equals(candles.drop(candles.index[rows]))
    with pytest.raises(CandleError, match="5 rows with an impossible value"):
        repair(broken, report)


def test_rows_off_the_grid(piece):
    candles, _, rng = piece
    rows = np.sort(rng.choice(PIECE, 3, replace=False))
    moved = candles.index.to_series().reset_index(drop=True)
    moved.iloc[rows] += pd.Timedelta("61s")
    report = assess_quality(candles.set_axis(pd.DatetimeIndex(moved, name="open_time")), "5m")
    assert (
        report.off_grid["row"].tolist() == rows.tolist()
        and report.gaps["start"].tolist() == candles.index[rows].tolist()
    )


def test_runs_without_volume_and_frozen_prices(piece):
    candles, _, rng = piece
    place, length, empty = somewhere(rng), int(rng.integers(4, 60)), 100

    def freeze(prices):
        prices[place : place + length] = prices[place - 1, 3]

    broken = with_prices(candles, freeze)
    broken.iloc[empty : empty + 7, 4] = 0.0
    report = assess_quality(broken, "5m")
    run = report.frozen.iloc[0]
    assert (
        len(report.frozen) == 1
        and run["end"] == candles.index[place + length]
        and abs(run["candles"] - length) <= 1
    )
    assert (report.zero_volume["start"].tolist(), report.zero_volume["candles"].tolist()) == (
        [candles.index[empty]],
        [7],
    )
    assert defects(report) == {"frozen"}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("what", ["close", "wick", "candle", "two candles"])
def test_spikes_of_ten_percent(piece, what, beside):
    candles, other, rng = piece
    rows = np.sort(rng.choice(np.arange(100, PIECE - 100, 150), 12, replace=False))
    factors = 1 + 0.1 * rng.choice([-1, 1], 12)

    def distort(prices):
        if what == "close":
            prices[rows, 3] *= factors
        elif what == "wick":
            prices[rows, np.where(factors > 1, 1, 2)] *= factors
        else:
            prices[rows] *= factors[:, None]
        if what == "two candles":
            prices[rows + 1] *= factors[:, None]

    report = assess_quality(with_prices(candles, distort), "5m", other=other if beside else None)
    expected = np.sort(np.concatenate([rows, rows + 1])) if what == "two candles" else rows
    assert report.spikes["time"].tolist() == candles.index[expected].tolist()
    assert defects(report) == {"spikes"}


def test_a_fall_of_both_is_no_spike(piece):
    candles, other, rng = piece
    row = somewhere(rng)

    def fall(prices):
        prices[row, 2] *= 0.9

    assert len(assess_quality(with_prices(candles, fall), "5m", other=with_prices(other, fall)).spikes) == 0


SPLICES = {
    "volume in quote units": ("volume", lambda rows: rows.assign(volume=rows["volume"] * rows["close"])),
    "volume in thousands": ("volume", lambda rows: rows.assign(volume=rows["volume"] / 1000)),
    "contracts of a hundred": ("volume", lambda rows: rows.assign(volume=(rows["volume"] * 100).round())),
    "a coarser tick": ("tick", lambda rows: rows.assign(**(rows[list(PRICES)] / 5).round(1) * 5)),
    "a finer tick": (
        "tick",
        lambda rows: rows.assign(
            **(rows[list(PRICES)] + 0.01 * (rows[list(PRICES)].round(0) % 7))
            .round(2)
            .pipe(lambda prices: pd.DataFrame(whole(prices.to_numpy()), prices.index, list(PRICES)))
        ),
    ),
    "a level two percent higher": ("level", lambda rows: rows.assign(**(rows[list(PRICES)] * 1.02).round(1))),
    "scaled": (
        "level",
        lambda rows: rows.assign(**rows[list(PRICES)] * 1.7345, volume=rows["volume"] / 1.7345),
    ),
    "a coarser volume": ("volume step", lambda rows: rows.assign(volume=rows["volume"].round(1))),
}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("name", SPLICES)
def test_splices(piece, name, beside):
    candles, other, rng = piece
    kind, change = SPLICES[name]
    row = int(rng.integers(1500, PIECE - 1500))
    report = assess_quality(
        pd.concat([candles.iloc[:row], change(candles.iloc[row:])]), "5m", other=other if beside else None
    )
    of_volume = kind in ("volume", "volume step")  # the prices go on: told, and no splice
    changes = report.units if of_volume else report.splices
    found = changes[changes["kind"] == kind]
    assert len(found) == 1 and abs(found["time"].iloc[0] - candles.index[row]) <= 3 * STEP
    assert ((changes["time"] - candles.index[row]).abs() <= 3 * STEP).all()
    assert defects(report) == (set() if of_volume else {"splices"})
    said = [one for one in report.sentences() if "of the volume from" in one or "spliced" in one]
    assert len(said) >= 1 and all(("spliced" in one) != of_volume for one in said)


def test_hourly_candles_of_another_venue(market):
    "Years of spot spliced with the same at other scales and ticks, as a download from two venues would be."
    table = pd.read_parquet(market / "BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet").set_index(
        "timestamp"
    )[[*PRICES, "volume"]]
    for row in (3000, 8000, 12_000):
        later = table.iloc[row:].assign(
            **(table[list(PRICES)].iloc[row:] * 0.9).round(0), volume=table["volume"].iloc[row:] * 8
        )
        report = assess_quality(pd.concat([table.iloc[:row], later]), "1h")
        assert (
            set(report.splices["kind"]) == {"tick", "level", "volume"}
            and ((report.splices["time"] - table.index[row]).abs() <= pd.Timedelta("3h")).all()
        )


@pytest.mark.parametrize("hours", [-8, -5, 1, 2, 3, 9])
def test_another_time_zone(piece, hours):
    candles, other, _ = piece
    report = assess_quality(candles.set_axis(candles.index + pd.Timedelta(hours=hours)), "5m", other=other)
    assert report.clock["kind"].tolist() == ["shifted"] and report.clock["hours"].tolist() == [hours]
    assert report.metrics()["lag"] == 12 * hours and len(report.spikes) == 0


@pytest.mark.parametrize(
    "timeframe, told", [("5m", "stamped by the close"), ("1h", "stamped by the close or an hour off")]
)
def test_stamped_by_the_close(bitcoin, ether, timeframe, told):
    one, two = (
        (
            candles.iloc[:20_000]
            if timeframe == "5m"
            else candles.resample("1h").agg(
                {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
            )
        )
        for candles in (bitcoin, ether)
    )
    late = one.set_axis(one.index + TIMEFRAMES[timeframe])
    report = assess_quality(late, timeframe, other=two)
    assert report.clock["kind"].tolist() == [told] and report.metrics()["stamped_by_close"] is (
        True if timeframe == "5m" else None
    )
    assert assess_quality(late, timeframe).metrics()["stamped_by_close"] is None
    assert (
        assess_quality(one, timeframe, other=two.set_axis(two.index + TIMEFRAMES[timeframe]))
        .clock["kind"]
        .str.startswith("the other one is stamped")
        .all()
    )
    before = assess_quality(one.set_axis(one.index + TIMEFRAMES[timeframe] - pd.Timedelta("1ms")), timeframe)
    assert before.metrics()["stamped_by_close"] is True and before.clock["kind"].tolist() == [
        "stamped by the close"
    ]


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/London", "Europe/Berlin"])
def test_local_time_loses_an_hour_and_doubles_one(bitcoin, ether, zone):
    local = bitcoin.set_axis(
        bitcoin.index.tz_convert(zone).tz_localize(None).tz_localize("UTC").rename("open_time")
    )
    report = assess_quality(local, "5m")
    assert (
        sorted(report.clock["hours"]) == [-1.0, 1.0]
        and report.clock["kind"].str.fullmatch(f"summer time of {zone}").all()
    )
    assert (
        report.gaps["missing"].tolist() == [12]
        and len(report.duplicates) == 12
        and not report.duplicates["exact"].any()
    )
    beside = assess_quality(local, "5m", other=ether).clock
    assert "summer time" in set(beside["kind"]) and {1.0, -1.0} <= set(beside["hours"])


def test_two_exchanges_that_disagree(piece):
    candles, _, rng = piece
    elsewhere = with_prices(
        candles,
        lambda prices: np.multiply(prices, np.exp(rng.normal(0, 5e-5, (len(prices), 1)) + 3e-4), out=prices),
    )
    assert assess_quality(elsewhere, "5m", other=candles).clean
    place = somewhere(rng)

    def drift(prices):
        prices[place : place + 6] *= 1.01

    report = assess_quality(with_prices(elsewhere, drift), "5m", other=candles)
    assert report.disagreements["time"].tolist() == candles.index[place : place + 6].tolist()


# Garbage

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, 100.0, 100.5, -1.0, 1e-300, 1e300, np.nan]),
)
ANYTHING = st.one_of(
    NUMBERS,
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.just([1]),
    st.just(1j),
    st.just(pd.Timestamp("2024-01-01")),
    st.just(pd.NA),
    st.integers(),
)
TIMES = st.one_of(
    st.integers(0, 40).map(lambda row: pd.Timestamp("2024-03-08 20:00") + row * pd.Timedelta("5min")),
    st.integers(0, 10_000).map(lambda second: pd.Timestamp("2024-03-10") + pd.Timedelta(seconds=second)),
    st.sampled_from(
        [pd.NaT, pd.Timestamp("1970-01-01"), pd.Timestamp("1678-01-01"), pd.Timestamp("2261-12-31")]
    ),
)


@st.composite
def garbage(draw) -> pd.DataFrame:
    rows = draw(st.integers(0, 40))
    columns = {
        name: draw(st.lists(draw(st.sampled_from([NUMBERS, ANYTHING])), min_size=rows, max_size=rows))
        for name in (*PRICES, "volume", *draw(st.sets(st.sampled_from(["bid", "trades", "mood", "filled"]))))
    }
    regular = draw(st.booleans())
    times = pd.DatetimeIndex(
        pd.date_range("2024-03-08 20:00", periods=rows, freq="5min")
        if regular
        else draw(st.lists(TIMES, min_size=rows, max_size=rows))
    )
    zone = draw(st.sampled_from([None, "UTC", "UTC", "Asia/Kolkata"]))
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    for name in columns:
        with np.errstate(over="ignore"):
            try:
                table[name] = table[name].astype(
                    draw(st.sampled_from([object, float, "float32", "Float64", "str", "category"]))
                )
            except (ValueError, TypeError, OverflowError):
                pass
    return table.set_index(times if zone is None else times.tz_localize("UTC").tz_convert(zone))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    garbage(),
    st.sampled_from(["5m", "15m", "1h", "1d"]),
    st.sampled_from([None, "forex"]),
    st.one_of(st.none(), garbage()),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_garbage_is_reported_not_raised(table, timeframe, calendar, other, drop, order, impossible, fill):
    report = assess_quality(table, timeframe, calendar, other)
    assert json.loads(json.dumps(report.metrics(), allow_nan=False)) == report.metrics()
    assert report.sentences() and report.findings() is not None and report.rows == len(table)
    try:
        mended, counts = repair(
            table,
            report,
            RepairConfig(drop_duplicates=drop, sort=order, drop_impossible=impossible, fill_up_to=fill),
        )
    except CandleError:
        return
    validate_candles(mended, timeframe, allow_gaps=True)
    assert all(count >= 0 for count in counts.values())


@settings(max_examples=20, deadline=None)
@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(),
        st.lists(st.integers()),
        st.just(pd.Series([1.0])),
        st.just(pd.DataFrame()),
        st.just(pd.DataFrame({"open": [1.0]})),
        st.just(pd.DataFrame({name: [1.0] for name in (*PRICES, "volume")})),
        st.just(
            pd.DataFrame(
                [[1.0] * 6], columns=[*PRICES, "volume", "volume"], index=pd.DatetimeIndex(["2024-01-01"])
            )
        ),
    )
)
def test_what_is_no_table_of_candles_is_refused(thing):
    with pytest.raises(CandleError):
        assess_quality(thing, "5m")
