"""What creche itself logs, in threads and event loops that others depend on."""

from __future__ import annotations

import logging
from typing import Any

from ._ctrl_c import is_ctrl_c

_logger = logging.getLogger("creche")


def log_exception(message: str, *args: object) -> None:
    """Log the exception that is being handled, as :func:`log` does."""
    log(_logger, logging.ERROR, message, *args, exc_info=True, stacklevel=3)


def log(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    stacklevel: int = 2,
    **fields: Any,
) -> None:
    """Log something.

    What the application's handlers, filters and record factories raise is dropped: as like as not
    it is one of them that has raised the exception which is logged, and the thread has to go on.

    :raises KeyboardInterrupt: if Ctrl-C strikes meanwhile
    """
    try:
        logger.log(level, message, *args, stacklevel=stacklevel, **fields)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
