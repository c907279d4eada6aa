"""Draw the picture at the head of README.md: the chart of the simulated sample.

It needs no run: the sample's market is simulated anew, from its seed.
"""

import sys
from pathlib import Path

from smc_ml.candles import Market
from smc_ml.charts.chart import Chart
from smc_ml.commands.demo import DEMO_MARKET
from smc_ml.patterns.detection import detect_market
from smc_ml.simulation.market import simulate_market

PICTURE = Path(__file__).resolve().parents[1] / "nbs" / "chart.png"
DAYS = ("2024-01-01", "2024-01-25")
SHOWN = 150  # candles
TITLE = "Simulated, 15m: dotted from where a zone formed, filled once it was confirmed"


def hero() -> bytes:
    "The picture as PNG."
    simulated = simulate_market(["SIM-A"], *DAYS, DEMO_MARKET)
    market = Market({symbol: one.candles for symbol, one in simulated.items()})
    patterns = detect_market(market)["SIM-A"]
    candles = market.at("15m")["SIM-A"].iloc[-SHOWN:]
    return Chart(candles, patterns, timeframe="15m", title=TITLE).png()


if __name__ == "__main__":
    PICTURE.write_bytes(hero())
    sys.exit(0 if PICTURE.stat().st_size < 250_000 else f"{PICTURE}: larger than 250 kB: show fewer candles")
