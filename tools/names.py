"""The names of the top level for editors, written from the table in smc_ml/__init__ that loads them.

`make readme` writes the imports below `if TYPE_CHECKING:` anew; `make check` fails where they are stale.
"""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "if TYPE_CHECKING:  # read by editors, never run; written by tools/names.py"
BLOCK = re.compile(r"^if TYPE_CHECKING:.*\n(?: {4}.*\n?)+", re.MULTILINE)


def block(root: Path = ROOT) -> str:
    "The imports of every name of the top level, without a line break at the end."
    loaded = runpy.run_path(str(root / "smc_ml" / "__init__.py"))
    packages = [f"    from smc_ml import {name} as {name}" for name in sorted(loaded["_PACKAGES"])]
    homes = sorted((module, name) for name, module in loaded["_HOMES"].items())
    return "\n".join([HEAD, *packages, *(f"    from {home} import {name} as {name}" for home, name in homes)])


def _renewed(text: str, imports: str) -> str:
    "A source with the block anew."
    return BLOCK.sub(lambda found: imports + "\n" * found[0].endswith("\n"), text)


def renewed_names(root: Path = ROOT) -> Iterator[tuple[Path, str, str]]:
    "The notebook of the package's names and its module: path, text, and text with the block anew."
    imports = block(root)
    path = root / "nbs" / "12___init__.ipynb"
    notebook = json.loads(text := path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = _renewed("".join(cell["source"]), imports).splitlines(keepends=True)
    yield path, text, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    module = root / "smc_ml" / "__init__.py"
    text = module.read_text(encoding="utf-8")
    yield module, text, _renewed(text, imports)
