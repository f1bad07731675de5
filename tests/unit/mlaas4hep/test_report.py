"""The report: a page that can be parsed, that says what the data say, and that loads and runs nothing."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mlaas4hep.data.statistics import FeatureStatistics
from mlaas4hep.errors import MlaasError
from mlaas4hep.markup import Markup, element, escape
from mlaas4hep.training.contract import Task
from mlaas4hep.training.histograms import Histogram
from mlaas4hep.training.importance import Importance
from mlaas4hep.training.measures import Scored
from mlaas4hep.training.metrics import roc_area
from mlaas4hep.training.report import InputFile, ReportData, render, report_on_data, write_report
from mlaas4hep.training.report.diagnostics import calibration, kolmogorov_smirnov
from mlaas4hep.training.report.figure import SMALL, Axis, Figure
from mlaas4hep.training.report.parts import number
from mlaas4hep.training.targets import Targets
from mlaas4hep.training.workflow import Labels

PARTS = {"train": 400, "validation": 100, "test": 120}
VOID = {"meta"}
HOSTILE = "<script>alert('1')</script>\"&\x00"


class Page(HTMLParser):
    """The elements of a page with their texts, and its tables; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))
        if "caption" in self._open:
            self.tables[data] = self._rows
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts_of(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.all("section")]


def scored(events: int, classes: int = 2, *, seed: int = 1, separation: float = 1.5) -> Scored:
    generator = np.random.default_rng(seed)
    targets = (np.arange(events) % classes).astype(np.int8)
    raw = generator.normal(0, 1, (events, classes))
    raw[np.arange(events), targets] += separation
    raw = np.exp(raw)
    return Scored(np.arange(events), targets, raw / raw.sum(axis=1, keepdims=True), None, 0.5)


def values(events: int, *, seed: int = 1) -> Scored:
    generator = np.random.default_rng(seed)
    targets = generator.normal(50, 20, events)
    predictions = (targets + generator.normal(0, 5, events))[:, None]
    return Scored(np.arange(events), targets, predictions, None, 25.0)


def statistics(name: str, **changes) -> FeatureStatistics:
    found = {"count": 600, "minimum": -1.5, "maximum": 2.5, "mean": 0.25, "deviation": 0.75, "nan": 3, "infinite": 4}
    return FeatureStatistics(name=name, multiplicity=1, **(found | changes))


def histogram(name: str, classes: int = 2) -> Histogram:
    counts = np.random.default_rng(2).integers(1, 90, (classes, 50)).astype(float)
    return Histogram(name, np.linspace(-1.0, 1.0, 51), counts)


def report(classes: int = 2, **changes) -> ReportData:
    """A complete report of a classifier."""
    parts = {part: scored(events, classes, seed=seed) for seed, (part, events) in enumerate(PARTS.items())}
    data = ReportData(
        title="ww_zz",
        task=Task("classification", ("ZZ", "WW", "QCD", *(f"class {place}" for place in range(3, classes)))[:classes]),
        parts=parts,
        events={part: np.bincount(found.targets).tolist() for part, found in parts.items()},
        model={"framework": "keras", "trained weights": 12345},
        history=[
            {"epoch": epoch, "loss": 1 / epoch, "val_loss": 1.2 / epoch, "auc": 0.7, "val_auc": 0.6, "seconds": 0.5}
            for epoch in (1, 2, 3)
        ],
        kept=2,
        files=[InputFile("ww.root", "events", "WW", 5000, 620, 338_200)],
        statistics=[statistics("MET_pt"), statistics("Muon_pt", sentinels=((-999.0, 0.125),))],
        columns={"MET_pt": 1, "Muon_pt": 4},
        histograms=[histogram("MET_pt", classes), histogram("Muon_pt", classes)],
        multiplicities=[Histogram("Muon_pt", np.arange(6) - 0.5, np.ones((classes, 5)))],
        importance=[Importance("Muon_pt", 0.125, 0.011), Importance("MET_pt", -0.0003, 0.0004)],
        cut_flow=[("all", 1000), ("met > 20", 400)],
        timing={"reading": 1.5, "training": 4.5},
        folds=[{"fold": 1, "auc": 0.8, "confusion": [[1]]}, {"fold": 2, "auc": 0.9, "confusion": [[1]]}],
        parameters={"epochs": 3, "shuffle": True, "exclude_branches": ["MC*"]},
        provenance={"host": "node7"},
        notes=["Constant, so of no use: trigger."],
    )
    return dataclasses.replace(data, **changes)


