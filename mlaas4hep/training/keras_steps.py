"""Training steps of a Keras model, all those of a chunk in one call: what a small network costs is the call.

The steps are those of `train_on_batch` on one batch after another, without the metrics that the model was compiled
with. How they are joined depends on the backend:

==========  ========================================================================================================
TensorFlow  a loop inside one graph
JAX         a loop inside one compiled program
PyTorch     one step is recorded as a flat list of tensor operations, which then runs without Keras in between; before
            it is used, its results are compared with those of Keras itself
==========  ========================================================================================================

A model whose class has a training step of its own, or that was compiled with `run_eagerly`, is trained by
`train_on_batch`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.training.random_state import random_state, set_random_state

_COMPARED_STEPS = 3
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6


@dataclass(frozen=True)
class Fed:
    """What a model is trained on, the first axis being the events.

    Attributes:
        x: its inputs, in order.
        y: the targets as its loss takes them.
        weights: shape (n,), or None.
    """

    x: tuple[Any, ...]
    y: Any
    weights: Any

    def part(self, first: int, last: int) -> Fed:
        """The events [first, last)."""
        weights = None if self.weights is None else self.weights[first:last]
        return Fed(tuple(array[first:last] for array in self.x), self.y[first:last], weights)

    def batches(self, size: int) -> Iterator[Fed]:
        """Whole batches, and what remains."""
        for first in range(0, len(self.y), size):
            yield self.part(first, first + size)


class Steps(Protocol):
    """The training steps of one model."""

    def run(self, fed: Fed, batch_size: int) -> float:
        """One step a batch; returns a number that is finite if the loss of each step is."""


def make_steps(keras: Any, model: Any) -> Steps:
    """The fastest steps that mean the same as `train_on_batch`."""
    own = "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step
    own = own or type(model).make_train_function is not keras.Model.make_train_function
    if own or model.run_eagerly or keras.distribution.distribution() is not None:
        return PlainSteps(keras, model)
    return _KINDS.get(keras.backend.backend(), PlainSteps)(keras, model)


class PlainSteps:
    """`train_on_batch`, for each batch."""

    def __init__(self, keras: Any, model: Any) -> None:
        self._model = model
        self._dtypes = [
            keras.backend.standardize_dtype(tensor.dtype) for tensor in getattr(model, "inputs", None) or []
        ]

    def run(self, fed: Fed, batch_size: int) -> float:
        """See `Steps`."""
        total = 0.0
        for batch in fed.batches(batch_size):
            x = [array.astype(dtype, copy=False) for array, dtype in zip(batch.x, self._dtypes, strict=False)]
            x = x or list(batch.x)
            logs = self._model.train_on_batch(_inputs(x), batch.y, sample_weight=batch.weights, return_dict=True)
            total += float(logs["loss"])
        return total


class _Forward:
    """The loss of a batch, as Keras computes it in training."""

    def __init__(self, keras: Any, model: Any) -> None:
        self.model = model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._cast = keras.ops.cast
        self._dtypes = [tensor.dtype for tensor in getattr(model, "inputs", None) or []]
        self._call = _training(model.call)
        self._loss = _training(model.compute_loss)

    def loss(self, batch: Fed) -> Any:
        """A scalar tensor."""
        x = self.cast(batch.x)
        output = self.model(x, **self._call)
        return self.model.compute_loss(x=x, y=batch.y, y_pred=output, sample_weight=batch.weights, **self._loss)

    def cast(self, x: Sequence[Any]) -> Any:
        """The inputs as the model's types: the mask comes as bool."""
        if self._dtypes:
            x = [self._cast(tensor, dtype) for tensor, dtype in zip(x, self._dtypes, strict=True)]
        return _inputs(x)


def _training(function: Any) -> dict[str, bool]:
    return {"training": True} if "training" in inspect.signature(function).parameters else {}


def _inputs(x: Sequence[Any]) -> Any:
    return x[0] if len(x) == 1 else list(x)


