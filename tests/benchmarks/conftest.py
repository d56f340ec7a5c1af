"""The benchmarks are scripts: what lies beside one is found by its bare name, as when it is run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
