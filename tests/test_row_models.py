"""One check list over every model of rows that is registered: what each keeps, whatever it is made of."""

import hashlib
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from sklearn.base import clone

import smc_ml.models
from smc_ml.config import UserError
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.calibration import CalibratedModel
from smc_ml.models.config import LoopConfig, TrainingConfig
from smc_ml.models.onnx_rows import row_answer
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.registry import MODELS
from smc_ml.models.saving import describe_training, load_model, read_description, save_model
from smc_ml.models.tasks import Binary, Classes, Regression
from smc_ml.models.windows import Orientation, Windows

NAMES = (
    "momentum_15m",
    "stop_loss_distance",
    "high",
    "low",
    "close",
    "momentum_1h",
)  # the last may be missing
SAMPLES, STEPS = 600, 30
SETTINGS = {
    "logistic": {"columns": 4},
    "xgboost": {"trees": 12, "leaf_weight": 2.0},
    "lightgbm": {"trees": 12, "leaf_events": 10},
    "random_forest": {"trees": 12, "depth": 4},
    "mlp": {"hidden": [8], "epochs": 25, "learning_rate": 0.01},
    "svm": {"exact_rows": 300, "landmarks": 40},
    "lorentzian": {"neighbours": 8, "spacing": 2},
    "persistence": {"column": "momentum_15m"},
    "catboost": {"trees": 12, "learning_rate": 0.1},
    "consistency": {"trees": 12, "leaf_weight": 2.0},
}
BASELINES = ("event_facts", "alpha158", "freqai")  # LightGBM on other columns
SETTINGS |= dict.fromkeys(BASELINES, SETTINGS["lightgbm"])
ROWS = [name for name, model in MODELS.items() if not issubclass(model.config, LoopConfig)]
ROWS = [name for name in ROWS if name != "catboost" or find_spec("catboost")]
SEEDED = {"xgboost", "catboost", "consistency", "lightgbm", "random_forest", "mlp", "svm", *BASELINES}
REGRESSORS = ["xgboost", "lightgbm", "random_forest", "mlp", "base_rate", "persistence", "last_volatility"]
REGRESSORS += ["chandelier", "consistency", *BASELINES, *({"catboost"} & set(ROWS))]
RULES = {"base_rate", "persistence", "last_volatility", "chandelier"}


def made(name: str, task=Binary(), **common):
    own = {name: SETTINGS[name]} if name in SETTINGS else {}
    return MODELS[name].make(TrainingConfig(**own, **common), task)


def samples(seed: int = 0, classes: int = 2) -> tuple[Windows, np.ndarray]:
    "A walk of candles and three features, one at times missing; the classes follow two and the trend."
    random = np.random.default_rng(seed)
    rows = SAMPLES + STEPS
    close = 100 * np.exp(np.cumsum(random.normal(size=rows)) * 0.002)
    spread = np.abs(random.normal(size=rows)) * 0.1 + 0.01
    features = random.normal(size=(rows, 3))
    features[:, 1] = np.abs(features[:, 1])
    features[random.random(rows) < 0.2, 2] = np.nan
    values = np.column_stack([features[:, :2], close + spread, close - spread, close, features[:, 2]])
    positions = np.arange(STEPS, rows)
    directions = random.choice([-1, 1], SAMPLES)
    turned = Orientation(directions, np.array([True, False, False, False, False, False]))
    times = pd.date_range("2024-01-01", periods=SAMPLES, freq="1h", tz="UTC")
    X = Windows(values.astype(np.float32), positions, NAMES, STEPS, turned, frozenset({"momentum_1h"}), times)
    trend = directions * np.sign(close[positions] - close[positions - 10])
    score = X.last()[:, 0] + 0.5 * trend + 0.5 * X.last()[:, 1] + random.logistic(size=SAMPLES)
    return X, np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))


@pytest.fixture(scope="module")
def learnt():
    "Each model, trained once."
    X, y = samples()
    return {name: made(name).fit(X, y) for name in ROWS}


pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
X, Y = samples()
LATER = samples(1)[0]


def probabilities(model, windows: Windows = LATER) -> np.ndarray:
    return model.predict_proba(windows)


def refused(call, *parts: str) -> None:
    "One sentence of the project's own errors that holds the parts."
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_every_model_that_is_no_network_is_here():
    assert {"logistic", "xgboost", "lightgbm", "random_forest", "mlp", "svm", "lorentzian"} <= set(ROWS)
    assert RULES <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_probabilities_of_every_class(name, learnt):
    found = probabilities(learnt[name])
    assert found.shape == (SAMPLES, 2) and np.isfinite(found).all()
    assert np.allclose(found.sum(axis=1), 1, atol=1e-6) and (found >= 0).all()
    assert set(learnt[name].predict(LATER)) <= {0, 1}
    assert learnt[name].score(X, Y) >= max(Y.mean(), 1 - Y.mean()) - 0.02


