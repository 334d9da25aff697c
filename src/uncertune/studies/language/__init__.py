"""The study ``language``: every objective on a language whose truth is known, in and out of distribution.

A small transformer is trained on all tasks, then post-trained on texts of a *shifted* version of two of them. The
shifted tasks are in distribution, the other four out of distribution; the measure is the exact KL from the truth.
Selection, objectives and uncertainty are those of real training.

``grammar`` the language · ``model`` the transformer · ``arms`` what is compared · ``world`` languages, data and models
of all seeds · ``losses`` an arm's loss · ``training`` · ``truth`` what is measured · ``proxies``, ``objectives``,
``rewards``, ``mechanism``, ``when`` and ``path`` the questions · ``study`` all of it.

Shape legend: ``M`` models (one per seed), ``B`` texts, ``T`` words, ``V`` vocabulary.
"""
