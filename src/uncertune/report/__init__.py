"""Pages and tables for people: one self-contained HTML file, and the same numbers for a terminal."""

from uncertune.report.page import (
    AnswerRow,
    Answers,
    Column,
    Curves,
    Facts,
    Frame,
    Page,
    Section,
    Series,
    Table,
    Token,
    TokenDocument,
    Tokens,
)
from uncertune.report.run import render, write_page
from uncertune.report.tables import to_markdown, to_text

__all__ = [
    "AnswerRow",
    "Answers",
    "Column",
    "Curves",
    "Facts",
    "Frame",
    "Page",
    "Section",
    "Series",
    "Table",
    "Token",
    "TokenDocument",
    "Tokens",
    "render",
    "to_markdown",
    "to_text",
    "write_page",
]
