"""Candles as exchanges, data services and programs write them: one walk in every form, read as it was.

Where the content does not decide, one sentence names what may be meant and what to do.
"""

import json
import zipfile
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from smc_ml.candles import PRICES, CandleError, validate_candles
from smc_ml.cli import app
from smc_ml.config import project_root
from smc_ml.data.quality.assessment import assess_quality
from smc_ml.data.quality.config import RepairConfig
from smc_ml.data.quality.repair import repair
from smc_ml.data.sources.base import moments
from smc_ml.data.sources.file_source import FileSource
from smc_ml.data.sources.files import open_candle_file, read_candle_file
from smc_ml.data.sources.forms import FORM_NAMES, FORMS
from smc_ml.data.sources.names import SourceError
from smc_ml.settings import check_settings

COUNT = 40
COLUMNS = [*PRICES, "volume"]


@pytest.fixture(scope="module")
def walk() -> pd.DataFrame:
    "Rough candles: no two equal, opens unlike closes, volumes that are no whole numbers."
    random = np.random.default_rng(3)
    close = 100 + np.round(random.normal(size=COUNT).cumsum(), 3)
    opened = close + np.round(random.normal(size=COUNT), 3)
    high = np.maximum(opened, close) + np.round(random.uniform(0.01, 1, COUNT), 3)
    low = np.minimum(opened, close) - np.round(random.uniform(0.01, 1, COUNT), 3)
    volume = np.round(random.uniform(1, 50, COUNT), 4)
    index = pd.date_range("2024-01-02", periods=COUNT, freq="5min", tz="UTC", unit="ns", name="open_time")
    return pd.DataFrame(
        dict(zip(COLUMNS, (opened, high, low, close, volume), strict=True)), index=index
    ).round(4)


def rows(walk: pd.DataFrame, order: str, unit: int = 1000) -> list[list]:
    "Rows of a form by the letters of its columns: t o h l c v, and others."
    counts = walk.index.as_unit("s").astype("int64") * unit
    mean = (walk["high"] + walk["low"]) / 2
    columns = {
        "t": counts,
        **{name[0]: walk[name] for name in COLUMNS},
        "n": np.arange(len(walk)) + 3,
        "q": walk["volume"] * mean,
        "w": mean,
        "e": counts + 299 * unit,
        "1": np.ones(len(walk), int),
        "k": walk["volume"] * 100,
    }
    return [
        list(row) for row in zip(*(np.asarray(columns[letter]).tolist() for letter in order), strict=True)
    ]


def as_text(row: list) -> list[str]:
    return [str(value) for value in row]


def objects(walk, names: dict[str, str], unit: int = 1000) -> list[dict]:
    "Rows as objects: name in the file by letter."
    return [dict(zip(names.values(), row, strict=True)) for row in rows(walk, "".join(names), unit)]


ANSWERS = {
    "Coinbase": lambda walk: rows(walk, "tlhocv", 1)[::-1],
    "Bitfinex": lambda walk: rows(walk, "tochlv")[::-1],
    "plain": lambda walk: rows(walk, "tohlcv"),
    "MEXC": lambda walk: rows(walk, "tohlcveq"),
    "Kraken": lambda walk: {
        "error": [],
        "result": {
            "XXBTZUSD": [[r[0], *as_text(r[1:7]), r[7]] for r in rows(walk, "tohlcwvn", 1)],
            "last": 1,
        },
    },
    "Bybit": lambda walk: {
        "retCode": 0,
        "retMsg": "OK",
        "result": {"symbol": "BTCUSDT", "list": list(map(as_text, rows(walk, "tohlcvq")))[::-1]},
        "time": 1,
    },
    "KuCoin": lambda walk: {"code": "200000", "data": list(map(as_text, rows(walk, "tochlvq", 1)))[::-1]},
    "OKX": lambda walk: {
        "code": "0",
        "msg": "",
        "data": list(map(as_text, rows(walk, "tohlcvqq1")))[::-1],
    },
    "OKX derivatives": lambda walk: {
        "code": "0",
        "msg": "",
        "data": list(map(as_text, rows(walk, "tohlckvq1")))[::-1],
    },
    "Polygon": lambda walk: {
        "ticker": "X:BTCUSD",
        "results": objects(
            walk, {"v": "v", "w": "vw", "o": "o", "c": "c", "h": "h", "l": "l", "t": "t", "n": "n"}
        ),
    },
    "Alpaca": lambda walk: {
        "bars": {
            "BTC/USD": [
                {**row, "t": f"{time:%Y-%m-%dT%H:%M:%SZ}"}
                for time, row in zip(
                    walk.index,
                    objects(walk, {"c": "c", "h": "h", "l": "l", "n": "n", "o": "o", "v": "v", "w": "vw"}),
                    strict=True,
                )
            ]
        },
        "next_page_token": None,
    },
}


