"""Pages and tables for people: one self-contained HTML file, and the same numbers for a terminal."""

from uncertune.report.figure import paper_figure
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
    Value,
)
from uncertune.report.run import render, write_page, write_whole
from uncertune.report.tables import to_markdown, to_text
from uncertune.report.token_figure import draw_tokens
from uncertune.report.token_page import (
    Moment,
    Quantity,
    ScoredDocument,
    TokenPage,
    render_token_page,
    write_token_page,
)

__all__ = [
    "AnswerRow",
    "Answers",
    "Column",
    "Curves",
    "Facts",
    "Frame",
    "Moment",
    "Page",
    "Quantity",
    "ScoredDocument",
    "Section",
    "Series",
    "Table",
    "Token",
    "TokenDocument",
    "TokenPage",
    "Tokens",
    "Value",
    "draw_tokens",
    "paper_figure",
    "render",
    "render_token_page",
    "to_markdown",
    "to_text",
    "write_page",
    "write_token_page",
    "write_whole",
]
