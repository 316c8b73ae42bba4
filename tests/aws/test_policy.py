"""docs/aws/policy.json suffices for every call in the code, and has nothing more than they need."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from hls_foundry.endpoints.publish import publish_bundle
from hls_foundry.endpoints.sagemaker.endpoints import ModelVersion, SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.endpoints.settings import PublishSettings, SageMakerSettings
from hls_foundry.models.bundle import load_bundle, unpack_bundle
from tests.aws.calls import ZENML, Call, NotingAws, actions, calls_in, operations, request_tags, resource
from tests.aws.rehearsed import Account
from tests.serving.scenes import scene_tiff

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "aws"
CODE = [*sorted((ROOT / "hls_foundry" / "endpoints").rglob("*.py")), ROOT / "cli" / "doctor_aws.py"]
SAGEMAKER = "arn:aws:sagemaker:eu-central-1:123456789012"
QUICK = Pace(first=0.05, growth=1.2, most=0.3)
FILLED = {"BUCKET": "hls-foundry-rehearsal", "ACCOUNT": "123456789012", "ROLE": "hls-foundry-sagemaker"}


def statements(name: str = "policy.json") -> list[dict[str, Any]]:
    return list(json.loads((FOLDER / name).read_text(encoding="utf-8"))["Statement"])


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def granted(name: str = "policy.json") -> set[str]:
    return {action for statement in statements(name) for action in listed(statement["Action"])}


def allows(action: str, arn: str, context: Mapping[str, str]) -> bool:
    """Whether a statement of the policy allows it, as IAM would find: action, resource, and every condition."""
    for statement in statements():
        matching = any(fnmatchcase(arn, filled(pattern)) for pattern in listed(statement["Resource"]))
        if action not in listed(statement["Action"]) or not matching:
            continue
        conditions = [(key, listed(values)) for test in statement.get("Condition", {}).values() for key, values in test.items()]
        if all(any(fnmatchcase(context.get(key, ""), value) for value in values) for key, values in conditions):
            return True
    return False


def filled(pattern: str) -> str:
    for word, value in FILLED.items():
        pattern = pattern.replace(word, value)
    return pattern


def test_the_policy_has_the_actions_of_every_call_in_the_code_and_no_other() -> None:
    found = calls_in(CODE)
    needed = {action: where for call, where in found.items() for action in actions(call)}
    assert len(found) > 40, "the calls are not found any more"
    missing = {action: where for action, where in needed.items() if action not in granted()}
    assert missing == {}
    assert granted() - set(needed) - ZENML == set()
    assert granted() >= ZENML


def test_the_page_lists_every_call_and_no_other() -> None:
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8").partition("## Calls of AWS")[2].partition("##")[0]
    told = {name for names in operations().values() for _, name in names if re.search(rf"\b{name}\b", page)}
    assert told == {operation for _, operation in calls_in(CODE)}


def test_a_call_that_the_policy_lacks_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text('def f(aws):\n    aws.client("sagemaker").create_training_job()\n')
    assert list(calls_in([tmp_path / "new.py"])) == [("sagemaker", "CreateTrainingJob")]
    assert "sagemaker:CreateTrainingJob" not in granted()
    (tmp_path / "new.py").write_text('def f(aws):\n    aws.client("dynamodb").put_item()\n')
    with pytest.raises(KeyError, match="dynamodb"):
        calls_in([tmp_path / "new.py"])


@pytest.mark.parametrize("name", ["policy.json", "role-policy.json", "managed-policy.json", "managed-role-policy.json"])
def test_whole_services_are_never_allowed_and_everything_only_where_nothing_is_changed(name: str) -> None:
    assert all("*" not in action for action in granted(name))
    for statement in statements(name):
        if "*" in listed(statement["Resource"]) and "Condition" not in statement:
            verbs = {action.partition(":")[2] for action in listed(statement["Action"])}
            assert all(verb.startswith(("Describe", "List", "GetAuthorizationToken")) for verb in verbs), statement["Sid"]
    assert len(json.dumps(json.loads((FOLDER / name).read_text(encoding="utf-8")), separators=(",", ":"))) < 6144  # a managed policy's


def context_of(call: Call, params: Mapping[str, Any], action: str, owned: set[str]) -> dict[str, str]:
    """The condition keys that AWS would fill for `action` of this request; `owned`: ARNs that carry our tag by now."""
    keys = {f"aws:RequestTag/{key}": value for key, value in request_tags(params).items()}
    keys |= {"application-autoscaling:service-namespace": str(params.get("ServiceNamespace", ""))}
    if action == "sagemaker:AddTags" and call[1] != "AddTags":
        keys["sagemaker:TaggingAction"] = call[1]
    if resource(call, params) in owned:
        keys["aws:ResourceTag/hls-foundry"] = resource(call, params).rpartition("/")[2]
    return keys


@pytest.fixture
def noting(aws_account: Account) -> NotingAws:
    """Clients of the rehearsal that note what they send."""
    return NotingAws()


def version(account: Account, archive: Path, folder: Path) -> ModelVersion:
    settings = PublishSettings(bucket=account.prepared.bucket, prefix=f"hls-foundry/{account.prefix}")
    published = publish_bundle(archive, settings, task="burn_scars", version=archive.name.partition(".")[0])
    unpack_bundle(archive, folder)
    return ModelVersion(published.uri, published.sha256, "1", load_bundle(folder).sha256)


def deploy_call_and_delete(account: Account, aws: NotingAws, model: ModelVersion, **settings: Any) -> None:
    endpoints = SageMakerEndpoints(aws, pace=QUICK, provision_s=60)
    base = {"role": account.prepared.role, "image": account.prepared.image, "startup_s": 60, "s3_allow": [account.prepared.bucket]}
    statuses = []

    def check(task: str, client: Any) -> None:
        statuses.append(client.invoke(scene_tiff(), content_type="image/tiff").status)

    chosen = SageMakerSettings.model_validate({"name": f"hls-{account.prefix}", **base, **settings})
    endpoints.deploy(chosen, {"burn_scars": model}, check=check)
    if chosen.kind == "async":  # updated too
        more = chosen.model_copy(update={"environment": {"HLS_QUEUE": "8"}})
        endpoints.deploy(more, {"burn_scars": model}, check=check)
    endpoints.delete(chosen.name, objects=True)
    assert set(statuses) == {200}


def test_what_a_deployment_really_sends_is_allowed_on_these_very_resources(
    aws_account: Account, noting: NotingAws, archives: tuple[Path, Path], tmp_path: Path
) -> None:
    model = version(aws_account, archives[0], tmp_path / "bundle")
    results = f"s3://{aws_account.prepared.bucket}/hls-foundry/results"
    deploy_call_and_delete(aws_account, noting, model, kind="async", output_prefix=results, autoscaling={"min": 0, "max": 1})
    deploy_call_and_delete(aws_account, noting, model, kind="multi_model", tasks=["burn_scars"])
    sent = {call for call, _ in noting.noted}
    assert sent <= set(calls_in(CODE)), "reading the code does not find all of its calls"
    assert {("sagemaker", "UpdateEndpoint"), ("s3", "CopyObject"), ("sagemaker-runtime", "InvokeEndpointAsync")} <= sent
    owned: set[str] = set()
    for call, params in noting.noted:
        for action in {action for action in actions(call) if action.startswith(call[0].removesuffix("-runtime"))}:
            arn, context = resource(call, params), context_of(call, params, action, owned)
            assert allows(action, arn, context), f"{action} on {arn} with {context}"
        if call[1] in ("CreateEndpoint", "CreateEndpointConfig", "CreateModel"):
            assert request_tags(params)["hls-foundry"] == f"hls-{aws_account.prefix}"
            owned.add(resource(call, params))


@pytest.mark.parametrize(
    ("action", "arn", "context"),
    [
        ("sagemaker:DeleteEndpoint", "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/hls-theirs", {}),
        (
            "sagemaker:UpdateEndpoint",
            "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/theirs",
            {"aws:ResourceTag/hls-foundry": "hls-x"},
        ),
        ("sagemaker:AddTags", "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/hls-theirs", {"aws:RequestTag/hls-foundry": "hls-x"}),
        ("sagemaker:CreateModel", "arn:aws:sagemaker:eu-central-1:123456789012:model/hls-x-m-1", {}),
        ("sagemaker:InvokeEndpoint", "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/theirs", {}),
        ("s3:PutObject", "arn:aws:s3:::hls-foundry-rehearsal/data/chip.tif", {}),
        ("s3:DeleteObject", "arn:aws:s3:::another/hls-foundry/1", {}),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/hls-foundry-sagemaker", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/admin", {"iam:PassedToService": "sagemaker.amazonaws.com"}),
    ],
)
def test_what_is_not_ours_is_out_of_reach(action: str, arn: str, context: dict[str, str]) -> None:
    assert not allows(action, arn, context)
