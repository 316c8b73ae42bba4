"""The rehearsal's control plane: moto as a server of its own, with callers checked, SageMaker's gaps mended, and quotas that can be read.

    python -m stacks.aws.rehearsal.control_plane FD FOLDER

FD: the inherited listening socket. HLS_REHEARSAL_RUNTIME: URL of the runtime. See facts in docs/aws.md for what moto stands in for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from moto.core.utils import utcnow
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.sagemaker import urls as sagemaker_urls
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import FakeEndpointConfig
from moto.servicequotas import urls as quota_urls
from moto.sts.models import sts_backends
from werkzeug.serving import make_server

from stacks.aws.rehearsal.credentials import ACCOUNT, Verdict, caller_of, refusal
from stacks.aws.rehearsal.link import PREFIX
from stacks.aws.rehearsal.quotas import Quotas
from stacks.aws.rehearsal.sagemaker_api import SageMakerApi

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_INSTANCE_TYPE = re.compile(r"ml\.[a-z]+\d+[a-z-]*\.(nano|micro|small|medium|large|\d*xlarge|metal)")


class ControlPlane:
    """The WSGI application: `inner` (moto) behind a check of who calls."""

    def __init__(self, inner: Wsgi) -> None:
        self._inner = inner

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith(PREFIX):
            return _answer(path.removeprefix(PREFIX).strip("/"), start_response)
        names = {"authorization": "HTTP_AUTHORIZATION", "x-amz-security-token": "HTTP_X_AMZ_SECURITY_TOKEN"}
        headers = {name: environ.get(variable, "") for name, variable in names.items()}
        caller = caller_of(headers, environ.get("QUERY_STRING", ""))
        found = caller.verdict()
        verdict = ask_sts(caller.key_id) if found is None else found
        # STS takes callers without keys (AssumeRoleWithWebIdentity), and a browser's preflight has none.
        if verdict and not (verdict == "missing" and _may_be_anonymous(environ)):
            refused = refusal(verdict, caller.service or ("" if environ.get("HTTP_X_AMZ_TARGET") else "s3"))
            start_response(f"{refused.status} Refused", [*refused.headers.items(), ("Content-Length", str(len(refused.body)))])
            return [refused.body]
        return self._inner(environ, start_response)


def ask_sts(key_id: str) -> Verdict:
    """Whether the key is one that this rehearsal's STS or IAM handed out, and still good."""
    for role in list(sts_backends[ACCOUNT]["aws"].assumed_roles):
        if role.access_key_id == key_id:
            return "expired" if role.expiration < utcnow() else ""
    return "" if key_id in iam_backends[ACCOUNT]["aws"].access_keys else "unknown"


def _may_be_anonymous(environ: dict[str, Any]) -> bool:
    form = str(environ.get("CONTENT_TYPE", "")).startswith("application/x-www-form-urlencoded")
    return form or environ["REQUEST_METHOD"] == "OPTIONS"


def _answer(what: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What the rest of the rehearsal asks: ready, orders (of all endpoints, for a runtime that starts again), credentials/KEY."""
    name, _, rest = what.partition("/")
    if name == "credentials":
        content: Any = {"verdict": ask_sts(rest)}
    elif name == "orders":
        content = [order.json() for order in SageMakerApi.all_orders()]
    else:
        content = {"ready": True}
    body = json.dumps(content).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class _Quiet(MotoRequestHandler):
    """Without a line in the log for each request: they hold presigned addresses."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return None


def _check_instance_type(self: FakeEndpointConfig, instance_type: str) -> None:
    if not _INSTANCE_TYPE.fullmatch(instance_type):
        where = "at 'productionVariants.1.member.instanceType' failed to satisfy constraint"
        raise ValidationError(message=f"1 validation error detected: Value '{instance_type}' {where}: Member must satisfy enum value set")


def mend_moto() -> None:
    """Let moto answer SageMaker and Service Quotas with our classes, and take the instance types of today."""
    sagemaker_urls.url_paths["{0}/$"] = SageMakerApi.dispatch
    quota_urls.url_paths["{0}/$"] = Quotas.dispatch
    setattr(FakeEndpointConfig, "validate_instance_type", _check_instance_type)  # noqa: B010  (mypy takes no assignment to a method)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM."""
    SageMakerApi.runtime_url = os.environ["HLS_REHEARSAL_RUNTIME"]
    mend_moto()

    def stop(number: int, frame: FrameType | None) -> None:
        os._exit(0)  # all it holds is memory; an orderly end would take a second

    signal.signal(signal.SIGTERM, stop)
    application = ControlPlane(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet, fd=int(arguments[0]))
    os.environ["MOTO_PORT"] = str(server.socket.getsockname()[1])  # moto puts it in addresses that it hands out
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
