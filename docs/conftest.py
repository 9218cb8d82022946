"""Pages of the documentation as tests: each runs in a folder of its own, where its code may write files.

The guides have commands between their code; `tests/test_guides.py` runs both.
"""

from pathlib import Path

import pytest

collect_ignore_glob = ["conf.py", "conftest.py", "guides/*.md"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
