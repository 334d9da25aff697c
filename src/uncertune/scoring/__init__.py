"""``uncertune score``: the uncertainty of every response token of a data set, on disk, in figures and on a page.

options      what the command can be told (imports nothing heavy)
rows         the data as training would see it: token ids and labels
run          scores documents one by one, on every process, and goes on where it stopped
correlation  epistemic and aleatoric uncertainty against loss and entropy, with intervals over documents
change       what changed from one model to another on the same tokens
composition  what the hardest tokens are made of: structure, numbers, words
figures      the paper's Fig. 2B, 9 and 10
command      all of it
text         one text, for a notebook
"""
