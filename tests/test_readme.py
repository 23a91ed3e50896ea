"""The README tells the truth: its tables agree with the code."""

import re
from pathlib import Path

import pytest

from scripts.settings_table import table
from tests.test_house import PACKAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = [
    *ROOT.glob("*.py"),
    *(path for room in PACKAGES for path in (ROOT / room).rglob("*.py")),
]
#: Every way in which the code gives an error its code.
CODE = re.compile(
    r"""\bcode(?::\ ClassVar\[str\])?\s*=\s*"([a-z_]+)"   # an error class, a Failure
      | (?:JobFailed|JobFailure|_failed)\(\s*(?:evidence,\s*)?(?:code=)?"([a-z_]+)"
      | ^(?:STOPPED|TOO)[A-Z_]+\ =\ "([a-z_]+)"           # one that the protocol acts on
      | ^\ +return\ "((?:job|cuda|host|gpu)_[a-z_]+)"         # the child's name for an exception
    """,
    re.VERBOSE | re.MULTILINE,
)


def codes_in_the_code():
    for path in SOURCES:
        for match in CODE.finditer(path.read_text()):
            yield next(filter(None, match.groups()))


def codes_in_the_table():
    rows = README.split("## Errors")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE):
        yield from re.findall(r"`([a-z_]+)`", row)


def test_the_table_of_errors_has_every_code_and_no_other():
    assert sorted(set(codes_in_the_table())) == sorted(set(codes_in_the_code()))


def test_no_code_stands_twice_in_the_table():
    codes = list(codes_in_the_table())
    assert len(codes) == len(set(codes))


def test_the_table_of_settings_is_the_one_the_script_prints():
    written = re.search(r"<!-- settings.*?-->\n(.*?)\n<!-- end", README, re.DOTALL)
    assert written.group(1) == table(), "run scripts/settings_table.py and paste what it prints"


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w/.-]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()
