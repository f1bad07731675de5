"""scikit-learn: estimators, pipelines and searches.

An estimator with `partial_fit` learns a chunk at a time and an epoch after another. Any other is fitted once, on all
training events in memory, after a check that they fit into it.

Scores become probabilities by this rule: `predict_proba` where there is one; else `decision_function`, through the
logistic function for two classes and through softmax for more, which keeps the order of events but is not calibrated;
else 1 for the class that `predict` gives, and 0 for the others.

Where there is no value, an estimator that declares to accept NaN (its tag `input_tags.allow_nan`) gets NaN, any other
the schema's `fill`. `missing = "nan"` or `missing = "fill"` in the user's file decides it for those that do not declare
it, such as pipelines.

The trained estimator is written by joblib, a pickle: it is loaded only by the user and on the computer that wrote it
(see `sealed`); everyone else uses the ONNX model of the bundle.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import get_tags

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Chunk, Feed, Progress, Task
from mlaas4hep.training.memory import available_memory
from mlaas4hep.training.metrics import log_loss, mean_squared_error
from mlaas4hep.training.outputs import probabilities, sigmoid, softmax, values_of
from mlaas4hep.training.random_state import random_state, set_random_state
from mlaas4hep.training.sealed import own_key, read_sealed, write_sealed
from mlaas4hep.training.user_model import UserModel, explained

MODEL_FILE = "model.joblib"
_STATE_FILE = "state.joblib"
_MISSING = {"nan": True, "fill": False}
_COPIES = 4  # of the float32 events: themselves, a float64 copy (two), and one for what is learned


class SklearnAdapter:
    """An estimator of scikit-learn.

    Args:
        native: the estimator; `model()` returns it unfitted.
        task: what is learned.
        path: the user's file, for messages.
        missing: `nan` or `fill`, what the estimator gets where there is no value; "" goes by its tags.

    Raises UsageError for an estimator of another kind than the task.
    """

    framework = "sklearn"
    takes_mask = False
    size = 0

    def __init__(self, native: Any, task: Task, path: Path, missing: str = "") -> None:
        if missing and missing not in _MISSING:
            raise UsageError(
                f"{path}: missing = {missing!r} is not known.", 'Write missing = "nan" or missing = "fill".'
            )
        tags = _tags(native, path)
        wanted = "classifier" if task.kind == "classification" else "regressor"
        if tags.estimator_type not in (None, wanted):
            raise UsageError(
                f"{path}: {type(native).__name__} is a {tags.estimator_type}, but the task is a {task.kind}.",
                f"Return a {wanted} from model().",
            )
        self.native = native
        self._task = task
        self._path = path
        self._nan = _MISSING.get(missing, bool(tags.input_tags.allow_nan))
        self._idim = 0

    @property
    def gets_nan(self) -> bool:
        """Whether the estimator gets NaN where there is no value."""
        return self._nan

    @property
    def in_steps(self) -> bool:
        """Whether the estimator learns a chunk at a time."""
        return hasattr(self.native, "partial_fit")

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Note the width of the events, and see to it that the model can be saved in the end."""
        self._idim = self._inputs(values, mask).shape[1]
        own_key()

    def fit_epoch(self, feed: Feed, epoch: int, progress: Progress) -> bool:
        """Train on each event once; False for an estimator that is fitted in one go.

        Raises MlaasError before anything is loaded where the events would not fit into memory, UsageError for event
        weights that the estimator does not take.
        """
        if not self.in_steps:
            self._fit(feed, epoch, progress)
            return False
        done = 0
        for chunk in feed.chunks(epoch):
            values = self._inputs(chunk.values, chunk.mask)
            with explained(self._path):
                self.native.partial_fit(values, chunk.targets, **self._with_chunk(chunk.weights))
            done += chunk.rows.size
            progress(done)
        return True

    def _fit(self, feed: Feed, epoch: int, progress: Progress) -> None:
        self._refuse_too_many(feed.events)
        values = np.empty((feed.events, self._idim), dtype=np.float32)
        targets, weights, done = [], [], 0
        for chunk in feed.chunks(epoch):
            values[done : done + chunk.rows.size] = self._inputs(chunk.values, chunk.mask)
            targets.append(chunk.targets)
            if chunk.weights is not None:
                weights.append(chunk.weights)
            done += chunk.rows.size
        keywords = self._weighted(np.concatenate(weights), "fit") if weights else {}
        with explained(self._path):
            self.native.fit(values, np.concatenate(targets), **keywords)
        progress(done)

    def _refuse_too_many(self, events: int) -> None:
        needed, available = events * self._idim * 4 * _COPIES, available_memory()
        if needed > available:
            raise MlaasError(
                f"{self._path}: {type(self.native).__name__} learns from all events at once; {events} events of "
                f"{self._idim} inputs need {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are available.",
                "Lower nevts, leave out branches, or take an estimator with partial_fit, as SGDClassifier.",
            )

    def _with_chunk(self, weights: NDArray[np.float32] | None) -> dict[str, Any]:
        keywords: dict[str, Any] = {}
        if "classes" in inspect.signature(self.native.partial_fit).parameters:
            keywords["classes"] = np.arange(self._task.width)
        return keywords if weights is None else keywords | self._weighted(weights, "partial_fit")

    def _weighted(self, weights: NDArray[np.float32], method: str) -> dict[str, NDArray[np.float32]]:
        name = weight_argument(self.native, method)
        if not name:
            raise UsageError(
                f"{self._path}: {type(self.native).__name__}.{method} does not take weights of events.",
                "Take another estimator, or train without weight and class_weight.",
            )
        return {name: weights}

    def evaluate(self, chunk: Chunk) -> tuple[float, NDArray[np.float64]]:
        """Log loss, or mean squared error of a regression; and the predictions."""
        found = self.predict(chunk.values, chunk.mask)
        if self._task.kind == "regression":
            return mean_squared_error(chunk.targets, found[:, 0], chunk.weights), found
        return log_loss(chunk.targets, found, chunk.weights), found

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Probabilities, shape (n, classes), or values, shape (n, 1)."""
        inputs = self._inputs(values, mask)
        with explained(self._path):
            if self._task.kind == "regression":
                return values_of(np.asarray(self.native.predict(inputs), dtype=np.float64).reshape(-1, 1), self._path)
            return probabilities(self._scores(inputs), self._path, "Take another estimator.")

    def _scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities by the rule of this module, shape (n, classes)."""
        if hasattr(self.native, "predict_proba"):
            found = np.asarray(self.native.predict_proba(inputs), dtype=np.float64)
        elif hasattr(self.native, "decision_function"):
            decided = np.asarray(self.native.decision_function(inputs), dtype=np.float64)
            found = _two(sigmoid(decided)) if decided.ndim == 1 else softmax(decided)
        else:
            return np.eye(self._task.width)[np.asarray(self.native.predict(inputs), dtype=np.int64)]
        if found.shape[1] != self._task.width:
            raise UsageError(
                f"{self._path}: {type(self.native).__name__} gives {found.shape[1]} scores an event.",
                f"Training on {self._task.width} classes needs {self._task.width}.",
            )
        return found

    def save(self, folder: Path) -> str:
        """Write the estimator by joblib, sealed."""
        write_sealed(self._content(), folder / MODEL_FILE)
        return MODEL_FILE

    def save_state(self, folder: Path) -> None:
        """Write the estimator with all that it has learned, and the random state."""
        write_sealed(self._content() | {"random": random_state()}, folder / _STATE_FILE)

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote. Raises MlaasError for a checkpoint of another estimator."""
        content = read_sealed(folder / _STATE_FILE)
        saved = content["estimator"]
        if type(saved) is not type(self.native):
            raise MlaasError(f"The checkpoint {folder} is of another model than {self._path}.", "Train again.")
        self.native = saved
        set_random_state(content["random"])

    def _content(self) -> dict[str, Any]:
        return {"estimator": self.native, "missing": "nan" if self._nan else "fill"}

    def _inputs(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The events as the estimator takes them, shape (n, idim)."""
        return np.where(mask, np.float32(np.nan), values) if self._nan else values


