"""Data: rows of known formats, where they come from, chat templates with marks, and a generator for offline use.

Import the file you need (this package imports nothing by itself):

* ``sources``    ``load(name, ...)``: a built-in name, a file, a folder or a hub id, as rows TRL can train on
* ``formats``    Alpaca, GSM8K and ShareGPT rows to ``messages`` rows; the checks every row passes
* ``files``      JSON, JSON lines, CSV and Parquet files, row by row
* ``templates``  the chat template that marks what the assistant says
* ``synthetic``  arithmetic word problems with worked, checkable answers
* ``general``    short prompts and prose outside any training task
"""
