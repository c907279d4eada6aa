"""Networks beside what they would be without this package, in processor time and in the same run.
`make bench` runs it; each test prints its line, and the ratios are what counts."""

import copy
import time
import tracemalloc
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import pytest
import torch
from torch import nn

from smc_ml.models.config import TrainingConfig
from smc_ml.models.export import onnx_of
from smc_ml.models.inference import OnnxNetwork
from smc_ml.models.registry import MODELS
from smc_ml.models.tasks import Binary, Horizons, Task
from smc_ml.models.training import fit_network, outputs_of
from smc_ml.models.windows import Windows
from smc_ml.models.zone_graphs import _nearest

FULL: Mapping[str, tuple[int, int, Task]] = {  # rows, features and task of the full sizes
    "lstm": (60, 16, Binary()),
    "transformer": (120, 16, Binary()),
    "patchtst": (96, 240, Horizons()),
    "trading": (60, 16, Binary()),
    "pooling": (60, 16, Binary()),
    "fusion": (60, 16, Binary()),
    "graph": (25, 32, Binary()),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def turns(rounds: int, **ways: Callable[[], object]) -> dict[str, list[float]]:
    "Processor seconds of each way, which take turns; the first turn does not count."
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            seconds[name].append(time.process_time() - begin)
    return {name: taken[1:] for name, taken in seconds.items()}


def side_by_side(rounds: int, **ways: Callable[[], object]) -> dict[str, float]:
    "Median processor seconds of each way."
    return {name: median(taken) for name, taken in turns(rounds, **ways).items()}


def windows(rows: int, features: int, samples: int) -> Windows:
    values = np.random.default_rng(0).normal(size=(samples + rows, features)).astype(np.float32)
    names = tuple(f"feature_{number}" for number in range(features))
    return Windows(values, np.arange(rows, samples + rows), names, rows)


def untrained(name: str, samples: int = 64, **settings):
    "A network of full size with random weights that is ready to be asked, and windows for it."
    rows, features, task = FULL[name]
    model, X = MODELS[name].make(TrainingConfig(**{name: settings}), task), windows(rows, features, samples)
    model.task_, model.feature_names_in_, model.length_ = task, np.array(X.feature_names, object), rows
    model.network_ = model._new(features, rows, task.outputs).eval()
    return model, X


@pytest.mark.parametrize("name", FULL)
def test_an_answer_for_one_sample(name):
    "Torch and ONNX Runtime, one sample at a time."
    model, X = untrained(name)
    asked, one = OnnxNetwork(onnx_of(model)), X.batch(slice(0, 1))
    tensor = torch.from_numpy(one)
    ways = {"torch": lambda: model.network_(tensor), "ONNX": lambda: asked.read(one)}
    whole = {"torch": lambda: outputs_of(model.network_, X[:1]), "ONNX": lambda: asked.answer(X[:1])}
    with torch.inference_mode():
        for what, each in (("alone", ways), ("with windows and decoding", whole)):
            taken = turns(300, **each)
            said = {way: 1e3 * np.quantile(seconds, [0.5, 0.99]) for way, seconds in taken.items()}
            told = ", ".join(f"{way} {usual:.2f} ms (p99 {rare:.2f})" for way, (usual, rare) in said.items())
            print(f"\n{name} {what}: {told}, ratio {said['torch'][0] / said['ONNX'][0]:.1f}")


def test_an_answer_of_the_hybrid_for_one_sample():
    "Its network by torch or by ONNX Runtime, and its trees: windows of 100 rows, one sample at a time."
    X = windows(100, 12, 300)
    model = MODELS["hybrid"].make(TrainingConfig(hybrid={"epochs": 1})).fit(X, X.last()[:, 0] > 0)
    asked = copy.deepcopy(model)
    asked.network_._onnx = OnnxNetwork(onnx_of(asked.network_))
    taken = side_by_side(
        50, torch=lambda: model.predict_proba(X[:1]), onnx=lambda: asked.predict_proba(X[:1])
    )
    print(f"\nhybrid: torch {taken['torch'] * 1e3:.2f} ms, ONNX {taken['onnx'] * 1e3:.2f} ms")


@pytest.mark.parametrize(
    ("training", "size"), [(True, 128), (True, 512), (False, 128)], ids=["step", "large_step", "answer"]
)
def test_the_transformer_beside_torch_s_encoder(training, size):
    """Forward and backward in training, forward alone without gradients; per sample.

    Ours has batches of 128; torch's encoder has the same ones, and large ones, which cost it more a sample:
    the weights of its attention, which it drops out one by one, fill the memory then.
    """
    model, X = untrained("transformer", size)
    own, config = model.network_.train(training), model.settings()

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = config.width, config.heads, config.feed_forward, config.dropout, "gelu"
            layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
            self.inward, self.head = nn.Linear(16, config.width), nn.Linear(config.width, 1)
            self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

        def forward(self, rows):
            return self.head(self.encoder(self.inward(rows))[:, -1])

    theirs, batch = Theirs().train(training), torch.from_numpy(X.batch(slice(None)))

    def ask(network, rows):
        with torch.set_grad_enabled(training):
            answer = network(rows)
        return answer.sum().backward() if training else answer

    ways = {"ours": lambda: ask(own, batch[:128]), "torch": lambda: ask(theirs, batch)}
    taken = side_by_side(640 // size, **ways)
    ours, torchs = 1e3 * taken["ours"] / 128, 1e3 * taken["torch"] / size
    print(
        f"\na sample: {ours:.2f} ms, by torch in batches of {size} {torchs:.2f} ms, ratio {torchs / ours:.1f}"
    )


SMALL = {
    "lstm": {"layers": 1, "hidden": 32},
    "transformer": {"layers": 2, "width": 32, "heads": 4, "feed_forward": 64},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_loop_beside_a_bare_one(name):
    "Two epochs over 1,000 windows: views and all that the loop does, and copied windows with nothing of it."
    model, X = untrained(name, 1000, epochs=2, dropout=0.0, **SMALL[name])
    won, config = (X.last()[:, 0] > 0).astype(np.float32), model.settings(**{"epochs": 2} | SMALL[name])
    copied, target = torch.from_numpy(X.batch(slice(None)).copy()), torch.from_numpy(won)

    def bare():
        optimizer = torch.optim.AdamW(model.network_.parameters(), lr=0.001, fused=True)
        for _ in range(config.epochs):
            for chosen in torch.randperm(len(copied)).split(config.batch_size):
                optimizer.zero_grad()
                logits = model.network_(copied[chosen]).squeeze(-1)
                nn.functional.binary_cross_entropy_with_logits(logits, target[chosen]).backward()
                optimizer.step()

    ours = lambda: fit_network(model.network_, X, won, config=config, progress=False)  # noqa: E731
    taken = side_by_side(5, ours=ours, bare=bare)
    ratio = taken["bare"] / taken["ours"]
    print(f"\n{name}: {taken['ours']:.2f} s, bare {taken['bare']:.2f} s, ratio {ratio:.2f}")


def test_graphs_of_events():
    "Nodes of events, where as many zones live at any time: twice as many events take twice the time."

    def zones(count: int) -> Callable[[], object]:
        random, known = np.random.default_rng(0), np.arange(4 * count)
        bottom, close = (
            100 + random.normal(size=4 * count).cumsum() / 20,
            100 + random.normal(size=count) / 10,
        )
        events, own, until = 4 * np.arange(count), np.full(count, -1), known + 400
        return lambda: _nearest(events, close, own, known, until, bottom + 0.1, bottom, known, 24)

    ways = {str(count): zones(count) for count in (10_000, 20_000)}
    taken = side_by_side(5, **ways)
    each = {name: f"{1e6 * seconds / int(name):.1f} µs" for name, seconds in taken.items()}
    print(f"\nan event among 400 living zones, by the number of events: {each}")
    assert taken["20000"] < 3 * taken["10000"]


def test_memory_of_windows():
    "What windows take that are read batch by batch, beside their rows."
    tracemalloc.start()
    held = windows(60, 16, 20_000)
    for start in range(0, len(held), 64):
        held.batch(slice(start, start + 64))
    rows, taken = held.values.nbytes, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"\nrows {rows / 1e6:.2f} MB, windows {taken / rows:.2f} times that; copied they take 60 times")
    assert taken < 1.2 * rows
