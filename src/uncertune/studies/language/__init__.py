"""The study ``language``: every objective on a language whose truth is known, in and out of distribution.

A small transformer is trained on all tasks, then post-trained on texts of a *shifted* version of two of them. In
distribution is the shifted version of those two, out of distribution the other four tasks; the measure is the exact
KL from the truth. Selection, objectives and uncertainty are those of the real training.

``grammar`` the language · ``model`` the transformer · ``arms`` what is compared · ``world`` languages, data and models
of all seeds · ``losses`` an arm's loss · ``training`` · ``truth`` what is measured · ``proxies``, ``objectives``,
``rewards``, ``mechanism``, ``when`` and ``path`` the questions · ``study`` all of it.

Shape legend: ``M`` models (one a seed), ``B`` texts, ``T`` words, ``V`` vocabulary.
"""