@pytest.mark.parametrize("name", ROWS)
def test_a_clone_is_untrained_and_has_the_same_settings(name, learnt):
    twin = clone(learnt[name])
    assert repr(twin.get_params()) == repr(clone(made(name)).get_params())
    with pytest.raises(Exception, match="not fitted"):
        twin.predict_proba(LATER)
    values = X.values.copy()
    assert np.array_equal(probabilities(twin.fit(X, Y)), probabilities(learnt[name]))
    assert np.array_equal(X.values, values, equal_nan=True)


@pytest.mark.parametrize("name", ROWS)
def test_the_same_seed_gives_the_same_model(name, learnt):
    np.random.seed(5)  # noqa: NPY002  # the global state must not matter
    same = np.array_equal(probabilities(made(name).fit(X, Y)), probabilities(learnt[name]))
    other = np.array_equal(probabilities(made(name, seed=1).fit(X, Y)), probabilities(learnt[name]))
    assert same and other == (name not in SEEDED)


@pytest.mark.parametrize("name", ROWS)
def test_weights_of_samples_matter(name, learnt):
    weights = np.where(Y == 1, 3.0, 0.5)
    model = made(name)
    last = "" if isinstance(model, CalibratedModel) else f"{model.steps[-1][0]}__"
    heavy = model.fit(X, Y, **{f"{last}sample_weight": weights})
    raw = heavy.raw_proba if last == "" else heavy.predict_proba
    before = learnt[name].raw_proba if last == "" else learnt[name].predict_proba
    assert raw(LATER)[:, 1].mean() > before(LATER)[:, 1].mean() + 0.02


@pytest.mark.parametrize("name", ROWS)
def test_other_features_are_refused(name, learnt):
    order = [1, 0, *range(2, 6)]
    swapped = replace(LATER, values=LATER.values[:, order], feature_names=tuple(NAMES[n] for n in order))
    narrow = replace(
        LATER,
        values=LATER.values[:, :5],
        feature_names=NAMES[:5],
        orientation=replace(LATER.orientation, signed=LATER.orientation.signed[:5]),
    )
    for wrong in (swapped, narrow):
        both = ", ".join(NAMES), ", ".join(wrong.feature_names)
        refused(lambda wrong=wrong: learnt[name].predict_proba(wrong), *both)
    refused(lambda: replace(LATER, values=LATER.values[:, :5]), "5 columns", "6 names")
    refused(lambda: learnt[name].predict_proba(LATER.last()), "takes Windows")


@pytest.mark.parametrize("endless", [np.inf, -np.inf])
@pytest.mark.parametrize("name", ROWS)
def test_infinite_values_are_refused_by_name_and_time(name, endless, learnt):
    values = LATER.values.copy()
    values[LATER.positions[7], 4] = endless
    wrong = replace(LATER, values=values)
    said = "feature close is infinite", "sample 7", "2024-01-01 07:00"
    refused(lambda: learnt[name].predict_proba(wrong), *said)
    refused(lambda: made(name).fit(wrong, Y), *said)


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_value_is_taken_where_the_feature_may_be_missing(name, learnt):
    assert np.isnan(LATER.last()[:, 5]).any()
    all_missing = LATER.values.copy()
    all_missing[:, 5] = np.nan
    assert np.isfinite(probabilities(learnt[name], replace(LATER, values=all_missing))).all()
    never = X.values.copy()
    never[:, 5] = np.nan
    assert np.isfinite(probabilities(made(name).fit(replace(X, values=never), Y))).all()
    wrong = replace(LATER, optional=frozenset())
    refused(lambda: learnt[name].predict_proba(wrong), "feature momentum_1h is missing")


@pytest.mark.parametrize("name", ROWS)
def test_classes_of_any_name_and_a_class_that_is_absent(name, learnt):
    odd = made(name).fit(X, np.where(Y == 1, 2, 0))
    assert odd.classes_.tolist() == [0, 2] and set(odd.predict(LATER)) <= {0, 2}
    assert np.array_equal(probabilities(odd), probabilities(learnt[name]))
    wide = Classes("way", (0, 1, 2)).ask(odd, LATER)
    assert wide.shape == (SAMPLES, 3) and (wide[:, 1] == 0).all()
    named = made(name).fit(X, np.where(Y == 1, "won", "lost"))
    assert np.array_equal(probabilities(named), probabilities(learnt[name])[:, [0, 1]])


