"""What features by symbol and year cost: `python tools/scale.py loky:2 loky:10 dask:10` prints a row each.

Simulated five-minute candles of as many symbols, the year 2024 and what stands before it. CPU and memory are
those of all processes below this one, looked at five times a second.
"""

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from joblib.externals.loky import get_reusable_executor

from smc_ml.compute.computing import computing, on_workers
from smc_ml.compute.config import ComputeConfig
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.symbol_years import make_symbol_year, symbol_year_tasks
from smc_ml.tables import write_tables

WORKERS, EMPTY, MIB = 2, 500, 2**20
FIRST, LAST = "2023-11-25", "2025-01-01"


class Watch(threading.Thread):
    "CPU seconds and the highest memory (unique to them, MiB) of the processes below this one."

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[int, float] = {}
        self.highest = 0.0
        self.ended = threading.Event()

    def look(self, process: psutil.Process) -> float:
        try:
            used = process.cpu_times()
            self.seconds[process.pid] = used.user + used.system
            return process.memory_full_info().uss / MIB
        except psutil.Error:
            return 0.0

    def run(self) -> None:
        while not self.ended.wait(0.2):
            self.highest = max(
                self.highest, sum(self.look(each) for each in psutil.Process().children(recursive=True))
            )

    def cpu(self) -> float:
        return sum(self.seconds.values())


def measured(backend: str, symbols: int, place: Path) -> str:
    "One row: start, empty task, wall, CPU a symbol-year, memory, size of a file."
    out = place / f"features_{backend}_{symbols}"
    tasks = [task for task in symbol_year_tasks(place / "candles", out) if task.year == 2024][:symbols]
    watch, start = Watch(), time.perf_counter()
    watch.start()
    with computing(ComputeConfig(backend=backend, workers=WORKERS, wait_seconds=60)):
        begun = time.perf_counter() - start
        on_workers(make_symbol_year, tasks[:WORKERS], progress=False)  # imports, compiled code
        start = time.perf_counter()
        on_workers(abs, range(EMPTY), progress=False)
        empty = (time.perf_counter() - start) / EMPTY * 1000
        for path in out.rglob("*.parquet"):
            path.unlink()
        before, start = watch.cpu(), time.perf_counter()
        made = on_workers(make_symbol_year, tasks, progress=False)
        wall = time.perf_counter() - start
        time.sleep(0.4)
        cpu = watch.cpu() - before
    watch.ended.set()
    get_reusable_executor().shutdown()  # idle processes are not the next row's
    files = list(out.rglob("2024.parquet"))
    size = sum(path.stat().st_size for path in files) / len(made) / MIB
    shutil.rmtree(out)
    return (
        f"{backend:5} {symbols:3} symbols: start {begun:5.1f} s, empty task {empty:5.1f} ms, "
        f"wall {wall:6.1f} s, CPU {cpu / len(made):5.2f} s a symbol-year, memory {watch.highest:6.0f} MiB "
        f"in {len(watch.seconds)} processes, {size:5.1f} MiB a file, load {psutil.getloadavg()[0]:.1f}"
    )


def main(wanted: list[str]) -> None:
    "A row for each `backend:symbols`."
    runs = [(backend, int(count)) for backend, _, count in (one.partition(":") for one in wanted)]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"S{number:03}" for number in range(max(count for _, count in runs))]
        for name in names:
            market = simulate_market([name], FIRST, LAST, SimulationConfig())
            write_tables({name: market[name].candles}, Path(folder) / "one")
            (Path(folder) / "candles").mkdir(exist_ok=True)
            (Path(folder) / "one" / f"{name}.parquet").rename(Path(folder) / "candles" / f"{name}.parquet")
        for backend, count in runs:
            print(measured(backend, count, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
