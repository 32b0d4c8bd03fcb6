"""`maas deploy`, `endpoints`, `undeploy` and `targets`."""

from __future__ import annotations

from typing import Annotated

import typer

from maas_client.cli import render
from maas_client.cli.options import Json, TargetName

endpoints = typer.Typer(help="Deployed models.", no_args_is_help=True, rich_markup_mode=None)
targets = typer.Typer(help="Places to run jobs.", no_args_is_help=True, rich_markup_mode=None)
Endpoint = Annotated[str, typer.Argument(help="The endpoint's name.")]


def deploy(
    model: Annotated[str, typer.Argument(help="A registered model, name or name:version.")],
    target: TargetName = "azure",
    endpoint: Annotated[str | None, typer.Option(help="The endpoint's name.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a registered model as a serverless endpoint. Hosting is billed by the hour."""
    from maas_client import flow

    place = flow.open_target(target)
    render.endpoint(flow.deploy(model, place, endpoint=endpoint), as_json=as_json)
    if getattr(place, "bills_hosting", True):
        render.billing(target, as_json=as_json)
    place.close()


@endpoints.command("list")
def list_endpoints(target: TargetName = "azure", as_json: Json = False) -> None:
    """Every endpoint of a target. Each is billed by the hour."""
    from maas_client import flow

    place = flow.open_target(target)
    found = flow.hosting(place).endpoints()
    render.endpoints(found, as_json=as_json)
    if found and getattr(place, "bills_hosting", True):
        render.billing(target, as_json=as_json)
    place.close()


@endpoints.command()
def show(name: Endpoint, target: TargetName = "azure", as_json: Json = False) -> None:
    """One endpoint."""
    from maas_client import flow

    place = flow.open_target(target)
    render.endpoint(flow.hosting(place).endpoint(name), as_json=as_json)
    place.close()


@endpoints.command()
def keys(name: Endpoint, target: TargetName = "azure", as_json: Json = False) -> None:
    """The endpoint's keys. They are secrets: mind who sees the screen."""
    from maas_client import flow

    place = flow.open_target(target)
    render.keys(flow.hosting(place).keys(name), as_json=as_json)
    place.close()


def undeploy(name: Endpoint, target: TargetName = "azure", as_json: Json = False) -> None:
    """Delete an endpoint, and with it the hourly bill."""
    from maas_client import flow

    place = flow.open_target(target)
    flow.hosting(place).undeploy(name)
    render.done(f"endpoint {name} is gone", as_json=as_json)
    place.close()


@targets.command("list")
def list_targets(as_json: Json = False) -> None:
    """Every target that can be named with --target."""
    from maas_client.settings import load_targets

    render.targets(load_targets(), as_json=as_json)


@targets.command()
def check(
    name: Annotated[str, typer.Argument(help="The target.")] = "azure", as_json: Json = False
) -> int:
    """Whether a target is reachable, and what is missing: login, role, region, providers."""
    from maas_client import flow

    place = flow.open_target(name)
    findings = place.check()
    render.findings(findings, as_json=as_json)
    place.close()
    return 0 if all(finding.ok for finding in findings) else 1