def make_sklearn(native: Any, task: Task, user: UserModel) -> SklearnAdapter:
    """The adapter of a new estimator; raises UsageError for one that does not fit the task."""
    return SklearnAdapter(native, task, user.path, str(vars(user.module).get("missing", "")))


def load_sklearn(file: Path, task: Task) -> SklearnAdapter:
    """A saved estimator. Raises MlaasError for a file that this user did not write on this computer."""
    content = read_sealed(file)
    return SklearnAdapter(content["estimator"], task, file, content["missing"])


def weight_argument(estimator: Any, method: str) -> str:
    """The keyword by which `fit` or `partial_fit` takes event weights, "" without one.

    A pipeline takes those of its last step; a search, those of the estimator that it tries.
    """
    steps = getattr(estimator, "steps", None)
    if steps:
        name, last = steps[-1]
        inner = weight_argument(last, method)
        return f"{name}__{inner}" if inner else ""
    if "sample_weight" in inspect.signature(getattr(estimator, method)).parameters:
        return "sample_weight"
    tried = getattr(estimator, "estimator", None)
    return weight_argument(tried, method) if hasattr(estimator, "cv") and hasattr(tried, method) else ""


def _tags(native: Any, path: Path) -> Any:
    with explained(path):
        return get_tags(native)


def _two(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of two classes, shape (n, 2), of those of the second, shape (n,)."""
    return np.stack([1.0 - scores, scores], axis=1)
