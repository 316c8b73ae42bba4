"""What a user can mend. Each message is one line: what is wrong, where, what to do. run.py ends with exit code 2 on these."""


class FoundryError(Exception):
    """Base of all errors that a user can mend; `str()` of it is the line that they see."""


class ConfigError(FoundryError):
    """A configuration file, a --set, or a stack file says something that cannot be used."""


class SourceError(FoundryError):
    """A source of chips is missing, empty, unreachable or not in a known layout."""


class ChipError(FoundryError):
    """One chip, mask or scene cannot be read as what the contract says it is."""


class SplitError(FoundryError):
    """The splits leak, or one of them is empty or without a positive pixel."""


class ValidationFailed(FoundryError):
    """The validation suite found more bad chips than the configuration allows."""


class WeightsError(FoundryError):
    """A checkpoint is missing, truncated, unsafe to load, or of another architecture."""


class BundleError(FoundryError):
    """A model bundle cannot be written, read or trusted."""


class TrainingError(FoundryError):
    """Training cannot start or cannot go on (for example a loss that is not a number)."""


class EndpointError(FoundryError):
    """An endpoint cannot be created, reached, tested or deleted."""


class ApiRefusal(EndpointError):
    """The API in front of an endpoint refused a request itself: the container never saw it."""


class RehearsalError(FoundryError):
    """What a rehearsal on this machine needs cannot be had."""


class SlurmError(FoundryError):
    """Slurm, a job or the rehearsal cluster cannot do what is asked of it."""


class RequestError(FoundryError):
    """A request to an endpoint cannot be answered; carries the HTTP status of the reply."""

    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(f"{error}: {detail}")
        self.status = status
        self.error = error
        self.detail = detail


class Preempted(Exception):
    """Training was asked to stop (SIGTERM, SIGUSR1 or Ctrl-C), saved its state, and can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
