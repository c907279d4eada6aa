"""One row at a time: how long the models of rows take for the answer a live service waits for.

`make bench` runs it; medians are held to their limits, and the forest to scikit-learn's own in the same run.
"""

import numpy as np
import pytest
from sklearn.base import clone

from smc_ml.models.config import TrainingConfig
from smc_ml.models.onnx_rows import row_answer
from smc_ml.models.registry import MODELS
from smc_ml.models.windows import Windows

LIMITS = {"xgboost": 0.2, "lightgbm": 0.2, "random_forest": 0.05, "mlp": 0.05, "logistic": 1.0, "svm": 1.0}


@pytest.fixture(scope="module")
def events() -> tuple[Windows, np.ndarray]:
    "Three thousand events of sixteen features; settings are those a model has by default."
    random = np.random.default_rng(0)
    values = random.normal(size=(3000, 16)).astype(np.float32)
    X = Windows(values, np.arange(3000), tuple(f"column_{place}" for place in range(16)), 1)
    return X, (values[:, 0] + 2 * random.normal(size=3000) > 0).astype(int)


def milliseconds(benchmark) -> float:
    "The median of the calls; 0 where nothing is measured."
    return 1e3 * benchmark.stats.stats.median if benchmark.stats else 0.0


def p99(benchmark) -> float:
    "Milliseconds that one call in a hundred exceeds; on a shared machine it measures the scheduler."
    return 1e3 * float(np.quantile(benchmark.stats.stats.data, 0.99)) if benchmark.stats else 0.0


@pytest.mark.parametrize("name", LIMITS)
def test_one_row(benchmark, name, events):
    X, y = events
    model = MODELS[name].make(TrainingConfig()).fit(X, y)
    answer, row = row_answer(model), X.last()[:1]
    benchmark.group, benchmark.name = "one row", name
    benchmark.pedantic(answer, (row,), warmup_rounds=50, rounds=1000)
    benchmark.extra_info["p99_ms"] = p99(benchmark)
    assert milliseconds(benchmark) < LIMITS[name]


def test_one_row_of_a_forest_by_scikit_learn(benchmark, events):
    X, y = events
    forest = clone(MODELS["random_forest"].make(TrainingConfig())[-1].pipeline).fit(X.last(), y)
    benchmark.group, benchmark.name = "one row", "random_forest by scikit-learn itself"
    benchmark.pedantic(forest.predict_proba, (X.last()[:1],), warmup_rounds=3, rounds=30)
    if benchmark.stats:
        assert milliseconds(benchmark) > 20 * LIMITS["random_forest"]
