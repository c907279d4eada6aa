"""Write what Grafana and Prometheus read in `deploy/` from the one list of panels and alarms.

`python tools/deploy.py` writes the files; `python tools/deploy.py --check` says which are stale.
"""

import sys
from pathlib import Path

from smc_ml.service.dashboard import alert_rules, grafana_dashboard

FOLDER = Path(__file__).resolve().parents[1] / "deploy"
HEAD = "# Written by tools/deploy.py from smc_ml.service.dashboard: change it there.\n"


def made() -> dict[str, str]:
    "Each generated file by its path below `deploy/`."
    return {
        "grafana/dashboards/smc_ml.json": grafana_dashboard(),
        "prometheus/alerts.yml": HEAD + alert_rules(),
    }


def main() -> int:
    "Write the files, or only look."
    stale = [name for name, text in made().items() if not _is(FOLDER / name, text)]
    if "--check" in sys.argv[1:]:
        print(*(f"deploy/{name} is stale: python tools/deploy.py" for name in stale), sep="\n", end="")
        return len(stale)
    for name in stale:
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(made()[name], encoding="utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
