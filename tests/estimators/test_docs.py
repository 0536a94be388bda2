"""The page on estimators runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs/estimators.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs():
    import matplotlib.pyplot as plt

    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    finally:
        plt.close("all")
    assert names["signals"].shape == (120, 100) and names["image"].shape[3] == 120
    assert names["group"].group_.subjects == ("001", "002", "003") and names["unseen"].shape == (120, 100)
    assert np.isfinite(names["scores"]["test_score"]).all()
    assert len(names["table"]) == names["graph"].number_of_edges() == 100 * 99 // 2
