"""The tests of the laboratory share the recorded references of golden.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
