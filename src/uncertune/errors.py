"""Errors that end a command early: a user's mistake, a non-finite number, or a signal."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and the fix.

    The command line prints it and exits with status 2; from Python it is an ordinary ``ValueError``.
    """


class NotFiniteError(UserError):
    """A loss, score or gradient that is nan or infinite: the line names the step and the micro-batch."""


class InterruptedRun(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a run: the line says what was saved; ``signal`` is its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
