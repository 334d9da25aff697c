"""``uncertune score``: the uncertainty of every response token of a data set, on disk, in figures and on a page.

settings     what a run is made of
rows         the model, and the data as training would see it: token ids and labels
run          scores documents one by one, on every process, and resumes
correlation  epistemic and aleatoric uncertainty against loss and entropy, with intervals over documents
change       what changed from one model to another on the same tokens
composition  what the hardest tokens are made of: structure, numbers, words
uncertain    the most uncertain tokens, as a table
figures      correlations, losses, and uncertainty against the dropout rate (the paper's Fig. 2B, 9 and 10)
score        the whole run
text         one text, for a notebook or the command line
"""
