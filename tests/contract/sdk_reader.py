"""azure-ai-ml's own reading of job files, in a process of its own: JSON lines in, JSON lines out.

Not in pytest's process: importing azure.ai.ml warns, takes seconds and remembers clouds.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")  # azure-ai-ml's own: marshmallow 3, experimental classes


def read(question: dict[str, Any]) -> dict[str, Any]:
    from azure.ai.ml import load_job

    os.chdir(question.get("cwd", "/"))
    source = question.get("file") or io.StringIO(question["text"])
    try:
        entity: Any = load_job(source)
        return {"job": entity._to_dict(), "base": str(entity.base_path)}
    except Exception as error:  # noqa: BLE001 - a refusal is an answer
        return {"refused": f"{type(error).__name__}: {error}"}


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        replies.write(json.dumps(read(json.loads(line)), default=str) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
