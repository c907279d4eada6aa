"""Write smc_ml/ from the notebooks.

nbdev_export writes every module anew. numba recognises a cached function by the time of its module, so a
module whose text did not change is given its old time back; else every export would cost a compilation of
everything.
"""

import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "smc_ml"


def main() -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in PACKAGE.rglob("*.py")}
    subprocess.run(["nbdev_export"], check=True, cwd=PACKAGE.parent)
    for path, (content, time) in before.items():
        if path.is_file() and path.read_bytes() == content:
            os.utime(path, ns=(time, time))


if __name__ == "__main__":
    main()
