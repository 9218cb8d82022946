"""The pages of the documentation as tests: each runs in a folder of its own, where its code may write files."""

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
