"""What commands print with rich: text without markup, lines that are not wrapped in pipes and files, and tables of figures."""

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

UNWRAPPED = 10_000  # columns of a pipe or a file: lines are not wrapped there
LEAST_WORDS = 12  # the fewest columns for the text in a table's last column


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """The console that commands print to. Text is never read as markup; lines are wrapped and coloured only in a terminal."""
    found = Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
    if not found.is_terminal:
        found.width = UNWRAPPED
    return found


def progress(*columns: ProgressColumn, field: str, quiet: bool = False) -> Progress:
    """A progress bar on standard error with its task's description, its field `field` and `columns`; only shown in a terminal.

    A terminal of less than 80 columns shows no bar, so that the figures have room.
    """
    where = console(stderr=True)
    words = TextColumn(f"{{task.fields[{field}]}}", markup=False, table_column=Column(overflow="fold"))
    bar = [BarColumn(24)] if where.width >= 80 else []
    shown = where.is_terminal and not quiet
    name = TextColumn("{task.description}", markup=False)
    return Progress(name, *bar, words, *columns, console=where, transient=True, disable=not shown)


class Figures(Table):
    """A table of which only the last column may be wrapped. If the terminal is too narrow, each row is printed as a line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *figures, words = self.columns
        longest = max(cell_len(str(cell)) for cell in (words.header, *words.cells))
        whole = Measurement.get(console, options.update_width(UNWRAPPED), self).maximum
        if whole - longest + min(longest, LEAST_WORDS) <= options.max_width:
            for column in figures:
                column.no_wrap = True
            words.overflow = "fold"
            yield from super().__rich_console__(console, options)
            return
        yield Text(str(self.title or ""), style="bold")
        for name, *cells in zip(*(column.cells for column in self.columns), strict=True):
            pairs = zip((column.header for column in self.columns[1:]), cells, strict=True)
            yield Text(f"{name}: " + ", ".join(f"{header} {cell}".strip() for header, cell in pairs if cell), overflow="fold")
        yield Text(str(self.caption or ""))
