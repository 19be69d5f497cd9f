"""How a process ended, as frames in the child and as a value or an error in the parent."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from .._errors import (
    ProcessDied,
    ProcessStartError,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    describe,
    reason_of,
    text_of,
)
from ._context import CallInContext
from ._framing import Frame, FrameKind, Section
from ._pickling import ArgumentHandles, NotPlain, dumps, loads, loads_plain

Message = tuple[FrameKind, list[Section]]


@dataclass(slots=True)
class Value:
    """The function returned."""

    value: Any

    def take(self) -> Any:
        """Return the value, and keep it alive no longer."""
        value, self.value = self.value, None
        return value


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no value, and this is why."""

    exception: BaseException

    def take(self) -> NoReturn:
        """Raise the exception, where there would be a value to take."""
        raise self.exception


Outcome = Value | Failure


def outcome_of(work: Callable[[], object]) -> Outcome:
    """Do the work: what becomes of it is told, not raised."""
    try:
        return Value(work())
    except BaseException as error:
        return Failure(error)


@dataclass(frozen=True, slots=True)
class Call:
    """What a child is to run."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


# --- in the child -----------------------------------------------------------------------------


def value_message(value: object, kind: FrameKind = FrameKind.VALUE) -> Message:
    """Say that the function returned, or told, ``value``."""
    try:
        return kind, dumps(value)
    except BaseException as error:
        return bad_value_message(value, error)


def bad_value_message(value: object, error: BaseException) -> Message:
    """Say that the function returned ``value``, which cannot be pickled because of ``error``."""
    return FrameKind.BAD_VALUE, dumps((_name_of(type(value)), _report(error)))


def exception_message(
    exception: BaseException, dump: Callable[[object], list[Section]] = dumps
) -> Message:
    """Say that the function raised ``exception``.

    :param dump: what to pickle it with
    """
    sections = dumps(_report(exception))
    if _steers_the_interpreter(exception):
        return FrameKind.EXCEPTION, sections
    try:
        pickled = dump(exception)
    except BaseException:
        return FrameKind.EXCEPTION, sections
    return FrameKind.EXCEPTION, sections + pickled


def failure_message(kind: FrameKind, error: BaseException) -> Message:
    """Say that the child could not get as far as to run the function."""
    return kind, dumps(_report(error))


def exit_message(reason: object) -> Message:
    """Say that the function left through ``sys.exit(reason)``."""
    detail = "" if reason is None or isinstance(reason, int) else text_of(reason)
    return FrameKind.EXITED, [[detail.encode("utf-8", "surrogatepass")]]


def _report(error: BaseException) -> tuple[str, str, str]:
    """Describe an exception in strings, which always travel."""
    try:
        text = "".join(
            traceback.format_exception(type(error), error, _below_creche(error.__traceback__))
        )
    except BaseException as failed:  # an exception whose own methods raise, or no memory left
        text = f"(the traceback could not be formatted: {type(failed).__name__})\n"
    return _name_of(type(error)), text_of(error), text


def _below_creche(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames with which creche called the function."""
    while frames is not None and frames.tb_next is not None:
        if frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "creche":
            break
        frames = frames.tb_next
    return frames


def _steers_the_interpreter(exception: BaseException) -> bool:
    """Whether an event loop, or the coroutine that raises it again, would take it for its own."""
    trio = sys.modules.get("trio")
    steering: Iterable[type[BaseException]] = (
        KeyboardInterrupt,
        GeneratorExit,
        StopIteration,
        asyncio.CancelledError,
        *((trio.Cancelled,) if trio is not None else ()),
    )
    return isinstance(exception, tuple(steering))


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# --- in the parent ----------------------------------------------------------------------------


def encode_call(call: Call, name: str, handles: ArgumentHandles) -> list[Section]:
    """Pickle the function and its arguments.

    :raises SerializationError: if one of them cannot be pickled; the message names it
    """
    try:
        return dumps((call.func, call.args, call.kwargs), handles)
    except BaseException as error:  # whatever a __reduce__ of the application raises
        cannot = f"cannot start {describe(name, None)}"
        raise _cannot_pickle(cannot, call, error) from error


def cannot_pickle_call(
    pool: str, func: Callable[..., Any], args: tuple[Any, ...], error: BaseException
) -> SerializationError:
    """Say why a call cannot be sent to a worker of a pool."""
    return _cannot_pickle(f"cannot run a call in {pool!r}", Call(func, args, {}), error)


def cannot_pickle_request(
    func: Callable[..., Any], args: tuple[Any, ...], error: BaseException
) -> SerializationError:
    """Say why the parent cannot be asked to call a function."""
    return _cannot_pickle("cannot call this in the parent", Call(func, args, {}), error)


def _cannot_pickle(cannot: str, call: Call, error: BaseException) -> SerializationError:
    what = _find_unpicklable(call) or "the function and its arguments together"
    return SerializationError(
        f"{cannot}: {what} cannot be pickled ({reason_of(error)}). {_advice(error)}"
    )


def decode(
    frame: Frame,
    name: str,
    pid: int | None,
    exitcode: int | None,
    load: Callable[[list[Section]], Any] = loads,
) -> Outcome:
    """Turn a child's last frame into the outcome of its process.

    :param load: what to unpickle its exception with
    """
    try:
        return _decode(frame, name, pid, exitcode, load)
    except BaseException as error:  # an object that raises SystemExit while it is unpickled, say
        return Failure(cannot_unpickle("result", name, pid, error))


