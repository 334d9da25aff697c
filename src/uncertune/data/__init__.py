"""Data: rows of known formats, where they come from, chat templates with marks, and a generator for offline use.

Import the file you need (this package imports nothing by itself):

* ``sources``    ``load(name, ...)``: a built-in name, a file, a folder or a hub id, as rows TRL can train on
* ``formats``    rows of known formats, read into one form and checked
* ``turns``      the turns of a conversation, read into one form
* ``reading``    all rows of a source, and one table of them; what was left out
* ``prompts``    what a model is asked: a conversation up to its last answer, and its tools
* ``rows``       the only place where text becomes token ids and labels
* ``chat``       a conversation as token ids, with the assistant's tokens marked
* ``files``      JSON, JSON lines, CSV and Parquet files, row by row
* ``templates``  how the assistant's tokens are found in a chat template
* ``synthetic``  arithmetic word problems with worked, checkable answers
* ``general``    short prompts and prose outside any training task
"""
