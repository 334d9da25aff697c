"""Plots as inline SVG with the page's colours.

Labels are in HTML, where they can wrap. The SVG has classes instead of colours (one drawing for light and dark pages),
attributes instead of ``style`` (the page forbids inline styles), and ids that are unique in the page.
"""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup

from uncertune.report.drawing import PAGE, RC, LineStyle, Plot, draw, last_value
from uncertune.report.page import Curves, Points, Trails

_MARK_COLOURS = {PAGE.ink: "ink", PAGE.rule: "rule"} | {mark: f"series-{i}" for i, mark in enumerate(PAGE.series)}
_SIZE_INCHES = (5.0, 3.1)  # 360 × 223 units: about one unit a pixel on a phone
_LARGE_INCHES = (7.0, 5.0)
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


def svg(plot: Plot, styles: Mapping[str, LineStyle], prefix: str) -> Markup:
    """The plot, without its labels. The same plot always gives the same text.

    Args:
        styles: from :func:`line_styles`; holds every name of ``plot``.
        prefix: starts every id, so that several drawings can share a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"font.size": 12.0})
        figure = Figure(
            figsize=_LARGE_INCHES if isinstance(plot, Trails) else _SIZE_INCHES,
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02),
        )
        draw(figure.add_subplot(), plot, styles, PAGE)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if not child.tag.startswith(_SVG) or child.tag.endswith("}metadata")]:
            parent.remove(child)
        for child in [child for child in parent if child.tag == _SVG + "style"]:
            parent.remove(child)
    for element in root.iter():
        element.attrib.update(_attributes(element, prefix))
        element.tag = element.tag.removeprefix(_SVG)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("stroke-linejoin", "round")
    root.set("role", "img")
    root.set("aria-label", _summary(plot))
    # Safe: numbers and fixed words, set by matplotlib and escaped by ElementTree.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _summary(plot: Plot) -> str:
    if isinstance(plot, Curves):
        parts = [f"{series.name}: last {last_value(series, plot.percent)}" for series in plot.series]
    else:
        ends = plot.points if isinstance(plot, Points) else [t.known[-1] for t in plot.trails if t.known]
        names = [one.name for one in (plot.points if isinstance(plot, Points) else [t for t in plot.trails if t.known])]
        parts = [f"{name}: {point.x.value:.3g}, {point.y.value:.3g}" for name, point in zip(names, ends, strict=True)]
    return f"{plot.y_label} against {plot.x_label}. {'; '.join(parts)}".strip()


def _attributes(element: ElementTree.Element, prefix: str) -> dict[str, str]:
    """The element's attributes with placeholders replaced by classes and with unique ids; removes what it replaces."""
    classes: list[str] = []
    attributes: dict[str, str] = {}
    for name, value in _declarations(element.attrib.pop("style", "")):
        if value.lower() in _MARK_COLOURS and name in ("fill", "stroke"):
            classes.append(f"{name}-{_MARK_COLOURS[value.lower()]}")
        elif name != "font-family" and not name.startswith("-"):
            attributes[name] = value.removesuffix("px") if name == "font-size" else value
    if classes:
        attributes["class"] = " ".join(classes)
    if "id" in element.attrib:
        attributes["id"] = prefix + element.attrib["id"]
    if _HREF in element.attrib:
        attributes["href"] = "#" + prefix + element.attrib.pop(_HREF).removeprefix("#")
    if "clip-path" in element.attrib:
        attributes["clip-path"] = element.attrib["clip-path"].replace("url(#", f"url(#{prefix}")
    if "d" in element.attrib:
        rounded = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", element.attrib["d"])
        attributes["d"] = " ".join(rounded.split())
    return attributes


def _declarations(style: str) -> list[tuple[str, str]]:
    pairs = (declaration.partition(":") for declaration in style.split(";") if ":" in declaration)
    return [(name.strip(), value.strip()) for name, _, value in pairs]
