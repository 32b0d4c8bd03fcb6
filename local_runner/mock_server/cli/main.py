"""`maas mock …`: serve, stop, status, reset, env; and the verbs of the other `*_cli.py`."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from local_runner.mock_server.cli import controls_cli, describe_cli, proxy_cli, replay_cli
from local_runner.mock_server.cli.line import Line, wait_until_gone
from local_runner.mock_server.control.controls import Settings
from local_runner.mock_server.engine import Engine, tail
from local_runner.mock_server.server import Options, log_to_stderr, serve, state_of
from local_runner.mock_server.twin import DEFAULT_AS_OF, Site
from maas_client.errors import MaasError
from maas_client.spec import catalog_file
from maas_client.spec.home import OWN_BASES, mock_home

_START_SECONDS = 60
_STOP_SECONDS = 30


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    options.words = arguments
    try:
        code: int = options.run(options)
    except MaasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the mock'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maas mock", description="The offline twin of the service."
    )
    parser.add_argument("--home", type=Path, default=mock_home(), help="where its state is kept")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    start = verbs.add_parser("serve", help="start it; Ctrl-C stops it")
    start.set_defaults(run=_serve)
    start.add_argument("--engine", choices=("train", "simulate"), default="train")
    start.add_argument("--base", default="stand-in", help="what the train engine trains")
    start.add_argument(
        "--simulate-seconds", type=_seconds, default=1.0, help="length of a simulated job"
    )
    start.add_argument("--as-of", type=dt.date.fromisoformat, default=DEFAULT_AS_OF,
                       help="the catalogue's date: models retired by then are refused")  # fmt: skip
    start.add_argument("--region", default="eastus2")
    start.add_argument("--capacity", type=_count, default=1, help="jobs at once; the rest queue")
    start.add_argument("--seed", type=int, help="of ids and keys, so that they come again")
    start.add_argument("--plain", action="store_true",
                       help="without TLS, for measurements: no SDK sends a token over it")  # fmt: skip
    start.add_argument("--host", default="127.0.0.1")
    start.add_argument("--port", type=int, default=0, help="0: the last one, or any that is free")
    start.add_argument("--detach", action="store_true", help="return once it answers")
    for name, run, words in (
        ("stop", _stop, "stop it; a training goes on and is adopted at the next start"),
        ("status", _status, "what it is and what it holds"),
        ("reset", _reset, "cancel running jobs and forget everything"),
    ):
        verbs.add_parser(name, help=words).set_defaults(run=run)
    verbs.choices["status"].add_argument("--json", action="store_true", dest="as_json")
    controls_cli.add_verbs(verbs)
    replay_cli.add_verb(verbs, controls_cli.duration)
    proxy_cli.add_verb(verbs)
    describe_cli.add_verb(verbs)
    env = verbs.add_parser("env", help="what points any azure-ai-ml program at it")
    env.set_defaults(run=_env)
    env.add_argument("--shell", choices=("bash", "python", "json"), default="bash",
                     help="how to write recipe A or C")  # fmt: skip
    for verb in verbs.choices.values():  # before or after the verb, as one likes
        verb.add_argument("--home", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    env.add_argument("--recipe", choices=("A", "B", "C"), default="A",
                     help="A: environment only; B: keywords for MLClient; C: the public cloud's names, "
                          "through `maas mock proxy`")  # fmt: skip
    return parser


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    """A time."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds within a day")
    return value


def _fix_catalog() -> None:
    """Read the catalogue now, and have every child read the same file: a child stands in another folder.

    Raises:
        SettingsError: the user's own entries are wrong.
    """
    if (file := catalog_file.user_file()) is not None:
        os.environ[catalog_file.VARIABLE] = str(file)
    catalog_file.load()


def _serve(options: argparse.Namespace) -> int:
    if options.detach:
        return _detach(options)
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"warning: {options.host} is not loopback: others can reach this mock", file=sys.stderr
        )
    log_to_stderr()
    _fix_catalog()
    base = Path(options.base)
    # A restarted server, or a child of it, may stand in another folder.
    is_path = options.base not in OWN_BASES and base.is_dir()
    if options.engine == "train" and not is_path:
        _check_base(options.base)
    named = str(base.resolve()) if is_path else options.base
    home = options.home.resolve()
    clock = home / "clock.json" if options.engine == "simulate" else None
    engine = Engine(options.engine, named, options.simulate_seconds, clock)

    def site(url: str) -> Site:
        print(
            f"the mock of Azure ML is at {url}  (engine {engine.name}, state in {home})", flush=True
        )
        return Site(url, home, options.region, options.as_of)

    settings = Settings(capacity=options.capacity)
    serve(
        Options(
            home, engine, site, options.host, settings, options.seed, options.plain, options.port
        )
    )
    return 0


def _check_base(base: str) -> None:
    """What can be no base is said now, and not by each job."""
    if base not in OWN_BASES and base.count("/") != 1:
        raise MaasError(
            f"--base {base!r} is no folder and no hub id",
            hint="A folder with weights, ORGANIZATION/NAME of the hub, or one of "
            f"{', '.join(OWN_BASES)}.",
        )


