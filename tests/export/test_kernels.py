"""The compiled scale search, where nothing of it can be kept."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np

from t1_edge_export.quantize.kernels import search

_NOWHERE: Final = """
import sys
import numpy as np
from numba.core import caching
caching.CacheImpl._locator_classes = []  # neither the package nor a home can be written
from t1_edge_export.quantize.kernels import search
with np.load(sys.argv[1]) as asked:
    blocks = asked["blocks"]
codes, scales = np.empty(blocks.shape, np.uint8), np.empty(len(blocks), np.float32)
search(blocks, np.ones_like(blocks), codes, scales)
np.savez(sys.argv[2], codes=codes, scales=scales)
"""


def test_what_cannot_be_kept_is_compiled_all_the_same(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    codes, scales = np.empty(blocks.shape, np.uint8), np.empty(len(blocks), np.float32)
    search(blocks, np.ones_like(blocks), codes, scales)
    asked, answered = tmp_path / "asked.npz", tmp_path / "answered.npz"
    np.savez(asked, blocks=blocks)
    subprocess.run([sys.executable, "-c", _NOWHERE, str(asked), str(answered)], check=True)
    with np.load(answered) as found:
        np.testing.assert_array_equal(found["codes"], codes)
        np.testing.assert_array_equal(found["scales"], scales)
