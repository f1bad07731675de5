"""Keras 3: training and predictions of a user's compiled model, on TensorFlow, JAX or PyTorch (KERAS_BACKEND)."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Chunk, Feed, Progress, Task
from mlaas4hep.training.keras_steps import Fed, Steps, make_steps
from mlaas4hep.training.outputs import identity, probabilities, sigmoid, softmax, values_of, width_of
from mlaas4hep.training.random_state import random_state, set_random_state
from mlaas4hep.training.user_model import explained
from mlaas4hep.user_code import describe

MASK_INPUT = "mask"
MODEL_FILE = "model.keras"
_STATE_FILE = "keras_state.npz"


def start_keras() -> Any:
    """Import Keras quietly, with TensorFlow unless KERAS_BACKEND says else."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        raise MlaasError(f"Keras cannot be imported ({describe(error)}).", "Install mlaas4hep[keras].") from error


@contextlib.contextmanager
def _full_precision(backend: str) -> Iterator[None]:
    """Let a GPU multiply float32 as float32, as PyTorch does by itself.

    TensorFlow and JAX round to TF32 there: fine for steps of a training, but predictions would differ by 1e-3 from
    those of the model's ONNX form, and of the same model on a CPU.
    """
    if backend == "jax":
        with importlib.import_module("jax").default_matmul_precision("float32"):
            yield
    elif backend == "tensorflow":
        config = importlib.import_module("tensorflow").config.experimental
        before = config.tensor_float_32_execution_enabled()
        config.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            config.enable_tensor_float_32_execution(before)
    else:
        yield


