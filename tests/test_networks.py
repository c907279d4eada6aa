"What every registered network keeps: gradients, seeds, weights, files, causality, resumption, ONNX."

import inspect
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from test_same_bytes import EMULATOR, python

import smc_ml.models
from smc_ml.labels.config import SplitsConfig
from smc_ml.models import inference, training
from smc_ml.models.config import LoopConfig, TrainingConfig, model_settings
from smc_ml.models.export import onnx_files, onnx_of
from smc_ml.models.inference import OnnxNetwork
from smc_ml.models.onnx_rows import GraphError
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.registry import MODELS
from smc_ml.models.saving import ModelError, load_model, save_model
from smc_ml.models.tasks import Binary, Horizons, Position, TaskError
from smc_ml.models.training import outputs_of
from smc_ml.models.windows import Orientation, WindowError, Windows, bar_windows
from smc_ml.models.zone_graphs import NODE_COLUMNS

NETWORKS = [
    name for name, kind in model_settings().items() if issubclass(kind, LoopConfig) and name != "hybrid"
]  # the hybrid is a network and trees: its notebook tests it
SMALL = {
    "layers": 1,
    "hidden": 8,
    "width": 16,
    "heads": 2,
    "feed_forward": 16,
    "patch": 4,
    "stride": 2,
    "filters": 8,
    "indicators": 8,
    "scales": (1, 3),
    "rows": 4,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "epochs": 2,
    "patience": 99,
}
OWN = {"torch_logistic": {"rows": 12, "learning_rate": 0.1}}  # all rows, and long steps for one layer
COLUMNS = {"graph": (*NODE_COLUMNS, *"bcde")}
ROWS = 12


def small(name: str, task=None, **settings):
    "A small network of a name, untrained."
    wanted = SMALL | OWN.get(name, {}) | settings
    own = {key: value for key, value in wanted.items() if key in model_settings()[name].model_fields}
    config = TrainingConfig(**{name: own})
    return MODELS[name].make(config, task) if task else MODELS[name].make(config)


def samples(number: int = 64, seed: int = 0, name: str = "lstm") -> tuple[Windows, np.ndarray]:
    "Windows of noise, as a network takes them, and whether their last rows sum to more than nothing."
    random, columns = np.random.default_rng(seed), COLUMNS.get(name, tuple("abcde"))
    values = random.normal(size=(number + ROWS, len(columns))).astype(np.float32)
    turned = Orientation(random.choice([-1, 1], number), np.isin(columns, ["a", "b"]))
    X = Windows(values, np.arange(number) + ROWS - 1, columns, ROWS, turned)
    return X, X.last()[:, np.isin(columns, [*"abcde"])].sum(axis=1) > 0


def horizons_of(won: np.ndarray) -> pd.DataFrame:
    "Targets of four horizons that follow an outcome."
    came = np.where(won, 0.01, -0.01)
    columns = {}
    for horizon in Horizons().horizons:
        columns |= {f"return_{horizon}": came, f"drawdown_{horizon}": -np.abs(came) * (1 + won)}
        columns[f"direction_{horizon}"] = np.sign(came).astype(int)
    return pd.DataFrame(columns)


def weights_of(model) -> dict[str, bytes]:
    return {name: part.numpy().tobytes() for name, part in model.network_.state_dict().items()}


X, y = samples()


