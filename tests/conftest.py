"""Fixtures: the tiny models, built once per test session in a temporary folder."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(items):
    """Fast tests first: a wrong formula shows in seconds, before the engines start."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """tiny_folder(family) -> folder of a randomly initialised checkpoint of that family."""
    import data
    import qwen

    base = tmp_path_factory.mktemp("tiny")

    def build(family: str = "qwen2_5_vl") -> str:
        folder = base / family
        if not folder.exists():
            qwen.build_tiny(str(folder), data.tiny_corpus(), family)
        return str(folder)

    return build


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and nothing in the user's cache of data sets."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