def decode_plain(frame: Frame) -> Outcome | None:
    """The outcome, where it is a value that can be unpickled on the spot."""
    if frame.kind is FrameKind.VALUE:
        with contextlib.suppress(NotPlain):
            return Value(loads_plain(frame.sections))
    return None


def decode_started(frame: Frame, name: str, pid: int | None) -> Outcome:
    """Turn a STARTED frame into what the child said."""
    try:
        return Value(loads(frame.sections))
    except BaseException as error:
        return Failure(cannot_unpickle("value given to started()", name, pid, error))


def _decode(
    frame: Frame,
    name: str,
    pid: int | None,
    exitcode: int | None,
    load: Callable[[list[Section]], Any],
) -> Outcome:
    process = describe(name, pid)
    match frame.kind:
        case FrameKind.VALUE:
            return Value(loads(frame.sections))
        case FrameKind.EXCEPTION:
            return Failure(rebuild_exception(frame.sections, load))
        case FrameKind.EXITED:
            detail = b"".join(frame.sections[0]).decode("utf-8", "surrogatepass")
            return Failure(ProcessDied(exitcode, name=name, pid=pid, detail=detail))
        case FrameKind.BAD_VALUE:
            value_type, (type_name, message, text) = loads(frame.sections)
            error: Exception = SerializationError(
                f"the result of {process}, of type {value_type}, cannot be pickled"
                f" ({type_name}: {message}). Return plain data instead."
            )
        case FrameKind.BAD_CALL:
            type_name, message, text = loads(frame.sections)
            error = SerializationError(
                f"{process} could not unpickle its function or arguments"
                f" ({type_name}: {message}). {_import_advice(text)}"
            )
        case FrameKind.BAD_MAIN:
            type_name, message, text = loads(frame.sections)
            error = ProcessStartError(
                f"{process} could not import the main module ({type_name}: {message})."
                f" {_main_advice(text)}"
            )
        case _:
            return Failure(ProcessDied(exitcode, name=name, pid=pid))
    error.__cause__ = RemoteTraceback(text)
    return Failure(error)


def rebuild_exception(
    sections: list[Section], load: Callable[[list[Section]], Any]
) -> BaseException:
    type_name, message, text = loads(sections[:1])
    exception: object = None
    if len(sections) > 1:
        try:
            exception = load(sections[1:])
        except BaseException:  # an __init__ with two required arguments, a class we lack ...
            exception = None
    if not isinstance(exception, BaseException):
        exception = RemoteError(type_name, message, text)
    exception.__cause__ = RemoteTraceback(text)
    return exception


def cannot_unpickle(
    what: str, name: str, pid: int | None, error: BaseException
) -> SerializationError:
    failure = SerializationError(
        f"the {what} of {describe(name, pid)} could not be unpickled ({reason_of(error)})"
    )
    failure.__cause__ = error
    return failure


def _find_unpicklable(call: Call) -> str | None:
    """Name the part of a call that does not pickle by itself."""
    func, parts = call.func, list[tuple[str, object]]()
    if isinstance(func, CallInContext):
        names = [carrier.name for carrier in func.carriers]
        parts += zip(names, func.loads, strict=True)
        func = func.func
    parts.insert(0, ("the function", func))
    parts += [(f"argument {i}", arg) for i, arg in enumerate(call.args, start=1)]
    parts += [(f"keyword argument {key!r}", arg) for key, arg in call.kwargs.items()]
    for what, part in parts:
        handles = ArgumentHandles()
        try:
            dumps(part, handles)
            handles.parcels.give_back()
        except BaseException:
            return f"{what}, {_short_repr(part)},"
    return None


def _short_repr(obj: object) -> str:
    text = getattr(obj, "__qualname__", None) or _repr_of(obj)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _repr_of(obj: object) -> str:
    try:
        return repr(obj)
    except BaseException:
        return f"an object of type {_name_of(type(obj))}"


def _advice(error: BaseException) -> str:
    text = text_of(error)
    if "local object" in text or "lambda" in text:
        return (
            "Lambdas and functions defined inside functions exist in this process alone:"
            " define the function at the top level of a module and pass what it needs as arguments."
        )
    if "inheritance" in text or "SemLock" in text:
        return (
            "Make it with multiprocessing.get_context(...) of the start method that is used here."
        )
    return (
        "Pass what the child needs to make its own: the path of a file, the address of a"
        " connection; make locks inside the child."
    )


def _import_advice(text: str) -> str:
    if "__main__" in text or "__mp_main__" in text:
        return (
            "What is defined in a REPL, a notebook or `python -c` exists in this process alone,"
            " and so does what the main module defines under its"
            ' `if __name__ == "__main__":` guard: move it to a module that the child can import.'
        )
    return "The child must be able to import the modules that define them."


def _main_advice(text: str) -> str:
    if "bootstrapping phase" in text or "while its main module is being imported" in text:
        return (
            "It starts a process while it is being imported: put the code that does under"
            ' `if __name__ == "__main__":`, because every child imports the main module again.'
        )
    return "Every child imports the main module again, so that must work a second time."
