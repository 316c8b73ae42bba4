"""The rehearsal of AWS: stand-ins of S3, SageMaker and what they need, on this machine and without an account.

Two processes. The control plane (moto, with its gaps in SageMaker mended) keeps everything in memory until the rehearsal is taken down;
the runtime starts the project's real serving application for each endpoint and routes invocations to it. To a client only the addresses
and the credentials in the environment differ from AWS.
"""

from stacks.aws.rehearsal.account import Prepared
from stacks.aws.rehearsal.faults import Faults
from stacks.aws.rehearsal.lifecycle import Rehearsal

__all__ = ["Faults", "Prepared", "Rehearsal"]
