"""How files, input vectors, models and jobs look in a notebook: HTML without scripts, and with nothing from elsewhere.

The classes' `_repr_html_` call these functions; IPython is not needed. Texts of files and services are escaped, and the
page of a report is shown in a frame where no script runs. Plots and style are those of the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from mlaas4hep.errors import MlaasError
from mlaas4hep.markup import Markup, element, escape, joined

if TYPE_CHECKING:
    from mlaas4hep.data.schema import Schema
    from mlaas4hep.service.inspection import FileContents, Histogram, TreeContents
    from mlaas4hep.training.bundle import Bundle

_MOST_ROWS = 300
_MOST_HISTOGRAMS = 60
_FRAME_HEIGHT = 640  # pixels
_DARK = 'body[data-jp-theme-light="false"] .mlaas4hep'
# a notebook's own colours, where it has some
_THEME = """
--ink: var(--jp-content-font-color1, #1a1a1a); --soft: var(--jp-content-font-color2, #595959);
--rule: var(--jp-border-color2, #d5d5d5); --panel: transparent; --paper: transparent;
"""
_OWN = """
.mlaas4hep { color: var(--ink); font: 14px/1.5 system-ui, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  container-type: inline-size; }
.mlaas4hep .scroll { max-height: 22rem; overflow: auto; }
.mlaas4hep table { margin: 0; table-layout: auto; }
.mlaas4hep.mlaas4hep :is(th, td) { max-width: none; text-align: left; }
.mlaas4hep.mlaas4hep .n { text-align: right; }
.mlaas4hep p { margin: .25rem 0; }
.mlaas4hep progress { width: 16rem; max-width: 100%; vertical-align: middle; }
.mlaas4hep iframe { width: 100%; border: 1px solid var(--rule); border-radius: 6px; background: #fff; }
"""


@dataclass(frozen=True)
class Picture:
    """HTML that a notebook shows, with the text that stands for it elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def contents_html(contents: FileContents) -> str:
    """What a file holds: the branches of each tree, and histograms of its first entries."""
    return _framed(
        element("p", element("b", contents.path), f", {contents.bytes / 1e6:.3g} MB"),
        element("p", f"The file is {contents.problem}.") if contents.problem else None,
        *(_tree(tree) for tree in contents.trees),
    )


def _tree(tree: TreeContents) -> Markup:
    from mlaas4hep.training.report.parts import folded, grid, right, table, whole

    title = f"{tree.name} ({tree.type})" if tree.name else tree.type
    if tree.problem:
        return element("p", f"{title} cannot be read: {tree.problem}")
    rows: list[list[object]] = []
    for branch in tree.branches[:_MOST_ROWS]:
        found = branch.histogram
        mean = f"{found.mean:.4g}" if found and found.values else ""
        ends = f"{found.low:.4g} to {found.high:.4g}" if found and found.values else ""
        rows.append([branch.name, branch.kind, branch.type, right(ends), right(mean)])
    caption = f"{title}: {whole(tree.entries)} entries, {len(tree.branches)} branches{_shortened(tree.branches)}"
    drawn = [branch for branch in tree.branches if branch.histogram and branch.histogram.values]
    pictures = [_small(branch.name, branch.histogram) for branch in drawn[:_MOST_HISTOGRAMS] if branch.histogram]
    return joined(
        [
            table(caption, ["Branch", "Kind", "Type", "Range", "Mean"], rows),
            folded(f"Histograms of the first {whole(tree.sampled)} entries", grid(pictures, small=True), shown=True)
            if pictures
            else "",
        ]
    )


def _shortened(rows: Sequence[object]) -> str:
    return f", of which the first {_MOST_ROWS} are shown" if len(rows) > _MOST_ROWS else ""


def _small(name: str, found: Histogram) -> Markup:
    from mlaas4hep.training.report.curves import TRAIN
    from mlaas4hep.training.report.figure import SMALL, Axis, Figure
    from mlaas4hep.training.report.parts import panel

    step = (found.high - found.low) / len(found.counts)
    figure = Figure(Axis(found.low, found.high), Axis(0, 1.15 * max(found.counts)), SMALL)
    edges = [found.low + step * place for place in range(len(found.counts) + 1)]
    figure.steps(edges, found.counts, series=TRAIN, filled=True)
    said = f"Histogram of {name}: {found.values} values, mean {found.mean:.4g}."
    return panel(name, figure, said, f"{found.others} without a number" if found.others else "")


def schema_html(schema: Schema) -> str:
    """The layout of an input vector."""
    return _framed(_inputs(schema))


def _inputs(schema: Schema) -> Markup:
    from mlaas4hep.training.report.parts import number, table

    rows: list[list[object]] = []
    scaled = zip(schema.slices.items(), schema.shift, schema.width, strict=True)
    for (name, place), shift, width in list(scaled)[:_MOST_ROWS]:
        columns = str(place.start) if place.stop - place.start == 1 else f"{place.start} to {place.stop - 1}"
        rows.append([name, schema.kinds[name], columns, number(shift), number(width)])
    caption = f"Input vector of {schema.idim} columns{_shortened(schema.features)}; scaled by (x - shift) / width"
    return joined(
        [
            table(caption, ["Input", "Kind", "Columns", "Shift", "Width"], rows),
            element("p", f"No inputs: {', '.join(schema.ignored)}.", class_="note") if schema.ignored else "",
            element("p", "The preprocessing comes first.", class_="note") if schema.preprocessing is not None else "",
        ]
    )


def bundle_html(bundle: Bundle) -> str:
    """A model: what it does, how good it is, how its training went, and its inputs."""
    from mlaas4hep.training.card import measures_table, purpose
    from mlaas4hep.training.report import ReportData
    from mlaas4hep.training.report.curves import history_of_rounds, training_curves
    from mlaas4hep.training.report.parts import folded, grid, right, table

    metrics = bundle.metrics
    heads, rows = measures_table(metrics)
    history, kept = metrics["history"], metrics["kept"]
    if len(history) == 1 and metrics["rounds"]:
        history, kept = history_of_rounds(metrics["rounds"]), 0
    curves = training_curves(ReportData(bundle.folder.name, bundle.task, history=history, kept=kept))
    aligned = [[row[0], *(right(str(cell)) for cell in row[1:])] for row in rows]
    return _framed(
        element("p", element("b", bundle.folder.name)),
        element("p", purpose(bundle.schema, bundle.task, bundle.framework)),
        table("Measures", [heads[0].capitalize(), *heads[1:]], aligned) if rows else None,
        grid(curves) if curves else None,
        folded("Inputs", _inputs(bundle.schema)),
    )


def job_html(job: Mapping[str, Any]) -> str:
    """A job of a service: where it stands, why, and how far it is."""
    model = job.get("model")
    facts = {
        "State": job["state"].replace("-", " "),
        "Reason": job["reason"],
        "Progress": _progress(job.get("progress") or {}),
        "Model": f"{model['name']}, version {model['version']}" if model else "",
        **{name.capitalize(): _moment(job[name]) for name in ("submitted", "started", "ended")},
    }
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value)) for name, value in facts.items() if value
    ]
    caption = element("caption", element("span", f"{job['process_name']} ({job['id']})"))
    return _framed(element("table", caption, element("tbody", *rows)))


