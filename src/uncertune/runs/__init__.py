"""Run folders: contents, identity and locks; and atomic writes of files."""

from uncertune.runs.records import DocumentMask, read_metrics, read_selection, read_settings

__all__ = ["DocumentMask", "read_metrics", "read_selection", "read_settings"]
