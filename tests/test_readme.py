"""What README.md shows is what weigh prints and draws."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "update_readme.py"


def test_the_readme_shows_what_weigh_prints() -> None:
    run = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}Run tools/update_readme.py, and look at what it changes."
