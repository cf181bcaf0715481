"""`python -m ndfast` is `ndfast`."""

import sys

from ndfast.cli import main

sys.exit(main())
