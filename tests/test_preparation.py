"""Preparations keep scikit-learn's contract, see no later row, and come back from their file bit for bit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from smc_ml.features.components import FeatureComponents
from smc_ml.features.scaling import FeatureScaler
from smc_ml.features.selection import METHODS, FeatureSelector, load_preparation
from smc_ml.features.transformers import PreparationError, write_transformer
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.rows import Filled, LastRow
from smc_ml.models.windows import Windows

PREPARATIONS = [
    *(FeatureScaler(method) for method in ("standard", "robust", "quantile")),
    *(FeatureSelector(method) for method in METHODS),
    FeatureComponents(),
]
NAMES = [f"{type(each).__name__}-{getattr(each, 'method', 'components')}" for each in PREPARATIONS]


@parametrize_with_checks(PREPARATIONS)
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, np.ndarray]:
    "Rows of seven features, one now and then missing, one throughout, one constant; and the outcomes."
    random = np.random.default_rng(3)
    times = pd.date_range("2024-01-01", periods=400, freq="5min", tz="UTC", name="open_time")
    rows = pd.DataFrame(random.normal(size=(400, 5)), times, list("abcde")) * [1, 10, 0.01, 1, 1] + 5
    rows["b"] = rows["b"].where(random.random(400) > 0.1)
    return rows.assign(absent=np.nan, flat=1.0), (rows["a"] + random.normal(size=400) > 5).to_numpy(int)


@pytest.mark.parametrize("blank", PREPARATIONS, ids=NAMES)
def test_table_in_table_out(blank, table):
    rows, won = table
    before = rows.copy()
    fitted = clone(blank).fit(rows, won)
    out = fitted.transform(rows[:50])
    assert out.index.equals(rows.index[:50]) and list(out) == list(fitted.get_feature_names_out())
    assert np.array_equal(
        fitted.fit(rows.to_numpy(), won).transform(rows[:50].to_numpy()), out, equal_nan=True
    )
    assert rows.equals(before)
    arrays = clone(blank).set_output(transform="default").fit(rows, won).transform(rows)
    assert list(arrays) == list(out)


@pytest.mark.parametrize("blank", PREPARATIONS, ids=NAMES)
def test_missing_stays_missing_except_in_components(blank, table):
    rows, won = table
    out = clone(blank).fit(rows, won).transform(rows)
    for name in out:
        if name in rows:
            assert out[name].isna().equals(rows[name].isna()), name
        else:
            assert out[name].notna().all(), name


@pytest.mark.parametrize("blank", PREPARATIONS, ids=NAMES)
def test_infinite_is_refused_by_name_and_time(blank, table):
    rows, won = table
    broken = rows.copy()
    broken.iloc[7, 2] = np.inf
    with pytest.raises(PreparationError, match=r"feature c is infinite .*2024-01-01 00:35"):
        clone(blank).fit(broken, won)
    with pytest.raises(PreparationError, match="feature c is infinite"):
        clone(blank).fit(rows, won).transform(broken)


@pytest.mark.parametrize("blank", PREPARATIONS, ids=NAMES)
def test_round_trip_is_bit_equal_and_checks_names_and_order(blank, table, tmp_path):
    rows, won = table
    fitted = clone(blank).fit(rows, won)
    write_transformer(fitted, tmp_path / "prepared.safetensors")
    again = load_preparation(tmp_path / "prepared.safetensors")
    pd.testing.assert_frame_equal(again.transform(rows), fitted.transform(rows), check_exact=True)
    assert again.get_params() == fitted.get_params()
    write_transformer(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "prepared.safetensors").read_bytes()
    for wrong in (rows[rows.columns[::-1]], rows.rename(columns={"a": "other"}), rows.drop(columns="a")):
        with pytest.raises(ValueError, match="feature"):
            again.transform(wrong)


def test_a_changed_file_is_refused(table, tmp_path):
    path = tmp_path / "prepared.safetensors"
    write_transformer(make_pipeline(FeatureScaler(), FeatureSelector()).fit(table[0]), path)
    whole = path.read_bytes()
    for broken in (whole[:-10], whole[:100], b"", whole.replace(b"FeatureScaler", b"FeatureOther_")):
        path.write_bytes(broken)
        with pytest.raises(PreparationError, match=str(path)):
            load_preparation(path)


def samples(count: int = 900) -> tuple[Windows, pd.DataFrame]:
    "Rows and the trades from every second of them."
    random = np.random.default_rng(5)
    values = random.normal(size=(2 * count, 6)).astype(np.float32)
    values[random.random(2 * count) < 0.1, 5] = np.nan
    positions = np.arange(count) * 2 + 1
    times = pd.date_range("2024-01-01", periods=count, freq="30min", tz="UTC")
    won = random.random(count) < np.where(values[positions, 0] > 0, 0.7, 0.3)
    labels = pd.DataFrame({"symbol": "A", "time": times, "exit_at": times + pd.Timedelta("1h"), "won": won})
    return Windows(values, positions, tuple("abcdef"), 1, optional=frozenset("f")), labels


def poisoned(windows: Windows, labels: pd.DataFrame, since: pd.Timestamp) -> tuple[Windows, pd.DataFrame]:
    "The same samples with other values and outcomes from a time on."
    later = (labels["time"] >= since).to_numpy()
    values, changed = windows.values.copy(), labels.copy()
    values[windows.positions[later][0] - 1 :] = 1e6 * np.random.default_rng(0).normal(size=(1, 6))
    changed.loc[later, "won"] = ~labels.loc[later, "won"]
    return replace(windows, values=values), changed


class Peeking(TransformerMixin, BaseEstimator):
    "Scales by all rows of the table behind the windows, later ones too."

    def fit(self, X, y=None):
        self.mean_, self.feature_names_in_ = np.nanmean(X.values, axis=0), np.array(X.feature_names)
        return self

    def transform(self, X):
        return X.last() - self.mean_


def first_fold(preparation: list, windows: Windows, labels: pd.DataFrame) -> np.ndarray:
    "Probabilities of the first fold's test samples."
    model = make_pipeline(*preparation, Filled(), LogisticRegression())
    found = out_of_fold(model, windows, labels, progress=False).predictions
    return found.loc[found["fold"] == 0, "probability"].to_numpy()


@pytest.mark.parametrize("blank", PREPARATIONS, ids=NAMES)
def test_a_poisoned_future_changes_nothing(blank):
    windows, labels = samples()
    preparation = [LastRow(), clone(blank)]
    plain = first_fold(preparation, windows, labels)
    times = labels["time"]
    start = times.min() + (times.max() - times.min()) * 0.4
    tested = int(((times >= start) & (times < start + (times.max() - start) / 8)).sum())
    known = times[times >= start].iloc[tested]
    again = first_fold(preparation, *poisoned(windows, labels, known))
    assert tested > 50 and np.array_equal(again[:tested], plain[:tested])
    assert not np.array_equal(again[tested:], plain[tested:])


def test_a_preparation_that_peeks_is_caught():
    windows, labels = samples()
    since = labels["time"].iloc[-100]
    plain = first_fold([Peeking()], windows, labels)
    assert not np.allclose(first_fold([Peeking()], *poisoned(windows, labels, since)), plain)
