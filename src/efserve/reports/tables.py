"""Tables for people: without lines, words to the left, and numbers that are never cut however narrow the terminal."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_WORD_CELLS = 10  # into which words may be folded


class PlainTable(Table):
    """A table of columns with headings. Where the terminal is too narrow for it, each row is a block of lines."""

    def __init__(self, title: str | Text = "", *, tight: bool = False) -> None:
        """`tight`: one cell between columns instead of two."""
        super().__init__(
            title=(Text(title, "bold") if isinstance(title, str) else title) or None,
            title_justify="left",
            box=None,
            header_style="bold",
            pad_edge=False,
            padding=(0, 1, 0, 0) if tight else (0, 1),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for column in self.columns:
            column.no_wrap |= column.justify == "right"
        least = sum(_least_cells(column, console, options) for column in self.columns)
        gaps = (len(self.columns) - 1) * (self.padding[1] + self.padding[3])
        if least + gaps <= options.max_width:
            yield from super().__rich_console__(console, options)  # type: ignore[misc]
        else:
            yield from self._blocks()

    def _blocks(self) -> Iterator[RenderableType]:
        if self.title is not None:
            yield self.title
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(style=self.header_style, no_wrap=True)
        lines.add_column(overflow="fold")
        for at, row in enumerate(zip(*[column.cells for column in self.columns], strict=True)):
            if at:
                lines.add_row()
            for column, cell in zip(self.columns, row, strict=True):
                if cell:
                    lines.add_row(column.header, cell)
        yield lines


def _least_cells(column: Column, console: Console, options: ConsoleOptions) -> int:
    """Cells of the terminal that a column needs to be read."""
    widest = max(Measurement.get(console, options, each).maximum for each in (column.header, *column.cells))
    return widest if column.no_wrap else min(widest, _WORD_CELLS)
