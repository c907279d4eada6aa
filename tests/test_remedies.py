"""Every repair that an error of the collection names is tried: what it says is done, and the run goes on."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from exchange_servers import BinanceServer

from smc_ml.candles import CandleError, candle_facts, content_hash, read_candles, resample, write_candles
from smc_ml.config import UserError
from smc_ml.data.collection.collector import HistoricalDataCollector
from smc_ml.data.collection.config import DataCollectionConfig
from smc_ml.data.collection.preparation import make_candles
from smc_ml.simulation.market import random_walk
from smc_ml.tables import ArtifactError, read_table
from smc_ml.writing import write_table

CANDLES = random_walk(300, seed=5)[["open", "high", "low", "close", "volume"]].round(5)
CANDLES["volume"] = CANDLES["volume"].round(3)
Settings = dict[str, Any]


def run(folder: Path, settings: Settings) -> pd.DataFrame:
    "What the collect stage does: into the snapshot, and on to the candles of the stages."
    config = DataCollectionConfig(**settings | {"data_dir": str(folder / "data")})
    paths = HistoricalDataCollector(config).collect()
    return next(iter(make_candles(paths, config, folder / "candles").candles.values()))


def said(folder: Path, settings: Settings) -> str:
    with pytest.raises(UserError) as caught:
        run(folder, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# an exchange


def broken(**values: float) -> pd.DataFrame:
    "The candles with impossible values in the middle."
    table = CANDLES.copy()
    for name, value in values.items():
        table.loc[table.index[120], name] = value
    return table


class Exchange:
    "A stand-in exchange, and the settings that ask it."

    def __init__(self, server: BinanceServer, candles: pd.DataFrame):
        self.server = server
        self.serve(candles)

    def serve(self, candles: pd.DataFrame, higher: pd.DataFrame | None = None) -> None:
        fifteen = higher if higher is not None else resample(CANDLES, "5m", "15m")
        self.server.serve({("BTCUSDT", "5m"): candles, ("BTCUSDT", "15m"): fifteen})

    def settings(self, **changes: Any) -> Settings:
        return {
            "source": "binance",
            "symbols": ["BTCUSDT"],
            "start": "2024-01-01",
            "end": "2024-01-02",
            "timeframes": ["15m"],
            "base_url": self.server.url,
            "retry": {"attempts": 2, "first_wait": 0.001},
            **changes,
        }


@contextmanager
def exchange(candles: pd.DataFrame = CANDLES) -> Iterator[Exchange]:
    with BinanceServer({("BTCUSDT", "5m"): CANDLES}) as server:
        yield Exchange(server, candles)


IMPOSSIBLE = {"high": 0.5, "close": -1.0, "volume": -2.0, "low": 1e9, "quote_volume": -1.0}
REPAIRED = {"repair": {"drop_impossible": True, "fill_up_to": 1}}


@pytest.mark.parametrize("column", IMPOSSIBLE)
def test_an_impossible_candle_of_an_exchange_can_be_repaired(tmp_path, column):
    with exchange(broken(**{column: IMPOSSIBLE[column]})) as there:
        settings = there.settings(cross_check=False)
        text = said(tmp_path, settings)
        assert (
            "binance BTCUSDT 5m" in text
            and "collect.repair.drop_impossible with collect.repair.fill_up_to" in text
        )
        repaired = run(tmp_path, settings | REPAIRED)
        assert len(repaired) == 288 and repaired["filled"].sum() == 1


def test_an_impossible_candle_of_an_exchange_can_be_fetched_again(tmp_path):
    with exchange(broken(close=-1.0)) as there:
        assert "fetch this candle again" in said(tmp_path, there.settings())
        there.serve(CANDLES)
        assert len(run(tmp_path, there.settings())) == 288


HOLED = CANDLES.drop(CANDLES.index[100:102])
HOLES = [{"repair": {"fill_up_to": 2}}, {"allow_gaps": True}]


@pytest.mark.parametrize("remedy", HOLES)
def test_a_hole_at_an_exchange_can_be_filled_or_kept(tmp_path, remedy):
    with exchange(HOLED) as there:
        text = said(tmp_path, there.settings())
        assert "binance BTCUSDT" in text and all(
            key in text for key in ("fill_up_to", "allow_gaps", "ask_again")
        )
        assert len(run(tmp_path, there.settings(**remedy))) >= 286


def test_a_hole_at_an_exchange_can_be_fetched_again(tmp_path):
    with exchange(HOLED) as there:
        assert "from an exchange with collect.ask_again" in said(tmp_path, there.settings())
        there.serve(CANDLES)
        assert len(run(tmp_path, there.settings(ask_again=True))) == 288


def test_the_other_remedies_at_an_exchange(tmp_path):
    with exchange() as there:
        other = resample(CANDLES, "5m", "15m")
        there.serve(CANDLES, other.assign(volume=other["volume"] * 2))
        assert "raise collect.cross_check_share" in said(tmp_path / "a", there.settings())
        assert len(run(tmp_path / "a", there.settings(cross_check_share=1.0))) == 288
        there.serve(CANDLES)
        near = re.search(r"similar: (\w+)", said(tmp_path / "b", there.settings(symbols=["BTCUSTD"])))
        assert near and len(run(tmp_path / "b", there.settings(symbols=[near[1]]))) == 288
        assert "and the span" in said(tmp_path / "c", there.settings(start="2022-01-01", end="2022-01-02"))
        late = there.settings(start="2025-01-01", end=None)
        assert "choose an earlier time" in said(tmp_path / "d", late)
        assert "the base URL" in said(tmp_path / "e", there.settings(base_url="http://127.0.0.1:1"))
        whole = there.settings(timeframes=["1d"], end="2024-01-01 12:00", cross_check=False)
        assert "leave 1d out of collect.timeframes" in said(tmp_path / "f", whole)
        assert len(run(tmp_path / "f", whole | {"timeframes": []})) == 144
        assert len(run(tmp_path / "f", whole | {"end": "2024-01-02"})) == 288


def snapshot_of(text: str) -> Path:
    "The file of the snapshot that an error names."
    found = re.search(r"[^\s(:]*/raw/binance/BTCUSDT_5m.parquet", text)
    assert found, text
    return Path(found[0])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def change(path: Path) -> None:
    write_table(read_candles(path) * 2, path, candle_facts(path))


def lose_column(path: Path) -> None:
    candles = read_candles(path).iloc[:100].drop(columns="trades")
    facts = candle_facts(path) | {"content": content_hash(candles), "answered": [], "rows": 100}
    write_table(candles, path, facts)


@pytest.mark.parametrize("harm", [cut, change, lose_column])
def test_a_file_of_the_snapshot_that_was_harmed_is_deleted_and_collected_again(tmp_path, harm):
    with exchange() as there:
        settings = there.settings(timeframes=[])
        run(tmp_path, settings)
        harm(tmp_path / "data/raw/binance/BTCUSDT_5m.parquet")
        text = said(tmp_path, settings)
        assert re.search("delete (it|the file) and collect", text)
        snapshot_of(text).unlink()
        assert len(run(tmp_path, settings)) == 288


# files of one's own


class Case(NamedTuple):
    "A file as people have it, what is said of it, and what is done then: to the settings or to the file."

    write: Callable[[Path], object]
    words: str
    settings: Settings = {}
    mended: Callable[[Path], object] | None = None
    rows: int = 300


def text_of(table: pd.DataFrame, times: Any = None) -> Callable[[Path], object]:
    "Writes the table as CSV, its times as they are given."
    named = table.reset_index()
    return lambda path: named.assign(open_time=named["open_time"] if times is None else times).to_csv(
        path, index=False
    )


def rows_of(positions: Any) -> Callable[[Path], object]:
    return text_of(CANDLES.iloc[positions])


NUMBERS = np.arange(300)
WEEK = random_walk(1500, seed=5)[list(CANDLES)]
WEEK.index = WEEK.index + pd.Timedelta(days=3)
OPEN = (WEEK.index < "2024-01-05 22:00") | (WEEK.index >= "2024-01-07 22:00")
MIXED = CANDLES.index.strftime("%Y-%m-%d %H:%M:%S").to_series().reset_index(drop=True)
DIFFERENT = pd.concat([CANDLES.iloc[:50], CANDLES.iloc[49:50] * 1.01, CANDLES.iloc[50:]])

CASES = {
    "an impossible candle": Case(
        text_of(broken(high=0.5)), "drop_impossible with collect.repair.fill_up_to", REPAIRED
    ),
    "a negative volume": Case(
        text_of(broken(volume=-1.0)), "drop_impossible with collect.repair.fill_up_to", REPAIRED
    ),
    "rows twice": Case(
        rows_of(np.r_[:50, 49, 50:300]),
        "collect.repair.drop_duplicates",
        {"repair": {"drop_duplicates": True}},
    ),
    "rows twice that differ, the first": Case(
        text_of(DIFFERENT), "drop_duplicates to first or last", {"repair": {"drop_duplicates": "first"}}
    ),
    "rows twice that differ, the last": Case(
        text_of(DIFFERENT), "drop_duplicates to first or last", {"repair": {"drop_duplicates": "last"}}
    ),
    "out of order": Case(
        rows_of(np.r_[:50, 51, 50, 52:300]), "collect.repair.sort", {"repair": {"sort": True}}
    ),
    "a hole, filled": Case(rows_of(np.r_[:50, 52:300]), "fill_up_to", {"repair": {"fill_up_to": 2}}),
    "a hole, kept": Case(rows_of(np.r_[:50, 52:300]), "allow_gaps", {"allow_gaps": True}, rows=298),
    "a weekend": Case(
        text_of(WEEK[OPEN].round(5)), "collect.calendar to forex", {"calendar": "forex"}, rows=int(OPEN.sum())
    ),
    "no zone": Case(text_of(CANDLES, MIXED), "collect.offset", {"offset": 0}),
    "no such span": Case(
        text_of(CANDLES),
        "correct collect.start and collect.end",
        {"start": "2024-01-01", "end": "2024-01-02"},
        rows=288,
    ),
    "longer candles": Case(
        text_of(resample(CANDLES, "5m", "1h")),
        "set collect.timeframe to one of these",
        {"timeframe": "1h", "timeframes": []},
        rows=25,
    ),
    "a higher timeframe of which there is none": Case(
        rows_of(NUMBERS[:100]), "leave 1d out of collect.timeframes", {"timeframes": ["15m"]}, rows=100
    ),
    "columns in another order": Case(
        text_of(CANDLES[["low", "high", "open", "close", "volume"]].set_axis(CANDLES.columns, axis=1)),
        "correct their names or their order",
        mended=text_of(CANDLES),
    ),
    "a zone in some rows": Case(
        text_of(CANDLES, MIXED.where(MIXED.index != 5, MIXED + "Z")),
        "write all times in UTC",
        mended=text_of(CANDLES, MIXED + "Z"),
    ),
    "an amount": Case(
        text_of(CANDLES.rename(columns={"volume": "amount"})), "rename it to volume", mended=text_of(CANDLES)
    ),
    "no close": Case(
        text_of(CANDLES.drop(columns="close")), "rename it in the file", mended=text_of(CANDLES)
    ),
    "no number": Case(
        text_of(CANDLES.astype(object).where(CANDLES.index.to_series() != CANDLES.index[7], "n/a?")),
        "correct it",
        mended=text_of(CANDLES),
    ),
}
FIRST = {
    "no such span": {"start": "2020-01-01", "end": "2020-01-02"},
    "a higher timeframe of which there is none": {"timeframes": ["15m", "1d"]},
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_error_of_a_file_says_is_done_and_the_run_goes_on(tmp_path, name):
    case, path = CASES[name], tmp_path / "mine.csv"
    settings = {"source": "files", "files": {"BTCUSDT": str(path)}, "timeframes": ["15m"]}
    case.write(path)
    text = said(tmp_path, settings | FIRST.get(name, {}))
    assert case.words in text and "/raw/" not in text, text
    assert "mine.csv" in text or "candles in the files" in text, text
    if case.mended:
        case.mended(path)
    assert len(run(tmp_path, settings | case.settings)) == case.rows


def test_repairs_never_drop_most_of_a_file(tmp_path):
    "Coinbase's order under other names: the repair that would drop every row is refused."
    path = tmp_path / "mine.csv"
    CASES["columns in another order"].write(path)
    settings = {"source": "files", "files": {"BTCUSDT": str(path)}, "timeframes": ["15m"]}
    text = said(tmp_path, settings)
    assert "drop_impossible" not in text
    again = said(tmp_path, settings | {"repair": {"drop_impossible": True, "fill_up_to": 300}})
    assert (
        "too many to drop" in again and "correct their names or their order" in again and "mine.csv" in again
    )


def test_an_error_that_a_repair_leaves_names_the_file_and_the_next_repair(tmp_path):
    path = tmp_path / "mine.csv"
    text_of(broken(high=0.5))(path)
    settings = {"source": "files", "files": {"BTCUSDT": str(path)}, "timeframes": ["15m"]}
    text = said(tmp_path, settings | {"repair": {"drop_impossible": True}})
    assert "mine.csv" in text and "/raw/" not in text and "fill_up_to" in text


# files that are read as if the project had written them


def written_by(kind: str, path: Path) -> None:
    if kind == "pandas":
        CANDLES.to_parquet(path)
    elif kind == "pyarrow":
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pandas(CANDLES.reset_index(), preserve_index=False)
        parquet.write_table(table.replace_schema_metadata(None), path)
    elif kind == "no Parquet":
        CANDLES.to_csv(path)
    elif kind == "cut off":
        CANDLES.to_parquet(path)
        cut(path)
    elif kind == "changed":
        write_candles(CANDLES, path, "5m")
        change(path)
    else:
        assert kind == "missing"


@pytest.mark.parametrize("kind", ["pandas", "pyarrow", "no Parquet", "cut off", "changed", "missing"])
@pytest.mark.parametrize("reader", [read_candles, read_table])
def test_nobody_is_told_to_delete_a_file_of_their_own(tmp_path, kind, reader):
    path = tmp_path / "own.parquet"
    written_by(kind, path)
    if reader is read_table and kind in ("pandas", "pyarrow", "changed"):
        assert len(read_table(path)) == 300
        return
    with pytest.raises((CandleError, ArtifactError)) as caught:
        reader(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert "delete" not in text.replace(str(path), "")
    if reader is read_candles:
        assert (
            "check the path" if kind == "missing" else "smc_ml.data.sources.files.read_candle_file"
        ) in text


def test_an_artifact_may_be_deleted(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    path = tmp_path / "artifacts/candles/BTCUSDT_5m.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    for reader in (read_candles, read_table):
        with pytest.raises(UserError, match="delete it and"):
            reader(path)


def test_a_recording_of_another_time_is_named_as_the_user_does_and_can_be_left_out(tmp_path):
    path, trades = tmp_path / "mine.csv", tmp_path / "trades.csv"
    text_of(CANDLES)(path)
    times = pd.date_range("2024-03-01", periods=900, freq="1s", tz="UTC")
    rows = {"timestamp": times, "price": 10.0, "qty": 1.0, "is_buyer_maker": False}
    pd.DataFrame(rows).to_csv(trades, index=False)
    settings = {"source": "files", "files": {"BTCUSDT": str(path)}, "timeframes": []}
    text = said(tmp_path, settings | {"trades": {"BTCUSDT": str(trades)}})
    assert text.startswith(f"{trades}: no candle was recorded") and "leave the recording out" in text
    assert len(run(tmp_path, settings)) == 300
