"""Where real things are, and a tiny model on disk; tests that need what is not there skip with a line."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidia0").exists():  # what imports Triton first decides
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real rows and golden numbers."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"needs the golden numbers in {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The demo's real model, fetched and converted on first use."""
    from core.demo_model import ensure_demo_model
    from core.errors import UserError

    try:
        return ensure_demo_model(REPO / "saved_models" / "base", lambda text: None)
    except UserError as error:
        pytest.skip(f"needs the demo's model: {error}")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips with a line where there is none."""
    pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    from scripts.app_screens import CHROMIUM, opened

    if not any(map(shutil.which, CHROMIUM)):
        pytest.skip("needs a browser: apt-get install chromium")
    with opened() as one:
        yield one


@pytest.fixture
def registries(monkeypatch):
    """What the test registers goes when it ends."""
    import evaluation.tasks  # noqa: F401  (the built-in ones are registered first, and stay)
    import methods  # noqa: F401
    from core import plugins
    from core.registry import REGISTRIES
    from core.settings import SETTINGS

    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_items", dict(registry._items))
        monkeypatch.setattr(registry, "contents", dict(registry.contents))
    monkeypatch.setattr(SETTINGS, "_items", dict(SETTINGS._items))
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A random Llama with 56 linears and a byte-level tokenizer, saved as a plain folder."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def copies(monkeypatch):
    """Offloaded blocks that come to work are copies, as on a GPU."""
    from core.offload import Offload

    brought = Offload._brought
    monkeypatch.setattr(Offload, "_brought", lambda self, rest: brought(self, rest).clone())


@pytest.fixture(scope="session")
def source_data(tmp_path_factory) -> Path:
    """A data folder with a few rows of every source's task; not to be written to."""
    from tests.source_rows import write_rows

    return write_rows(tmp_path_factory.mktemp("source_data"))
