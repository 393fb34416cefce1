"""Every error truedepth raises on purpose. Each message says what was wrong, where, and what to do."""


class TruedepthError(Exception):
    """Base of all truedepth errors. The command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(TruedepthError):
    """A command or function was called with arguments that cannot be right, whatever the model."""

    exit_code = 2


class PlanError(UsageError):
    """A depth plan that is malformed, or that does not fit the model it is meant for."""


class MethodError(UsageError):
    """A method that does not exist, or parameters that it cannot work with."""


class UnsupportedModelError(TruedepthError):
    """A model family that truedepth does not know, or something that a family cannot do."""


class ModelLoadError(TruedepthError):
    """A model that cannot be found, read or fitted into memory."""


class TextError(TruedepthError):
    """Evaluation or calibration text that cannot be used."""


class OutputError(TruedepthError):
    """A result that cannot be written where the user asked for it."""


class SearchError(TruedepthError):
    """A search whose target cannot be reached."""


class DecodingError(TruedepthError):
    """Text that cannot be generated: the model's logits are not numbers, or the memory is too small."""


class DraftError(TruedepthError):
    """A draft vocabulary or an exit head that is damaged, or that does not fit the model it is meant for."""


class TrainingError(TruedepthError):
    """A training that cannot go on: a loss or gradient that is not a number, or a checkpoint of another run."""


class RankError(TruedepthError):
    """Ranks of one run that do not find each other, or of which one has stopped."""
