"""What a user sets: values checked against their fields' types and ranges, and the YAML files that hold them."""

from uncertune.settings.files import read_mapping
from uncertune.settings.spec import REQUIRED, Spec, option, specs_of
from uncertune.settings.values import (
    TRUST,
    check_text,
    check_trust,
    convert,
    converted,
    near,
    shown,
    typed,
)

__all__ = [
    "REQUIRED",
    "TRUST",
    "Spec",
    "check_text",
    "check_trust",
    "convert",
    "converted",
    "near",
    "option",
    "read_mapping",
    "shown",
    "specs_of",
    "typed",
]