def _moment(time: str) -> str:
    return f"{time[:10]} {time[11:19]} UTC" if time else ""


def _progress(told: Mapping[str, Any]) -> Markup:
    """What a training told last, with a bar where it is known how much there is to do."""
    measures = "  ".join(f"{name} {value:.4f}" for name, value in (told.get("measures") or {}).items())
    match told.get("event"):
        case "reading":
            return _bar("reading", told["done"], told["total"])
        case "step":
            text = f"epoch {told['epoch']} of {told['epochs']}"
            return _bar(text, told["epoch"] - 1 + told["done"] / max(told["total"], 1), told["epochs"])
        case "epoch":
            text = f"epoch {told['epoch']} of {told.get('epochs', '?')}  {measures}"
            return _bar(text.strip(), told["epoch"], told.get("epochs", 0))
        case "finished":
            return escape(measures)
    return escape(told.get("text", ""))


def _bar(text: str, done: float, total: float) -> Markup:
    return joined([element("progress", value=f"{done:.3g}", max=f"{max(total, 1):.3g}", aria_label=text), " ", text])


def report_of(bundle: Bundle) -> Picture:
    """The report of a training as it is in the model folder, in a frame.

    Raises MlaasError for a model folder without one.
    """
    path = bundle.folder / "report.html"
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MlaasError(f"The report {path} cannot be read ({error}).", "Train the model again.") from error
    frame = element("iframe", srcdoc=page, sandbox="", height=_FRAME_HEIGHT, title=f"Report of {bundle.folder.name}")
    return Picture(_framed(frame), f"The report {path}")


def histograms(
    samples: Mapping[str, Any],
    title: str,
    *,
    limits: tuple[float, float] | None = None,
    bins: int = 40,
    density: bool = False,
) -> Picture:
    """Histograms of several samples in one plot.

    Args:
        samples: numbers of any shape by the name of their sample, NumPy or awkward arrays; NaN and infinities are left
            out.
        title: the name of the quantity, with its unit.
        limits: ends of the range; by default the smallest and the largest value.
        bins: number of bins.
        density: whether each sample has unit area instead of its number of values.

    Raises MlaasError when there is no finite number at all.
    """
    import awkward as ak
    import numpy as np

    from mlaas4hep.training.report.figure import Axis, Figure
    from mlaas4hep.training.report.parts import panel, whole

    values = {name: np.asarray(ak.ravel(ak.Array(sample)), dtype=np.float64) for name, sample in samples.items()}
    values = {name: sample[np.isfinite(sample)] for name, sample in values.items()}
    everything = np.concatenate([*values.values(), np.empty(0)])
    if not everything.size:
        raise MlaasError(f"There is no number to make a histogram of {title} from.", "Choose another branch.")
    edges = np.histogram_bin_edges(everything, bins, limits)
    heights = {
        name: np.histogram(sample, edges, density=density and sample.size > 0)[0] for name, sample in values.items()
    }
    top = max(float(height.max()) for height in heights.values())
    figure = Figure(Axis(edges[0], edges[-1], title), Axis(0, 1.1 * top, "Density" if density else "Values in a bin"))
    for series, (name, height) in enumerate(heights.items()):
        figure.steps(edges, height, series=series, filled=True, name=f"{name} ({whole(values[name].size)})")
    said = "; ".join(
        f"{name}: {sample.size} values, mean {sample.mean():.4g}" for name, sample in values.items() if sample.size
    )
    return Picture(_framed(panel(title, figure, said)), f"Histogram of {title}. {said}")


def _framed(*content: object) -> str:
    return element("div", element("style", _style()), *content, class_="mlaas4hep")


@cache
def _style() -> Markup:
    """The report's style for what is in an output only, in the colours of the notebook around it."""
    sheet = resources.files("mlaas4hep.training").joinpath("report/style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{([^}]*)\}", sheet)
    own = f".mlaas4hep {{ {light} {_THEME} }}\n{_DARK} {{ {dark} {_THEME} }}\n"
    # nested, the rules for :root, html and body hold nowhere
    return Markup(f"{own}.mlaas4hep {{ {sheet} }}\n{_OWN}")
