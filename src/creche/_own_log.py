"""What creche itself logs, in threads that others depend on."""

from __future__ import annotations

import logging

from ._ctrl_c import is_ctrl_c

_logger = logging.getLogger("creche")


def log_exception(message: str, *args: object) -> None:
    """Log the exception that is being handled.

    What the application's handlers, filters and record factories raise is dropped: as like as not
    it is one of them that has raised the exception, and the thread has to go on.

    :raises KeyboardInterrupt: if Ctrl-C strikes meanwhile
    """
    try:
        _logger.exception(message, *args, stacklevel=2)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