def assert_read(path, walk: pd.DataFrame, form: str | None = None, offset=None, **given):
    "The file gives the walk, in the order of the file."
    file = open_candle_file(path, offset, **given)
    pd.testing.assert_frame_equal(
        file.candles.sort_index()[COLUMNS], walk, check_freq=False, check_exact=True, check_dtype=False
    )
    assert form is None or file.facts["form"] == form
    return file


@pytest.mark.parametrize("form", ANSWERS)
def test_answers_of_exchanges_and_services(tmp_path, walk, form):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(ANSWERS[form](walk)))
    file = assert_read(path, walk, form)
    told = {"Kraken": "XXBTZUSD", "Bybit": "BTCUSDT", "Polygon": "BTCUSD", "Alpaca": "BTCUSD"}
    assert file.symbol == told.get(form)
    newest = form in ("Coinbase", "Bitfinex", "Bybit", "KuCoin", "OKX", "OKX derivatives")
    assert file.facts["order"] == ("newest first" if newest else "oldest first")


@pytest.mark.parametrize("order, form", {"tohlcvn": "Kraken OHLCVT", "tohlcvq": "Bybit"}.items())
def test_seven_numbers_are_told_by_the_last(tmp_path, walk, order, form):
    path = tmp_path / "XBTUSD_5.csv"
    path.write_text("".join(",".join(as_text(row)) + "\n" for row in rows(walk, order, 1)))
    assert_read(path, walk, form)


def test_what_may_be_either_is_refused_with_both_names_and_the_setting_decides(tmp_path, walk):
    whole = walk.assign(volume=np.arange(1.0, COUNT + 1))
    quoted = [[*row[:6], int(row[5]) * 100] for row in rows(whole.assign(high=120.0, low=80.0), "tohlcvn")]
    path = tmp_path / "BTCUSDT_5m.csv"
    path.write_text("".join(",".join(as_text(row)) + "\n" for row in quoted))
    with pytest.raises(SourceError, match="Kraken OHLCVT or Bybit: set collect.form") as error:
        open_candle_file(path)
    assert "\n" not in str(error.value)
    read = open_candle_file(path, form="Kraken OHLCVT").candles
    assert read["trades"].tolist() == [row[6] for row in quoted]
    with pytest.raises(SourceError, match="no known form .similar: Bybit"):
        open_candle_file(path, form="Bybitt")


def test_no_order_that_makes_the_candles_possible_is_said_so(tmp_path, walk):
    path = tmp_path / "BTCUSDT_5m.json"
    path.write_text(json.dumps([[t, h, o, c, lo, v] for t, o, h, lo, c, v in rows(walk, "tohlcv")]))
    with pytest.raises(
        SourceError, match="no possible candles in any known order .plain, Coinbase, Bitfinex"
    ):
        open_candle_file(path)


# ---- text as people keep it


def comma_decimals(text: str) -> str:
    return text.replace(",", ";").replace(".", ",")


def thousands(walk: pd.DataFrame) -> str:
    big = walk.assign(**{name: walk[name] + 43_000 for name in PRICES})
    lines = [
        f"{time:%Y-%m-%dT%H:%M:%SZ},{','.join(chr(34) + format(x, ',.4f') + chr(34) for x in row)}\n"
        for time, row in zip(big.index, big.to_numpy(), strict=True)
    ]
    return "Date,Open,High,Low,Close,Volume\n" + "".join(lines)


