"""The README tells the truth about the files and the commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def files_in_the_tree() -> list[str]:
    """Paths of the README's tree: two spaces of indent a level, a name, two spaces, what it is."""
    block = README.split("## The files", 1)[1].split("```")[1]
    stack: list[str] = []
    found = []
    for row in block.splitlines():
        if not (match := re.match(r"^( *)(\S+)(?:  +(.+))?$", row)):
            continue
        depth = len(match[1]) // 2
        stack[depth:] = [match[2].rstrip("/")]
        if not match[2].endswith("/"):
            found.append("/".join(stack))
            assert match[3], f"{match[2]} has no words"
    return found


def test_the_readmes_tree_is_the_disk() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    unsaid = ("__init__.py", "py.typed", ".gitignore")
    there = {
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).exists() and Path(name).name not in unsaid and name != "README.md"
    }
    tree = files_in_the_tree()
    assert set(tree) == there
    assert len(tree) == len(set(tree))


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) == {"demo", "test"}


def test_no_file_speaks_of_a_place_that_no_user_has() -> None:
    words = ["/work" + "/", ".." + "/shared"]
    for word in words:
        done = subprocess.run(
            ["git", "grep", "-nF", word], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stdout == ""