@pytest.fixture(scope="module", params=NETWORKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def events(name) -> tuple[Windows, np.ndarray]:
    "What it is trained on."
    return samples(name=name)


@pytest.fixture(scope="module")
def model(name, events):
    "A trained one."
    return small(name).fit(*events)


def test_every_network_has_a_settings_class_and_a_regressor(name):
    assert type(small(name, Horizons())) is not type(small(name))
    assert {*model_settings()[name]().arguments()} <= {*inspect.signature(type(small(name))).parameters}


def test_shapes_are_right_and_every_weight_has_a_finite_gradient(name, events):
    X, y = events
    blank = small(name)
    for outputs in (1, 3, 20):
        network = blank._new(X.shape[1], ROWS, outputs)
        answer = network(torch.from_numpy(X.batch(slice(0, 7))))
        assert answer.shape == (7, outputs)
        answer.square().sum().backward()
        for what, part in network.named_parameters():
            if not what.startswith("balance."):  # of the loss of several horizons
                assert part.grad is not None and part.grad.isfinite().all() and part.grad.abs().sum() > 0, (
                    what
                )


def test_one_batch_is_learnt_by_heart(name, events):
    X, y = events
    few, won = X[:16], np.random.default_rng(1).integers(0, 2, 16)
    learnt = small(name, epochs=60, schedule="constant").fit(few, won)
    assert (learnt.predict(few) == won).all()
    assert learnt.history_.train_loss.iloc[-1] < 0.1


def test_several_horizons_are_learnt(name, events):
    X, y = events
    targets, task = horizons_of(y), Horizons()
    learnt = small(name, task, epochs=15).fit(X, targets)
    known = learnt.task_
    nothing = known.error(known.decode(np.zeros((len(X), 20))), targets)
    assert known.error(learnt.predict(X), targets) < 0.8 * nothing


def test_clones_and_seeds(name, model, events):
    X, y = events
    again = clone(model)
    assert again.get_params() == model.get_params() and not hasattr(again, "network_")
    assert weights_of(again.fit(X, y)) == weights_of(model)
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert weights_of(other) != weights_of(model)


def test_weights_of_samples_matter_and_a_common_factor_does_not(name, model, events):
    X, y = events
    weights = np.random.default_rng(2).uniform(0.1, 2, len(X))
    assert weights_of(clone(model).fit(X, y, sample_weight=weights)) != weights_of(model)
    doubled = clone(model).fit(X, y, sample_weight=np.full(len(X), 2.0))
    assert weights_of(doubled) == weights_of(model)


def test_missing_values_are_refused_unless_optional_and_then_count_as_the_mean(name, model, events):
    X, y = events
    holes = X.values.copy()
    place = X.feature_names.index("d")
    holes[::7, place] = np.nan
    with pytest.raises(WindowError, match="feature d is missing"):
        model.predict_proba(replace(X, values=holes))
    with pytest.raises(WindowError, match="feature d is missing"):
        clone(model).fit(replace(X, values=holes), y)
    filled = np.where(np.isnan(holes), model.network_.mean.numpy(), holes).astype(np.float32)
    some = replace(X, values=holes, optional=frozenset({"d"}))
    np.testing.assert_allclose(
        model.predict_proba(some), model.predict_proba(replace(X, values=filled)), atol=1e-6
    )


def test_what_it_was_not_trained_on_is_refused_and_named(name, model, events):
    X, y = events
    *others, c, d, e = X.feature_names
    mixed = *others, d, c, e
    told = f"trained on the features {', '.join(X.feature_names)}, found {', '.join(mixed)}"
    with pytest.raises(WindowError, match=told):
        model.predict_proba(replace(X, feature_names=mixed))
    with pytest.raises(WindowError, match=f"windows of {ROWS - 1} rows, trained on {ROWS}"):
        model.predict_proba(replace(X, length=ROWS - 1))
    with pytest.raises(TaskError, match="1 classes, two are needed"):
        clone(model).fit(X, np.ones(len(X)))


def test_names_of_classes_do_not_matter_and_there_may_be_three(name, model, events):
    X, y = events
    odd = clone(model).fit(X, np.where(y, 2, 0))
    assert odd.classes_.tolist() == [0, 2]
    np.testing.assert_array_equal(odd.predict_proba(X), model.predict_proba(X))
    three = clone(model).fit(X, np.digitize(X.last()[:, 0], [-0.5, 0.5]))
    assert three.predict_proba(X).shape == (len(X), 3)
    np.testing.assert_allclose(three.predict_proba(X).sum(axis=1), 1)


def test_what_is_saved_is_what_is_loaded_and_a_second_save_has_the_same_bytes(name, model, tmp_path, events):
    X, y = events
    regressor = small(name, Horizons()).fit(X, horizons_of(y))
    for kind, one in (("classifier", model), ("regressor", regressor)):
        folder = tmp_path / kind
        save_model(one, folder, {"name": name})
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        loaded = load_model(folder)
        np.testing.assert_array_equal(loaded._answer(X), one._answer(X))
        save_model(loaded, folder, {"name": name})
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_prediction_knows_nothing_of_what_comes_later(name, model, events):
    X, y = events
    for place in (0, 20, len(X) - 1):
        later = X.values.copy()
        later[X.positions[place] + 1 :] = 1e6
        np.testing.assert_array_equal(
            model.predict_proba(replace(X, values=later)[place : place + 1]),
            model.predict_proba(X[place : place + 1]),
        )


def test_a_training_that_breaks_off_and_goes_on_ends_with_the_same_weights(
    name, tmp_path, monkeypatch, events
):
    X, y = events
    blank, kept, rest = small(name, epochs=4, dropout=0.2), tmp_path / "training", samples(32, 1, name)
    whole, one_epoch = clone(blank).fit(X, y, validation=rest), training._one_epoch

    def breaks(course, *rest):
        if len(course.history) == 2:
            raise KeyboardInterrupt
        one_epoch(course, *rest)

    monkeypatch.setattr(training, "_one_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        clone(blank).fit(X, y, validation=rest, checkpoint=kept)
    monkeypatch.undo()
    assert kept.is_file()
    resumed = clone(blank).fit(X, y, validation=rest, checkpoint=kept)
    assert not kept.is_file()
    assert weights_of(resumed) == weights_of(whole)
    pd.testing.assert_frame_equal(resumed.history_, whole.history_, check_exact=True)


def test_onnx_gives_the_answers_of_torch_and_the_same_bytes_alone_and_among_others(name, model, events):
    X, y = events
    if name == "patchtst":
        model = small(name, Horizons()).fit(X, horizons_of(y))
    content = onnx_of(model)
    assert content == onnx_of(model) and b"smc_ml/" not in content
    asked = OnnxNetwork(content)
    for size in (1, 2, 7):
        np.testing.assert_allclose(asked.answer(X[:size]), model._answer(X[:size]), rtol=1e-5, atol=2e-6)
    among = asked.outputs(X)
    for size in (1, 2, 7):
        parts = [asked.outputs(X[start : start + size]) for start in range(0, len(X), size)]
        assert np.concatenate(parts).tobytes() == among.tobytes(), size


SIZES = {"Shape", "Cast", "Concat", "Unsqueeze"}  # steps of a graph that asks what the sizes are


def test_a_graph_finds_out_nothing_that_is_known_beforehand(name, model):
    graph = onnx.load_from_string(onnx_of(model)).graph
    steps = Counter(node.op_type for node in graph.node)
    sizes = {"transformer": SIZES, "patchtst": SIZES, "lstm": {"Mod"}, "pooling": {"Mod", "Expand"}}
    assert not ({"Sqrt"} | sizes.get(name, set())) & set(steps), steps


def asked_live(model, X: Windows, folder: Path, name: str, monkeypatch):
    "Saved with its network's file and loaded to be asked by it: same answers, and same bytes saved again."
    monkeypatch.setattr(inference, "_sooner", lambda *asked: True)
    save_model(model, folder, {"name": name}, onnx_files(model))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    live = smc_ml.models.load(folder, live=True)
    for size in (1, 2, 7):
        np.testing.assert_allclose(
            live.predict_proba(X[:size]), model.predict_proba(X[:size]), rtol=1e-5, atol=2e-6
        )
    assert live.predict_proba(X[:1]).tobytes() == live.predict_proba(X)[:1].tobytes()
    np.testing.assert_array_equal(smc_ml.models.load(folder).predict_proba(X), model.predict_proba(X))
    save_model(live, folder, {"name": name}, onnx_files(live))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (folder / "network.onnx").write_bytes(first["network.onnx"] + b" ")
    with pytest.raises(ModelError, match="network.onnx differs from what was described"):
        smc_ml.models.load(folder)
    return live


def test_what_is_saved_with_its_network_s_file_is_asked_live(name, model, events, tmp_path, monkeypatch):
    assert asked_live(model, events[0], tmp_path / name, name, monkeypatch).backend == "onnxruntime"


def test_a_hybrid_and_a_calibrated_network_are_asked_live(tmp_path, monkeypatch):
    own = {"filters": 8, "hidden": 8, "trees": 5, "leaf_weight": 1.0, "epochs": 1}
    few, won = samples(200)
    hybrid = MODELS["hybrid"].make(TrainingConfig(hybrid=own)).fit(few, won)
    live = asked_live(hybrid, few, tmp_path / "hybrid", "hybrid", monkeypatch)
    assert (live.network_.backend, hybrid.network_.backend) == ("onnxruntime", "torch")
    config = TrainingConfig(lstm={"hidden": 8, "layers": 1, "epochs": 1}, calibration="platt")
    calibrated = MODELS["lstm"].make(config).fit(few, won)
    assert asked_live(calibrated, few, tmp_path / "lstm", "lstm", monkeypatch).model_.backend == "onnxruntime"


def test_models_without_a_network_keep_no_file_of_one(tmp_path):
    plain = MODELS["logistic"].make(TrainingConfig()).fit(X, y)
    assert onnx_files(plain) == {}
    save_model(plain, tmp_path / "logistic", {"name": "logistic"}, onnx_files(plain))
    live = smc_ml.models.load(tmp_path / "logistic", live=True)
    np.testing.assert_array_equal(live.predict_proba(X), plain.predict_proba(X))
    for name in ("weights.onnx", "../network.onnx", "network.pkl", "description.json"):
        with pytest.raises(ModelError, match="cannot be kept beside a model's weights"):
            save_model(plain, tmp_path / "logistic", {"name": "logistic"}, {name: b"1"})


def test_a_network_s_file_that_would_read_another_one_is_not_run(tmp_path):
    model = small("lstm").fit(X, y)
    content = onnx.load_from_string(onnx_of(model))
    onnx.external_data_helper.set_external_data(content.graph.initializer[0], "../secret.bin")
    save_model(model, tmp_path / "lstm", {"name": "lstm"}, {"network.onnx": content.SerializeToString()})
    with pytest.raises(GraphError, match="in another file: it is not run"):
        smc_ml.models.load(tmp_path / "lstm", live=True)


@pytest.fixture(scope="module")
def bars() -> tuple[Windows, pd.DataFrame]:
    "Windows of every hour of two simulated symbols, and what came."
    features, targets = {}, {}
    for seed, symbol in enumerate(("A", "B")):
        random = np.random.default_rng(seed)
        opens = pd.date_range("2024-01-01", periods=300, freq="1h", tz="UTC", unit="ns")
        columns = {letter: random.normal(size=300) for letter in "abcde"}
        features[symbol] = pd.DataFrame(columns, index=opens)
        came = columns["a"] / 100
        told = {"return_1h": came, "direction_1h": np.sign(came).astype(int), "drawdown_1h": -np.abs(came)}
        targets[symbol] = pd.DataFrame(told | {name: told[name[:-2] + "1h"] for name in FOUR}, index=opens)
    return bar_windows(features, targets, ROWS, "4h")


FOUR = ("return_4h", "direction_4h", "drawdown_4h")
FOLDS = SplitsConfig(n_folds=2)


def test_bars_of_several_horizons_are_predicted_fold_by_fold(bars):
    own = {
        key: SMALL[key] for key in ("layers", "width", "heads", "feed_forward", "patch", "stride", "epochs")
    }
    config, task = TrainingConfig(patchtst=own), Horizons(("1h", "4h"))
    run = out_of_fold("patchtst", *bars, config, FOLDS, progress=False, task=task)
    assert set(run.predictions.target) == {"1h", "4h"} and run.predictions.expected_return.notna().all()
    said = run.model.interpret(bars[0][:3])
    assert said[["sample", "horizon"]].to_numpy().tolist() == [[n, h] for n in range(3) for h in ("1h", "4h")]


def test_positions_are_held_fold_by_fold(bars):
    "What is earned follows the last row; the policy is learnt on rows of two symbols in turn."
    own = {key: SMALL[key] for key in ("layers", "hidden", "heads", "filters", "indicators", "dropout")}
    config = TrainingConfig(trading=own | {"learning_rate": 0.01, "epochs": 12, "patience": 12})
    task = Position("return_1h", sides=2, cost=0.0005, turnover=0.0005)
    run = out_of_fold("trading", *bars, config, FOLDS, progress=False, task=task)
    held = run.predictions.merge(bars[1], on=["symbol", "time"])
    assert len(held) == len(run.predictions) and (held.position.abs() <= 1).all()
    assert (held.position * held.return_1h).mean() > 0.5 * held.return_1h.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_full_size_give_the_same_bytes_alone_and_among_others(name):
    rows, features = {"transformer": (120, 16), "patchtst": (96, 240), "graph": (25, 32)}.get(name, (60, 16))
    task = Horizons() if name == "patchtst" else Binary()
    values = np.random.default_rng(0).normal(size=(rows + 256, features)).astype(np.float32)
    names = tuple(f"feature_{number}" for number in range(features))
    X, model = Windows(values, np.arange(256) + rows, names, rows), MODELS[name].make(TrainingConfig(), task)
    model.task_, model.feature_names_in_, model.length_ = task, np.array(names, object), rows
    model.network_ = model._new(features, rows, task.outputs).eval()
    asked = OnnxNetwork(onnx_of(model))
    among = asked.outputs(X)
    for size in (1, 2, 7):
        parts = [asked.outputs(X[start : start + size]) for start in range(0, 56, size)]
        assert np.concatenate(parts).tobytes() == among[:56].tobytes(), size
        away = np.abs(outputs_of(model.network_, X[:size]) - among[:size]).max()
        print(f"{name}, batch of {size}: {away:.1e} from torch")
        assert away < 5e-6


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)")
@pytest.mark.parametrize("processor", ["Haswell", "EPYC-Rome"])
@pytest.mark.parametrize("one", NETWORKS)
def test_a_network_has_the_same_bytes_on_an_emulated_processor(one, processor):
    "Minutes each: trained in several ways, and asked."
    program = "tests/bytes_of_networks.py", one
    native = python(*program)
    assert len(native.splitlines()) == 5
    assert python(*program, before=(EMULATOR, "-cpu", processor)) == native


KILLED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_networks
test_networks.long_one().fit(test_networks.X, test_networks.y, checkpoint=sys.argv[1])
"""


def long_one():
    "A training that takes some seconds."
    return small("lstm", layers=2, hidden=16, epochs=40, dropout=0.3, schedule="cosine")


def test_a_training_whose_process_is_killed_goes_on_bit_for_bit(tmp_path):
    kept = tmp_path / "training"
    child = subprocess.Popen([sys.executable, "-c", KILLED, kept], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not kept.is_file() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # some epochs, and somewhere within one
    assert child.poll() is None, child.stderr.read()[-2000:]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert kept.is_file()
    resumed, whole = long_one().fit(X, y, checkpoint=kept), long_one().fit(X, y)
    assert weights_of(resumed) == weights_of(whole)
    pd.testing.assert_frame_equal(resumed.history_, whole.history_, check_exact=True)
