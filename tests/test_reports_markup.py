"""Markup: what is text stays text, whatever is in it."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from efserve.reports.markup import Markup, element, join, number


class Read(HTMLParser):
    """What a browser would see: tags with their attributes, and all text."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    read = Read(element("p", text, title=text))
    assert read.tags == [("p", {"title": text})]
    assert read.text == text


def test_attacks_are_text() -> None:
    made = element("text", "</text><script>", data_tip='" onload="x')
    assert made == '<text data-tip="&quot; onload=&quot;x">&lt;/text&gt;&lt;script&gt;</text>'


def test_control_characters_are_replaced() -> None:
    assert element("p", "a\x00b\x1b[31m") == "<p>a\ufffdb\ufffd[31m</p>"


def test_names_of_attributes_are_those_of_html() -> None:
    made = element("circle", class_="dot", stroke_width=1.5, aria_hidden=True, hidden=False, role=None)
    assert made == '<circle class="dot" stroke-width="1.5" aria-hidden></circle>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_nodes_may_be_nested() -> None:
    assert join("<", [element("b", "x"), None, (Markup("<i>"), ["y"])]) == "&lt;<b>x</b><i>y"


def test_numbers_are_short() -> None:
    assert [number(value) for value in (1.0, 33.333, 0.5, 0.001, -2.0)] == ["1", "33.33", "0.5", "0", "-2"]
