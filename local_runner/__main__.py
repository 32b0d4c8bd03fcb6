"""`python -m local_runner VERB`: where engine and run directory meet. Prints JSON lines.

Exit codes: 0 done · 1 failed · 2 usage · 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_client.errors import MaasError, RunnerError
from maas_client.jobs import Event, JobStatus
from maas_client.spec.home import OWN_BASES, stand_in_home
from maas_client.spec.rundir import RunDir, RunStatus

if TYPE_CHECKING:
    from local_runner.data import ChatTokenizer
    from local_runner.models.base import Base

_EXIT = {JobStatus.SUCCEEDED: 0, JobStatus.CANCELLED: 130}


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    if arguments[:1] == ["mock"]:
        from local_runner.mock_server.cli.main import main as mock

        return mock(list(arguments[1:]))
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except MaasError as error:
        _print({"error": error.to_json()})
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        return 1
    except OSError as error:
        _print({"error": RunnerError(str(error)).to_json()})
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_runner", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], words: str
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=words)
        made.set_defaults(run=run)
        return made

    for name, run, words in (
        ("train", _train, "train a run directory's plan, or go on with it"),
        ("simulate", _simulate, "the same files in a second, nothing trained"),
    ):
        made = verb(name, run, words)
        made.add_argument("run_dir", type=Path)
        made.add_argument("--quiet", action="store_true", help="print no events")
        made.add_argument(
            "--keep-epochs", action="store_true", help="leave an adapter of each of the last epochs"
        )
        made.add_argument("--mlflow", help="log to this MLflow; MLFLOW_TRACKING_URI says the same")
        made.add_argument(
            "--tensorboard", type=Path, help="write TensorBoard files under this folder"
        )
    made.add_argument("--seconds", type=float, default=1.0, help="how long, by the clock")
    made.add_argument("--clock", type=Path, help="a file with the clock's pace")

    made = verb("track", _track, "tell MLflow or TensorBoard of a run that has ended")
    made.add_argument("run_dir", type=Path)
    made.add_argument("--mlflow")
    made.add_argument("--tensorboard", type=Path)
    made = verb("base", _base, "which weights --base names")
    _add_base(made)
    made = verb("count", _count, "count the tokens of a dataset")
    _add_rendered(made)
    made.add_argument("--validation", type=Path, help="held-out rows, counted apart")
    made = verb("preview", _preview, "the tokens of some rows, and which of them are trained")
    _add_rendered(made)
    made.add_argument("--rows", type=int, default=3, help="how many")
    made.add_argument("--line", type=int, default=1, help="from which line of the file on")
    made = verb("evaluate", _evaluate, "loss and metrics on a dataset, or a benchmark")
    _add_base(made)
    _add_data(made)
    made.add_argument("--adapter", type=Path, action="append", default=[])
    made.add_argument("--with-base", action="store_true", help="the base alone, first")
    made.add_argument("--benchmark", choices=("truthfulqa",), help="instead of a task")
    made.add_argument("--prompt", choices=("chat", "qa"), default="chat", help="a benchmark's")
    made = verb("answer", _answer, "answer questions that come as JSON lines")
    _add_base(made)
    made = verb("stand-in", _stand_in, "bring the stand-in model")
    made.add_argument("what", choices=("install", "path"))
    verbs.add_parser("mock", help="the offline twin of the service")
    return parser


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help=f"a folder, a hub id, {', '.join(OWN_BASES)}")
    parser.add_argument("--model", default="", help="the job's base model, by its catalogue name")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="chat_completion")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-seq-length", type=int, default=-1)


def _add_rendered(parser: argparse.ArgumentParser) -> None:
    """Rows, and how they are put into tokens."""
    _add_base(parser)
    _add_data(parser)
    parser.add_argument("--system-turns", choices=("refuse", "fold"), default="fold")


def _train(options: argparse.Namespace) -> int:
    # Idle threads that spin take the other cores' time on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from local_runner.train import train  # torch

    run = RunDir(options.run_dir.resolve())
    with _tracked(run, options) as on_event:
        return _end(train(run, keep_epochs=options.keep_epochs, on_event=on_event))


def _simulate(options: argparse.Namespace) -> int:
    from local_runner.clock import Clock
    from local_runner.simulate import simulate

    run = RunDir(options.run_dir.resolve())
    with _tracked(run, options) as on_event:
        return _end(
            simulate(
                run,
                seconds=options.seconds,
                clock=Clock(options.clock),
                keep_epochs=options.keep_epochs,
                on_event=on_event,
            )
        )


@contextmanager
def _tracked(run: RunDir, options: argparse.Namespace) -> Iterator[Callable[[Event], None]]:
    """Who hears what the run says: the printer, and the trackers that were asked for."""
    from local_runner.tracking.tracking import start

    tell = _printer(options)
    tracking = start(run, mlflow=options.mlflow, tensorboard=options.tensorboard)
    if tracking is None:
        yield tell
        return

    def both(event: Event) -> None:
        tell(event)
        tracking.take(event)

    try:
        yield both
    finally:
        tracking.finish()


def _track(options: argparse.Namespace) -> int:
    from local_runner.tracking.tracking import track

    run = RunDir(options.run_dir.resolve())
    _print({"tracked": track(run, mlflow=options.mlflow, tensorboard=options.tensorboard)})
    return 0


def _printer(options: argparse.Namespace) -> Callable[[Event], None]:
    return (lambda _: None) if options.quiet else (lambda event: _print(event.to_json()))


def _end(status: RunStatus) -> int:
    return _EXIT.get(status.status, 1)


def _base(options: argparse.Namespace) -> int:
    from local_runner.models.base import resolve

    _print(resolve(options.base, model=options.model).info.to_json())
    return 0


def _rendering(options: argparse.Namespace) -> tuple[Base, int, ChatTokenizer]:
    """The base, the tokens that a row may have, and what puts rows into tokens."""
    from local_runner import data
    from local_runner.models import base as bases

    base = bases.resolve(options.base, model=options.model)
    length = data.max_length(bases.read_config(base.folder), options.max_seq_length)
    return (
        base,
        length,
        data.ChatTokenizer(base.folder, model=base.model, system_turns=options.system_turns),
    )


def _count(options: argparse.Namespace) -> int:
    from local_runner import compared, data

    base, length, tokenizer = _rendering(options)

    def tokens(file: Path | None) -> Mapping[str, Any] | None:
        if file is None:
            return None
        rows = data.load_examples(tokenizer, file, max_length=length, task=options.task)
        return data.count(rows, counted_by=f"the tokenizer of {base.info.label}").to_json()

    held_out = tokens(options.validation)
    _print(
        {
            "base": {**base.info.to_json(), "remarks": compared.remarks(base, tokenizer)},
            "tokens": tokens(options.data),
            "validation_tokens": held_out,
        }
    )
    return 0


def _preview(options: argparse.Namespace) -> int:
    from local_runner.preview import preview

    base, length, tokenizer = _rendering(options)
    shown = preview(
        tokenizer,
        options.data,
        task=options.task,
        max_length=length,
        count=options.rows,
        line=options.line,
    )
    _print({"base": base.info.to_json(), "max_seq_length": length, "rows": shown})
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from local_runner.evaluation import measuring
    from local_runner.models import base as bases

    base = bases.resolve(options.base, model=options.model)
    folders = [*options.adapter]
    if options.with_base or not folders:
        folders.insert(0, None)
    if options.benchmark:
        found = measuring.on_truthfulqa(base, options.data, prompt=options.prompt, folders=folders)
    else:
        found = measuring.on_rows(
            base,
            options.data,
            task=options.task,
            folders=folders,
            max_seq_length=options.max_seq_length,
        )
    _print(found)
    return 0


def _answer(options: argparse.Namespace) -> int:
    from local_runner.answering import serve
    from local_runner.models.base import resolve

    serve(resolve(options.base, model=options.model), sys.stdin, sys.stdout)
    return 0


def _stand_in(options: argparse.Namespace) -> int:
    from local_runner.models import stand_in

    if options.what == "install":
        print(f"{stand_in.LABEL}\n{stand_in.install()}")
    else:
        print(stand_in_home())
    return 0


def _print(data: Mapping[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
