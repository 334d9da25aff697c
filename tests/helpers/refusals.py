"""What a refusal must look like."""

from collections.abc import Callable
from typing import Any

import pytest

from uncertune.errors import UserError


def refused(call: Callable[[], Any], *words: str) -> str:
    """The message of the UserError that ``call`` raises: one line, with these words."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in message
    assert len(message) > 20
    for word in words:
        assert word in message, message
    return message
