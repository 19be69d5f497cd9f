"""A child's standard output and standard error, where the parent wants to have them."""

from __future__ import annotations

from dataclasses import dataclass

from ._platform import OutputSender, merge_output


@dataclass(frozen=True)
class ChildOutput:
    """What becomes of the output of a child; travels to it with the process object.

    :param stdout: where its standard output goes; ``None`` for the application's own
    :param stderr: where its standard error goes
    :param merged: whether standard error goes where standard output does
    """

    stdout: OutputSender | None
    stderr: OutputSender | None
    merged: bool

    def take_over(self) -> None:
        """In the child, before it runs anything of the application's: redirect its output."""
        if self.stdout is not None:
            self.stdout.replace("stdout", *(["stderr"] if self.merged else []))
        elif self.merged:
            merge_output()
        if self.stderr is not None:
            self.stderr.replace("stderr")

    def close(self) -> None:
        """In the parent, when the child has its own."""
        for sender in (self.stdout, self.stderr):
            if sender is not None:
                sender.close()
