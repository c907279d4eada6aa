"""A slice of the pipeline, from a simulated market to an account, and the hash of everything it writes.

`python tests/slice_of_the_pipeline.py FOLDER LAST_DAY [exact | fast | free]`: `free` does not hold the
processor at all. A process of its own, since libraries choose their code when they are loaded.
"""

import hashlib
import json
import sys
from pathlib import Path

from smc_ml.processor import hold_processor

FOLDER, LAST_DAY, BYTES = Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or ["exact"])[0]
if BYTES != "free":
    hold_processor()

from smc_ml.candles import Market  # noqa: E402
from smc_ml.controls.markets import mirrored_market, shuffled_market  # noqa: E402
from smc_ml.evaluation.metrics import score  # noqa: E402
from smc_ml.figures.account import equity_plot  # noqa: E402
from smc_ml.labels.config import SplitsConfig  # noqa: E402
from smc_ml.models.config import TrainingConfig  # noqa: E402
from smc_ml.models.saving import save_model  # noqa: E402
from smc_ml.regimes.walk_forward import regime_tables  # noqa: E402
from smc_ml.simulation.config import SimulationConfig  # noqa: E402
from smc_ml.simulation.market import simulate_market  # noqa: E402
from smc_ml.stages.backtest import follow_predictions  # noqa: E402
from smc_ml.stages.bars import train_bars  # noqa: E402
from smc_ml.stages.ensemble import combine_models  # noqa: E402
from smc_ml.stages.horizons import bar_targets  # noqa: E402
from smc_ml.stages.learning import events_of  # noqa: E402
from smc_ml.stages.train import train_model  # noqa: E402
from smc_ml.tables import write_metrics, write_tables  # noqa: E402

SMALL = {"layers": 2, "hidden": 24, "epochs": 2, "batch_size": 32, "rows_per_step": 4}
BARS = {"of": "bars", "timeframe": "1h", "steps": 24}
PATCHES = {"layers": 1, "heads": 2, "width": 16, "feed_forward": 16, "epochs": 1, "samples": BARS}
TRAINING = TrainingConfig(lstm=SMALL, patchtst=PATCHES, bytes="fast" if BYTES == "fast" else "exact")


def candles() -> Market:
    "A symbol and its candles, those in random order and those upside down."
    one = simulate_market(["A"], "2024-01-01", LAST_DAY, SimulationConfig(edge=0.4, seed=3))["A"].candles
    market = Market({"A": one}, "5m")
    null = {"shuffled": shuffled_market(market, 1)["A"], "mirrored": mirrored_market(market, 1)["A"]}
    write_tables({"A": one} | null, FOLDER / "candles")
    return market


def predictions(events) -> list:
    "Of each model, trained on two folds; models and learning curves are written."
    tables = []
    for model in TRAINING.event_models:
        learnt = events.features, events.catalogue, events.labels
        run = train_model(model, *learnt, TRAINING, SplitsConfig(n_folds=2)).run
        save_model(run.model, FOLDER / f"models/{model}", run.description)
        write_tables({"predictions": run.predictions, "history": run.history}, FOLDER / f"training/{model}")
        tables.append(run.predictions)
    return tables


def bars(events, targets) -> None:
    "A model of bars and its baselines."
    learnt = events.features, events.catalogue, targets
    for model in TRAINING.models_of("bars"):
        trained = train_bars(model, *learnt, TRAINING, SplitsConfig(n_folds=2))
        save_model(trained.run.model, FOLDER / f"models/{model}", trained.run.description)
        tables = {"predictions": trained.run.predictions, "history": trained.run.history}
        write_tables(tables | trained.baselines, FOLDER / f"training/{model}")


def run() -> None:
    "The stages in their order."
    market = candles()
    events = events_of(market)
    write_tables(events.features | {"labels": events.labels}, FOLDER / "events")
    targets = bar_targets(market).tables
    write_tables(targets, FOLDER / "horizons")
    regimes = regime_tables(market)["A"]
    write_tables({"regimes": regimes.table}, FOLDER / "regimes")
    regimes.detectors[-1].save(FOLDER / "regimes/model")
    bars(events, targets)
    combined = combine_models(predictions(events), events.labels)
    followed = follow_predictions(combined.mixed, events.labels, market, scenarios=["expected"])
    account = followed.expected
    write_tables({"mixed": combined.mixed, "trades": account.trades}, FOLDER / "account")
    write_metrics(score(combined.predictions, events.labels).to_dict("list"), FOLDER / "scores.json")
    equity_plot(account.equity["equity"]).savefig(FOLDER / "equity.png")


def hashes() -> dict[str, str]:
    "Of every file that was written, by its path."
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    return {
        path.relative_to(FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


if __name__ == "__main__":
    run()
    print(json.dumps(hashes()))
