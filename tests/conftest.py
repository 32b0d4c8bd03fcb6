"""What every test shares: no network, an own home, and no process left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # an offline look-up costs 20 s
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Several tests run at a time: idle threads that spin would take the others' time. The trainer does so, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

JOB = """\
$schema: https://azuremlschemas.azureedge.net/latest/FineTuningJob.schema.json
type: finetuning
task: chat_completion
model_provider: custom
model:
  path: azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15
  type: mlflow_model
training_data:
  path: train.jsonl
  type: uri_file
hyperparameters:
  learning_rate: "0.00002"
outputs:
  registered_model:
    name: my-model
    type: mlflow_model
"""

ROW = (
    '{"messages": [{"role": "user", "content": "Where is the tap?"},'
    ' {"role": "assistant", "content": "Left."}]}'
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that nobody waits for it alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("stand_in") is None)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own, unless the caller brings one (and with it a converted stand-in)."""
    given = os.environ.get("MAAS_HOME")
    home = Path(given) if given else tmp_path_factory.mktemp("maas-home")
    os.environ["MAAS_HOME"] = str(home)
    os.environ["MAAS_MOCK_HOME"] = str(tmp_path_factory.mktemp("mock-home"))
    yield home
    left = runners(tmp_path_factory.getbasetemp())
    assert not left, f"processes were left behind: {left}"


def runners(tests: Path) -> dict[int, str]:
    """Processes of the tests of a folder that are still there, by their command lines."""
    found = {}
    me = str(tests).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"local_runner" in words and me in words + environment:
            found[int(folder.name)] = words.replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    """A folder with a job file and three good rows."""
    (tmp_path / "job.yaml").write_text(JOB)
    rows = [ROW.replace("tap", word) for word in ("tap", "door", "lamp")]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path
