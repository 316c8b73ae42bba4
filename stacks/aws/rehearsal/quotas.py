"""Service Quotas of the rehearsal: instances of each type for endpoints and training jobs, and what serverless endpoints may take together.

https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_ListServiceQuotas.html
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.responses import ServiceQuotasResponse

INSTANCES = 8
"""Of each type; AWS gives new accounts few."""
SERVERLESS_CONCURRENCY = 10
TYPES = ("t2.medium", "m5.large", "m5.xlarge", "m6i.large", "c5.large", "c5.xlarge", "c6i.xlarge", "g4dn.xlarge", "g5.xlarge")
NAMES = {f"ml.{kind} for {use} usage": INSTANCES for use in ("endpoint", "training job") for kind in TYPES} | {
    "Maximum total concurrency that can be allocated across all serverless endpoints": SERVERLESS_CONCURRENCY
}
PAGE = 100


class Quotas(ServiceQuotasResponse):
    """moto's Service Quotas, which knows those of VPC only, with SageMaker's."""

    def list_service_quotas(self) -> str:
        return self.list_aws_default_service_quotas()

    def list_aws_default_service_quotas(self) -> str:
        if self._service() != "sagemaker":
            return super().list_aws_default_service_quotas()
        return json.dumps({"Quotas": [self._quota(name) for name in NAMES]})

    def get_service_quota(self) -> str:
        if self._service() != "sagemaker":
            return super().get_service_quota()
        wanted = json.loads(self.body).get("QuotaCode")
        for quota in map(self._quota, NAMES):
            if quota["QuotaCode"] == wanted:
                return json.dumps({"Quota": quota})
        raise NoSuchResource

    def _service(self) -> str:
        return str(json.loads(self.body or "{}").get("ServiceCode"))

    def _quota(self, name: str) -> dict[str, Any]:
        code = f"L-{hashlib.sha256(name.encode()).hexdigest()[:8].upper()}"
        arn = f"arn:aws:servicequotas:{self.region}:{self.current_account}:sagemaker/{code}"
        return {
            "ServiceCode": "sagemaker", "ServiceName": "Amazon SageMaker", "QuotaArn": arn, "QuotaCode": code, "QuotaName": name,
            "Value": float(NAMES[name]), "Unit": "None", "Adjustable": True, "GlobalQuota": False,
        }  # fmt: skip
