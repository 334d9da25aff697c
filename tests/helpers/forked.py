"""Processes without the cost of imports: they fork from a server that has made them, one for each process of pytest."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "uncertune.training.arguments", "uncertune.training.jobs", "uncertune.training.pipeline"]
)
