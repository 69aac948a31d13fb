"""docs/parity.md names every comparison, and nothing that is not tested."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = (HERE.parent / "docs" / "parity.md").read_text()


def test_every_row_names_tests_that_exist():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| quantity")]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 20 and all(named), [row for row, names in zip(rows, named, strict=True) if not names]
    defined = [
        name
        for path in HERE.glob("test_*_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    ]
    assert len(defined) == len(set(defined))
    assert set(sum(named, [])) == set(defined)
