"""What reads the images' files, and performs their steps, lies beside the tests and is found by its bare name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
