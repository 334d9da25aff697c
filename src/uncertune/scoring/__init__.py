"""Scoring: the uncertainty of every response token of a data set, on disk, in figures and on a page.

settings     the arguments of a run
rows         the model, and the data as token ids and labels, as in training
run          scores documents one by one on every process, and resumes
correlation  epistemic and aleatoric uncertainty against loss and entropy, with intervals over documents
change       changes from one model to another on the same tokens
composition  the kinds of the hardest tokens: structure, numbers, words
uncertain    the most uncertain tokens, as a table
figures      correlations, losses, and uncertainty against the dropout rate (the paper's Fig. 2B, 9 and 10)
score        the whole run
text         one text, for a notebook or the command line
"""
