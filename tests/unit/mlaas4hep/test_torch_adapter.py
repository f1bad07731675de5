"""PyTorch: the loop is the textbook's, outputs are understood, and a checkpoint forgets nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlaas4hep.data.batches import Batch, Gatherer, PackedEvents
from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.adapters import load_adapter, make_adapter
from mlaas4hep.training.contract import Feed, Task
from mlaas4hep.training.random_state import set_seed
from mlaas4hep.training.torch_gather import densify, joined, pack
from mlaas4hep.training.user_model import load_user_model

torch = pytest.importorskip("torch")

WIDTH, EVENTS, BATCH, CHUNK = 5, 37, 8, 16
GENERATOR = np.random.default_rng(2)
VALUES = GENERATOR.normal(size=(EVENTS, WIDTH)).astype(np.float32)
MASK = GENERATOR.random((EVENTS, WIDTH)) < 0.4
CLASSES = GENERATOR.integers(0, 3, EVENTS)
WEIGHTS = GENERATOR.random(EVENTS).astype(np.float32)
SCHEMA = Schema(
    flat=tuple(FlatColumn(f"x{i}", f"x{i}") for i in range(WIDTH)),
    jagged=(),
    shift=(0.0,) * WIDTH,
    width=(1.0,) * WIDTH,
)
TWO, THREE = Task("classification", ("0", "1")), Task("classification", ("a", "b", "c"))
HEAD = "import torch\nfrom torch import nn\n\n"


class InMemory:
    """Batches of these events; each chunk lies in the same buffer, as those of a store do."""

    events, batch_size = EVENTS, BATCH

    def chunks(self, epoch: int) -> Iterator[Batch]:
        values, mask = np.empty((CHUNK, WIDTH), np.float32), np.empty((CHUNK, WIDTH), np.bool_)
        for first in range(0, EVENTS, CHUNK):
            rows = np.arange(first, min(first + CHUNK, EVENTS))
            values[: rows.size], mask[: rows.size] = VALUES[rows], MASK[rows]
            yield Batch(rows, values[: rows.size], mask[: rows.size])
            values.fill(np.nan)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def made(tmp_path: Path):
    """An adapter of a user's file, checked as before a training."""

    def make(source: str, task: Task, seed: int = 1):
        (tmp_path / "model.py").write_text(HEAD + source)
        user = load_user_model(tmp_path / "model.py")
        set_seed(seed)
        adapter = make_adapter(user.build(SCHEMA), task, user)
        adapter.check(VALUES[:2], MASK[:2])
        return adapter

    return make


def fit(adapter, targets, weights=None, epochs=range(1)) -> list[int]:
    done: list[int] = []
    for epoch in epochs:
        adapter.fit_epoch(Feed(InMemory(), targets, weights), epoch, done.append)
    return done


def weights_of(adapter) -> list[np.ndarray]:
    return [tensor.detach().numpy().copy() for tensor in adapter.native.state_dict().values()]


LINEAR = "def model(idim):\n    return nn.Linear(idim, {outputs})\n"
END = "def model(idim):\n    return nn.Sequential(nn.Linear(idim, {outputs}), nn.{end})\n"


