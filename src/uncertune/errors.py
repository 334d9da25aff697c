"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and the mend.

    The command line prints it and exits with status 2; from Python it is an ordinary ``ValueError``.
    """
