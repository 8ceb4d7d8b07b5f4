"""The HTML report in a real browser: it asks for nothing, complains of nothing, and fits a narrow window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_results import closed_result, hostile_result
from chromium import Tab, chromium_path, open_tab
from efserve.reports.page import render

BROWSER = chromium_path()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    assert BROWSER is not None
    with open_tab(BROWSER) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "one": render([closed_result()], ["a.json"]),
        "hostile": render([hostile_result()], ["h.json"]),
        "two": render([closed_result(), closed_result(seed=9, latency_us=1500)], ["a.json", "b.json"]),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def complaints(tab: Tab) -> list[dict[str, Any]]:
    """Errors, warnings and dialogs since the page was opened."""
    methods = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    return [event for event in tab.events if event["method"] in methods]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("name", ["one", "hostile", "two"])
def test_a_page_stands_alone_and_fits(tab: Tab, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    address = pages[name].as_uri()
    tab.open(address, width=width, dark=dark)
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("innerWidth") == width
    requested = {
        event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"
    }
    assert requested == {address}
    assert not complaints(tab)
    assert tab.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 20, 24)" if dark else "rgb(255, 255, 255)")


def test_the_charts_are_drawn(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["hostile"].as_uri(), width=360)
    assert tab.value("document.querySelectorAll('svg.marks').length") >= 10
    flat = "[...document.querySelectorAll('svg.marks')].filter(svg => svg.getBoundingClientRect().width < 150).length"
    assert tab.value(flat) == 0
    empty = "[...document.querySelectorAll('svg.marks path')].filter(path => !path.getTotalLength()).length"
    assert tab.value(empty) == 0


def test_texts_of_charts_stay_inside_the_window(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["one"].as_uri(), width=360)
    outside = """[...document.querySelectorAll('svg.marks text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < 0 || box.right > innerWidth);
    }).map(text => text.textContent)"""
    assert tab.value(outside) == []


def test_pointing_at_a_mark_tells_its_figures(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["one"].as_uri(), width=1200)
    tab.value("document.querySelector('.hit').scrollIntoView({block: 'center'})")
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")  # has scrolled
    x, y = tab.value(
        "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        "(document.querySelector('.hit').getBoundingClientRect())"
    )
    tab.move_pointer(x, y)
    shown = "(tip => tip.hidden ? '' : tip.textContent)(document.querySelector('.tip'))"
    assert "infer/s" in tab.value(shown)


def test_a_level_can_be_switched_off(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["one"].as_uri(), width=1200)
    hidden = "document.querySelectorAll('path.off').length"
    assert tab.value(hidden) == 0
    tab.value("document.querySelector('[data-pick=\"1\"] button').click()")
    assert tab.value(hidden) == 1
    assert tab.value("document.querySelector('[data-pick=\"1\"] button').getAttribute('aria-pressed')") == "false"
    tab.value("document.querySelector('[data-pick=\"1\"] button').click()")
    assert tab.value(hidden) == 0
