"""``python -m uncertune.cli``, for launchers that take a module."""

import sys

from uncertune.cli.main import main

sys.exit(main())
