"""Whether standard input is a policy that the installed service takes; says why not."""

import sys
from pathlib import Path

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.policy import read_policy

try:
    read_policy(Path("/dev/stdin"))
except MlaasError as error:
    sys.exit(str(error).replace("/dev/stdin", "that was given"))
