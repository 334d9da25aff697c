"""Run folders: what they hold, which run they belong to, who may write to them, and files written atomically."""

from uncertune.runs.records import DocumentMask, read_metrics, read_selection, read_settings

__all__ = ["DocumentMask", "read_metrics", "read_selection", "read_settings"]
