"""Register a stack with ZenML, as often as one likes, and run on it without making it the active one elsewhere."""

from __future__ import annotations

import os
from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.models import ComponentResponse, StackResponse

from hls_foundry.home import resolve_path
from stacks.definition import Component, StackDefinition

FLAVORS = {"slurm": "stacks.slurm.flavor.SlurmOrchestratorFlavor"}
"""Flavors that are ours, and the class that ZenML learns them from."""


def register_stack(definition: StackDefinition) -> StackResponse:
    """Create or bring up to date the components and the stack `hls-NAME`; what is right already is left alone.

    Returns ZenML's record of the stack. The user's active stack is not changed.
    """
    client = Client()
    components = {
        StackComponentType(part.type): _register_component(client, stack_name(definition), part) for part in definition.components
    }
    wanted = {kind: [component.id] for kind, component in components.items()}
    name = stack_name(definition)
    found = client.list_stacks(name=name)
    if not found.items:
        return client.create_stack(name=name, components={kind: ids[0] for kind, ids in wanted.items()})
    stack = found.items[0]
    if {kind: [c.id for c in listed] for kind, listed in stack.components.items()} == wanted:
        return stack
    return client.update_stack(name_id_or_prefix=stack.id, component_updates=wanted)


def use_stack(stack: StackResponse) -> None:
    """Run what follows in this process, and in the processes it starts, on `stack`; nobody else's active stack changes."""
    os.environ["ZENML_ACTIVE_STACK_ID"] = str(stack.id)


def stack_name(definition: StackDefinition) -> str:
    """ZenML's name of the stack: one a site, so that runs on two sites do not change each other's components."""
    return f"hls-{definition.name}" + (f"-{definition.site}" if definition.site else "")


def _register_component(client: Client, stack: str, part: Component) -> ComponentResponse:
    kind = StackComponentType(part.type)
    name = part.name or f"{stack}-{part.type.replace('_', '-')}"
    found = client.list_stack_components(name=name, type=kind)
    configuration = _configuration(part)
    if part.flavor in FLAVORS and not client.list_flavors(name=part.flavor, type=kind).items:
        client.create_flavor(source=FLAVORS[part.flavor], component_type=kind)
    if not found.items:
        return client.create_stack_component(name=name, flavor=part.flavor, component_type=kind, configuration=configuration)
    component = found.items[0]
    if component.flavor_name != part.flavor:
        # A flavor cannot be changed in place; the old component stays under its name for the runs that used it.
        client.update_stack_component(
            name_id_or_prefix=component.id, component_type=kind, name=f"{name}-{component.flavor_name}-{component.id.hex[:6]}"
        )
        return client.create_stack_component(name=name, flavor=part.flavor, component_type=kind, configuration=configuration)
    dropped = dict.fromkeys(component.configuration.keys() - configuration.keys())  # None takes a key away
    if dropped or any(component.configuration.get(key) != value for key, value in configuration.items()):
        return client.update_stack_component(name_id_or_prefix=component.id, component_type=kind, configuration=configuration | dropped)
    return component


def _configuration(part: Component) -> dict[str, Any]:
    """What ZenML is told; the folder of a cluster that this machine shares is made absolute."""
    configuration = dict(part.configuration)
    if part.flavor == "slurm" and "folder" in configuration and not configuration.get("login"):
        configuration["folder"] = str(resolve_path(str(configuration["folder"])))
    return configuration