def regression() -> ReportData:
    parts = {part: values(events) for part, events in PARTS.items()}
    return report(
        task=Task("regression"),
        parts=parts,
        events={part: [events] for part, events in PARTS.items()},
        histograms=[histogram("MET_pt", 1)],
        multiplicities=[],
    )


ALL_SECTIONS = [
    "data",
    "training",
    "roc",
    "scores",
    "confusion",
    "folds",
    "importance",
    "inputs",
    "multiplicities",
    "statistics",
    "timing",
    "parameters",
    "provenance",
]


def test_a_classifier_has_every_section_and_the_contents_list_them() -> None:
    page = Page(render(report()))
    assert page.sections == ALL_SECTIONS
    assert [link["href"] for link in page.all("a")] == [f"#{section}" for section in ALL_SECTIONS]


def test_it_begins_with_what_was_trained_on_what_and_with_which_result() -> None:
    data = report()
    page = Page(render(data))
    area = roc_area(data.parts["test"].targets == 1, data.parts["test"].predictions[:, 1])
    assert page.texts_of("h1") == ["ww_zz"]
    summary, result = page.texts_of("p")[:2]
    assert (
        summary
        == "A keras model that tells apart ZZ, WW from 2 inputs, trained, validated and tested on 620 events of 1 file."
    )
    assert result == f"Test AUC {area.value:.4f} ± {area.error:.4f} on 120 test events"


def test_the_area_of_every_part_is_in_the_legend_and_in_the_table() -> None:
    data = report()
    page = Page(render(data))
    for part, found in data.parts.items():
        area = roc_area(found.targets == 1, found.predictions[:, 1])
        text = f"{area.value:.4f} ± {area.error:.4f}"
        assert f"{part}: AUC {text}" in page.texts_of("span")
        assert text in page.tables["Area under the ROC curve"][1]


def test_decisions_are_counted_with_the_threshold() -> None:
    data = report(threshold=0.8)
    found = data.parts["test"]
    signal, assigned = found.targets == 1, found.predictions[:, 1] >= 0.8
    table = [str(int((of & to).sum())) for of in (~signal, signal) for to in (~assigned, assigned)]
    rows = Page(render(data)).tables["Test events"]
    assert rows == [["true \\ assigned", "ZZ", "WW"], ["ZZ", *table[:2]], ["WW", *table[2:]]]


