"""Every notebook of the library and of nbs/explore runs from top to bottom, its proofs on the shipped module.

Exported cells are imported and not run again (tools/notebooks.py says why). Stage notebooks run in the
end-to-end test.
"""

import nbformat
import pytest
from execnb.shell import CaptureShell
from notebooks import notebooks_that_run, outputs_of, runnable, shipped


@pytest.mark.parametrize("path", notebooks_that_run(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(path.parent)
    shell = CaptureShell(path, mpl_format="png")
    for _, source in runnable(nbformat.read(path, as_version=4).cells):
        outputs_of(shell, source, path.name)


def test_an_exported_cell_is_imported_and_not_run_again():
    cell = '#| export\nimport numpy as np\nTWO, _THREE = 2, 3\ndef f(x):\n    return x\nprint("once")\n'
    imports = [
        "import numpy as np",
        "from smc_ml.m import TWO",
        "from smc_ml.m import _THREE",
        "from smc_ml.m import f",
    ]
    assert shipped(cell, "smc_ml.m").splitlines() == imports