@pytest.mark.parametrize(
    ("source", "task", "loss"),
    [
        (LINEAR.format(outputs=1), TWO, lambda out, y: torch.nn.BCEWithLogitsLoss(reduction="none")(out[:, 0], y)),
        (END.format(outputs=1, end="Sigmoid()"), TWO, lambda out, y: torch.nn.BCELoss(reduction="none")(out[:, 0], y)),
        (LINEAR.format(outputs=3), THREE, lambda out, y: torch.nn.CrossEntropyLoss(reduction="none")(out, y.long())),
        (END.format(outputs=3, end="Softmax(1)"), THREE, lambda out, y: -out[torch.arange(len(y)), y.long()].log()),
        (LINEAR.format(outputs=1), Task("regression"), lambda out, y: (out[:, 0] - y) ** 2),
    ],
)
def test_an_epoch_is_that_of_a_plain_loop_with_adam(made, source: str, task: Task, loss) -> None:
    targets = CLASSES % max(task.width, 2) if task.classes else VALUES.sum(axis=1).astype(np.float64)
    adapter, plain = made(source, task), made(source, task).native
    assert fit(adapter, targets, WEIGHTS) == [16, 32, 37]
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for first in range(0, EVENTS, BATCH):
        x, y, w = (torch.from_numpy(array[first : first + BATCH]).float() for array in (VALUES, targets, WEIGHTS))
        optimizer.zero_grad()
        (loss(plain(x), y) * w).mean().backward()
        optimizer.step()
    for one, other in zip(weights_of(adapter), plain.state_dict().values(), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-6)


@pytest.mark.parametrize(("source", "task"), [(LINEAR.format(outputs=3), THREE), (LINEAR.format(outputs=1), TWO)])
def test_scores_without_an_end_become_probabilities(made, source: str, task: Task) -> None:
    adapter = made(source, task)
    predictions = adapter.predict(VALUES, MASK)
    np.testing.assert_allclose(predictions.sum(axis=1), 1.0, atol=1e-6)
    scores = adapter.native(torch.from_numpy(VALUES)).detach().numpy()
    order = predictions.argsort(axis=1) if task is THREE else predictions[:, 1].argsort()
    np.testing.assert_array_equal(order, scores.argsort(axis=1) if task is THREE else scores[:, 0].argsort())


def test_an_attribute_says_what_the_outputs_are(made) -> None:
    adapter = made(END.format(outputs=1, end="Sigmoid()") + "\nnn.Sequential.probabilities = False\n", TWO)
    try:
        assert adapter.predict(VALUES, MASK)[:, 1].min() >= 0.5
    finally:
        del torch.nn.Sequential.probabilities


MASKED = """
class Masked(nn.Module):
    def __init__(self, idim):
        super().__init__()
        self.layer = nn.Linear(2 * idim, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, values, mask):
        assert mask.dtype == torch.bool
        return self.layer(self.drop(torch.cat([values, mask.float()], dim=1)))

def model(schema):
    return Masked(schema.idim)

def optimizer(module):
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

def loss(outputs, targets):
    return nn.functional.soft_margin_loss(outputs, 2 * targets - 1, reduction="none")
"""


def test_mask_optimizer_and_loss_of_the_user_and_a_checkpoint_that_forgets_nothing(made, tmp_path: Path) -> None:
    whole, half, again = made(MASKED, TWO), made(MASKED, TWO), made(MASKED, TWO, seed=9)
    assert whole.takes_mask
    set_seed(1)
    fit(whole, CLASSES % 2, WEIGHTS, range(4))
    set_seed(1)
    fit(half, CLASSES % 2, WEIGHTS, range(2))
    half.save_state(tmp_path)
    set_seed(77)
    again.load_state(tmp_path)
    fit(again, CLASSES % 2, WEIGHTS, range(2, 4))
    for one, other in zip(weights_of(whole), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
    changed = [weight != start for weight, start in zip(weights_of(whole), weights_of(made(MASKED, TWO)), strict=True)]
    assert all(part.any() for part in changed)


def test_a_checkpoint_of_another_model_is_refused(made, tmp_path: Path) -> None:
    made(LINEAR.format(outputs=3), THREE).save_state(tmp_path)
    with pytest.raises(MlaasError, match="is of another model"):
        made(LINEAR.format(outputs=1), TWO).load_state(tmp_path)


OWN = """
def model(idim):
    return nn.Linear(idim, 1)

calls = []

def torch_train(module, values, targets, batch_size, mask, epoch):
    calls.append((tuple(values.shape), tuple(targets.shape), batch_size, mask.dtype, epoch))
    with torch.no_grad():
        module.weight += 1
    return {returned}
"""


def test_a_training_function_of_the_user_is_called_for_each_chunk(made) -> None:
    adapter = made(OWN.format(returned="0.5"), TWO)
    before = weights_of(adapter)[0]
    fit(adapter, CLASSES % 2)
    calls = adapter._user.module.calls
    assert calls == [((n, WIDTH), (n, 1), BATCH, torch.bool, 0) for n in (16, 16, 5)]
    np.testing.assert_allclose(weights_of(adapter)[0], before + 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "weights"),
    [(OWN.format(returned="float('nan')"), None), (LINEAR.format(outputs=1), np.full(EVENTS, np.nan, np.float32))],
)
def test_a_loss_that_is_not_finite_ends_the_training_with_its_epoch(made, source: str, weights) -> None:
    with pytest.raises(MlaasError, match="The loss became nan in epoch 1 of training"):
        fit(made(source, TWO), CLASSES % 2, weights)


