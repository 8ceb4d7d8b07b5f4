"""The HTML report: well formed, complete, alone, with every foreign text escaped and enough contrast."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from bench_results import HOSTILE, closed_result, hostile_result, measured_level, result_of
from efserve.records import BenchResult, Load, SearchOutcome
from efserve.reports.page import DARK_RAMP, LIGHT_RAMP, Rgb, ramp_color, render

VOID = {"meta", "link", "br", "hr", "input", "col", "img"}
MOST_LEVELS = 12


class Page(HTMLParser):
    """Reads a page strictly: each element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style", "title"):
            self.text.append(data)

    def titles(self, heading: str) -> list[str]:
        """Texts that stand alone; enough to find headings."""
        return [text for text in self.text if text == heading]


def single(result: BenchResult) -> Page:
    return Page(render([result], ["run.json"]))


def test_a_page_has_all_its_parts() -> None:
    page = single(hostile_result())
    for heading in (
        "Latency against throughput",
        "Throughput by level",
        "Latency and service time",
        "By model",
        "Where the time goes",
        "Batch sizes",
        "Latency distribution",
        "Over the run",
        "CPU",
        "GPU utilisation",
        "Levels",
        "How it was measured",
    ):
        assert page.titles(heading) == [heading]
    assert "latency (ms)" in page.text
    assert "errors/s" in page.text
    assert any(text.startswith(": client delay: requests left") for text in page.text)


def test_what_a_server_does_not_tell_is_left_out() -> None:
    page = single(closed_result())
    assert not page.titles("Machine during the run")
    assert not page.titles("Latency and service time")
    assert not page.titles("errors/s")


def test_foreign_text_is_text() -> None:
    page = single(hostile_result())
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE.replace("\x07", "\ufffd") in page.text


def test_a_page_refers_to_nothing_outside() -> None:
    """Neither by an element nor by its style; and a policy in it forbids whatever might have been overlooked."""
    text = render([closed_result(), hostile_result()], ["a", "b"])
    page = Page(text)
    references = {attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes}
    assert references == {"data:,"}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none';")
    assert "script-src 'sha256-" in policy


@pytest.mark.parametrize("per_s", [0.0, 0.4, 3.0])
def test_levels_with_hardly_an_answer_are_drawn(per_s: float) -> None:
    levels = [measured_level(Load.closed(at), per_s=per_s, latency_us=1000, seed=at) for at in (1, 2)]
    assert single(result_of(*levels)).titles("Over the run")
    assert single(result_of(levels[0])).titles("Levels")


def test_many_levels_stay_legible() -> None:
    result = result_of(*(measured_level(Load.closed(at), per_s=50, latency_us=1000, seed=at) for at in range(1, 41)))
    page = single(result)
    bands = [attributes for tag, attributes in page.tags if tag == "text" and "bandname" in attributes.get("class", "")]
    assert 5 <= len(bands) <= MOST_LEVELS


def test_runs_are_compared_with_the_first() -> None:
    page = Page(render([closed_result(), closed_result(seed=7), closed_result(latency_us=2000)], ["a", "b", "c"]))
    assert page.titles("b against a")
    assert page.titles("c against a")
    assert "noise" in page.text
    assert "worse" in page.text
    assert page.text.count("Latency distribution") == 3


def test_runs_without_a_common_level_say_so() -> None:
    other = result_of(measured_level(Load.rate(9), per_s=9, latency_us=10))
    text = " ".join(Page(render([closed_result(), other], ["a", "b"])).text)
    assert "No level is in both results." in text
    assert "Only in the first: concurrency 1, concurrency 2" in text


def test_the_outcome_of_a_search_is_told() -> None:
    plain = closed_result()
    search = SearchOutcome("p99 latency <= 3 ms", Load.closed(2), (True, True, False, False), False)
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__} | {"search": search}
    page = single(BenchResult(**fields))
    assert "Goal p99 latency <= 3 ms: met up to concurrency 2." in page.text
    assert page.text.count("met goal") == page.text.count("missed goal") == 2


def luminance(color: Rgb) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [part / 255 for part in color]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Rgb, other: Rgb) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, Rgb]]:
    """The colours of the style sheet: light, then dark."""
    style = files("efserve.reports").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = style.split("prefers-color-scheme: dark", 1)
    return [
        {
            name: (int(color[:2], 16), int(color[2:4], 16), int(color[4:], 16))
            for name, color in re.findall(r"--(\w+): #([0-9a-f]{6})", part)
        }
        for part in (light, dark)
    ]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_there_is_enough_contrast(theme: int) -> None:
    colors = themes()[theme]
    assert contrast(colors["text"], colors["page"]) >= 12
    for name in ("muted", "bad", "warn", "good"):
        assert contrast(colors[name], colors["page"]) >= 4.5, name
        assert contrast(colors[name], colors["raised"]) >= 4.5, name
    for name in ("s1", "s2", "s3", "s4", "s5", "s6"):
        assert contrast(colors[name], colors["page"]) >= 3, name
        assert contrast(colors[name], colors["shade"]) >= 3, name
    ramp = (LIGHT_RAMP, DARK_RAMP)[theme]
    steps = [ramp_color(ramp, at, 10) for at in range(10)]
    assert all(contrast(color, colors["page"]) >= 3 for color in steps)
    order = [luminance(color) for color in steps]
    assert order == sorted(order, reverse=True)
