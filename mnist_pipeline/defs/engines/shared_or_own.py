"""Steps that need little stay beside their run; each that declares what it needs gets a place of its own."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import dagster as dg
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandler, StepHandlerContext

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.marking import PID


class SharedOrOwn(StepHandler):
    """Launches a cheap step as a process of the run's machine, and the others by another handler.

    A container for each step would cost more than most steps take. The cheap ones are forked from a server that has
    imported `modules`, as those of the multiprocess executor are.
    """

    def __init__(self, own: StepHandler, modules: Sequence[str]) -> None:
        self._own = own
        self._processes: dict[str, BaseProcess] = {}
        self._fork = get_context("forkserver")
        self._fork.set_forkserver_preload(list(modules))

    @property
    def name(self) -> str:
        """The handler's name in the log."""
        return f"{type(self).__name__}, {self._own.name}"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start the step."""
        step = _step(step_handler_context)
        if _has_own_place(step_handler_context, step):
            yield from self._own.launch_step(step_handler_context)
            return
        command = step_handler_context.execute_step_args.get_command_args()
        process = self._fork.Process(target=_execute, args=(command[command.index("api") :],))
        process.start()
        self._processes[step] = process
        yield dg.DagsterEvent.step_worker_starting(
            step_handler_context.get_step_context(step),
            message="Launching step in a process beside the run.",
            metadata={PID: dg.MetadataValue.text(str(process.pid))},
        )

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Tell whether the step is at work, or was done."""
        step = _step(step_handler_context)
        if _has_own_place(step_handler_context, step):
            return self._own.check_step_health(step_handler_context)
        process = self._processes.get(step)
        if process and (process.is_alive() or process.exitcode == 0):
            return CheckStepHealthResult.healthy()
        ended = f"its process ended with status {process.exitcode}" if process else "its process is gone"
        return CheckStepHealthResult.unhealthy(ended)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """End the step."""
        step = _step(step_handler_context)
        if _has_own_place(step_handler_context, step):
            yield from self._own.terminate_step(step_handler_context)
        elif process := self._processes.get(step):
            process.terminate()


def _step(context: StepHandlerContext) -> str:
    [step] = context.execute_step_args.step_keys_to_execute or []
    return step


def _has_own_place(context: StepHandlerContext, step: str) -> bool:
    return Compute.of(context.step_tags[step]) is not None


def _execute(command: Sequence[str]) -> None:
    """Do what the command line of Dagster does, in a process that has imported it."""
    from dagster._cli import cli

    main: Callable[..., object] = cli.main
    main(args=list(command))