def test_precision_recall_and_f1_follow_from_the_decisions() -> None:
    data = report()
    found = data.parts["test"]
    signal, assigned = found.targets == 1, found.predictions[:, 1] >= 0.5
    hits = (signal & assigned).sum()
    precision, recall = hits / assigned.sum(), hits / signal.sum()
    accuracy = (signal == assigned).mean()
    caption = f"Test events: accuracy {accuracy:.4f}, the second class from a probability of 0.5 on"
    f1 = 2 * precision * recall / (precision + recall)
    rows = Page(render(data)).tables[caption]
    assert rows[2] == ["WW", f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", "60"]


def test_cut_flow_gives_the_fraction_of_the_cut_before_and_of_all() -> None:
    assert Page(render(report())).tables["Cut flow"][-1] == ["met > 20", "400", "40.00 %", "40.00 %"]


def test_statistics_of_every_input_with_sentinels_and_filled_fraction() -> None:
    shown = [
        "4",
        "\N{MINUS SIGN}1.5",
        "2.5",
        "0.25",
        "0.75",
        "3",
        "4",
        "\N{MINUS SIGN}999: 12.5 %",
        f"{100 * 600 / 620 / 4:.1f} %",
    ]
    rows = Page(render(report())).tables["Statistics of the inputs over all events read"]
    assert rows[2] == ["Muon_pt", *shown]


def test_folds_have_mean_and_standard_deviation() -> None:
    rows = Page(render(report())).tables["Test events of each fold"]
    assert rows[:2] == [["", "AUC"], ["fold 1", "0.8000"]]
    assert rows[3:] == [["mean", "0.8500"], ["standard deviation", f"{math.sqrt(0.005):.4f}"]]


def test_timing_adds_up() -> None:
    rows = Page(render(report())).tables["Time spent"]
    assert rows[2:] == [["training", "4.50 s", "75.0 %"], ["all", "6.00 s", ""]]


def test_importance_is_listed_from_the_greatest_on() -> None:
    rows = Page(render(report())).tables["Importance of the inputs 1 to 2, change of the AUC"]
    assert rows[1] == ["Muon_pt", "1", "0.125", "0.011", ""]
    assert rows[2] == ["MET_pt", "2", "\N{MINUS SIGN}0.0003", "0.0004", ""]


def test_inputs_are_drawn_in_the_order_of_their_importance() -> None:
    captions = Page(render(report())).texts_of("figcaption")
    assert captions[-4:] == ["Muon_pt", "MET_pt", "Muon_pt", "Duration of each epoch"]


def test_parameters_are_shown_as_in_their_file() -> None:
    rows = Page(render(report())).tables["Parameters of the training"]
    assert rows[1:] == [["epochs", "3"], ["shuffle", "true"], ["exclude_branches", '["MC*"]']]


def test_three_classes_are_each_shown_against_the_rest() -> None:
    page = Page(render(report(3)))
    assert page.sections == ALL_SECTIONS
    assert "Mean test AUC" in page.texts_of("p")[1]
    for name in ("ZZ", "WW", "QCD"):
        assert f"Score: {name} against the rest" in page.texts_of("figcaption")


def test_many_classes_get_a_map_instead_of_a_table() -> None:
    page = Page(render(report(30)))
    assert any("The first 8 of 30 classes." in text for text in page.texts_of("p"))
    assert "Confusion matrix, fraction of each true class" in page.texts_of("figcaption")


def test_a_regression_shows_residuals_instead_of_a_roc_curve() -> None:
    data = regression()
    page = Page(render(data))
    assert "roc" not in page.sections and "regression" in page.sections
    found = data.parts["test"]
    residual = found.predictions[:, 0] - found.targets
    r2 = 1 - (residual**2).mean() / found.targets.var()
    root = math.sqrt((residual**2).mean())
    assert page.texts_of("p")[1] == f"Test R² {r2:.4f}, root mean square error {root:.4g} on 120 test events"
    assert {"Residuals", "Predicted against true, test events"} <= set(page.texts_of("figcaption"))


def test_what_is_not_known_is_left_out() -> None:
    page = Page(render(ReportData("new", Task("classification", ("a", "b")))))
    assert page.sections == []
    assert "No test events were measured." in page.texts_of("p")


def test_an_estimator_without_rounds_has_no_curves() -> None:
    page = Page(render(report(history=[])))
    assert not [caption for caption in page.texts_of("figcaption") if "each epoch" in caption]


def hostile_report() -> ReportData:
    return report(
        title=HOSTILE,
        task=Task("classification", (HOSTILE, "WW")),
        model={HOSTILE: HOSTILE, "framework": HOSTILE},
        history=[{"epoch": 1, HOSTILE: 0.5, "loss": 0.5}],
        files=[InputFile(HOSTILE, HOSTILE, HOSTILE, 5, 5)],
        statistics=[statistics(HOSTILE)],
        columns={HOSTILE: 1},
        histograms=[histogram(HOSTILE)],
        multiplicities=[histogram(HOSTILE)],
        importance=[Importance(HOSTILE, 0.1, 0.1)],
        cut_flow=[(HOSTILE, 5)],
        timing={HOSTILE: 1.0},
        parameters={HOSTILE: [HOSTILE]},
        provenance={HOSTILE: {HOSTILE: HOSTILE}},
        notes=[HOSTILE],
    )


def test_hostile_names_are_shown_as_they_are_and_never_become_elements() -> None:
    page = Page(render(hostile_report()))
    ordinary = {tag for tag, _ in Page(render(report())).elements}
    assert {tag for tag, _ in page.elements} <= ordinary
    shown = HOSTILE.replace("\x00", "\ufffd")
    assert page.texts_of("h1") == [shown]
    assert page.texts_of("th").count(shown) >= 6


@pytest.mark.parametrize("data", [report(), hostile_report(), regression()], ids=["classes", "hostile", "regression"])
def test_the_page_loads_and_runs_nothing(data: ReportData) -> None:
    text = render(data)
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed", "form", "base"}
        assert not {"style", "src", "srcset", "action", "xlink:href"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    (style,) = page.texts_of("style")
    assert "url(" not in style and "@import" not in style
    assert "://" not in style


def test_the_policy_allows_this_style_and_nothing_else() -> None:
    page = Page(render(report()))
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    (style,) = page.texts_of("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_it_can_be_read_without_seeing_it() -> None:
    page = Page(render(report()))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert set(headings[1:]) == {"h2"}
    for plot in page.all("svg"):
        hidden = plot.get("aria-hidden") == "true" or "overflow" in plot
        assert hidden or (plot["role"] == "img" and len(plot["aria-label"]) > 20)
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_data_give_the_same_page() -> None:
    assert render(report()) == render(report())


def test_many_inputs_stay_within_bounds_and_are_all_listed() -> None:
    names = [f"branch_with_a_long_name_{place}" for place in range(1500)]
    data = report(
        statistics=[statistics(name) for name in names],
        columns=dict.fromkeys(names, 1),
        histograms=[histogram(name) for name in names],
        multiplicities=[
            Histogram(name, np.arange(51) - 0.5, np.full((2, 50), place)) for place, name in enumerate(names)
        ],
        importance=[Importance(name, 1 / (place + 1), 0.001) for place, name in enumerate(names)],
    )
    text = render(data)
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert page.texts_of("th").count(names[-1]) == 2
    assert any(text.startswith("The 60 most important of 1500.") for text in page.texts_of("p"))


def constant_scores() -> dict[str, Scored]:
    targets = np.arange(50) % 2
    return {part: Scored(np.arange(50), targets, np.full((50, 2), 0.5), None, 0.7) for part in PARTS}


def scores_that_are_no_numbers() -> dict[str, Scored]:
    return {
        part: dataclasses.replace(found, predictions=found.predictions * math.nan)
        for part, found in constant_scores().items()
    }


def without_background() -> dict[str, Scored]:
    return {
        part: dataclasses.replace(found, targets=np.ones(50, dtype=np.int8))
        for part, found in constant_scores().items()
    }


def without_events() -> dict[str, Scored]:
    empty = Scored(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8), np.empty((0, 2)), None, math.nan)
    return dict.fromkeys(PARTS, empty)


@pytest.mark.parametrize(
    "data",
    [
        report(parts=constant_scores()),
        report(parts=scores_that_are_no_numbers()),
        report(parts=without_background()),
        report(parts=without_events()),
        report(history=[{"epoch": 1, "loss": math.nan, "val_loss": None, "auc": 0.5}]),
        report(importance=[Importance("MET_pt", math.nan, math.nan), Importance("Muon_pt", math.inf, math.nan)]),
        report(histograms=[Histogram("x", np.array([3e38, 3.1e38]), np.zeros((2, 1)))]),
        report(histograms=[Histogram("x", np.array([1e-30, 2e-30]), np.array([[-1.0], [2.0]]))]),
        report(statistics=[statistics("x", count=0, minimum=0.0, maximum=0.0, mean=0.0, deviation=0.0)], files=[]),
        report(timing={"reading": 0.0}, cut_flow=[("all", 0), ("none", 0)], folds=[{"fold": 1, "auc": None}]),
    ],
    ids=[
        "constant",
        "nan",
        "one class",
        "no events",
        "history",
        "importance",
        "huge",
        "negative",
        "no values",
        "zeros",
    ],
)
def test_a_degenerate_training_has_a_page_too(data: ReportData) -> None:
    text = render(data)
    Page(text)
    drawn = re.findall(r'(?: d| cx| cy| x| y| width| height)="([^"]*)"', text)
    assert not [path for path in drawn if "nan" in path or "inf" in path]


def test_an_event_of_weight_two_counts_as_two_in_curves_and_distributions() -> None:
    data = report(importance=[], histograms=[], history=[])
    weights = {part: (np.arange(events) % 2 + 1) for part, events in PARTS.items()}
    heavy = {
        part: dataclasses.replace(found, weights=weights[part].astype(np.float32)) for part, found in data.parts.items()
    }
    twice = {
        part: dataclasses.replace(
            found,
            targets=np.repeat(found.targets, weights[part]),
            predictions=np.repeat(found.predictions, weights[part], axis=0),
        )
        for part, found in data.parts.items()
    }
    pages = [render(dataclasses.replace(data, parts=parts)) for parts in (heavy, twice)]
    drawn = [re.findall('class="(?:line|steps) [^"]*" d="([^"]*)"', page) for page in pages]
    assert drawn[0] == drawn[1]


def test_it_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report())
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report())


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(MlaasError, match=r"The report .*missing.report\.html cannot be written: No such file"):
        write_report(tmp_path / "missing" / "report.html", report())


