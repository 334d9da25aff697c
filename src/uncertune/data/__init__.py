"""Data: formats, sources, chat templates with marks, and a generator for offline use.

Import the file you need (this package imports nothing by itself):

* ``sources``    ``load(name, ...)``: a built-in name, a file, a folder or a hub id, as rows that TRL can train on
* ``formats``    known row formats, converted to one form and checked
* ``turns``      the turns of a conversation, converted to one form
* ``reading``    all rows of a source as one table, with a report of what was left out
* ``prompts``    prompts for a model: a conversation up to its last answer, and its tools
* ``rows``       the only place where text becomes token ids and labels
* ``chat``       a conversation as token ids, with the assistant's tokens marked
* ``files``      JSON, JSON lines, CSV and Parquet files, row by row
* ``templates``  finding the assistant's tokens in a chat template
* ``synthetic``  arithmetic word problems with worked answers that can be checked
* ``general``    short prompts and prose outside any training task
"""
