"""`python -m tests.devcloud VERB`."""

import sys

from tests.devcloud.cli import main

sys.exit(main())
