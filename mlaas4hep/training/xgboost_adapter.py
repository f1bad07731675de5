"""XGBoost: trees that are boosted over the events of a store, which never lie in memory as float32 all at once.

The events go to XGBoost a chunk at a time. It keeps of each value the number of its quantile bin (in memory, or in
files of a temporary folder where memory would not suffice), so only `tree_method="hist"` and boosters of trees are
possible.

`model()` returns an `XGBClassifier`, `XGBRegressor`, `XGBRFClassifier`, `XGBRFRegressor`, or a dict of parameters as
`xgboost.train` takes them, with `n_estimators` (rounds, 100 without it) and `early_stopping_rounds` among them. The
objective follows from the task unless it is given. All boosting rounds are one epoch. With early stopping, the model is
cut after its best round. Where there is no value, XGBoost gets NaN.

Boosting goes in ten stretches of rounds, each from the trees so far and with a seed of its own, because XGBoost does
not tell the state of its random numbers: a killed training goes on after its last complete stretch, to the same trees.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Chunk, Feed, Progress, Task
from mlaas4hep.training.memory import available_memory
from mlaas4hep.training.metrics import log_loss, mean_squared_error
from mlaas4hep.training.outputs import probabilities, sigmoid, values_of, width_of
from mlaas4hep.training.random_state import random_state, set_random_state
from mlaas4hep.training.user_model import explained
from mlaas4hep.user_code import describe

MODEL_FILE = "model.ubj"
_STATE_FILE = "state.ubj"
_RANDOM_FILE = "random.npz"
_ROUNDS = 100
_BYTES_A_VALUE = 8  # a 32-bit bin by event and, again, by input
_SHARE = 0.5  # of the available memory that the bins may take
_STRETCHES = 10
_SEEDS = 2**31
_MEASURED = "mlaas4hep_rounds"  # attribute of the trees in a checkpoint
_GROWING = ("auc", "pre", "map", "ndcg")  # how the names of measures begin that are to be large, but for mape
_OF_CLASSES = ("binary:logistic", "binary:logitraw", "binary:hinge", "multi:softprob", "multi:softmax")


@dataclass(frozen=True)
class Boosting:
    """How to boost.

    Attributes:
        parameters: of `xgboost.train`.
        rounds: number of boosting rounds.
        patience: rounds without a better measure on the validation events after which boosting ends; None goes on.
    """

    parameters: dict[str, Any]
    rounds: int
    patience: int | None

    def seeded(self, first: int) -> dict[str, Any]:
        """The parameters for the stretch that begins with a round, counted from 0."""
        seed = self.parameters.get("seed")
        seed = self.parameters.get("random_state") if seed is None else seed
        others = {name: value for name, value in self.parameters.items() if name != "random_state"}
        return others | {"seed": (int(seed or 0) + first) % _SEEDS}

    def ended(self, rounds: Sequence[Mapping[str, float]]) -> bool:
        """Whether there is nothing more to boost after these rounds."""
        exhausted = bool(self.patience and rounds) and len(rounds) - 1 - best_round(rounds) >= (self.patience or 0)
        return exhausted or len(rounds) >= self.rounds


class XgboostAdapter:
    """Boosted trees of XGBoost.

    Args:
        native: an estimator, a dict of parameters, or the `Booster` of a saved model.
        task: what is learned.
        path: the user's file, for messages.

    Attributes:
        validation: events that are measured after each round, and that early stopping goes by; set before `fit_epoch`.
        checkpoints: folder for the trees so far, which a repeated training goes on from; set before `fit_epoch`.
        rounds: after `fit_epoch`, for each round its number and the measures by `train_NAME` and `validation_NAME`.
        kept: after `fit_epoch` with early stopping, the number of rounds that the model was cut to; 0 without.

    Raises UsageError for an estimator or an objective that does not fit the task.
    """

    framework = "xgboost"
    takes_mask = False
    size = 0

    def __init__(self, native: Any, task: Task, path: Path) -> None:
        self.native = native
        self.validation: Feed | None = None
        self.checkpoints: Path | None = None
        self.rounds: list[dict[str, float]] = []
        self.kept = 0
        self._task = task
        self._path = path
        self._booster = native if isinstance(native, xgboost.Booster) else None
        self._boosting = _boosting(native, task, path) if self._booster is None else None
        self._raw = _objective_of(native) == "binary:logitraw" if self._booster else self._is_raw()

    def _is_raw(self) -> bool:
        return self._boosting is not None and self._boosting.parameters["objective"] == "binary:logitraw"

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Try the parameters on a few events with made-up targets: one round, which is thrown away.

        Raises MlaasError for a wrong value, UsageError for a parameter that XGBoost does not use.
        """
        if self._boosting is None:
            return
        events = values.shape[0]
        targets = np.ones(events) if self._task.kind == "regression" else np.arange(events) % self._task.width
        with warnings.catch_warnings(record=True) as told, explained(self._path):
            warnings.simplefilter("always")
            few = xgboost.QuantileDMatrix(_with_nan(values, mask), targets, **self._binned())
            xgboost.train(self._boosting.parameters, few, num_boost_round=1, verbose_eval=False)
        unused = [name for warning in told for name in _unused(str(warning.message))]
        if unused:
            raise UsageError(
                f"{self._path}: XGBoost does not use {', '.join(unused)} here.", "Correct the name, or take it out."
            )

    def fit_epoch(self, feed: Feed, epoch: int, progress: Progress) -> bool:
        """Boost all rounds; False, for there is nothing to do in a second epoch.

        `progress` is told the share of the rounds that is done, as a number of events.
        Raises MlaasError when a measure is no longer finite, UsageError for early stopping without validation events.
        """
        boosting = self._boosting
        if boosting is None:
            raise MlaasError(f"{self._path}: a saved model of XGBoost is not trained further.", "Train a new one.")
        if boosting.patience and self.validation is None:
            raise UsageError(f"{self._path}: early_stopping_rounds needs validation events.", "Take it out.")
        self._booster = None
        with tempfile.TemporaryDirectory(prefix="mlaas4hep-xgboost-") as folder, explained(self._path):
            booster = self._boosted(boosting, feed, epoch, Path(folder), progress)
        self._refuse_infinite()
        self.kept = best_round(self.rounds) + 1 if boosting.patience else 0
        self._take(booster[: self.kept] if self.kept else booster)
        progress(feed.events)
        return False

    def _boosted(self, boosting: Boosting, feed: Feed, epoch: int, folder: Path, progress: Progress) -> Any:
        """The trees; nothing refers to the folder any more. `rounds` has the measures of each round."""
        train = self._matrix(feed, epoch, folder / "train")
        parts = [(train, "train")]
        if self.validation is not None:
            parts.append((self._matrix(self.validation, 0, folder / "validation", train), "validation"))
        booster = self._resume(epoch)
        while not boosting.ended(self.rounds):
            first = len(self.rounds)
            booster = xgboost.train(
                boosting.seeded(first),
                train,
                num_boost_round=min(-(-boosting.rounds // _STRETCHES), boosting.rounds - first),
                evals=parts,
                verbose_eval=False,
                # not the booster itself, which would remember more than a checkpoint does
                xgb_model=booster and booster.save_raw("ubj"),
                callbacks=[_Rounds(boosting, self.rounds, progress, feed.events)],
            )
            self._checkpoint(booster, epoch)
        return booster

    def _checkpoint(self, booster: Any, epoch: int) -> None:
        if self.checkpoints is None:
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoints / "partial.ubj"
        booster.set_attr(**{_MEASURED: json.dumps(self.rounds)})
        booster.save_model(partial)
        booster.set_attr(**{_MEASURED: None})
        partial.replace(self.checkpoints / f"epoch_{epoch}.ubj")

    def _resume(self, epoch: int) -> Any:
        """The trees of a training that was killed, with `rounds`; None where there is none."""
        self.rounds = []
        file = self.checkpoints and self.checkpoints / f"epoch_{epoch}.ubj"
        if not file or not file.is_file():
            return None
        booster = _read(file)
        self.rounds = json.loads(booster.attr(_MEASURED))
        booster.set_attr(**{_MEASURED: None})
        return booster

    def _matrix(self, feed: Feed, epoch: int, cache: Path, ref: Any = None) -> Any:
        """The events as XGBoost keeps them; on disk when their bins would take too much of the memory."""
        first = next(feed.chunks(epoch))
        present = float(1.0 - first.mask.mean())
        needed = feed.events * first.values.shape[1] * present * _BYTES_A_VALUE
        if needed <= _SHARE * available_memory():
            return xgboost.QuantileDMatrix(_Chunks(feed, epoch), ref=ref, **self._binned())
        return xgboost.ExtMemQuantileDMatrix(_Chunks(feed, epoch, cache), ref=ref, **self._binned())

    def _binned(self) -> dict[str, Any]:
        """What the bins depend on."""
        parameters = self._boosting.parameters if self._boosting else {}
        threads = parameters.get("n_jobs", parameters.get("nthread"))
        return {"max_bin": parameters.get("max_bin") or 256, "nthread": threads}

    def _refuse_infinite(self) -> None:
        for measures in self.rounds:
            wrong = [name for name, value in measures.items() if not math.isfinite(value)]
            if wrong:
                name, number = wrong[0], int(measures["round"])
                raise MlaasError(
                    f"{name} became {measures[name]} in round {number} of training {self._path}.",
                    "Lower learning_rate, or check the objective and the weights of the events.",
                )

    def _take(self, booster: Any) -> None:
        """Have a trained model, also in the user's estimator, so that it can be exported and used as such."""
        self._booster = booster
        if isinstance(self.native, xgboost.XGBModel):
            self.native.load_model(booster.save_raw("ubj"))
        else:
            self.native = booster

    def evaluate(self, chunk: Chunk) -> tuple[float, NDArray[np.float64]]:
        """Log loss, or mean squared error of a regression; and the predictions."""
        found = self.predict(chunk.values, chunk.mask)
        if self._task.kind == "regression":
            return mean_squared_error(chunk.targets, found[:, 0], chunk.weights), found
        return log_loss(chunk.targets, found, chunk.weights), found

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Probabilities, shape (n, classes), or values, shape (n, 1)."""
        if self._booster is None:
            raise MlaasError(f"The model {self._path} is not trained yet.", "Train it first.")
        with explained(self._path):
            found = np.asarray(self._booster.inplace_predict(_with_nan(values, mask)), dtype=np.float64)
        scores = found.reshape(values.shape[0], -1)
        width_of(scores, self._task, self._path)
        if self._task.kind == "regression":
            return values_of(scores, self._path)
        return probabilities(sigmoid(scores) if self._raw else scores, self._path, "Take another objective.")

    def save(self, folder: Path) -> str:
        """Write the trees in XGBoost's own binary JSON, which holds no code."""
        self._write(folder / MODEL_FILE)
        return MODEL_FILE

    def save_state(self, folder: Path) -> None:
        """Write the trees and the random state."""
        self._write(folder / _STATE_FILE)
        with (folder / _RANDOM_FILE).open("wb") as stream:
            np.savez(stream, **random_state())  # type: ignore[arg-type]

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote. Raises MlaasError for a checkpoint that cannot be read."""
        self._take(_read(folder / _STATE_FILE))
        with np.load(folder / _RANDOM_FILE, allow_pickle=False) as arrays:
            set_random_state({name: arrays[name] for name in arrays.files})

    def _write(self, file: Path) -> None:
        if self._booster is None:
            raise MlaasError(
                f"The model {self._path} is not trained yet, so there is nothing to save.", "Train it first."
            )
        self._booster.save_model(file)


def load_xgboost(file: Path, task: Task) -> XgboostAdapter:
    """A saved model. Raises MlaasError when the file cannot be loaded."""
    return XgboostAdapter(_read(file), task, file)


def _read(file: Path) -> Any:
    booster = xgboost.Booster()
    try:
        booster.load_model(file)
    except (xgboost.core.XGBoostError, OSError, ValueError) as error:
        raise MlaasError(f"The model {file} cannot be loaded ({describe(error)}).", "Train it again.") from error
    return booster


class _Chunks(xgboost.DataIter):  # type: ignore[misc]
    """The chunks of a feed, as XGBoost asks for them: several passes, always in the same order."""

    def __init__(self, feed: Feed, epoch: int, cache: Path | None = None) -> None:
        self._feed = feed
        self._epoch = epoch
        self._left: Iterator[Chunk] = iter(())
        super().__init__(cache_prefix=str(cache) if cache else None, release_data=True)

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Hand over the next chunk; whether there was one."""
        chunk = next(self._left, None)
        if chunk is None:
            return False
        # a new array: XGBoost refers to it until the next chunk
        values = _with_nan(chunk.values, chunk.mask)
        input_data(data=values, label=np.asarray(chunk.targets, dtype=np.float32), weight=chunk.weights)
        return True

    def reset(self) -> None:
        """Start again."""
        self._left = self._feed.chunks(self._epoch)


class _Rounds(xgboost.callback.TrainingCallback):  # type: ignore[misc]
    """After each round, adds its measures to those of the rounds before, and tells the progress."""

    def __init__(self, boosting: Boosting, rounds: list[dict[str, float]], progress: Progress, events: int) -> None:
        super().__init__()
        self._boosting, self._rounds, self._progress, self._events = boosting, rounds, progress, events

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Whether to end."""
        del model, epoch
        measured = {f"{part}_{name}": values[-1] for part, found in evals_log.items() for name, values in found.items()}
        self._rounds.append({"round": float(len(self._rounds) + 1)} | measured)
        self._progress(len(self._rounds) * self._events // self._boosting.rounds)
        return self._boosting.ended(self._rounds)


def _boosting(native: Any, task: Task, path: Path) -> Boosting:
    """Parameters, rounds and patience of an estimator or a dict."""
    if isinstance(native, dict):
        parameters = dict(native)
        rounds = parameters.pop("n_estimators", _ROUNDS)
        patience = parameters.pop("early_stopping_rounds", None)
    else:
        _refuse_other_kind(native, task, path)
        parameters = {name: value for name, value in native.get_xgb_params().items() if value is not None}
        rounds, patience = native.get_num_boosting_rounds(), native.early_stopping_rounds
        if native.eval_metric is not None:
            parameters["eval_metric"] = native.eval_metric
    if callable(parameters.get("eval_metric")) or callable(getattr(native, "objective", None)):
        raise UsageError(f"{path}: objective or eval_metric is a function.", "Give the name of one that XGBoost has.")
    if int(rounds) < 1:
        raise UsageError(f"{path}: n_estimators={rounds} boosts nothing.", "Set it to 1 or more.")
    _refuse_exact(parameters, path)
    parameters["objective"] = _objective(parameters, task, path)
    if task.width > 1 and parameters["objective"].startswith("multi:"):
        parameters["num_class"] = task.width
    if parameters.get("seed") is None and parameters.get("random_state") is None:
        # the parameter `seed` of the workflow has seeded NumPy
        parameters["seed"] = int(np.random.randint(2**31 - 1))
    return Boosting(parameters, int(rounds), patience)


def _refuse_other_kind(native: Any, task: Task, path: Path) -> None:
    wanted = xgboost.XGBClassifier if task.kind == "classification" else xgboost.XGBRegressor
    if not isinstance(native, wanted):
        raise UsageError(
            f"{path}: model returned {type(native).__name__}, but the task is a {task.kind}.",
            f"Return an {wanted.__name__} or a dict of parameters.",
        )


def _refuse_exact(parameters: dict[str, Any], path: Path) -> None:
    method, booster = parameters.get("tree_method", "hist"), parameters.get("booster", "gbtree")
    if method not in ("hist", "auto", "gpu_hist") or booster not in ("gbtree", "dart"):
        name, value = ("booster", booster) if booster not in ("gbtree", "dart") else ("tree_method", method)
        raise UsageError(
            f"{path}: {name}={value!r} needs all events in memory.", 'Take tree_method="hist" and booster="gbtree".'
        )


def _objective(parameters: dict[str, Any], task: Task, path: Path) -> str:
    """The objective that gives what the task needs."""
    given = str(parameters.get("objective") or "")
    if task.kind == "regression":
        if given in _OF_CLASSES:
            raise UsageError(f"{path}: the objective {given} tells classes apart.", "Take reg:squarederror.")
        return given or "reg:squarederror"
    default = "binary:logistic" if task.width == 2 else "multi:softprob"
    if not given or (given == "binary:logistic" and task.width > 2):
        # XGBClassifier has binary:logistic before it has seen any class
        return default
    if given not in _OF_CLASSES or (given.startswith("binary:") and task.width > 2):
        raise UsageError(
            f"{path}: the objective {given} gives no probabilities of {task.width} classes.", f"Take {default}."
        )
    # the same trees, but probabilities instead of class numbers
    return "multi:softprob" if given == "multi:softmax" else given


def _objective_of(booster: Any) -> str:
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _unused(warning: str) -> list[str]:
    """The parameters that a warning of XGBoost says are not used."""
    return re.findall(r'"(\w+)"', warning) if "are not used" in warning else []


def best_round(rounds: Sequence[Mapping[str, float]]) -> int:
    """The round, from 0, that is best by the last measure of the validation events."""
    name = list(rounds[0])[-1]
    measured = [measures[name] for measures in rounds]
    metric = name.split("_", 1)[1]
    large = metric != "mape" and metric.startswith(_GROWING)
    return int(np.argmax(measured) if large else np.argmin(measured))


def _with_nan(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A copy with NaN where there is no value."""
    return np.where(mask, np.float32(np.nan), values)