class TensorFlowSteps:
    """A loop over the batches inside one graph; another graph for a smaller batch at the end."""

    def __init__(self, keras: Any, model: Any) -> None:
        self._tf = importlib.import_module("tensorflow")
        self._forward = _Forward(keras, model)
        self._model = model
        self._graphs: dict[int, Any] = {}

    def run(self, fed: Fed, batch_size: int) -> float:
        """See `Steps`."""
        whole = len(fed.y) // batch_size * batch_size
        total = 0.0
        if whole:
            total += self._call(batch_size, fed.part(0, whole))
        if whole < len(fed.y):
            total += self._call(0, fed.part(whole, len(fed.y)))
        return total

    def _call(self, size: int, fed: Fed) -> float:
        """Run the graph for batches of a size; 0 makes one step of all events."""
        if size not in self._graphs:
            body = self._loop(size) if size else self._step
            self._graphs[size] = self._tf.function(body, autograph=False, reduce_retracing=True)
        tensors = self._tf.nest.map_structure(self._tf.convert_to_tensor, (fed.x, fed.y))
        weights = None if fed.weights is None else self._tf.convert_to_tensor(fed.weights)
        return float(self._graphs[size](*tensors, weights))

    def _step(self, x: Any, y: Any, weights: Any) -> Any:
        optimizer = self._model.optimizer
        with self._tf.GradientTape() as tape:
            loss = self._forward.loss(Fed(x, y, weights))
            scaled = optimizer.scale_loss(loss)
        trained = self._model.trainable_weights
        optimizer.apply(tape.gradient(scaled, trained), trained)
        return loss

    def _loop(self, size: int) -> Any:
        tf = self._tf

        def cut(array: Any, first: Any) -> Any:
            part = array[first : first + size]
            part.set_shape((size, *array.shape[1:]))
            return part

        def loop(x: Any, y: Any, weights: Any) -> Any:
            def body(first: Any, total: Any) -> tuple[Any, Any]:
                part: tuple[Any, Any] = tf.nest.map_structure(lambda array: cut(array, first), (x, y))
                loss = self._step(part[0], part[1], None if weights is None else cut(weights, first))
                return first + size, total + tf.cast(loss, tf.float32)

            events = tf.shape(y)[0]
            _, total = tf.while_loop(
                lambda first, _: first < events, body, (tf.constant(0), tf.constant(0.0)), parallel_iterations=1
            )
            return total

        return loop