def test_the_saved_weights_are_those_that_predict(made, tmp_path: Path) -> None:
    adapter = made(LINEAR.format(outputs=1), TWO)
    fit(adapter, CLASSES % 2)
    loss, predictions = adapter.evaluate(next(Feed(InMemory(), CLASSES % 2).chunks(0)))
    file = tmp_path / adapter.save(tmp_path)
    loaded = load_adapter("torch", file, TWO, SCHEMA, tmp_path / "model.py")
    loaded.check(VALUES[:2], MASK[:2])
    np.testing.assert_array_equal(loaded.predict(VALUES[:CHUNK], MASK[:CHUNK]), predictions)
    chosen = predictions[np.arange(CHUNK), CLASSES[:CHUNK] % 2]
    assert loss == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (LINEAR.format(outputs=4), "Training on 2 classes needs 1 or 2 outputs."),
        ("def model(idim):\n    return nn.Sigmoid()\n", "has no weights"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(made, source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(source, TWO)


def test_a_mean_of_all_events_cannot_weigh_them(made) -> None:
    source = LINEAR.format(outputs=1) + "\nloss = nn.BCEWithLogitsLoss()\n"
    fit(made(source, TWO), CLASSES % 2)
    with pytest.raises(UsageError, match="cannot weigh them"):
        fit(made(source, TWO), CLASSES % 2, WEIGHTS)


@pytest.mark.parametrize(("flat", "rooms"), [(2, (3, 1, 4)), (0, (2, 5)), (3, ())])
def test_the_gather_on_a_device_equals_that_of_the_processor(flat: int, rooms: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    counts = generator.integers(0, 6, (50, len(rooms))).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum(flat + counts.sum(axis=1, dtype=np.int64))])
    values = generator.normal(size=int(offsets[-1])).astype(np.float32)
    values[::7], values[3::11] = np.nan, np.inf
    events = PackedEvents(values, offsets, counts)
    features = flat + len(rooms)
    schema = Schema(
        flat=tuple(FlatColumn(f"x{i}", f"x{i}") for i in range(flat)),
        jagged=tuple(JaggedColumn(f"y{i}", room) for i, room in enumerate(rooms)),
        shift=tuple(generator.normal(size=features)),
        width=(0.0, *generator.random(features - 1)),
        fill=-1.0,
    )
    rows = generator.permutation(50)[:33]
    expected, expected_mask = np.empty((33, schema.idim), np.float32), np.empty((33, schema.idim), np.bool_)
    Gatherer(schema).gather(events, rows, expected, expected_mask)
    got, mask = densify(torch, pack(events, rows), schema, torch.device("cpu"))
    np.testing.assert_array_equal(mask.numpy(), expected_mask)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_portions_for_a_device_keep_the_order_and_are_whole_chunks() -> None:
    chunks = [np.arange(4 * i, 4 * i + 4) for i in range(5)]
    found = list(joined(chunks, 9))
    assert [each.size for each in found] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(20))
    assert [each.size for each in joined(chunks, 1)] == [4] * 5