def _detach(options: argparse.Namespace) -> int:
    home = options.home.resolve()
    if state_of(home) is not None:
        raise MaasError(f"a mock already serves from {home}", hint="`maas mock stop` stops it.")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    words = [word for word in options.words if word != "--detach"]
    log = home / "server.log"
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "local_runner", "mock", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    end = time.monotonic() + _START_SECONDS
    while (
        (state := state_of(home)) is None or state["pid"] != child.pid or not Line(home).answers()
    ):
        if child.poll() is not None or time.monotonic() > end:
            child.kill()
            child.wait()
            raise MaasError(f"the mock did not start: {tail(log)}")
        time.sleep(0.05)
    print(f"the mock of Azure ML is at {state['url']}  (pid {child.pid}, log {log})")
    return 0


def _stop(options: argparse.Namespace) -> int:
    home = options.home.resolve()
    proxy_cli.stop_proxy(home)
    state = state_of(home)
    if state is None:
        (home / "server.json").unlink(missing_ok=True)  # left by one that was killed
        print("no mock was running")
        return 0
    os.kill(state["pid"], signal.SIGTERM)
    if not wait_until_gone(state["pid"], _STOP_SECONDS):
        raise MaasError(f"the mock (pid {state['pid']}) does not stop")
    print("the mock has stopped")
    return 0


def _status(options: argparse.Namespace) -> int:
    line = Line(options.home)
    status = line.ask("GET", "/__mock__/status") | {"pid": line.state["pid"]}
    if options.as_json:
        print(json.dumps(status))
        return 0
    for key, value in status.items():
        shown = "none" if value in (None, "", {}) else value
        print(f"{key:10} {shown}")
    return 0


def _reset(options: argparse.Namespace) -> int:
    done = Line(options.home).ask("POST", "/__mock__/reset")
    print(f"forgotten; {done['cancelled']} running jobs were cancelled")
    return 0


def _env(options: argparse.Namespace) -> int:
    state = Line(options.home).state
    if options.recipe == "B":
        print(_recipe_b(state))
    elif options.recipe == "C":
        print(_exports(_recipe_c(state, proxy_cli.proxy_url(options.home)), options.shell))
    else:
        print(_exports(_recipe_a(state), options.shell))
    return 0


def _recipe_a(state: dict[str, Any]) -> dict[str, str]:
    """The environment that names a cloud of its own."""
    return _common(state) | {
        "ARM_CLOUD_METADATA_URL": f"{state['url']}/metadata/endpoints?api-version=2022-09-01",
        "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{state['url']}/",
        "AZUREML_CURRENT_CLOUD": "AzureMockCloud",
        # httpx, which the SDK of OpenAI stands on, asks for it by this name.
        "SSL_CERT_FILE": state["ca"],
        "OPENAI_BASE_URL": state["openai_url"],
        "OPENAI_API_KEY": state["api_key"],
        "AZURE_OPENAI_ENDPOINT": state["url"],
        "AZURE_OPENAI_API_KEY": state["api_key"],
    }


def _recipe_c(state: dict[str, Any], proxy: str) -> dict[str, str]:
    """The environment of a program that believes it talks to the public cloud."""
    return _common(state) | {"HTTPS_PROXY": proxy, "NO_PROXY": ""}


def _common(state: dict[str, Any]) -> dict[str, str]:
    return {
        "REQUESTS_CA_BUNDLE": state["ca"],
        "IDENTITY_ENDPOINT": state["identity_endpoint"],
        "IDENTITY_HEADER": state["identity_header"],
        "AZURE_SUBSCRIPTION_ID": state["subscription_id"],
        "AZURE_RESOURCE_GROUP": state["resource_group"],
        "AZUREML_WORKSPACE_NAME": state["workspace"],
    }


def _exports(values: dict[str, str], shell: str) -> str:
    """For a shell: `eval "$(maas mock env)"`; or the same for a program."""
    unset = ["CURL_CA_BUNDLE"]
    if "HTTPS_PROXY" in values:  # what recipe A may have left would win over the proxy
        unset += [
            "ARM_CLOUD_METADATA_URL",
            "REGISTRY_DISCOVERY_ENDPOINT_URL",
            "AZUREML_CURRENT_CLOUD",
        ]
    if shell == "json":
        return json.dumps(values, indent=2)
    if shell == "python":
        lines = [f"os.environ[{key!r}] = {value!r}" for key, value in values.items()]
        drops = [f"os.environ.pop({key!r}, None)" for key in unset]
        return "\n".join(["import os", *drops, *lines])
    lines = [f"export {key}={shlex.quote(value)}" for key, value in values.items()]
    return "\n".join([f"unset {' '.join(unset)}", *lines])


def _recipe_b(state: dict[str, Any]) -> str:
    """Keywords for MLClient, as Python."""
    url = f"{state['url']}/"
    metadata = {
        "azure_portal": "https://portal.azure.com",
        "resource_manager": url,
        "active_directory": url,
        "aml_resource_id": "https://ml.azure.com/",
        "storage_endpoint": "core.local",
        "registry_discovery_endpoint": url,
    }
    place = (state["subscription_id"], state["resource_group"], state["workspace"])
    return (
        "# The environment needs REQUESTS_CA_BUNDLE, IDENTITY_ENDPOINT and IDENTITY_HEADER of recipe A.\n"
        f"cloud = {{'cloud': 'AzureMock', 'cloud_metadata': {metadata!r}}}\n"
        f"client = MLClient(DefaultAzureCredential(), *{place!r}, **cloud)\n"
        "registry = MLClient(DefaultAzureCredential(), registry_name='azureml', **cloud)"
    )
