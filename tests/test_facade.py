"""What `import smc_ml as smc` offers: quick to import, all listed and documented, and every example true."""

import ast
import doctest
import inspect
import pydoc
import re
import subprocess
import sys

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import smc_ml as smc

CALLS = ("load simulate resample detect plot label features dataset walk_forward backtest judge").split()
MADE_HERE = sorted(set(smc.__all__) - {"features", "models"})
# the live path: their examples need a finished run, and stand in notebooks that make one
LIVE_PACKAGES = (
    "live",
    "monitoring",
    "retraining",
    "service",
    "serving.answering",
    "serving.bundle",
    "tracking",
)
WITH_A_RUN = tuple(f"smc_ml.{name}" for name in LIVE_PACKAGES)
ALONE = [name for name in MADE_HERE if not smc._HOMES[name].startswith(WITH_A_RUN)]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    "What the examples are about: a small simulated market, and what each call makes of it."
    candles = smc.simulate(days=40, edge=0.45, impulse_hours=2.0, seed=5)
    patterns = smc.detect(candles)
    trades, table = smc.label(candles, patterns), smc.features(candles, patterns)
    samples = smc.dataset(table, trades)
    account = smc.backtest(candles, samples, smc.models.Logistic(), folds=2)
    found = {"candles": candles, "patterns": patterns, "trades": trades, "table": table, "samples": samples}
    return found | {"account": account, "smc": smc, "pd": pd, "folder": tmp_path_factory.mktemp("examples")}


def examples(name: str) -> doctest.DocTest | None:
    "The example in the documentation of a name; None where there is none."
    text = inspect.getdoc(getattr(smc, name)) or ""
    found = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    return found if found.examples else None


@pytest.mark.parametrize("name", ALONE)
def test_the_example_of_each_name_is_true(name, names):
    example = examples(name)
    assert example, f"{name} has no example"
    example.globs = dict(names)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)


def test_an_example_that_is_wrong_is_seen():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1


@pytest.mark.parametrize("name", MADE_HERE)
def test_every_name_is_there_and_says_what_it_is(name):
    value = getattr(smc, name)
    assert value.__name__ == name and len((inspect.getdoc(value) or "").split()) > 3
    assert name in dir(smc)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "features"])
def test_arguments_have_comments_and_signatures_fit_a_screen(name):
    call = getattr(smc, name)
    source = inspect.getsource(call)
    head = source[: source.index('"""')]
    arguments = [line for line in head.splitlines()[1:] if re.match(r"    \*{0,2}\w+:", line)]
    lacking = [line for line in arguments if "  # " not in line and "title" not in line]
    assert arguments and not lacking
    assert len(str(inspect.signature(call))) < 700 and "Config(" not in str(inspect.signature(call))


@pytest.mark.parametrize("name", MADE_HERE)
def test_signatures_fit_a_screen_and_dump_no_defaults(name):
    told = str(inspect.signature(getattr(smc, name)))
    assert len(told) < 700 and not re.search(r"object at 0x", told), told


def test_a_year_of_euros_from_a_broker_s_export_is_read(market):
    path = market / "EURUSD_15m_mt5_2022-10_2023-10.parquet"
    read = smc.load(path, "EURUSD", offset="Europe/Athens", allow_gaps=True)
    assert len(read) == 24_424 and str(read.index.tz) == "UTC"
    facts = read.attrs["smc_ml"]
    assert facts["symbol"] == "EURUSD" and facts["calendar"] == "forex"


def test_editors_read_the_same_names_from_the_same_places():
    tree = ast.parse(inspect.getsource(smc))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: node for node in block.body for alias in node.names}
    assert set(told) == set(smc.__all__)
    for name in MADE_HERE:
        home = ".".join(filter(None, ["smc_ml" * bool(told[name].level), told[name].module]))
        assert home == smc._HOMES[name], name


def test_help_shows_what_is_loaded_later():
    page = pydoc.plain(pydoc.render_doc(smc))
    assert "load(source:" in page and "class RSIIndicator" in page and "cross_val_score" in page


def fresh(code: str) -> str:
    "What a fresh interpreter prints."
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_importing_loads_nothing_and_dir_lists_all():
    code = (
        "import sys, time; start = time.process_time(); import smc_ml as smc; names = dir(smc); "
        "took = time.process_time() - start; "
        "print(took < 0.3, not {'numpy', 'pandas', 'torch', 'sklearn'} & set(sys.modules), "
        "{'load', 'judge', 'models', 'RSIIndicator'} <= set(names))"
    )
    assert fresh(code) == "True True True"


def test_features_can_be_called_before_and_after_the_package_is_imported(names):
    import smc_ml.features.table  # noqa: F401

    assert callable(smc.features) and smc.features.table.feature_tables
    assert smc.features(names["candles"], names["patterns"]).equals(names["table"])


def test_the_session_takes_the_path_of_the_pipeline(names):
    settings = {"train": {"models": ["logistic"], "steps": 1}, "splits": {"n_folds": 2}}
    config = smc.create_training_config({"SIM": names["candles"]}, **settings)
    pipeline = smc.SMCTrainingPipeline(config).run_complete_pipeline()
    theirs = pipeline.learnt.predictions.drop(columns="model").reset_index(drop=True)
    ours = names["account"].predictions.drop(columns="model").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs)


def test_what_was_known_does_not_change_when_the_future_is_cut_off(names):
    candles, cut = names["candles"], 8000
    early = smc.detect(candles.iloc[:cut])
    end = candles.index[cut - 1] + pd.Timedelta("5min")
    known = names["patterns"][names["patterns"]["known_at"] <= end].reset_index(drop=True)
    facts = ["kind", "direction", "timeframe", "formed_at", "known_at", "top", "bottom", "level"]
    pd.testing.assert_frame_equal(early[facts], known[facts], check_flags=False)
    assert smc.features(candles.iloc[:cut], early).equals(names["table"].iloc[:cut])


def test_any_estimator_learns_from_the_samples(names):
    samples, model = names["samples"], make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    folds = smc.walk_forward(samples, folds=2)
    assert len(cross_val_score(model, samples.X, samples.y, cv=folds, scoring="roc_auc")) == 2
    assert len(smc.backtest(names["candles"], samples, model, folds).predictions) > 100


def test_several_symbols_and_other_timeframes_need_no_word(names):
    market = smc.Market({"A": names["candles"].iloc[:2000], "B": names["candles"].iloc[:2000]}, "5m")
    assert set(smc.detect(market, ["15m"])["symbol"]) == {"A", "B"}
    hours = smc.resample(smc.simulate(days=30), "1h")
    assert set(smc.label(hours)["symbol"]) == {"SIM"}


def test_results_show_themselves(names):
    account = names["account"]
    for result in (account, names["samples"], smc.walk_forward(names["samples"], 2), smc.judge(account)):
        assert "<" in result._repr_html_() and len(result.summary()) and result.plot().axes
    assert "by chance" in account._repr_html_()


def test_a_wrong_name_is_told_the_right_one():
    with pytest.raises(AttributeError, match="did you mean detect"):
        _ = smc.detct
