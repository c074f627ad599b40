"""Steps that need little stay beside their run; each that declares what it needs gets a place of its own."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import dagster as dg
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandler, StepHandlerContext
from dagster_shared.record import replace

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.marking import PID

TELL_SECONDS = 1
"""Between two looks at what steps elsewhere have logged: each asks for the news of all of them."""

Overrides = Mapping[str, Mapping[str, int]]
"""Fields of `Compute` that a deployment declares otherwise than the code, by the names of assets' steps."""


class SharedOrOwn(StepHandler):
    """Launches a cheap step as a process of the run's machine, and the others by another handler.

    A container for each step would cost more than most steps take. The cheap ones are forked from a server that has
    imported `modules`, as those of the multiprocess executor are. `overrides` replace what steps declare.
    """

    def __init__(self, own: StepHandler | None, modules: Sequence[str], overrides: Overrides) -> None:
        """`own` launches the steps that declare what they need; a run that has none of those needs none."""
        self._own = own
        self._overrides = overrides
        self._processes: dict[str, BaseProcess] = {}
        self._elsewhere: set[str] = set()
        self._told: str | None = None
        self._told_at = -math.inf
        self._fork = get_context("forkserver")
        self._fork.set_forkserver_preload(list(modules))

    @property
    def name(self) -> str:
        """The handler's name in the log."""
        return f"{type(self).__name__}, {self._own.name if self._own else 'no place of their own'}"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start the step."""
        step = _step(step_handler_context)
        if self._own and (context := self._declaring(step_handler_context, step)):
            yield from self._own.launch_step(context)
            self._tell(context, step)
            return
        # It would end without a word where the run that goes on in another pod has it begin again.
        arguments = replace(step_handler_context.execute_step_args, should_verify_step=False)
        command = arguments.get_command_args()
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
        if self._own and (context := self._declaring(step_handler_context, step)):
            self._tell(context, step)
            return self._own.check_step_health(context)
        process = self._processes.get(step)
        if process and (process.is_alive() or process.exitcode == 0):
            return CheckStepHealthResult.healthy()
        ended = f"its process ended with status {process.exitcode}" if process else "its process is gone"
        return CheckStepHealthResult.unhealthy(ended)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """End the step."""
        step = _step(step_handler_context)
        if self._own and (context := self._declaring(step_handler_context, step)):
            yield from self._own.terminate_step(context)
        elif process := self._processes.get(step):
            process.terminate()

    def _tell(self, context: StepHandlerContext, step: str) -> None:
        """Print what is new of steps elsewhere, epochs for example: those beside the run print it themselves."""
        self._elsewhere.add(step)
        if time.monotonic() - self._told_at < TELL_SECONDS:  # for another step
            return
        self._told_at = time.monotonic()
        new = context.instance.get_records_for_run(context.dagster_run.run_id, self._told)
        self._told = new.cursor
        for entry in (record.event_log_entry for record in new.records):
            event = entry.dagster_event
            if entry.step_key in self._elsewhere and (event is None or event.is_engine_event):
                with suppress(OSError):  # the console is gone
                    print(f"{entry.step_key}: {entry.user_message or entry.message}", file=sys.stderr, flush=True)

    def _declaring(self, context: StepHandlerContext, step: str) -> StepHandlerContext | None:
        """The context of a step that declares what it needs, with what the deployment says of it; None of others."""
        tags = context.step_tags[step]
        compute = Compute.of(tags)
        if compute is None:
            return None
        override = self._overrides.get(step.partition(".")[0])  # a part of an asset is named after it
        return _Declaring(context, {step: {**tags, **compute._replace(**override).tags()}}) if override else context


def declared(context: StepHandlerContext) -> Compute:
    """Return what the step of a context declares, which has a place of its own."""
    [tags] = context.step_tags.values()
    compute = Compute.of(tags)
    assert compute, "a step without a declaration has no place of its own"
    return compute


def declares(context: dg.InitExecutorContext) -> bool:
    """Return whether any step of a run gets a place of its own."""
    return any(Compute.of(step.tags) for step in context.job.get_definition().graph.iterate_op_defs())


class _Declaring(StepHandlerContext):
    """The context of a step with other tags."""

    def __init__(self, context: StepHandlerContext, tags: Mapping[str, Mapping[str, str]]) -> None:
        self.__dict__.update(vars(context))
        self._tags = tags

    @property
    def step_tags(self) -> Mapping[str, Mapping[str, str]]:
        """The tags of the step by its key."""
        return self._tags


def _step(context: StepHandlerContext) -> str:
    [step] = context.execute_step_args.step_keys_to_execute or []
    return step


def _execute(command: Sequence[str]) -> None:
    """Do what the command line of Dagster does, in a process that has imported it."""
    from dagster._cli import cli

    main: Callable[..., object] = cli.main
    main(args=list(command))
