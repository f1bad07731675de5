"""Small histograms as SVG."""

from __future__ import annotations

from markupsafe import Markup

from mlaas4hep.service.inspection import Histogram

_HEIGHT = 32


def bars(histogram: Histogram) -> Markup:
    """The counts as bars, without text: what they say is in the table beside them."""
    most = max(histogram.counts, default=0) or 1
    width = 4 * len(histogram.counts)
    path = "".join(
        f"M{4 * place} {_HEIGHT}v-{max(count * _HEIGHT / most, 1):.1f}h3.4v{max(count * _HEIGHT / most, 1):.1f}z"
        for place, count in enumerate(histogram.counts)
        if count
    )
    text = '<svg class="bars" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true"><path d="{}"/></svg>'
    return Markup(text).format(width, _HEIGHT, path)  # noqa: S704  (format escapes)
