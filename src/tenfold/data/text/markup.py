"""The text of HTML, Markdown and Jupyter notebooks."""

import json
import re
from typing import Any

from markdown_it import MarkdownIt

from tenfold.data.text.streams import UnreadableFile
from tenfold.spec.errors import NotInstalled

_FRONT_MATTER = re.compile(r"\A---\r?\n.*?\n---\r?\n", re.DOTALL)


def html_text(data: bytes) -> str:
    """The main text of a page, without navigation, headers and footers."""
    encoding, extract = _resiliparse()
    try:
        page = data.decode()
    except UnicodeDecodeError:
        page = encoding.bytes_to_str(data, encoding.detect_encoding(data, from_html_meta=True))
    return extract(page, preserve_formatting=True, main_content=True) or extract(page, preserve_formatting=True)


def markdown_text(data: bytes) -> str:
    """The text of Markdown without its markup, including GitHub's tables and strikethrough."""
    _, extract = _resiliparse()
    source = _FRONT_MATTER.sub("", _utf8(data))
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source)
    return extract(page, preserve_formatting=True)


def notebook_text(data: bytes) -> str:
    """The cells of a Jupyter notebook, code in Markdown fences; outputs are left out."""
    try:
        notebook = json.loads(data)
        cells = notebook["cells"] if "cells" in notebook else [c for sheet in notebook["worksheets"] for c in sheet["cells"]]
        language = notebook.get("metadata", {}).get("language_info", {}).get("name", "")
        return "\n\n".join(filter(str.strip, (_cell(cell, language) for cell in cells)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableFile("no notebook that can be read") from None


def _cell(cell: dict[str, Any], language: str) -> str:
    source = cell["source"] if "source" in cell else cell["input"]  # notebook formats before 4 keep code in `input`
    text = source if isinstance(source, str) else "".join(source)
    return f"```{language}\n{text}\n```" if cell["cell_type"] == "code" and text.strip() else text


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UnreadableFile("not UTF-8") from None


def _resiliparse() -> tuple[Any, Any]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse import encoding
    except ImportError:
        raise NotInstalled("Reading the text of HTML and Markdown needs a package: pip install 'tenfold[markup]'.") from None
    return encoding, extract_plain_text
