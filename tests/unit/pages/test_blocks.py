"""The blocks of pages: each is of a kind that a test runs, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.blocks import HERE, ROOT, blocks, commands, matches, pages
from tests.pages.machines import MACHINES
from tests.type_checkers import CHECKERS, check

PAGES = [(page, list(blocks(page))) for page in pages()]
ALL = [block for _, some in PAGES for block in some]


def test_every_block_is_run_or_says_why_not() -> None:
    assert [str(block) for block in ALL if not block.is_known] == []
    assert {block.machine for block in ALL} <= {HERE, *MACHINES}
    reasons = [f"{block}: {block.not_run}" for block in ALL if block.not_run is not None]
    print(f"{len(reasons)} of {len(ALL)} blocks are not run:", *reasons, sep="\n")
    assert len(reasons) <= 12


def test_what_is_printed_is_that_of_the_block_before_on_the_same_machine() -> None:
    for _, some in PAGES:
        run = [block for block in some if block.not_run is None and block.file is None]
        for before, block in zip([None, *run], run, strict=False):
            if block.language == "text":
                assert before is not None, block
                assert before.language in ("python", "sh"), block
                assert before.machine == block.machine, block


@pytest.mark.parametrize("checker", CHECKERS)
def test_python_as_type_checkers_see_it(checker: str, tmp_path: Path) -> None:
    """The examples, each program of a page, and the rest of a page's Python as one."""
    programs = sorted((ROOT / "examples").glob("*.py"))
    for page, some in PAGES:
        python = [block for block in some if block.language == "python"]
        texts = [(f"{block.line}", block.text) for block in python if block.file is not None]
        texts.append(("rest", "".join(block.text for block in python if block.file is None)))
        for name, text in texts:
            programs.append(tmp_path / f"{page.stem.replace('-', '_')}_{name}.py")
            programs[-1].write_text(text)
    # One that is wrong: what passes has been checked with the types of the package.
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from pyiommufd import find_device\n\nprint(find_device("02:01.0").group.viable)\n')
    done = check(checker, *programs, wrong, folder=tmp_path)
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "wrong.py:3" in errors[0]
    assert "viable" in errors[0]


TEXT = """\
```sh
true
```
<!-- machine: guest -->
Words.

<!-- file: first.py -->
```python
pass
```

<!-- not run: it takes
     hardware -->

```sh
false
```

```{toctree}
```

```yaml
a: 1
```
"""


def test_comments() -> None:
    page = ROOT / "page.md"
    found = list(blocks(page, TEXT))
    assert [(one.line, one.language, one.machine, one.file, one.not_run) for one in found] == [
        (1, "sh", "here", None, None),
        (8, "python", "guest", "first.py", None),
        (15, "sh", "guest", None, "it takes hardware"),
        (22, "yaml", "guest", None, None),
    ]
    assert [one.is_known for one in found] == [True, True, True, False]
    assert found[1].text == "pass\n"


def test_comment_that_belongs_to_no_block() -> None:
    with pytest.raises(ValueError, match="not directly before a block"):
        list(blocks(ROOT / "page.md", "<!-- file: a -->\nWords.\n```sh\ntrue\n```\n"))


def test_console() -> None:
    assert list(commands("$ first\n$ second \\\n> more\nsays\n")) == [
        ("first", ""),
        ("second \\\nmore", "says\n"),
    ]
    assert list(commands("$ echo a\na\n$ echo $?\n0\n")) == [("echo a", "a\n"), ("echo $?", "0\n")]
    with pytest.raises(ValueError, match="begins with a command"):
        list(commands("a\n"))


@pytest.mark.parametrize(
    ("printed", "said", "expected"),
    [
        ("a  \nb\n", "a\nb\n", True),
        ("a\nb\nc\n", "a\n…\nc\n", True),
        ("pid 17 holds", "pid … holds", True),
        ("a\nb\n", "a\n", False),
        ("", "", True),
        ("something", "", False),
        ("a.b", "a+b", False),
    ],
)
def test_what_is_printed(printed: str, said: str, expected: bool) -> None:
    assert matches(printed, said) is expected
