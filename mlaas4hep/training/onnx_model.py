"""Predictions by ONNX Runtime, without the framework that a model was trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError

MODEL_FILE = "model.onnx"
VALUES, MASK, PREDICTIONS = "values", "mask", "predictions"
_FATAL = 4


class OnnxModel:
    """A model.onnx, ready to predict.

    Args:
        path: the file.

    Raises MlaasError when ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise MlaasError(
                f"The model {path} cannot be loaded ({type(error).__name__}).", "Train it again."
            ) from error
        self._inputs = [node.name for node in self._session.get_inputs()]

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Predictions, shape (n, width), of input vectors and their mask, each of shape (n, idim)."""
        fed: dict[str, NDArray[np.float32]] = {VALUES: values}
        if MASK in self._inputs:
            fed[MASK] = mask.astype(np.float32)
        return np.asarray(self._session.run(None, fed)[0], dtype=np.float64)