class JaxSteps:
    """A loop over the batches inside one compiled program, whose arrays have room for the largest chunk."""

    def __init__(self, keras: Any, model: Any) -> None:
        self._jax = importlib.import_module("jax")
        self._forward = _Forward(keras, model)
        self._model = model
        self._room = 0
        self._gradient = self._jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)
        self._loops: dict[int, Any] = {}
        self._single = self._jax.jit(self._step, donate_argnums=0)

    def run(self, fed: Fed, batch_size: int) -> float:
        """See `Steps`."""
        events = len(fed.y)
        count = events // batch_size
        state, total = self._state(), 0.0
        if count:
            self._room = max(self._room, count * batch_size)
            if batch_size not in self._loops:
                self._loops[batch_size] = self._jax.jit(self._loop(batch_size), donate_argnums=0)
            state, losses = self._loops[batch_size](state, self._padded(fed.part(0, count * batch_size)), count)
            total += float(losses)
        if count * batch_size < events:
            rest = fed.part(count * batch_size, events)
            state, loss = self._single(state, (rest.x, rest.y, rest.weights))
            total += float(loss)
        self._take(state)
        return total

    def _padded(self, fed: Fed) -> Any:
        missing = self._room - len(fed.y)
        arrays = (fed.x, fed.y, fed.weights)
        if not missing:
            return arrays
        return self._jax.tree.map(lambda array: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)), arrays)

    def _step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        trained, others, optimizer, metrics = state
        x, y, weights = batch
        (_, (loss, _, others, metrics)), gradients = self._gradient(
            trained,
            others,
            metrics,
            self._forward.cast(x),
            y,
            weights,
            training=True,
            optimizer_variables=optimizer,
        )
        trained, optimizer = self._model.optimizer.stateless_apply(optimizer, gradients, trained)
        return (trained, others, optimizer, metrics), loss

    def _loop(self, size: int) -> Any:
        lax, tree = self._jax.lax, self._jax.tree

        def loop(state: Any, arrays: Any, count: Any) -> Any:
            def body(number: Any, carried: Any) -> Any:
                state, total = carried
                batch = tree.map(lambda array: lax.dynamic_slice_in_dim(array, number * size, size), arrays)
                state, loss = self._step(state, batch)
                return state, total + loss.astype("float32")

            return lax.fori_loop(0, count, body, (state, self._jax.numpy.float32(0.0)))

        return loop

    def _variables(self) -> tuple[list[Any], ...]:
        model = self._model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )

    def _state(self) -> tuple[list[Any], ...]:
        return tuple([variable.value for variable in variables] for variables in self._variables())

    def _take(self, state: tuple[list[Any], ...]) -> None:
        for variables, values in zip(self._variables(), state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


class TorchSteps:
    """One recorded step, run again and again; the step of Keras itself where it cannot be recorded."""

    def __init__(self, keras: Any, model: Any) -> None:
        self._torch = importlib.import_module("torch")
        self._tensor = keras.ops.convert_to_tensor
        self._forward = _Forward(keras, model)
        self._model = model
        self._recorded: dict[int, Any] = {}

    def run(self, fed: Fed, batch_size: int) -> float:
        """See `Steps`."""
        weights = None if fed.weights is None else self._tensor(fed.weights)
        fed = Fed(tuple(self._tensor(array) for array in fed.x), self._tensor(fed.y), weights)
        if batch_size not in self._recorded and len(fed.y) >= batch_size:
            self._recorded[batch_size] = self._record(fed, batch_size)
        total = self._torch.zeros((), device=fed.y.device)
        for batch in fed.batches(batch_size):
            step = self._recorded[batch_size] if len(batch.y) == batch_size else self._step
            total += step(batch.x, batch.y, batch.weights)
        return float(total)

    def _step(self, x: Any, y: Any, weights: Any) -> Any:
        return self._apply(*self._gradients(x, y, weights))

    def _gradients(self, x: Any, y: Any, weights: Any) -> tuple[Any, list[Any]]:
        """The loss of a batch, and its gradient for each trainable weight."""
        loss = self._forward.loss(Fed(x, y, weights))
        trained = [variable.value for variable in self._model.trainable_weights]
        scaled = self._model.optimizer.scale_loss(loss)
        return loss.detach(), list(self._torch.autograd.grad(scaled, trained, allow_unused=True))

    def _apply(self, loss: Any, gradients: list[Any]) -> Any:
        with self._torch.no_grad():
            self._model.optimizer.apply(list(gradients), list(self._model.trainable_weights))
        return loss

    def _record(self, fed: Fed, size: int) -> Any:
        """The step as a list of tensor operations, if it does what the step does; else the step itself.

        Some optimizers make numbers of tensors, which cannot be recorded: they then follow the recorded gradients.
        What Python code of the model decides by values of tensors, or draws outside the tensors, is not in the record:
        the comparison of several steps tells.
        """
        batches = [batch for batch in fed.batches(size) if len(batch.y) == size][:_COMPARED_STEPS]
        batches = (batches * _COMPARED_STEPS)[:_COMPARED_STEPS]
        before = self._state()
        expected = self._after(self._step, batches, before)
        for make in (self._whole, self._recorded_gradients):
            try:
                step = make(batches[0])
                got = self._after(step, batches, before)
            except Exception:
                # what the recorder cannot follow is trained all the same, only slower
                self._restore(before)
                continue
            if _agree(got, expected):
                return step
        return self._step

    def _whole(self, batch: Fed) -> Any:
        return self._torch.no_grad()(self._graph(self._step, batch))

    def _recorded_gradients(self, batch: Fed) -> Any:
        graph = self._torch.no_grad()(self._graph(self._gradients, batch))
        return lambda x, y, weights: self._apply(*graph(x, y, weights))

    def _graph(self, function: Any, batch: Fed) -> Any:
        def recorded(x: Any, y: Any, weights: Any) -> Any:
            # the recorder counts the parameters of a plain function only
            return function(x, y, weights)

        make_fx = importlib.import_module("torch.fx.experimental.proxy_tensor").make_fx
        graph = make_fx(recorded)(batch.x, batch.y, batch.weights)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph

    def _after(self, step: Any, batches: list[Fed], before: Any) -> list[NDArray[Any]]:
        """All variables after some steps from a state, to which the model returns."""
        self._restore(before)
        for batch in batches:
            step(batch.x, batch.y, batch.weights)
        after = [value.detach().cpu().numpy().copy() for value in self._values()]
        self._restore(before)
        return after

    def _values(self) -> list[Any]:
        return [variable.value for variable in (*self._model.variables, *self._model.optimizer.variables)]

    def _state(self) -> tuple[list[Any], dict[str, NDArray[Any]]]:
        return [value.detach().clone() for value in self._values()], random_state()

    def _restore(self, state: tuple[list[Any], dict[str, NDArray[Any]]]) -> None:
        values, generators = state
        with self._torch.no_grad():
            for variable, value in zip(self._values(), values, strict=True):
                variable.copy_(value)
        set_random_state(generators)


_KINDS: dict[str, Callable[[Any, Any], Steps]] = {
    "tensorflow": TensorFlowSteps,
    "jax": JaxSteps,
    "torch": TorchSteps,
}


def _agree(got: list[NDArray[Any]], expected: list[NDArray[Any]]) -> bool:
    return all(
        np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
        for one, other in zip(got, expected, strict=True)
    )