class KerasAdapter:
    """A compiled Keras model (see `contract.Adapter`).

    The loss sees the targets in the form that it asks for: one column of floats for one output, class numbers for a
    sparse loss, one column a class for other losses. A loss object with `from_logits=True` lets the model end without
    sigmoid or softmax.

    Args:
        native: the compiled model.
        task: what is learned.
        path: the user's file, for messages.

    Raises UsageError for a model that is not compiled, or has other inputs than values and mask.
    """

    framework = "keras"

    def __init__(self, native: Any, task: Task, path: Path) -> None:
        self._keras = start_keras()
        self._task = task
        self._path = path
        if not isinstance(native, self._keras.Model):
            raise UsageError(
                f"{path}: model returned {type(native).__module__}.{type(native).__name__}, not a Keras model.",
                "Wrap a layer in keras.Sequential.",
            )
        if not native.compiled:
            raise UsageError(
                f"{path}: the model is not compiled.", "Call model.compile(optimizer, loss) before returning it."
            )
        self.native = native
        self._inputs = self._input_names()
        self.takes_mask = bool(self._inputs)
        self.size = 0
        self._outputs = 0
        self._one_hot = False
        self._steps: Steps | None = None
        self._activation: Callable[[NDArray[np.float64]], NDArray[np.float64]] = identity

    def _input_names(self) -> list[str]:
        """The names of the inputs that are fed, in order; empty for a model that gets just the values."""
        inputs = getattr(self.native, "inputs", None) or []
        names = [str(tensor.name) for tensor in inputs]
        if len(names) <= 1:
            return []
        if len(names) == 2 and names.count(MASK_INPUT) == 1:
            return names
        raise UsageError(
            f"{self._path}: the model has the inputs {', '.join(names)}.",
            f"It may have one input, or two of which one is named {MASK_INPUT}.",
        )

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Predict a few events, to learn the model's output and refuse one that does not fit the task."""
        with explained(self._path):
            output = np.asarray(self.native.predict_on_batch(self._fed(values, mask)))
        self._outputs = width_of(output, self._task, self._path)
        self.size = int(self.native.count_params())
        loss = self.native.loss
        self._one_hot = self._outputs > 1 and not _is_sparse(loss)
        if self._task.kind == "classification" and getattr(loss, "from_logits", False):
            self._activation = sigmoid if self._outputs == 1 else softmax

    def fit_epoch(self, feed: Feed, epoch: int, progress: Progress) -> bool:
        """Train on each event once. Raises MlaasError when the loss is no longer finite."""
        done = 0
        for chunk in feed.chunks(epoch):
            with explained(self._path):
                loss = self._train(chunk, feed.batch_size)
            if not math.isfinite(loss):
                raise MlaasError(
                    f"The loss became {loss} in epoch {epoch + 1} of training {self._path}.",
                    "Lower the learning rate, or check the loss function and the weights of the events.",
                )
            done += chunk.rows.size
            progress(done)
        return True

    def _train(self, chunk: Chunk, batch_size: int) -> float:
        """The steps of a chunk; returns a number that is finite if the loss of each step is."""
        if self._steps is None:
            self._steps = make_steps(self._keras, self.native)
        x = [chunk.mask if name == MASK_INPUT else chunk.values for name in self._inputs] or [chunk.values]
        try:
            return self._steps.run(Fed(tuple(x), self._targets(chunk.targets), chunk.weights), batch_size)
        except Exception:
            # PyTorch refuses NaN as a probability before there is a loss
            if all(np.isfinite(variable.numpy()).all() for variable in self.native.trainable_variables):
                raise
            return math.nan

    def evaluate(self, chunk: Chunk) -> tuple[float, NDArray[np.float64]]:
        """Mean of the model's own loss over events that are not trained on, and their predictions."""
        with explained(self._path):
            output = self._output(chunk.values, chunk.mask)
            loss = self.native.compute_loss(
                y=self._tensor(self._targets(chunk.targets)),
                y_pred=self._tensor(output),
                sample_weight=None if chunk.weights is None else self._tensor(chunk.weights),
            )
        return float(self._keras.ops.convert_to_numpy(loss)), self._predictions(output)

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Probabilities, shape (n, classes), or values, shape (n, 1)."""
        with explained(self._path):
            return self._predictions(self._output(values, mask))

    def _output(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[Any]:
        with _full_precision(self._keras.backend.backend()):
            return np.asarray(self.native.predict_on_batch(self._fed(values, mask)))

    def save(self, folder: Path) -> str:
        """Write the model in Keras' own format."""
        with explained(self._path):
            self.native.save(folder / MODEL_FILE)
        return MODEL_FILE

    def save_state(self, folder: Path) -> None:
        """Write weights (with the seeds of the layers), the optimizer's variables, and the random state."""
        variables = [np.array(variable.numpy()) for variable in self._variables()]
        arrays = {f"variable_{number}": array for number, array in enumerate(variables)}
        arrays |= {f"random_{name}": array for name, array in random_state().items()}
        with (folder / _STATE_FILE).open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote. Raises MlaasError for a checkpoint of another model."""
        try:
            with np.load(folder / _STATE_FILE, allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError) as error:
            raise MlaasError(f"The checkpoint {folder} cannot be read ({describe(error)}).", "Train again.") from error
        variables = self._variables()
        saved = [state.get(f"variable_{number}") for number in range(len(variables))]
        if [array is not None and array.shape for array in saved] != [tuple(variable.shape) for variable in variables]:
            raise MlaasError(f"The checkpoint {folder} is of another model than {self._path}.", "Train again.")
        for variable, array in zip(variables, saved, strict=True):
            variable.assign(array)
        set_random_state({name.removeprefix("random_"): array for name, array in state.items() if "random_" in name})

    def _variables(self) -> list[Any]:
        """All that the next step depends on: weights, seeds of the layers, the optimizer's variables."""
        optimizer = self.native.optimizer
        if not optimizer.built:
            optimizer.build(self.native.trainable_variables)
        return [*self.native.variables, *optimizer.variables]

    def _tensor(self, array: NDArray[Any]) -> Any:
        return self._keras.ops.convert_to_tensor(array)

    def _fed(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> Any:
        if not self._inputs:
            return values
        return [
            self._as_input(number, mask) if name == MASK_INPUT else values for number, name in enumerate(self._inputs)
        ]

    def _as_input(self, number: int, mask: NDArray[np.bool_]) -> NDArray[Any]:
        dtype: str = self._keras.backend.standardize_dtype(self.native.inputs[number].dtype)
        return np.asarray(mask, dtype=dtype)

    def _targets(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Targets as the model's loss takes them."""
        if self._one_hot:
            return np.eye(self._outputs, dtype=np.float32)[targets.astype(np.int64)]
        if self._outputs == 1:
            return targets[:, None].astype(np.float32)
        return targets

    def _predictions(self, output: NDArray[Any]) -> NDArray[np.float64]:
        scores = self._activation(output.astype(np.float64))
        if self._task.kind == "regression":
            return values_of(scores, self._path)
        return probabilities(
            scores,
            self._path,
            "End it with sigmoid or softmax, or compile it with a loss object that has from_logits=True.",
        )


def load_keras(file: Path, task: Task) -> KerasAdapter:
    """A saved model. Raises MlaasError when the file cannot be loaded."""
    keras = start_keras()
    try:
        model = keras.models.load_model(file)
    except Exception as error:
        raise MlaasError(f"The model {file} cannot be loaded ({describe(error)}).") from error
    return KerasAdapter(model, task, file)


def _is_sparse(loss: Any) -> bool:
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", "")
    return "sparse" in str(name).lower()