LAYOUTS = {
    "as it is": lambda text: text,
    "sep line": lambda text: "sep=,\n" + text,
    "link above": lambda text: "https://data.example.com\n" + text,
    "title and blank above": lambda text: "BTCUSDT five minutes\n\n" + text,
    "remark below": lambda text: text + "# end\n",
    "sentence below": lambda text: text + "Source: somebody, all rights reserved\n",
    "comma at the end": lambda text: text.replace("\n", ",\n"),
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "decimal commas": comma_decimals,
    "capitals": lambda text: text.replace("open,high,low,close,volume", "Open,High,Low,Close,Volume"),
    "numbered names": lambda text: text.replace("open,high,low,close", "1. open,2. high,3. low,4. close"),
    "Windows lines": lambda text: text.replace("\n", "\r\n"),
    "no newline at the end": lambda text: text.rstrip("\n"),
    "quoted": lambda text: "\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_any_layout(tmp_path, walk, layout, encoding):
    text = (
        walk.reset_index(names="time")
        .assign(time=walk.index.strftime("%Y-%m-%dT%H:%M:%SZ"))
        .to_csv(index=False)
    )
    path = tmp_path / "BTCUSDT_5m.csv"
    path.write_bytes(LAYOUTS[layout](text).encode(encoding))
    file = assert_read(path, walk)
    around = {
        "sep line": "sep=,",
        "link above": "above",
        "title and blank above": "above",
        "remark below": "below",
    }
    assert layout not in around or any(around[layout] in note for note in file.facts["notes"])


@pytest.mark.parametrize("cut", range(1, 35))
def test_a_file_that_ends_within_a_row_is_cut_off_or_has_another_number(tmp_path, walk, cut):
    "Cut within the last number it cannot be told; anywhere else it is."
    path, text = tmp_path / "BTCUSDT_5m.csv", walk.to_csv().rstrip("\n")
    path.write_text(text[:-cut])
    last = len(text.rsplit(",", 1)[1])
    if cut < last:
        assert len(open_candle_file(path).candles) == COUNT
    elif cut < len(text.rsplit("\n", 1)[1]):
        with pytest.raises(SourceError, match="cut off|column volume"):
            open_candle_file(path)


def test_thousands_are_read_and_what_may_be_thousands_is_refused(tmp_path, walk):
    path = tmp_path / "BTCUSDT_5m.csv"
    path.write_text(thousands(walk))
    big = walk.assign(**{name: walk[name] + 43_000 for name in PRICES}).round(4)
    assert_read(path, big)
    path.write_text(
        'Date,Open,High,Low,Close,Volume\n2024-01-02T00:00:00Z,"43,000","43,100","42,900","43,050",7\n'
    )
    with pytest.raises(SourceError, match="may be 43000 or 43.000"):
        open_candle_file(path)


PROGRAMS = {
    "Stooq": (
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n",
        lambda t, row: f"BTC.V,5,{t:%Y%m%d},{t:%H%M%S},{row},0\n",
        0,
        "BTC.V",
    ),
    "Dukascopy": (
        "Gmt time,Open,High,Low,Close,Volume\n",
        lambda t, row: f"{t:%d.%m.%Y %H:%M:%S}.000,{row}\n",
        None,
        None,
    ),
    "CryptoDataDownload": (
        "https://www.example.com\nunix,date,symbol,open,high,low,close,Volume BTC,Volume USDT\n",
        lambda t, row: f"{int(t.timestamp()) * 1000},{t:%Y-%m-%d %H:%M:%S},BTCUSDT,{row},99\n",
        None,
        "BTCUSDT",
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_files_of_programs(tmp_path, walk, program):
    head, line, offset, symbol = PROGRAMS[program]
    path = tmp_path / "prices.csv"
    body = [
        line(t, ",".join(as_text(row))) for t, row in zip(walk.index, walk.to_numpy().tolist(), strict=True)
    ]
    path.write_text(head + "".join(body))
    file = assert_read(path, walk, program, offset)
    assert file.symbol == symbol and file.timeframe == "5m"


def workbook(table: pd.DataFrame, path):
    "The smallest workbook that holds a table."
    lines = [
        ["time", *table],
        *([time, *row] for time, row in zip(table.index, table.to_numpy(), strict=True)),
    ]
    cells = "".join(
        "<row>" + "".join(f'<c t="inlineStr"><is><t>{cell}</t></is></c>' for cell in line) + "</row>"
        for line in lines
    )
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{types}"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="rId1" '
        f'Type="{links}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{links}"><sheets>'
        '<sheet name="A" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}"><Relationship Id="rId1" '
        f'Type="{links}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)


def test_frames_of_yfinance_and_of_pandas(tmp_path, walk):
    levels = pd.MultiIndex.from_product([["Open", "High", "Low", "Close", "Volume"], ["BTC-USD"]])
    frame = walk.set_axis(levels.set_names(["Price", "Ticker"]), axis=1).rename_axis("Datetime")
    frame.to_csv(tmp_path / "yf.csv")
    frame.to_parquet(tmp_path / "yf.parquet")
    walk.rename_axis(None).to_csv(tmp_path / "BTCUSDT.csv")
    walk.reset_index(names="date").to_csv(tmp_path / "BTCUSD.csv")
    workbook(walk.set_axis(walk.index.strftime("%Y-%m-%d %H:%M:%S")), tmp_path / "ETHUSD.xlsx")
    for name, symbol, offset in (
        ("yf.csv", "BTCUSD", None),
        ("yf.parquet", "BTCUSD", None),
        ("BTCUSDT.csv", "BTCUSDT", None),
        ("BTCUSD.csv", "BTCUSD", None),
    ):
        assert assert_read(tmp_path / name, walk, offset=offset).symbol == symbol
    assert assert_read(tmp_path / "ETHUSD.xlsx", walk, offset=0).symbol == "ETHUSD"


@pytest.mark.parametrize("name", ["complete", "is_closed", "confirm", "Final"])
@pytest.mark.parametrize("word", ["False", "false", "0"])
def test_a_candle_that_is_not_closed_is_left_out_and_counted(tmp_path, walk, name, word):
    path = tmp_path / "EURUSD_5m.csv"
    table = walk.assign(**{name: "True"})
    table.iloc[-1, -1] = word
    table.to_csv(path)
    assert assert_read(path, walk.iloc[:-1]).facts["unclosed"] == 1


# ---- whose candles


def test_months_of_one_symbol_are_joined_and_contradictions_refused(tmp_path, walk):
    one, other = tmp_path / "BTCUSDT-5m-2024-01.csv", tmp_path / "BTCUSDT-5m-2024-02.csv"
    walk.iloc[:25].to_csv(one)
    walk.iloc[20:].to_csv(other)
    for files in (
        [one, other],
        tmp_path,
        {"BTCUSDT": [one, other]},
        {"BTCUSDT": tmp_path},
        str(tmp_path / "*.csv"),
    ):
        joined, _ = FileSource(files).raw_candles("BTCUSDT", "5m")
        pd.testing.assert_frame_equal(joined[COLUMNS], walk, check_freq=False)
    walk.iloc[20:].assign(close=walk["close"] + 0.001).to_csv(other)
    with pytest.raises(SourceError) as error:
        FileSource(tmp_path).raw_candles("BTCUSDT", "5m")
    said = str(error.value)
    assert str(one) in said and str(other) in said and "2024-01-02 01:40:00+00:00" in said and "close" in said


@pytest.mark.parametrize(
    "names, symbols",
    [
        (("EUR_USD.csv", "EUR_GBP.csv"), {"EURUSD", "EURGBP"}),
        (("BINANCE_BTCUSDT, 5.csv", "BINANCE_ETHUSDT, 5.csv"), {"BTCUSDT", "ETHUSDT"}),
        (("BTCUSDT-5m-2024-01.csv", "BTCUSDT_240329-5m-2024-01.csv"), {"BTCUSDT", "BTCUSDT-240329"}),
        (("BTC-USD.csv", "ETH-USD.csv"), {"BTCUSD", "ETHUSD"}),
    ],
)
def test_two_instruments_are_never_one_series(tmp_path, walk, names, symbols):
    for at, name in enumerate(names):
        (walk + at).to_csv(tmp_path / name)
    assert {symbol for symbol, _ in FileSource(tmp_path).series} == symbols


def test_a_file_of_another_instrument_is_refused(tmp_path, walk):
    path = tmp_path / "BTCUSDT_5m.csv"
    walk.assign(symbol="ETHUSDT").to_csv(path)
    with pytest.raises(SourceError, match="its name says BTCUSDT, but its rows are of ETHUSDT"):
        open_candle_file(path)
    with pytest.raises(SourceError, match="collect.files says BTCUSDT, but its rows are of ETHUSDT"):
        FileSource({"BTCUSDT": path}).raw_candles("BTCUSDT", "5m")
    assert read_candle_file(path, symbol="ETH").shape == (COUNT, 5)
    walk.to_csv(tmp_path / "BTCUSDT_ETHUSDT.csv")
    with pytest.raises(SourceError, match="give collect.files as symbol: path"):
        _ = FileSource([tmp_path / "BTCUSDT_ETHUSDT.csv"]).series


# ---- clocks


def test_a_clock_is_applied_or_refused(tmp_path, walk):
    path = tmp_path / "BTCUSDT_5m.csv"
    walk.set_axis(walk.index.as_unit("s").astype("int64")).to_csv(path, index_label="time")
    for offset in (None, 0, "UTC"):
        assert_read(path, walk, offset=offset)
    for offset in (3, "Europe/Athens", "new_york+7"):
        with pytest.raises(SourceError, match="counts from 1970 in UTC.*cannot be right"):
            open_candle_file(path, offset)


def test_the_advice_for_a_doubled_hour_shifts_nothing():
    times = pd.Series(["2024-10-27 02:55", "2024-10-27 03:30", "2024-10-27 04:00"], name="time")
    with pytest.raises(
        SourceError, match="leave out the rows of that hour, or export the file in UTC"
    ) as error:
        moments(times, "FILE", "Europe/Athens")
    assert "fixed" not in str(error.value)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_digits_are_counts_or_dates(unit):
    times = pd.date_range("2024-01-02", periods=5, freq="5min", tz="UTC")
    counts = pd.Series(times.as_unit(unit).astype("int64"), name="t")
    dates = pd.Series(times.strftime("%Y%m%d%H%M%S").astype("int64"), name="t")
    assert list(moments(counts, "F")) == list(moments(dates, "F", 0)) == list(times)


# ---- two rows of one time


@pytest.mark.parametrize("keep, volume", [("first", 1.0), ("last", 2.0)])
def test_the_remedies_for_a_doubled_row_work(tmp_path, walk, keep, volume):
    twice = pd.concat([walk, walk.iloc[-1:]])
    twice["volume"] = [*walk["volume"].iloc[:-1], 1.0, 2.0]
    with pytest.raises(
        CandleError, match=f"volume 1.0 in row {COUNT - 1} and 2.0 in row {COUNT}.*first or last"
    ):
        validate_candles(twice, "5m", "FILE")

    report = assess_quality(twice, "5m")
    mended, counts = repair(twice, report, RepairConfig(drop_duplicates=keep))
    assert (len(mended), counts["duplicates_dropped"], mended["volume"].iloc[-1]) == (COUNT, 1, volume)


# ---- the command


def test_files_are_named_only_when_they_fit(tmp_path, walk):
    settings, before = tmp_path / "params.yaml", (project_root() / "params.yaml").read_text()
    settings.write_text(before)
    walk.iloc[:25].to_csv(tmp_path / "a.csv")
    walk.iloc[20:].to_csv(tmp_path / "b.csv")
    run = CliRunner().invoke(
        app, ["files", str(settings), f"BTC={tmp_path / 'a.csv'}", f"BTC={tmp_path / 'b.csv'}"]
    )
    assert run.exit_code == 0, run.stderr
    assert check_settings(settings)["collect"].symbols == ("BTC",)
    after = settings.read_text()
    matcher = SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    kept = sum(block.size for block in matcher.get_matching_blocks())
    assert (len(before.splitlines()) - kept, len(after.splitlines()) - kept) == (8, 10)  # lines gone, new
    walk.iloc[20:].drop(walk.index[30]).to_csv(tmp_path / "b.csv")
    run = CliRunner().invoke(app, ["files", str(settings), f"BTC={tmp_path / 'b.csv'}"])
    assert run.exit_code == 1 and "is missing" in run.stderr.splitlines()[-1]
    assert settings.read_text() == after


def test_every_form_is_named_once():
    assert len(FORM_NAMES) == len({name.lower() for name in FORM_NAMES}) and len(FORMS) >= len(FORM_NAMES)
