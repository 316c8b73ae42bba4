"""The runtime's own routes: what the control plane orders, the role's credentials for containers, and faults on demand."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, HTTPException

from stacks.aws.rehearsal.credentials import ACCOUNT, ROLE_KEY_ID, ROLE_TOKEN, SECRET
from stacks.aws.rehearsal.endpoints import Endpoint, Endpoints
from stacks.aws.rehearsal.link import PREFIX
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.wire import RuntimeFault


def add_control_routes(app: FastAPI, endpoints: Endpoints) -> None:
    """Routes under /_rehearsal."""

    @app.get(f"{PREFIX}/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get(f"{PREFIX}/states/{{region}}")
    async def states(region: str) -> dict[str, dict[str, str]]:
        return endpoints.states(region)

    @app.post(f"{PREFIX}/endpoints")
    async def deploy(order: dict[str, Any]) -> dict[str, str]:
        endpoints.deploy(Order(**order))
        return {}

    @app.post(f"{PREFIX}/delete")
    async def delete(wanted: dict[str, Any]) -> dict[str, str]:
        endpoints.delete(wanted["region"], wanted["endpoint"])
        return {}

    @app.get(f"{PREFIX}/role-credentials")
    async def role_credentials() -> dict[str, str]:
        # As a task's metadata address: https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
        expiration = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": ROLE_KEY_ID, "SecretAccessKey": SECRET, "Token": ROLE_TOKEN, "Expiration": expiration}

    _add_faults(app, endpoints)


def _add_faults(app: FastAPI, endpoints: Endpoints) -> None:
    def held(wanted: dict[str, Any]) -> Endpoint:
        try:
            return endpoints.get(wanted["region"], wanted["endpoint"], ACCOUNT)
        except RuntimeFault as error:
            raise HTTPException(404, error.message) from None

    @app.post(f"{PREFIX}/throttle")
    async def throttle(wanted: dict[str, Any]) -> dict[str, str]:
        held(wanted).throttled_calls = int(wanted["calls"])
        return {}

    @app.post(f"{PREFIX}/kill")
    async def kill(wanted: dict[str, Any]) -> dict[str, int]:
        fleet = held(wanted).fleet
        for container in fleet.containers if fleet else []:
            if container.healthy:
                await container.kill()
                return {"pid": container.pid}
        raise HTTPException(409, f"endpoint {wanted['endpoint']} has no healthy container")

    @app.post(f"{PREFIX}/containers")
    async def containers(wanted: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        fleet = held(wanted).fleet
        listed = [
            {"id": one.id, "pid": one.pid, "healthy": one.healthy, "starts": one.starts, "models": fleet.loaded(one) if fleet else []}
            for one in (fleet.containers if fleet else [])
        ]
        return {"containers": listed}

    @app.post(f"{PREFIX}/limits")
    async def limits(wanted: dict[str, float]) -> dict[str, float]:
        before = asdict(endpoints.limits)
        try:
            endpoints.limits = replace(endpoints.limits, **wanted)  # type: ignore[arg-type]
        except TypeError:
            raise HTTPException(422, f"limits are {', '.join(before)}") from None
        return before
