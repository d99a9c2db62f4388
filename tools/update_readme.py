"""Run every command that README.md and docs/scaling.md show and put what it prints, and draws, where it is shown.

    python tools/update_readme.py            rewrite them and docs/pictures
    python tools/update_readme.py --check    exit 1 if that would change anything

A command is a line `$ weigh ...` in a console block; what stands below it, up to the next command, is its output. A
picture is drawn by the command in the comment above it: `<!-- weigh ... --svg NAME.svg -->`, or `--picture`, draws
`docs/pictures/NAME.svg`.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "scaling.md")


def run(command: str, folder: str) -> str:
    """What a command prints."""
    words = command.replace("weigh", f"{sys.executable} -m weigh", 1)
    done = subprocess.run(["bash", "-c", words], cwd=folder, capture_output=True, text=True, check=False)
    if done.stderr:
        raise SystemExit(f"{command}: {done.stderr}")
    return done.stdout


def with_outputs(text: str, folder: str) -> str:
    """The page with the output of each command under it, where it shows any."""

    def block(found: re.Match[str]) -> str:
        parts = re.split(r"^(\$ weigh .*)$", found[1], flags=re.MULTILINE)
        for number in range(1, len(parts), 2):
            if parts[number + 1].strip():
                parts[number + 1] = f"\n{run(parts[number][2:], folder)}"
        return f"```console\n{''.join(parts)}```\n"

    return re.sub(r"```console\n(.*?)```\n", block, text, flags=re.DOTALL)


def pictures(text: str, folder: str) -> dict[Path, str]:
    """Every picture of the page, drawn anew."""
    drawn = {}
    for command, name in re.findall(r"<!-- (weigh .*--(?:svg|picture) (\S+\.svg)) -->", text):
        run(command, folder)
        drawn[ROOT / "docs" / "pictures" / name] = (Path(folder) / name).read_text(encoding="utf-8")
    return drawn


def main() -> int:
    """Rewrite, or check."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {}
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            wanted |= {page: with_outputs(text, folder), **pictures(text, folder)}
    stale = [
        path for path, content in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    if "--check" in sys.argv:
        print(*(f"{path.relative_to(ROOT)} is not what weigh prints" for path in stale), sep="\n")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