def test_a_store_tells_what_the_model_was_trained_on(tmp_path, write_tree, collisions, stored) -> None:
    files = [write_tree(tmp_path / f"{name}.root", collisions(300, shift, 1)) for name, shift in (("s", 8.0), ("b", 0))]
    store = stored(files, identifiers=["event"])
    targets = Targets(Task("classification", ("0", "1")), np.repeat([1, 0], 300).astype(np.int8), None, None)
    data = report_on_data("toy", store, store.schema(), targets, Labels(by_source=("1", "0")))
    assert [(file.label, file.entries, file.used) for file in data.files] == [("1", 300, 300), ("0", 300, 300)]
    assert [sum(counts[number] for counts in data.events.values()) for number in (0, 1)] == [300, 300]
    assert data.columns["MET_pt"] == 1 and data.columns["Muon_pt"] > 1
    assert "statistics" in Page(render(data)).sections


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_kolmogorov_smirnov_agrees_with_an_independent_implementation(shift: float) -> None:
    from scipy.stats import ks_2samp

    generator = np.random.default_rng(5)
    first, second = generator.normal(0, 1, 800), generator.normal(shift, 1, 500)
    expected = ks_2samp(first, second, method="asymp").pvalue
    assert kolmogorov_smirnov(first, second) == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_kolmogorov_smirnov_of_equal_and_of_missing_samples() -> None:
    assert kolmogorov_smirnov(np.arange(9.0), np.arange(9.0)) == 1.0
    assert math.isnan(kolmogorov_smirnov(np.empty(0), np.arange(9.0)))


