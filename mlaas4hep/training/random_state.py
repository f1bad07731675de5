"""Random numbers of a training: seeds of all libraries that are loaded, and their state for a checkpoint."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KERAS, _TENSORFLOW, _TORCH = "keras", "tensorflow", "torch"


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and, where they are imported, Keras with its backend and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    if _KERAS in sys.modules:
        sys.modules[_KERAS].utils.set_random_seed(seed)
    if _TORCH in sys.modules:
        sys.modules[_TORCH].manual_seed(seed)


def random_state() -> dict[str, NDArray[Any]]:
    """The state of all random generators, as arrays by name."""
    version, numbers, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()
    state: dict[str, NDArray[Any]] = {
        "python": np.array([version, *numbers], dtype=np.int64),
        "python_gauss": np.array([] if gauss is None else [gauss]),
        "numpy": np.asarray(keys),
        "numpy_place": np.array([place, has_gauss], dtype=np.int64),
        "numpy_gauss": np.array([cached]),
    }
    if _TORCH in sys.modules:
        state["torch"] = sys.modules[_TORCH].get_rng_state().numpy()
    if _TENSORFLOW in sys.modules:
        state["tensorflow"] = sys.modules[_TENSORFLOW].random.get_global_generator().state.numpy()
    return state


def set_random_state(state: dict[str, NDArray[Any]]) -> None:
    """Take up what `random_state` gave."""
    gauss = state["python_gauss"]
    version, *numbers = state["python"].tolist()
    random.setstate((version, tuple(numbers), float(gauss[0]) if gauss.size else None))
    place, has_gauss = state["numpy_place"].tolist()
    np.random.set_state(("MT19937", state["numpy"], place, has_gauss, float(state["numpy_gauss"][0])))
    if "torch" in state and _TORCH in sys.modules:
        torch = sys.modules[_TORCH]
        torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
    if "tensorflow" in state and _TENSORFLOW in sys.modules:
        sys.modules[_TENSORFLOW].random.get_global_generator().state.assign(state["tensorflow"])
