"""The HTML report: one file that needs nothing else, from one result or several. Names from files are escaped."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

from efserve import __version__
from efserve.records import BenchResult, LevelResult
from efserve.reports import charts
from efserve.reports.differences import differences
from efserve.reports.differences_page import differences_section
from efserve.reports.level_table import level_table
from efserve.reports.levels import clients_line, heading, long_name, ms, remarks, search_line
from efserve.reports.markup import Markup, Node, element, join
from efserve.reports.samples import sample_figures
from efserve.reports.scale import amount

Rgb = tuple[int, int, int]

# Ends and turns of the ramps of level colours: monotone in lightness, told apart by the colour-blind.
LIGHT_RAMP: tuple[Rgb, ...] = ((190, 112, 16), (176, 62, 92), (98, 56, 140), (24, 36, 88))
DARK_RAMP: tuple[Rgb, ...] = ((255, 226, 150), (243, 160, 104), (214, 108, 160), (132, 118, 224))


def render(results: Sequence[BenchResult], names: Sequence[str]) -> str:
    """The page of these results, each under its name; the later ones are compared with the first."""
    compared = [differences(results[0], other) for other in results[1:]]
    title = " and ".join(dict.fromkeys(result.target.model or "benchmark" for result in results))
    body: list[Node] = []
    if len(results) == 1:
        body.append(_header(results[0], f"{results[0].target.model}"))
        body.append(_result(results[0]))
    else:
        body.append(_many_header(results, names))
        body += [
            differences_section(found, names[0], name, (results[0], other))
            for found, name, other in zip(compared, names[1:], results[1:], strict=True)
        ]
        for result, name in zip(results, names, strict=True):
            body.append(element("section", _header(result, name, level="h2"), _result(result)))
    counts = sorted({len(result.levels) for result in results})
    return _page(f"{title}: benchmark", join(*body), "".join(level_colors(count) for count in counts))


def _page(title: str, body: Markup, colors: str) -> str:
    package = files("efserve.reports")
    style = package.joinpath("page.css").read_text(encoding="utf-8") + colors
    script = package.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    footer = element("footer", f"Made by efserve {__version__} from the raw records of the result file.")
    whole = element("body", element("main", body), footer, element("script", Markup(script)))
    return f"<!doctype html>\n{element('html', head, whole, lang='en')}\n"


def level_colors(count: int) -> str:
    """Style rules that give each level of a result with so many its colour, in both themes."""
    themes = []
    for ramp in (LIGHT_RAMP, DARK_RAMP):
        rules = (f"--l{at}:#{''.join(f'{part:02x}' for part in ramp_color(ramp, at, count))}" for at in range(count))
        themes.append(f".levels{count}{{{';'.join(rules)}}}")
    return f"{themes[0]}\n@media screen and (prefers-color-scheme: dark){{{themes[1]}}}\n"


def ramp_color(ramp: Sequence[Rgb], at: int, count: int) -> Rgb:
    """The colour at place `at` of `count` along a ramp."""
    place = (len(ramp) - 1) * (at / (count - 1) if count > 1 else 0.5)
    first = min(int(place), len(ramp) - 2)
    part = place - first
    red, green, blue = (
        round(low + (high - low) * part) for low, high in zip(ramp[first], ramp[first + 1], strict=True)
    )
    return red, green, blue


def _header(result: BenchResult, title: str, level: str = "h1") -> Markup:
    target = result.target
    server = f"{target.server_name} {target.server_version}".strip() or "an unnamed server"
    where = "embedded" if target.embedded else target.url
    machine = result.machine
    lead = (
        f"{target.model}{f' version {target.model_version}' if target.model_version else ''} on {server} ({where}), "
        f"measured {_when(result.started_at)} on {machine.cpu_model}, {machine.cores} cores."
    )
    return element(
        "header",
        element("p", "Benchmark", class_="eyebrow") if level == "h1" else None,
        element(level, title),
        element("p", lead, class_="lead"),
        element("p", "Interrupted before all levels were measured.", class_="warn") if result.interrupted else None,
        element("p", search_line(result.search)) if result.search else None,
        _cards(result.levels),
    )


def _many_header(results: Sequence[BenchResult], names: Sequence[str]) -> Markup:
    models = ", ".join(dict.fromkeys(result.target.model for result in results))
    lead = f"{len(results)} runs, each later one compared with the first: {', '.join(names)}."
    return element(
        "header",
        element("p", "Benchmarks compared", class_="eyebrow"),
        element("h1", models),
        element("p", lead, class_="lead"),
    )


def _when(started_at: str) -> str:
    return f"{started_at[:10]} {started_at[11:16]} UTC"


def _cards(levels: Sequence[LevelResult]) -> Markup:
    """The headline facts: what one would tell a colleague."""
    best = max(levels, key=lambda level: level.statistics.inferences_per_s)
    measured = [level for level in levels if level.statistics.latency]
    found: list[tuple[str, str, str]] = [
        (amount(best.statistics.inferences_per_s), "infer/s", f"highest throughput, at {long_name(best.record)}")
    ]
    if best.statistics.latency:
        found.append((ms(best.statistics.latency.p99_us), "ms", "p99 latency there"))
    if len(measured) > 1:
        quick = min(measured, key=lambda level: level.statistics.latency.p50_us if level.statistics.latency else 0)
        assert quick.statistics.latency is not None
        found.append((ms(quick.statistics.latency.p50_us), "ms", f"lowest p50, at {long_name(quick.record)}"))
    errors = sum(sum(level.statistics.errors.values()) for level in levels)
    requests = sum(level.statistics.requests for level in levels)
    found.append((f"{errors:,}", "", f"errors beside {requests:,} answers"))
    stable = sum(level.record.stable for level in levels)
    found.append((f"{stable} of {len(levels)}", "", "levels stable"))
    items = (
        element(
            "li",
            element("b", value, element("span", f" {unit}" if unit else "", class_="unit")),
            element("small", text),
        )
        for value, unit, text in found
    )
    return element("ul", join(*items), class_="cards")


def _result(result: BenchResult) -> Markup:
    levels = result.levels
    load_name = {"conc": "concurrency", "rate": "offered rate"}.get(heading(levels), "load")
    pictures: list[Node] = [
        charts.latency_by_throughput(levels),
        charts.throughput_by_level(levels, load_name),
        charts.delays(levels, load_name),
        charts.model_latency(levels, load_name),
        charts.server_split(levels),
        charts.batch_sizes(levels),
        charts.distribution(levels),
        charts.run_panels(levels),
    ]
    samples = sample_figures(levels)
    return join(
        element("h2", "Levels"),
        level_table(levels, result.search.met if result.search else ()),
        _remark_list(levels),
        element("h2", "Load and latency"),
        element("div", pictures, class_=f"figures levels{len(levels)}"),
        [element("h2", "Machine during the run"), element("div", samples, class_="figures")] if samples else None,
        element("h2", "How it was measured"),
        _facts(result),
    )


def _remark_list(levels: Sequence[LevelResult]) -> Node:
    items = [
        element("li", element("b", long_name(level.record)), f": {remark}")
        for level in levels
        for remark in (clients_line(level), *remarks(level))
        if remark
    ]
    return element("ul", items, class_="remarks") if items else None


def _facts(result: BenchResult) -> Markup:
    target, machine = result.target, result.machine
    gibibytes = machine.memory_bytes / 2**30
    facts = {
        "Server": f"{target.server_name} {target.server_version} at {target.url}{', embedded' * target.embedded}",
        "Model": f"{target.model}, version {target.model_version or 'latest'}, {target.platform or 'unknown platform'}",
        "Requests": f"{'; '.join(target.inputs)}, {'binary tensors' if target.binary else 'JSON numbers'}",
        "Machine": f"{machine.cpu_model}, {machine.cores} cores, {gibibytes:.1f} GiB, Linux {machine.kernel}",
        "Software": ", ".join(
            [f"efserve {result.efserve_version}", f"Python {machine.python}"]
            + [f"{name} {version}" for name, version in machine.libraries.items()]
        ),
        "Options": ", ".join(f"{name}={_plain(value)}" for name, value in result.config.items() if _given(value)),
    }
    terms = (join(element("dt", name), element("dd", text)) for name, text in facts.items())
    config = None
    if target.config is not None:
        config = element(
            "details",
            element("summary", "The model's configuration, as the server tells it"),
            element("pre", json.dumps(target.config, indent=1, ensure_ascii=False)),
        )
    return join(element("dl", join(*terms)), config)


def _given(value: object) -> bool:
    return value not in (None, "", [], (), 0)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