def test_equal_weights_change_nothing_in_the_test() -> None:
    generator = np.random.default_rng(6)
    first, second = generator.normal(0, 1, 300), generator.normal(0.2, 1, 300)
    weights = np.full(300, 2.5)
    assert kolmogorov_smirnov(first, second, weights, weights) == pytest.approx(kolmogorov_smirnov(first, second))


def test_calibration_compares_the_mean_probability_with_the_fraction() -> None:
    probabilities = np.array([0.12, 0.18, 0.92, 0.96, 0.94, 1.0])
    positive = np.array([False, True, True, True, True, False])
    found = calibration(positive, probabilities)
    assert found.predicted == pytest.approx([0.15, 0.955])
    assert found.observed == pytest.approx([0.5, 0.75])
    assert found.error == pytest.approx([math.sqrt(0.25 / 2), math.sqrt(0.75 * 0.25 / 4)])


def test_ticks_are_round_numbers_within_the_axis() -> None:
    ticks = Axis(-0.1, 1.02).ticks(6)
    assert ticks.major == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks.labels == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_large_numbers_share_a_power_of_ten() -> None:
    ticks = Axis(0, 4e7).ticks(4)
    assert ticks.labels == ["0", "1", "2", "3", "4"] and ticks.exponent == 7


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    ticks = Axis(0.5, 2e3, log=True).ticks(6)
    assert ticks.labels == ["10⁰", "10¹", "10²", "10³"]
    assert 0.6 in [pytest.approx(value) for value in ticks.minor]


def test_whole_numbers_have_no_ticks_in_between() -> None:
    ticks = Axis(0.5, 1.5, whole=True).ticks(6)
    assert ticks.major == [1.0] and ticks.minor == []


@pytest.mark.parametrize("ends", [(1.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (3e38, 3e38), (5.0, -5.0)])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_without_a_range_gets_one(ends: tuple[float, float], log: bool) -> None:
    axis = Axis(*ends, log=log)
    assert axis.low < axis.high
    assert axis.ticks(4).major


def test_a_line_is_broken_where_there_is_no_value() -> None:
    figure = Figure(Axis(0, 3), Axis(0, 3))
    figure.line([0, 1, 2, 3], [0, math.nan, 2, 3], series=0)
    (path,) = [
        mark["d"] for mark in Page(figure.svg("a line with a gap")).all("path") if mark["class"].startswith("line")
    ]
    assert path.count("M") == 2 and path.count("L") == 1


def test_a_histogram_begins_and_ends_below_its_frame() -> None:
    figure = Figure(Axis(0, 2), Axis(0, 4), SMALL)
    figure.steps([0, 1, 2], [4, 2], series=0)
    (path,) = [mark["d"] for mark in Page(figure.svg("two bins")).all("path") if mark["class"].startswith("steps")]
    assert path == "M0.0 114V0.0H88.5V56.0H177.0V114"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123456, "0.01235"), (-2.5, "\N{MINUS SIGN}2.5"), (math.inf, "\N{INFINITY}"), (math.nan, "\N{EN DASH}")],
)
def test_numbers_have_four_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_text_is_escaped_once_and_markup_never() -> None:
    once = escape("<&>")
    assert once == "&lt;&amp;&gt;"
    assert escape(once) == once
    assert element("p", "<", Markup("<b></b>"), title='"') == '<p title="&quot;">&lt;<b></b></p>'


def test_characters_that_html_and_utf8_cannot_hold_are_replaced() -> None:
    assert escape("a\x00b\udcffc") == "a\ufffdb?c"
