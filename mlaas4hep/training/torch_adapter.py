"""PyTorch: a training loop for the module that the user's `model` returns, on one process or several.

What the outputs mean: scores without an end (logits), or probabilities. An attribute of the module says it,
`module.probabilities = True` or `False`. Without it, the module is asked for events drawn at random far outside [0, 1]:
outputs that all lie in [0, 1] (with several columns: and add up to 1) are taken for probabilities. A regression has one
output, the value.

The loss, one value an event, times the event's weight, is averaged over the events of a batch. It is
`def loss(outputs, targets)` of the user's file, or binary cross-entropy, cross-entropy, or the squared error. With
one output, `outputs` and `targets` have the shape (n, 1), float32; with k of them, (n, k), and the targets are class
numbers, shape (n,), int64.

`def torch_train(module, values, targets, ...)` of the user's file replaces the loop: it is called for one chunk of
events after another, with tensors of the shapes (n, idim) and as above, and is to train on each event once. It is also
given what it has parameters for, by these names: `mask`, shape (n, idim), bool; `weights`, shape (n,), float32 or None;
`batch_size`; `optimizer`; `epoch`, from 0. What it returns is taken for the loss if it is a number or a scalar tensor.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.schema import Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Chunk, Feed, Progress, Task
from mlaas4hep.training.launch import Workers
from mlaas4hep.training.outputs import identity, probabilities, sigmoid, softmax, values_of, width_of
from mlaas4hep.training.random_state import random_state, set_random_state
from mlaas4hep.training.torch_gather import densify, joined, pack
from mlaas4hep.training.user_model import UserModel, explained, load_user_model
from mlaas4hep.user_code import describe

MODEL_FILE = "model.pt"
_STATE_FILE, _RANDOM_FILE = "torch_state.pt", "random_state.npz"
# what is gathered at a time on a GPU, values and mask: small portions would only wait for it
_DEVICE_BYTES, _DEVICE_EVENTS = 2**27, 2**16
_PROBED, _SPREAD = 256, 10.0
_MEETING_TIMEOUT = timedelta(hours=6)  # one process may wait for another that measures or writes


class TorchAdapter:
    """A module of PyTorch (see `contract.Adapter`). On a computer with a GPU of CUDA it is trained there.

    Args:
        native: the module.
        task: what is learned.
        user: the user's file: its path, and its functions `loss`, `optimizer` and `torch_train`.
        workers: this process among those that train together.

    Raises UsageError for what is no module, or has no weights.
    """

    framework = "torch"

    def __init__(self, native: Any, task: Task, user: UserModel, workers: Workers | None = None) -> None:
        self._torch = torch = importlib.import_module("torch")
        self._task, self._user, self._path = task, user, user.path
        if not isinstance(native, torch.nn.Module):
            raise UsageError(f"{user.path}: model returned no torch.nn.Module.", "Return the module itself.")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.native = native.to(self._device)
        self.takes_mask = "mask" in inspect.signature(native.forward).parameters
        self.size = sum(weight.numel() for weight in native.parameters())
        if not self.size:
            raise UsageError(f"{user.path}: the module has no weights.", "Give it layers that can be trained.")
        self._outputs = 0
        self._probabilities = False
        self._activation: Callable[[NDArray[np.float64]], NDArray[np.float64]] = identity
        self._group = _Group(torch, workers or Workers.here())
        self._group.agree(self.native)
        with explained(self._path):
            make = user.function("optimizer")
            fused = self._device.type == "cuda"  # one kernel for all weights
            self._optimizer = make(self.native) if make else torch.optim.Adam(native.parameters(), lr=1e-3, fused=fused)
        self._train_chunk = user.function("torch_train")
        self._loss = user.function("loss") or self._default_loss

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Predict a few events, to learn what the outputs are and refuse those that do not fit the task."""
        with explained(self._path):
            self._outputs = width_of(self._output(values, mask), self._task, self._path)
            if self._task.kind == "regression":
                return
            self._probabilities = bool(getattr(self.native, "probabilities", self._bounded(values.shape[1])))
        if not self._probabilities:
            self._activation = sigmoid if self._outputs == 1 else softmax

    def _bounded(self, idim: int) -> bool:
        """Whether the outputs are probabilities even for events that are far from all others."""
        generator = np.random.default_rng(0)
        values = generator.normal(scale=_SPREAD, size=(_PROBED, idim)).astype(np.float32)
        output = self._output(values, np.zeros(values.shape, dtype=np.bool_))
        inside = bool(((output >= 0) & (output <= 1)).all())
        return inside and (self._outputs == 1 or bool(np.allclose(output.sum(axis=1), 1.0, atol=1e-3)))

    def fit_epoch(self, feed: Feed, epoch: int, progress: Progress) -> bool:
        """Train on each event once. Raises MlaasError when the loss is no longer finite."""
        self.native.train()
        done = 0
        plan = iter(()) if self._train_chunk else self._group.plan(feed)
        for moved in self._chunks(feed, epoch):
            with explained(self._path):
                loss = self._user_chunk(moved, feed, epoch) if self._train_chunk else self._chunk(moved, feed, plan)
            self._refuse_infinite(loss, epoch)
            done += len(moved.values)
            progress(done)
        with explained(self._path):
            for together in plan:  # the others have a batch more
                self._step(moved.part(0, feed.batch_size), together, 0.0)
        self._group.agree(self.native)
        return True

    def _chunks(self, feed: Feed, epoch: int) -> Iterator[_Moved]:
        """The events of an epoch on the device; to a GPU they travel packed."""
        if self._device.type == "cpu":
            for chunk in feed.chunks(epoch):
                yield self._moved(chunk.values, chunk.mask, chunk.targets, chunk.weights)
            return
        most = min(_DEVICE_BYTES // (5 * feed.batches.schema.idim), _DEVICE_EVENTS)
        for rows in joined(feed.batches.rows(epoch), most):
            packed = pack(feed.batches.packed, rows)
            values, mask = densify(self._torch, packed, feed.batches.schema, self._device)
            yield self._moved(values, mask, *feed.answers(rows))

    def _refuse_infinite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise MlaasError(
                f"The loss became {loss} in epoch {epoch + 1} of training {self._path}.",
                "Lower the learning rate, or check the loss function and the weights of the events.",
            )

    def _chunk(self, moved: _Moved, feed: Feed, plan: Iterator[int]) -> float:
        """The steps of a chunk; returns a number that is finite if the loss of each step is."""
        total = self._torch.zeros((), device=self._device)
        for first in range(0, len(moved.values), feed.batch_size):
            total += self._step(moved.part(first, first + feed.batch_size), next(plan), 1.0)
        return float(total)

    def _step(self, batch: _Moved, together: int, factor: float) -> Any:
        """One step on the events of a batch; `together` is the number of events of all processes."""
        losses = self._losses(self._forward(batch.values, batch.mask), batch.targets, batch.weights)
        loss = losses.sum() * (factor / together)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._group.add_gradients(self.native)
        self._optimizer.step()
        return loss.detach()

    def _losses(self, outputs: Any, targets: Any, weights: Any) -> Any:
        """The weighted loss of each event, shape (n,)."""
        losses = self._loss(outputs, targets)
        if losses.ndim == 0 and weights is None:
            return losses.expand(len(targets))
        if losses.ndim == 0:
            raise UsageError(
                f"{self._path}: loss gives one value for all events, so it cannot weigh them.",
                'Return a value an event (reduction="none").',
            )
        losses = losses.reshape(len(targets), -1).mean(dim=1)
        return losses if weights is None else losses * weights

    def _default_loss(self, outputs: Any, targets: Any) -> Any:
        functional = self._torch.nn.functional
        if self._task.kind == "regression":
            return functional.mse_loss(outputs, targets, reduction="none")
        if self._outputs == 1:
            entropy = "binary_cross_entropy" if self._probabilities else "binary_cross_entropy_with_logits"
            return getattr(functional, entropy)(outputs, targets, reduction="none")
        if self._probabilities:
            tiny = self._torch.finfo(outputs.dtype).tiny
            return functional.nll_loss(outputs.clamp_min(tiny).log(), targets, reduction="none")
        return functional.cross_entropy(outputs, targets, reduction="none")

    def _user_chunk(self, moved: _Moved, feed: Feed, epoch: int) -> float:
        if self._group.world > 1:
            raise UsageError(f"{self._path}: torch_train cannot be shared by several workers.", "Set workers to 1.")
        train: Any = self._train_chunk
        known = {"mask": moved.mask, "weights": moved.weights, "batch_size": feed.batch_size}
        known |= {"optimizer": self._optimizer, "epoch": epoch}
        asked = inspect.signature(train).parameters
        loss = train(self.native, moved.values, moved.targets, **{name: known[name] for name in known if name in asked})
        scalar = isinstance(loss, int | float) or (isinstance(loss, self._torch.Tensor) and loss.numel() == 1)
        return float(loss) if scalar else 0.0

    def evaluate(self, chunk: Chunk) -> tuple[float, NDArray[np.float64]]:
        """Mean of the model's loss over events that are not trained on, and their predictions."""
        self.native.eval()
        with explained(self._path), self._torch.no_grad():
            moved = self._moved(chunk.values, chunk.mask, chunk.targets, chunk.weights)
            outputs = self._forward(moved.values, moved.mask)
            loss = self._losses(outputs, moved.targets, moved.weights).mean()
        return float(loss), self._predictions(outputs.cpu().numpy())

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Probabilities, shape (n, classes), or values, shape (n, 1)."""
        with explained(self._path):
            return self._predictions(self._output(values, mask))

    def _output(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[Any]:
        self.native.eval()
        with self._torch.no_grad():
            outputs = self._forward(self._tensor(values), self._tensor(mask) if self.takes_mask else None)
        return np.asarray(outputs.cpu().numpy())

    def _forward(self, values: Any, mask: Any) -> Any:
        return self.native(values, mask=mask) if self.takes_mask else self.native(values)

    def _predictions(self, output: NDArray[Any]) -> NDArray[np.float64]:
        scores = self._activation(output.astype(np.float64))
        if self._task.kind == "regression":
            return values_of(scores, self._path)
        return probabilities(scores, self._path, "Say module.probabilities = False if they are scores without an end.")

    def _tensor(self, array: Any) -> Any:
        """An array on the device; a tensor is there already."""
        return array if self._torch.is_tensor(array) else self._torch.from_numpy(array).to(self._device)

    def _moved(self, values: Any, mask: Any, targets: NDArray[Any], weights: NDArray[np.float32] | None) -> _Moved:
        """A chunk on the device, with the targets as the loss takes them, and the mask only where it is wanted."""
        if self._task.kind == "regression" or self._outputs == 1:
            targets = targets[:, None].astype(np.float32)
        wanted = self.takes_mask or self._train_chunk is not None
        return _Moved(
            self._tensor(values),
            self._tensor(mask) if wanted else None,
            self._tensor(targets),
            None if weights is None else self._tensor(weights),
        )

    def save(self, folder: Path) -> str:
        """Write the weights; the module itself is made by the user's file."""
        state = {name: tensor.cpu() for name, tensor in self.native.state_dict().items()}
        self._torch.save(state, folder / MODEL_FILE)
        return MODEL_FILE

    def save_state(self, folder: Path) -> None:
        """Write weights, the optimizer's state and the random state."""
        state = {"module": self.native.state_dict(), "optimizer": self._optimizer.state_dict()}
        self._torch.save(state, folder / _STATE_FILE)
        with (folder / _RANDOM_FILE).open("wb") as stream:
            np.savez(stream, **random_state())  # type: ignore[arg-type]

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote. Raises MlaasError for a checkpoint of another model."""
        state = _read(self._torch, folder / _STATE_FILE, self._device)
        try:
            self.native.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            with np.load(folder / _RANDOM_FILE, allow_pickle=False) as arrays:
                set_random_state({name: arrays[name] for name in arrays.files})
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise MlaasError(
                f"The checkpoint {folder} is of another model than {self._path} ({describe(error)}).", "Train again."
            ) from error


def load_torch(file: Path, task: Task, schema: Schema, code: Path) -> TorchAdapter:
    """A saved module, made by the user's file `code`. Raises MlaasError when the file does not hold its weights."""
    user = load_user_model(code)
    adapter = TorchAdapter(user.build(schema), task, user, Workers())
    torch = importlib.import_module("torch")
    try:
        adapter.native.load_state_dict(_read(torch, file, "cpu"))
    except RuntimeError as error:
        raise MlaasError(f"The model {file} does not hold the weights of {code} ({describe(error)}).") from error
    return adapter


def _read(torch: Any, file: Path, device: Any) -> Any:
    """Tensors of a file, and nothing that could run code."""
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        raise MlaasError(f"{file} cannot be read ({describe(error)}).", "Train again.") from error


@dataclass(frozen=True)
class _Moved:
    """Events as tensors on the device: a `contract.Chunk` without its rows."""

    values: Any
    mask: Any
    targets: Any
    weights: Any

    def part(self, first: int, last: int) -> _Moved:
        """The events [first, last)."""
        tensors = (self.values, self.mask, self.targets, self.weights)
        return _Moved(*(None if tensor is None else tensor[first:last] for tensor in tensors))


class _Group:
    """The processes that train together; a single one needs no meeting."""

    def __init__(self, torch: Any, workers: Workers) -> None:
        self.world = workers.world
        self._torch = torch
        self._distributed = importlib.import_module("torch.distributed")
        if self.world > 1 and not self._distributed.is_initialized():
            self._distributed.init_process_group(
                "gloo",
                init_method=workers.rendezvous,
                rank=workers.rank,
                world_size=workers.world,
                timeout=_MEETING_TIMEOUT,
            )

    def agree(self, module: Any) -> None:
        """All take the weights, and other state such as running means, of the first."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                self._distributed.broadcast(tensor, 0)

    def plan(self, feed: Feed) -> Iterator[int]:
        """For each step of an epoch the number of events of all processes together."""
        events = [feed.events]
        if self.world > 1:
            events = [0] * self.world
            self._distributed.all_gather_object(events, feed.events)
        size = feed.batch_size
        for first in range(0, max(events), size):
            yield sum(min(max(count - first, 0), size) for count in events)

    def add_gradients(self, module: Any) -> None:
        """Replace each gradient by the sum over all processes."""
        if self.world > 1:
            gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
            flat = self._torch.cat([gradient.reshape(-1) for gradient in gradients])
            self._distributed.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.reshape(gradient.shape))
