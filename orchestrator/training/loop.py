"""The one training loop. Every method, on any number of ranks, under Ray, torchrun or a debugger, is trained by `fit`.

A step is: start hook, encode (in micro-batches), loss, backward, mean of the gradients over ranks, clipping,
optimiser, end hook. Everything counts samples. What is random follows from (seed, samples), so that a training
stopped anywhere and resumed elsewhere is the undisturbed one: the same bits on a CPU with the same ranks and threads,
the same samples with others.

The loop knows no file, no Ray and no MLflow. It yields reports; checkpoints, reports and stop requests pass through
`TrainIO`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from orchestrator.errors import NotFiniteError, UserError
from orchestrator.training import distributed, gradient_cache, optim, schedule
from orchestrator.training.method import LossOutput, Method
from orchestrator.training.types import Batch, FitSpec, LoaderFactory, Phase, Report, TrainIO, World
from orchestrator.training.window import Window


def fit(spec: FitSpec, method: Method, loader: LoaderFactory, world: World, io: TrainIO) -> Iterator[Report]:
    """Train `method` to `spec.total_samples`, from the last checkpoint if there is one.

    Yields a report every `report_every` steps, the same on all ranks. The last one has `final` set; if a stop request
    was obeyed it has `stopped` instead, and a checkpoint was saved.

    Raises:
        NotFiniteError: loss or gradient not finite, and `on_nonfinite` does not (or no longer) allow to skip the step.
        UserError: settings that cannot work with this method or number of ranks.
    """
    _check(spec, method, world)
    run = _Run(spec, method, world, io)
    run.begin(io.load())
    with loader(run.samples) as feed:
        batches = iter(feed)
        while run.samples < spec.total_samples:
            run.enter_phase()
            run.window.begin(feed)
            batch = next(batches)
            reason = run.step(batch)
            run.window.end(feed, batch)
            if run.samples >= spec.total_samples:
                run.end_phase()
                yield run.report(final=True)
                return
            report = run.report(stopped=reason) if run.due(spec.settings.report_every) else None
            if reason is not None or run.due(spec.settings.checkpoint_every):
                run.save()  # after a report that is due, before one that is not: the curves do not show the stop
            if report is not None:
                yield report
            elif reason is not None:
                yield Report(run.samples, run.window.close(spec.settings.batch), stopped=reason)
            if reason is not None:
                return


def _check(spec: FitSpec, method: Method, world: World) -> None:
    settings = spec.settings
    if settings.batch % world.size:
        raise UserError(
            f"a batch of {settings.batch} cannot be shared by {world.size} workers",
            f"Make `batch` a multiple of {world.size}, or change `resources.workers`.",
        )
    micro_batch = settings.micro_batch
    if micro_batch is not None and micro_batch < settings.batch // world.size and not method.gradient_cache:
        raise UserError(
            f"micro_batch {micro_batch} is smaller than a worker's batch, which this method's batch statistics forbid",
            "Remove `micro_batch`, lower `batch` or use more workers.",
        )


class _Run:
    """The state of one training: what a checkpoint holds, and how it moves."""

    def __init__(self, spec: FitSpec, method: Method, world: World, io: TrainIO) -> None:
        self.spec, self.settings, self.method, self.world, self.io = spec, spec.settings, method, world, io
        self.first = world.rank == 0
        self.samples = 0
        self.skipped = 0
        self.window = Window(world)
        self.phases: Sequence[Phase] = method.phases(spec.total_samples)
        self.index = -1
        self.optimizer: torch.optim.Optimizer  # of the phase; built when it begins
        self.encode = gradient_cache.Encoder(
            method, spec.normalise, world.device, autocast=self.settings.precision == "bf16", seed=self.settings.seed
        )

    @property
    def phase(self) -> Phase:
        return self.phases[self.index]

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Start at position 0, or where `state` says."""
        self.method.train()
        if state is None:
            distributed.same_everywhere(self.method, self.world)
            return
        self.samples, self.skipped, self.index = state["samples"], state["skipped"], state["phase"]
        self.method.restore_phase(self.phase, state["structure"])
        self.method.load_state_dict(state["method"])
        self._build_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.window.restore(state["window"])
        self._say_changes(state["made_with"])

    def enter_phase(self) -> None:
        """End the phase that is over and start the next; new optimisers. Called before each step."""
        while self.index < 0 or self.samples >= self.phase.until:
            if self.index >= 0:
                self.end_phase()
            self.index += 1
            gradient_cache.seed_torch(self.settings.seed, "phase start", self.samples, self.index)
            self.method.on_phase_start(self.phase)
            self._build_optimizer()
            if self.first:
                self.io.phase(self.phase.name)

    def end_phase(self) -> None:
        """The method's last word on the phase that is over."""
        gradient_cache.seed_torch(self.settings.seed, "phase end", self.samples, self.index)
        self.method.on_phase_end(self.phase)

    def step(self, batch: Batch) -> str | None:
        """One optimiser step on this rank's part of the global batch; the reason to stop now, if any rank has one."""
        position = (self.samples, self.world.rank)
        gradient_cache.seed_torch(self.settings.seed, "step", *position)
        self.method.on_step_start(self.samples)
        self.optimizer.zero_grad(set_to_none=True)
        state = {"samples": self.samples, "phase": self.phase}
        output = gradient_cache.forward_backward(self.encode, batch, self.settings.micro_batch, position, state)
        parameters = optim.parameters_of(self.optimizer)
        distributed.average_gradients(parameters, self.world)
        norm = optim.clip_gradients(parameters, self.settings.clip_grad_norm)
        reason = self.io.should_stop()
        bad, stop = distributed.any_rank(
            (not bool(torch.isfinite(norm) & torch.isfinite(output.total)), reason is not None), self.world
        )
        seen = self.samples + self.settings.batch
        if bad:
            self._not_finite(batch)
        else:
            self._update(output, norm, seen)
        self.samples = seen
        if not stop:
            return None
        return next(given for given in distributed.from_all_ranks(reason, self.world) if given is not None)

    def _update(self, output: LossOutput, norm: torch.Tensor, seen: int) -> None:
        batch = self.settings.batch
        rate = schedule.rate(
            self.samples,
            peak=self.settings.learning_rate,
            batch=batch,
            total=self.spec.total_samples,
            warmup=self.settings.warmup_steps * batch,
            shape=self.settings.schedule,
        )
        optim.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.method.on_step_end(seen)
        terms = {f"loss_{name}": value for name, value in output.terms.items()}
        reported = {"loss": output.total, **terms, **output.reported}
        self.window.add(reported | {"grad_norm": norm, "learning_rate": torch.tensor(rate, dtype=torch.float64)})

    def _not_finite(self, batch: Batch) -> None:
        """Keep the batch's ids; go on without this step if the policy allows it."""
        uids = tuple(uid for part in distributed.from_all_ranks(batch.uids, self.world) for uid in part)
        self.skipped += 1
        if self.first:
            self.io.nonfinite(self.samples, uids)
        where = f"the loss or its gradient is not finite at {self.samples:,} samples (phase {self.phase.name})"
        if self.settings.on_nonfinite == "stop":
            remedy = (
                "Lower learning_rate or clip_grad_norm, or set on_nonfinite: skip. The ids of the batch were kept."
            )
            raise NotFiniteError(where, remedy, uids)
        if self.skipped > self.settings.nonfinite_limit:
            remedy = (
                "Lower learning_rate or clip_grad_norm, or raise nonfinite_limit. The ids of the batches were kept."
            )
            raise NotFiniteError(f"{where}, after {self.skipped - 1} skipped steps", remedy, uids)
        if self.first:
            self.io.message("warning", f"{where}: step skipped ({self.skipped} of {self.settings.nonfinite_limit})")

    def due(self, steps: int) -> bool:
        """Whether an interval of so many steps ends here."""
        return self.samples % (steps * self.settings.batch) == 0

    def report(self, final: bool = False, stopped: str | None = None) -> Report:
        """The means since the last report, told to the sink."""
        report = Report(self.samples, self.window.close(self.settings.batch), final=final, stopped=stopped)
        if self.first:
            self.io.report(report)
        return report

    def save(self) -> None:
        """Hand a checkpoint to the first rank's IO."""
        window = self.window.state()
        if self.first:
            state = {
                "samples": self.samples,
                "skipped": self.skipped,
                "phase": self.index,
                "structure": self.method.structure(),
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "window": window,
                "made_with": self._made_with(),
            }
            self.io.save(self.samples, state)

    def _build_optimizer(self) -> None:
        self.optimizer = optim.build_optimizer(self.method.groups(self.phase), self.settings)

    def _made_with(self) -> dict[str, Any]:
        device = self.world.device.type
        return {"workers": self.world.size, "threads": torch.get_num_threads(), "device": device}

    def _say_changes(self, before: Mapping[str, Any]) -> None:
        changes = [f"{name} {before[name]} → {now}" for name, now in self._made_with().items() if before[name] != now]
        if changes and self.first:
            self.io.message(
                "warning", f"resumed with {', '.join(changes)}: the same samples follow, last bits may differ"
            )
