"""Small networks trained at the level that processors are held to, and hashes of their weights and answers.

`python tests/bytes_of_networks.py NAME ...`: a process of its own, since libraries choose their code when
they are loaded.
"""

import sys

from smc_ml.processor import hold_processor

hold_processor()

import test_networks as small_ones  # noqa: E402

from smc_ml.models.checkpoints import fingerprint  # noqa: E402
from smc_ml.models.tasks import Horizons, Position  # noqa: E402

SIZES = {
    "layers": 2,
    "hidden": 16,
    "width": 32,
    "heads": 4,
    "feed_forward": 32,
    "filters": 16,
    "dropout": 0.2,
}
OTHER = {"loss": "focal", "schedule": "cosine", "optimizer": "adam"}
POSITION = Position("return_1h", sides=2, cost=0.001, turnover=0.001)

for name in sys.argv[1:]:
    X, y = small_ones.samples(32, name=name)
    came = small_ones.horizons_of(y)
    earned = came["return_1h"].to_numpy()
    for task, targets, more in (
        (None, y, {}),
        (None, y, OTHER),
        (Horizons(), came, {}),
        (Horizons(), came, OTHER),
        (POSITION, earned, {}),
    ):
        model = small_ones.small(name, task, **SIZES, **more).fit(X, targets)
        parts = [*model.network_.state_dict().values(), model._answer(X)]
        print(name, type(model.task_).__name__, *more.values(), fingerprint(parts, {}), flush=True)
