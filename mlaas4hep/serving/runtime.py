"""Models in memory: loaded when they are first used, predicted with by ONNX Runtime, evicted when memory runs short.

A prediction that takes less than INLINE seconds runs where it is asked for; a longer one in a thread, so that others
are answered meanwhile. How long one takes is measured when the model is loaded. Requests are not put together into
batches: on a CPU one row costs ONNX Runtime about a tenth of what its HTTP request costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.schema import Kind
from mlaas4hep.errors import MlaasError
from mlaas4hep.serving import metrics
from mlaas4hep.serving.checks import CheckedModel, check_model
from mlaas4hep.serving.events import EventReader
from mlaas4hep.serving.repository import ModelFacts, Repository, UnknownModelError
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.training.onnx_model import MASK, VALUES
from mlaas4hep.training.prediction import Predictor

INLINE = 0.002
_PROBED_ROWS = 256
_QUICK = 0.01
_OVERHEAD = 2**20  # bytes of a session beside its weights
_RETRY = 30.0  # seconds until a model that could not be loaded is tried again
_FATAL = 4
_THREADS = 4
_Result = TypeVar("_Result")
_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
_log = logging.getLogger("mlaas4hep.serving")


class ModelFailedError(MlaasError):
    """A model that is there cannot be used (HTTP 503)."""


class TooSlowError(MlaasError):
    """A prediction took longer than it may (HTTP 504)."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model: its name, NumPy type and shape (-1 for a dimension of any size)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class LoadedModel:
    """A network that is ready to predict.

    Args:
        facts: which model.
        version: which version of it.
        checked: its folder, checked.
        limit: seconds that a prediction may take.

    Attributes:
        platform: what predicts, in the words of the Open Inference Protocol.
        threads: where its predictions are waited for that are not quick; None for those of all models.

    Raises MlaasError when ONNX Runtime cannot load it.
    """

    platform = "onnxruntime_onnx"
    threads: ThreadPoolExecutor | None = None

    def __init__(self, facts: ModelFacts, version: int, checked: CheckedModel, limit: float) -> None:
        import onnxruntime

        if checked.bundle is not None and checked.bundle.runtime != "onnx":
            raise MlaasError(
                f"The model runs in {checked.bundle.framework} only, because ONNX cannot express it.",
                "Predict with a job, or with mlaas4hep predict.",
            )
        self.facts = facts
        self.version = version
        self.version_text = str(version)
        self.bundle = checked.bundle
        self.labels = checked.labels
        self.params = checked.params
        self.network = checked.network
        self._limit = limit
        self.bytes = 2 * checked.bytes + _OVERHEAD
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(checked.network), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise MlaasError("ONNX Runtime cannot load the network.", "Export it again.") from error
        self.inputs = {spec.name: spec for spec in map(_spec, self._session.get_inputs())}
        self.outputs = {spec.name: spec for spec in map(_spec, self._session.get_outputs())}
        # whether the first dimension of every input counts events
        self.batched = all(spec.shape and spec.shape[0] == -1 for spec in self.inputs.values())
        self._names = list(self.outputs)
        # a user's Python file is not run in this process
        own = checked.bundle is not None and not checked.bundle.preprocessing_file
        self.predictor = Predictor(checked.bundle, self) if own and checked.bundle else None
        direct = self.predictor is not None and not self.predictor.preprocesses
        self.events = EventReader(checked.bundle.schema, direct) if checked.bundle else None
        self._first, self._per_row = INLINE, INLINE
        if self.predictor is not None:
            self._warm(self.predictor)
        if not checked.open_ended and self.batched:
            self._first = self._timed(1)
            slow = self._first > _QUICK
            self._per_row = self._first if slow else self._timed(_PROBED_ROWS) / _PROBED_ROWS

    def quick(self, rows: int) -> bool:
        """Whether a prediction of some rows is over before others would notice."""
        return self._first + rows * self._per_row < INLINE

    def run(self, feed: Mapping[str, NDArray[Any]], rows: int, names: list[str] | None = None) -> list[NDArray[Any]]:
        """The outputs of some names, or all in order.

        Raises MlaasError when the network cannot take the inputs, TooSlowError when it takes too long.
        """
        if self.quick(rows):
            return self._run(feed, names, None)
        import onnxruntime

        options = onnxruntime.RunOptions()
        timer = threading.Timer(self._limit, setattr, (options, "terminate", True))
        timer.start()
        try:
            return self._run(feed, names, options)
        finally:
            timer.cancel()

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Predictions of a bundle, shape (n, width), as `mlaas4hep.training.prediction.Model` gives them."""
        feed: dict[str, NDArray[Any]] = {VALUES: values}
        if MASK in self.inputs:
            feed[MASK] = mask.astype(np.float32)
        return self.run(feed, values.shape[0])[0].astype(np.float64)

    def _run(self, feed: Mapping[str, NDArray[Any]], names: list[str] | None, options: Any) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self._session.run(names or self._names, feed, options)
        except Exception as error:
            if options is not None and options.terminate:
                raise TooSlowError("The prediction takes longer than it may.", "Send fewer events.") from error
            raise MlaasError("The network cannot be run with these inputs.", "Check their shapes.") from error
        return found

    def release(self) -> None:
        """Let go of what would keep the network in memory."""
        self.predictor = None

    @staticmethod
    def _warm(predictor: Predictor) -> None:
        """Have the compiled kernels loaded before the first request needs them."""
        columns: dict[str, Column] = {}
        for branch in predictor.branches:
            if branch.kind not in (Kind.FLAT, Kind.BOOL, Kind.JAGGED):
                return
            jagged = branch.kind is Kind.JAGGED
            columns[branch.name] = JaggedValues(np.array([0, 1]), np.ones(1)) if jagged else FlatValues(np.ones(1))
        with contextlib.suppress(MlaasError):
            predictor.predict(Block(0, 1, columns))

    def _timed(self, rows: int) -> float:
        """Seconds that a prediction of zeros takes, the quicker of two."""
        feed = {
            spec.name: np.zeros((rows, *(max(size, 1) for size in spec.shape[1:])), dtype=spec.dtype)
            for spec in self.inputs.values()
        }
        best = INLINE
        for _ in range(2):
            started = time.perf_counter()
            try:
                self._session.run(self._names, feed)
            except Exception:
                return INLINE
            best = min(best, time.perf_counter() - started)
        return best


def _spec(node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise MlaasError(f"The network has the tensor {node.name} of the type {node.type}.", "Use numbers only.")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)


@dataclass(frozen=True)
class _Failure:
    reason: str
    until: float


Loader = Callable[[ModelFacts, int, CheckedModel, float], LoadedModel]
_Identity = tuple[int, int]
_Place = tuple[str, str, int]


class Runtime:
    """The models that this process has loaded.

    Args:
        repository: where they are.
        settings: how much memory they may take, and how long a prediction.
        load: makes a model of a checked folder.
    """

    def __init__(self, repository: Repository, settings: ServingSettings, load: Loader = LoadedModel) -> None:
        self.repository = repository
        self.settings = settings
        self._load_model = load
        self._loaded: OrderedDict[_Place, tuple[_Identity, LoadedModel]] = OrderedDict()
        self._current: dict[tuple[str, str], tuple[ModelFacts, LoadedModel]] = {}
        self._failed: dict[_Place, tuple[_Identity, _Failure]] = {}
        self._locks: WeakValueDictionary[_Place, asyncio.Lock] = WeakValueDictionary()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="predict")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def at_once(self, facts: ModelFacts) -> LoadedModel | None:
        """The model for requests that name no version, if it is loaded and nothing has changed since."""
        found = self._current.get((facts.namespace, facts.name))
        if found is None or found[0] is not facts:
            return None
        model = found[1]
        self._loaded.move_to_end((facts.namespace, facts.name, model.version))
        return model

    async def model(self, facts: ModelFacts, version: int | None = None) -> LoadedModel:
        """The model, loaded when it is not yet.

        Without a version it is the one that is preferred among those that can be loaded: a version that cannot be
        leaves the one before it in use.

        Raises UnknownModelError for a version that there is not, ModelFailedError.
        """
        if facts.broken:
            raise ModelFailedError(f"The model {facts.name} cannot be used: {facts.broken}")
        if version is not None:
            if version not in facts.versions:
                raise UnknownModelError(facts.name, str(version))
            return await self._get(facts, version)
        first: ModelFailedError | None = None
        for candidate in facts.preference:
            try:
                model = await self._get(facts, candidate)
            except ModelFailedError as error:
                first = first or error
                continue
            if first is None:
                self._current[facts.namespace, facts.name] = (facts, model)
            return model
        raise first or UnknownModelError(facts.name)

    def state(self, facts: ModelFacts, version: int) -> tuple[str, str]:
        """`READY`, `UNAVAILABLE` with the reason, or `UNKNOWN` for a version that this process has not tried yet."""
        place, identity = (facts.namespace, facts.name, version), self._identity(facts, version)
        if (found := self._loaded.get(place)) and found[0] == identity:
            return "READY", ""
        if (failed := self._failed.get(place)) and failed[0] == identity:
            return "UNAVAILABLE", failed[1].reason
        return "UNKNOWN", ""

    async def in_thread(
        self, work: Callable[..., _Result], *arguments: Any, threads: ThreadPoolExecutor | None = None
    ) -> _Result:
        """Do something that takes a while beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(threads or self._threads, work, *arguments)

    async def _get(self, facts: ModelFacts, version: int) -> LoadedModel:
        place, identity = (facts.namespace, facts.name, version), self._identity(facts, version)
        if identity is None:
            raise ModelFailedError(f"The version {version} of {facts.name} is gone.")
        lock = self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            if (found := self._loaded.get(place)) and found[0] == identity:
                self._loaded.move_to_end(place)
                return found[1]
            failed = self._failed.get(place)
            if failed and failed[0] == identity and failed[1].until > time.monotonic():
                raise ModelFailedError(failed[1].reason)
            try:
                model = await self.in_thread(self._load, facts, version)
            except MlaasError as error:
                reason = f"The version {version} of {facts.name} cannot be used: {error}"
                self._failed[place] = (identity, _Failure(reason, time.monotonic() + _RETRY))
                metrics.FAILED_LOADS.inc()
                _log.warning("%s: %s", facts.namespace, reason)
                raise ModelFailedError(reason) from error
            self._failed.pop(place, None)
            self._make_room(model.bytes)
            self._loaded[place] = (identity, model)
            metrics.LOADED_BYTES.set(self._bytes())
            return model

    def _load(self, facts: ModelFacts, version: int) -> LoadedModel:
        folder = self.repository.path(facts, version)
        checked = check_model(folder, min(self.settings.model_bytes, self.settings.memory // 2))
        return self._load_model(facts, version, checked, self.settings.seconds)

    def _make_room(self, needed: int) -> None:
        """Let go of the models that were used longest ago; one that is predicting lives until it has answered."""
        while self._loaded and self._bytes() + needed > self.settings.memory:
            (namespace, name, version), (_, evicted) = self._loaded.popitem(last=False)
            evicted.release()
            current = self._current.get((namespace, name))
            if current is not None and current[1].version == version:
                del self._current[namespace, name]
            metrics.EVICTIONS.inc()

    def _bytes(self) -> int:
        return sum(model.bytes for _, model in self._loaded.values())

    def _identity(self, facts: ModelFacts, version: int) -> _Identity | None:
        """Tells a folder from another one of the same version that came after it."""
        try:
            state = self.repository.path(facts, version).stat()
        except OSError:
            return None
        return state.st_ino, state.st_ctime_ns
