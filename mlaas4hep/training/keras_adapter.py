"""Keras: steps and predictions of a user's compiled model. The backend is TensorFlow unless KERAS_BACKEND says else."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.user_model import describe, explained

MASK_INPUT = "mask"
_TOLERANCE = 1e-4


def start_keras(seed: int | None = None) -> Any:
    """Import Keras quietly and set the seeds of Python, NumPy and the backend."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise MlaasError(f"Keras cannot be imported ({describe(error)}).", "Install mlaas4hep[keras].") from error
    if seed is not None:
        keras.utils.set_random_seed(seed)
    return keras


class KerasClassifier:
    """A compiled Keras model that tells classes apart.

    Args:
        model: the Keras model.
        classes: number of classes.
        path: the user's file, for messages.
    """

    def __init__(self, model: Any, classes: int, path: Path) -> None:
        self._keras = start_keras()
        self._path = path
        self._classes = classes
        if not isinstance(model, self._keras.Model):
            raise UsageError(
                f"{path}: model returned {type(model).__module__}.{type(model).__name__}, not a Keras model.",
                "This version trains Keras models.",
            )
        if not model.compiled:
            raise UsageError(
                f"{path}: the model is not compiled.", "Call model.compile(optimizer, loss) before returning it."
            )
        self.model = model
        self._inputs = self._input_names()
        self._outputs = 0
        self._one_hot = False
        self._activation = _identity

    def _input_names(self) -> list[str]:
        """The names of the inputs that are fed, in order; empty for a model that gets just the values."""
        inputs = getattr(self.model, "inputs", None) or []
        names = [str(tensor.name) for tensor in inputs]
        if len(names) <= 1:
            return []
        if len(names) == 2 and names.count(MASK_INPUT) == 1:
            return names
        raise UsageError(
            f"{self._path}: the model has the inputs {', '.join(names)}.",
            f"It may have one input, or two of which one is named {MASK_INPUT}.",
        )

    @property
    def takes_mask(self) -> bool:
        """Whether the model is fed the mask."""
        return bool(self._inputs)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(self.model.count_params())

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Predict a few events, to learn the model's output and refuse one that does not fit the classes."""
        with explained(self._path):
            output = np.asarray(self.model.predict_on_batch(self._feed(values, mask)))
        width = output.shape[-1] if output.ndim == 2 else 0
        if width != self._classes and not (width == 1 and self._classes == 2):
            wanted = "1 or 2 outputs" if self._classes == 2 else f"{self._classes} outputs"
            raise UsageError(
                f"{self._path}: the model's output has the shape {list(output.shape[1:])}.",
                f"Training on {self._classes} classes needs {wanted}.",
            )
        loss = self.model.loss
        self._outputs = width
        self._one_hot = width > 1 and not _is_sparse(loss)
        if getattr(loss, "from_logits", False):
            self._activation = _sigmoid if width == 1 else _softmax

    def train(self, values: NDArray[np.float32], mask: NDArray[np.bool_], targets: NDArray[np.int64]) -> None:
        """One step. Raises MlaasError when the loss is NaN or infinite."""
        with explained(self._path):
            logs = self.model.train_on_batch(self._feed(values, mask), self._targets(targets), return_dict=True)
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise MlaasError(
                f"The loss became {loss} while training {self._path}.",
                "Lower the learning rate, or check the loss function.",
            )

    def measure(
        self, values: NDArray[np.float32], mask: NDArray[np.bool_], targets: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Mean loss and class probabilities, shape (n, classes), of events that are not trained on."""
        with explained(self._path):
            output = np.asarray(self.model.predict_on_batch(self._feed(values, mask)))
            loss = self.model.compute_loss(y=self._targets(targets), y_pred=self._keras.ops.convert_to_tensor(output))
        return float(self._keras.ops.convert_to_numpy(loss)), self._probabilities(output)

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Class probabilities, shape (n, classes)."""
        with explained(self._path):
            return self._probabilities(np.asarray(self.model.predict_on_batch(self._feed(values, mask))))

    def save(self, path: Path) -> None:
        """Write the model in Keras' own format."""
        with explained(self._path):
            self.model.save(path)

    def _feed(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> Any:
        if not self._inputs:
            return values
        return [
            self._as_input(number, mask) if name == MASK_INPUT else values for number, name in enumerate(self._inputs)
        ]

    def _as_input(self, number: int, mask: NDArray[np.bool_]) -> NDArray[Any]:
        return mask.astype(self._keras.backend.standardize_dtype(self.model.inputs[number].dtype))

    def _targets(self, targets: NDArray[np.int64]) -> NDArray[Any]:
        """Class numbers as the model's loss takes them."""
        if self._one_hot:
            return np.eye(self._outputs, dtype=np.float32)[targets]
        if self._outputs == 1:
            return targets[:, None].astype(np.float32)
        return targets

    def _probabilities(self, output: NDArray[Any]) -> NDArray[np.float64]:
        scores = self._activation(output.astype(np.float64))
        if not np.isfinite(scores).all():
            raise MlaasError(f"The model {self._path} gives NaN or infinite outputs.", "Lower the learning rate.")
        if scores.min() < -_TOLERANCE or scores.max() > 1 + _TOLERANCE:
            raise UsageError(
                f"{self._path}: the model's outputs are no probabilities ({scores.min():.3g} to {scores.max():.3g}).",
                "End it with sigmoid or softmax, or compile it with a loss object that has from_logits=True.",
            )
        if self._outputs == 1:
            return np.concatenate([1.0 - scores, scores], axis=1)
        return scores


def load_classifier(path: Path, classes: int, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> KerasClassifier:
    """A saved model, ready to predict; `values` and `mask` are a few events to check it with.

    Raises MlaasError when the file cannot be loaded.
    """
    keras = start_keras()
    try:
        model = keras.models.load_model(path)
    except Exception as error:
        raise MlaasError(f"The model {path} cannot be loaded ({describe(error)}).") from error
    classifier = KerasClassifier(model, classes, path)
    classifier.check(values, mask)
    return classifier


def _is_sparse(loss: Any) -> bool:
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", "")
    return "sparse" in str(name).lower()


def _identity(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-np.clip(scores, -700.0, 700.0)))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