@pytest.mark.parametrize("name", ROWS)
def test_three_classes(name):
    windows, y = samples(2, classes=3)
    model = made(name, Classes("way", (0, 1, 2))).fit(windows, y)
    found = probabilities(model)
    assert found.shape == (SAMPLES, 3) and np.allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_a_single_class_and_targets_that_do_not_fit_are_refused(name):
    refused(lambda: made(name).fit(X, np.ones(SAMPLES, int)), "classes, two are needed")
    refused(lambda: made(name).fit(X[:0], Y[:0]), "0")
    refused(lambda: made(name).fit(X, Y[1:]), f"{SAMPLES} samples but {SAMPLES - 1} targets")
    refused(lambda: made(name).fit(X, np.where(Y == 1, 1.0, np.nan)), "missing: leave such samples out")


LABELS = pd.DataFrame({"time": X.times, "exit_at": X.times + pd.Timedelta("3h"), "won": Y})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("calibration", ["none", "venn_abers"])
@pytest.mark.parametrize("name", ROWS)
def test_saved_and_loaded_it_says_the_same_and_a_second_save_has_the_same_bytes(
    name, calibration, learnt, tmp_path
):
    config = TrainingConfig(**({name: SETTINGS[name]} if name in SETTINGS else {}), calibration=calibration)
    model = learnt[name] if calibration == "none" else MODELS[name].make(config).fit(X, Y)
    folder = tmp_path / name
    save_model(model, folder, describe_training(name, config, X, LABELS))
    first, again = files(folder), load_model(folder)
    assert np.array_equal(probabilities(again), probabilities(model))
    assert np.array_equal(again.predict(LATER), model.predict(LATER))
    assert repr(again.get_params()) == repr(model.get_params())
    save_model(again, folder, describe_training(name, config, X, LABELS))
    assert files(folder) == first
    refused(lambda: again.predict_proba(replace(LATER, feature_names=NAMES[::-1])), "trained on the features")


class Evil:
    "What an unpickler would run."

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def described(folder: Path, weights: Path) -> None:
    "Write the hash of a file of weights that was put in the place of the true one."
    facts = json.loads((folder / "description.json").read_text())
    facts["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "description.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ROWS)
def test_a_file_that_would_run_code_is_not_opened(name, learnt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    save_model(learnt[name], folder, describe_training(name, TrainingConfig(), X, LABELS))
    (weights,) = folder.glob("weights.*")
    weights.write_bytes(pickle.dumps(Evil()))
    described(folder, weights)
    refused(lambda: smc_ml.models.load(folder), str(folder), "train the model again")
    pickle.loads(weights.read_bytes())  # what it would have done
    (tmp_path / "touched").unlink()
    for kind in (".pkl", ".joblib", ".pt", ".bin"):
        renamed = weights.rename(folder / f"weights{kind}")
        refused(lambda: smc_ml.models.load(folder), f"weights{kind}", "may run code")
        renamed.rename(weights)
    assert not (tmp_path / "touched").exists()


def test_a_graph_that_reaches_out_of_its_file_is_not_run(learnt, tmp_path):
    folder = tmp_path / "mlp"
    save_model(learnt["mlp"], folder, describe_training("mlp", TrainingConfig(), X, LABELS))
    weights = folder / "weights.onnx"
    graph = onnx.load(weights)
    numbers = next(part for part in graph.graph.initializer if part.dims)
    numbers.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(numbers), numbers.name))
    (tmp_path / "secret.bin").write_bytes(numbers.raw_data)
    onnx.external_data_helper.set_external_data(numbers, "../secret.bin")
    numbers.ClearField("raw_data")
    weights.write_bytes(graph.SerializeToString())
    described(folder, weights)
    refused(lambda: smc_ml.models.load(folder), f"keeps {numbers.name} in another file", "is not run")


def test_what_a_model_says_of_itself(learnt, tmp_path):
    config = TrainingConfig(lightgbm=SETTINGS["lightgbm"], seed=3)
    save_model(learnt["lightgbm"], tmp_path / "one", describe_training("lightgbm", config, X, LABELS))
    facts = read_description(tmp_path / "one")
    assert (
        facts["features"] == list(NAMES) and facts["seed"] == 3 and facts["config"]["lightgbm"]["trees"] == 12
    )
    assert "xgboost" not in facts["config"] and set(facts["libraries"]) == {"numpy", "lightgbm"}
    assert facts["train_first"].startswith("2024-01-01") and len(facts["weights"]) == 64


