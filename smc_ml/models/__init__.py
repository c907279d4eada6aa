"""Models: what they learn from, how each is made, trained, stored and loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


def load(
    folder: str | os.PathLike,
    live: bool = False,  # ask a network by ONNX Runtime, where its file is there and it answers sooner
) -> BaseEstimator:
    "The model in a folder, as it was saved; a `ModelError` where it is missing, changed, or would run code."
    if live:
        from smc_ml.models.inference import load_live

        return load_live(folder)
    from smc_ml.models.saving import load_model

    return load_model(folder)
