"""Finding the culprit when work on several requests at once raises."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from headway.engine.errors import EngineDead, RequestFailed

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def isolated(
    work: Callable[[Sequence[Item]], Sequence[Result | RequestFailed]], items: Sequence[Item]
) -> list[Result | RequestFailed]:
    """Work on all items together; if that raises, on each alone, so that only those fail that raise again.

    `work` must be repeatable: what it did before it raised does not change what it does then.

    Returns:
        One result for each item, RequestFailed for a culprit.

    Raises:
        EngineDead: the accelerator reports an error of its own; nothing can run on it any more.
    """
    try:
        return list(work(items))
    except torch.AcceleratorError as error:
        raise EngineDead(f"the accelerator failed: {error}") from error
    except Exception as error:
        logger.exception("work on %d requests raised", len(items))
        if len(items) == 1:
            return [RequestFailed(f"the engine failed on this request ({type(error).__name__})")]
    return [isolated(work, [item])[0] for item in items]