def test_a_network_is_calibrated_and_stored_the_same_way(tmp_path):
    config = TrainingConfig(lstm={"layers": 1, "hidden": 4, "epochs": 1}, calibration="temperature")
    model = MODELS["lstm"].make(config)
    whole = replace(X, optional=frozenset(NAMES))
    model.fit(whole[:400], Y[:400], validation=(whole[400:], Y[400:]))
    save_model(model, tmp_path / "lstm", describe_training("lstm", config, whole, LABELS))
    again = load_model(tmp_path / "lstm")
    assert np.array_equal(probabilities(again, whole), probabilities(model, whole))
    assert not np.array_equal(again.raw_proba(whole), probabilities(model, whole))
    assert (
        len(model.history_) == 1
        and read_description(tmp_path / "lstm")["calibration"]["method"] == "temperature"
    )


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_quantity(name, tmp_path):
    task = Regression("return_1h")
    amount = X.last()[:, 0] * 1e-3 + X.last()[:, 1] * 1e-3
    model = made(name, task).fit(X, amount)
    found = model.predict(LATER)
    assert found.shape == (SAMPLES,) and np.isfinite(found).all()
    if name not in RULES:
        assert np.corrcoef(found, LATER.last()[:, 0] + LATER.last()[:, 1])[0, 1] > 0.5
    labels = LABELS.assign(return_1h=amount)
    save_model(model, tmp_path / name, describe_training(name, TrainingConfig(), X, labels, task))
    again = load_model(tmp_path / name)
    assert np.array_equal(again.predict(LATER), found)
    refused(lambda: made(name, task).fit(X, np.where(Y == 1, amount, np.nan)), "is missing")
    refused(lambda: made(name, task).fit(X, np.where(Y == 1, amount, np.inf)), "is infinite")


@pytest.mark.parametrize("name", sorted(set(ROWS) - set(REGRESSORS)))
def test_what_cannot_learn_a_quantity_says_so(name):
    refused(lambda: made(name, Regression("return_1h")), f"{name} is a classifier")


@pytest.mark.parametrize("name", ROWS)
def test_a_prediction_does_not_change_with_the_future(name, learnt):
    whole = probabilities(learnt[name])
    for end in (1, 50, 333):
        last = LATER.positions[end - 1] + 1
        cut = replace(LATER[:end], values=LATER.values[:last])
        assert np.allclose(probabilities(learnt[name], cut), whole[:end], atol=1e-6, rtol=0)
        spoilt = LATER.values.copy()
        spoilt[last:] = 1e6
        assert np.array_equal(
            probabilities(learnt[name], replace(LATER[:end], values=spoilt)),
            probabilities(learnt[name], cut),
        )


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"chandelier", "lorentzian"}))
def test_one_row_at_a_time_says_the_same(name, learnt):
    answer, rows = row_answer(learnt[name]), LATER.last()
    assert np.array_equal(answer(rows), probabilities(learnt[name]))
    alone = np.concatenate([answer(rows[[row]]) for row in range(20)])
    exact = {"xgboost", "catboost", "consistency", "lightgbm", "random_forest", "mlp", *BASELINES} | RULES
    assert np.allclose(alone, probabilities(learnt[name])[:20], atol=0 if name in exact else 1e-6, rtol=0)


@pytest.mark.parametrize("name", ["lightgbm", "svm", "lorentzian", "persistence"])
def test_walked_forward(name):
    splits = SplitsConfig(n_folds=2, embargo_minutes=0)
    labels = LABELS.assign(symbol="SIM", event_id=np.arange(SAMPLES), realised_r=np.where(Y == 1, 1.5, -1.0))
    config = TrainingConfig(**({name: SETTINGS[name]} if name in SETTINGS else {}))
    run = out_of_fold(name, X, labels, config, splits, progress=False)
    assert run.predictions["probability"].between(0, 1).all() and run.history.empty
    assert len(run.predictions) == run.folds["test_events"].sum()


def test_no_model_unpickles():
    for name in ROWS:
        source = inspect.getsource(MODELS[name].module)
        assert "pickle" not in source and "joblib" not in source


def test_the_registry_loads_no_library_of_a_model():
    asked = (
        "import sys; from smc_ml.models.registry import MODELS; from smc_ml.models.config import *; "
        "MODELS['logistic'].make(TrainingConfig()); "
        "print({'lightgbm', 'skl2onnx', 'onnx', 'onnxruntime', 'torch', 'xgboost'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
