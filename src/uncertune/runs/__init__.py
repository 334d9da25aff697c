"""Run folders: what they hold, which run they belong to, who may write to them, and files written atomically."""
