"""Numbers in README.md and the notebooks, each bound to the artefact and the key that it comes from.

In a markdown cell, or a markdown file below nbs/, a number stands between two comments:

    <!-- claim: headline.json#auc .3f -->0.601<!-- /claim -->

File and key (dots lead into nested records), then how it is written, as in `format`. `make readme`
writes each anew; `make check` fails where one is stale. What was measured by hand stands in
tools/measured.json, with how and when.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CLAIM = re.compile(
    r"(<!-- claim: (?P<file>[^\s#]+)#(?P<key>\S+)(?: (?P<form>\S+))? -->)(?P<said>.*?)(<!-- /claim -->)", re.S
)
OPENED = re.compile(r"<!-- claim:")
CODE = re.compile(r"```.*?```|`[^`\n]*`|<details>.*?</details>", re.S)
LINK = re.compile(r"\]\([^)]*\)|<[^>]*>")
NUMBER = re.compile(
    r"(?<![\w.])[+−-]?\d+(?:[.,:]\d+)+(?!\w)|\b\d+ (?:%|s|min|minutes?|seconds?|hours?|[kMG]B)(?!\w)"
)
# what holds a number and claims nothing: names, and the levels at which everything is told
NAMES = re.compile(r"Python 3\.\d+|Apache 2\.0|95 % (?:CI|intervals?)|80 % of|chance: 0\.500")


class ClaimError(Exception):
    "A claim whose artefact or key is not there, or that is not written as one."


@cache
def _record(path: Path) -> object:
    "What an artefact holds."
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except FileNotFoundError:
        raise ClaimError(f"{path}: no such artefact: make repro writes it") from None


def value_of(file: str, key: str, form: str | None, root: Path = ROOT) -> str:
    "What a claim has to say."
    found = _record(root / file)
    for part in key.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ClaimError(f"{file} has no {key}: mend the claim") from None
    if found is None:
        return "not known"
    return format(found, form or "").replace("-", "−") if isinstance(found, int | float) else str(found)


def renewed(text: str, root: Path = ROOT) -> str:
    "A text with every claim written anew."
    if len(OPENED.findall(text)) != len(CLAIM.findall(text)):
        line = next(line for line in text.splitlines() if OPENED.search(line) and not CLAIM.search(line))
        raise ClaimError(f"not a claim: {line.strip()[:100]}: write it as tools/claims.py says")
    return CLAIM.sub(lambda m: m[1] + value_of(m["file"], m["key"], m["form"], root) + m[6], text)


def unbound(text: str) -> list[str]:
    "Numbers of a text that name no artefact; code, folded details and links aside."
    left = CLAIM.sub("", text)
    for pattern in (CODE, LINK, NAMES):
        left = pattern.sub("", left)
    return [found[0] for found in NUMBER.finditer(left)]


def _in_notebook(text: str, renew: Callable[[str], str]) -> str:
    "A notebook's text with the markdown cells renewed."
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = renew("".join(cell["source"])).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def renewed_files(root: Path = ROOT) -> Iterator[tuple[Path, str, str]]:
    "Each file below nbs/ with claims: its path, its text, and its text with every claim written anew."
    for path in sorted((root / "nbs").rglob("*")):
        if path.suffix in (".ipynb", ".md") and ".ipynb_checkpoints" not in path.parts:
            text = path.read_text(encoding="utf-8")
            if OPENED.search(text):
                try:
                    new = _in_notebook(text, renewed) if path.suffix == ".ipynb" else renewed(text)
                except ClaimError as error:
                    raise ClaimError(f"{path.relative_to(root)}: {error}") from None
                yield path, text, new
