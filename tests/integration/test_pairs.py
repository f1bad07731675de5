"""The examples against the figures of simple baselines on the same test events of the real data.

The figures are those of shared/data/README.md: gradient boosting and a multi-layer perceptron of scikit-learn, on the
test events of `train_test_split(test_size=0.3, random_state=42, stratify=label)`. A test sample of these pairs has a
statistical error of up to 0.014, which all models on it share (on that of VBF, for example, each does better by about
0.04 than on average over all events). So the examples are measured on those very events, and trained on the others.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from mlaas4hep.data.batches import Batches
from mlaas4hep.data.store import PackedStore
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.contract import Feed
from mlaas4hep.training.measures import score
from mlaas4hep.training.metrics import macro_area
from mlaas4hep.training.preparation import prepare
from mlaas4hep.training.progress import silent
from mlaas4hep.training.random_state import set_seed
from mlaas4hep.training.targets import make_targets
from mlaas4hep.training.user_model import load_user_model
from mlaas4hep.training.workflow import Workflow, load_workflow

REPOSITORY = Path(__file__).resolve().parents[2]
TOLERANCE = 0.01
DENSE = {
    "tmva_toy": 0.933,
    "ww_zz": 0.821,
    "ww_zz_qcd": 0.848,
    "vbf_higgs": 0.805,
    "d0_kpi": 0.970,
    "combinations_toy": 0.979,
    "csv_toy": 0.989,
}
BOOSTED = {
    "tmva_toy": 0.922,
    "ww_zz": 0.858,
    "ww_zz_qcd": 0.894,
    "vbf_higgs": 0.820,
    "d0_kpi": 0.969,
    "combinations_toy": 0.978,
    "csv_toy": 0.988,
}


@pytest.fixture
def real_data() -> Path:
    folder = Path(os.environ.get("MLAAS4HEP_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("needs the real data: set MLAAS4HEP_TEST_DATA")
    return folder


def example(name: str, model: str, data: Path) -> Workflow:
    """The workflow of an example's folder, with its files where they are."""
    folder = REPOSITORY / "examples" / name
    files = [str(data / line) for line in (folder / "files.txt").read_text().split()]
    labels = (folder / "labels.txt").read_text().split()
    return load_workflow(",".join(files), ",".join(labels), str(folder / model), str(folder / "params.json"))


def baseline_parts(store: PackedStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that the baselines were trained on, and those that they were tested on."""
    sizes = [file.stop - file.start for file in store.facts.files]
    # of two files, the first is the signal
    labels = np.repeat([1, 0] if len(sizes) == 2 else np.arange(len(sizes)), sizes)
    stratify = labels if store.labels is None else store.labels.astype(np.int64)
    train, test = train_test_split(np.arange(stratify.size), test_size=0.3, random_state=42, stratify=stratify)
    return np.sort(train), np.sort(test)


def area_on_test_events(workflow: Workflow, cache: Path) -> float:
    """Train on the events that the baselines were trained on; the area on those that they were tested on."""
    parameters = workflow.parameters
    prepared = prepare(workflow, silent, cache)
    store, schema = prepared.store, prepared.schema
    targets = make_targets(store, workflow.labels, parameters)
    train, test = baseline_parts(store)
    by_file = [train[(train >= file.start) & (train < file.stop)] for file in store.facts.files]
    batches = Batches(
        store, schema, by_file, batch_size=parameters.batch_size, shuffle=parameters.shuffle, seed=parameters.seed
    )
    feed = Feed(batches, targets.values, targets.weights)
    user = load_user_model(workflow.model)
    set_seed(parameters.seed)
    adapter = make_adapter(user.build(schema), targets.task, user)
    first = next(feed.chunks(0))
    adapter.check(first.values[:2], first.mask[:2])
    for epoch in range(parameters.epochs):
        if not adapter.fit_epoch(feed, epoch, lambda _: None):
            break
    scored = score(adapter, Feed(Batches(store, schema, [test], batch_size=4096), targets.values))
    return macro_area(scored.targets.astype(np.int64), scored.predictions).value


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than they gain with so few events, all the more on a busy computer."""
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_network_reaches_the_perceptron(name: str, real_data: Path, tmp_path: Path) -> None:
    area = area_on_test_events(example(name, "model.py", real_data), tmp_path)
    print(f"{name}: area {area:.4f}")
    assert area >= DENSE[name] - TOLERANCE


@pytest.mark.parametrize("name", BOOSTED)
def test_boosted_trees_reach_gradient_boosting(name: str, real_data: Path, tmp_path: Path) -> None:
    area = area_on_test_events(example(name, "model_xgboost.py", real_data), tmp_path)
    print(f"{name}: area {area:.4f}")
    assert area >= BOOSTED[name] - TOLERANCE
