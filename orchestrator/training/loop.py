"""The one training loop. Every method, on any number of ranks, under Ray, torchrun or a debugger, is trained by `fit`.

A step is: start hook, encode (in micro-batches), loss, backward, mean of the gradients over ranks, clipping,
optimiser, end hook, moving average. Everything counts samples. What is random follows from (seed, samples), so that a
training stopped anywhere and resumed elsewhere is the undisturbed one: the same bits on a CPU with the same ranks and
threads, the same samples with others. Validation happens between steps and draws nothing, so it cannot be noticed.

The loop knows no file, no Ray and no MLflow. It yields reports; checkpoints, reports and stop requests pass through
`TrainIO`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import NotFiniteError, UserError
from orchestrator.models.interface import Model
from orchestrator.training import distributed, gradient_cache, optim, precision, schedule
from orchestrator.training.average import Average
from orchestrator.training.choice import Choice
from orchestrator.training.method import LossOutput, Method
from orchestrator.training.parallel import Parallel, spread
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
                yield run.finish()
                return
            validated = run.validate() if run.due(run.validate_every) else None
            if validated is not None:
                yield validated
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
    if isinstance(micro_batch, int) and micro_batch < settings.batch // world.size and not method.gradient_cache:
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
        self.window = Window(world, self.settings.precision)
        self.phases: Sequence[Phase] = method.phases(spec.total_samples)
        self.index = -1
        self.optimizer: torch.optim.Optimizer  # of the phase; built when it begins
        self.parallel: Parallel  # once the weights are in place
        self.scale = precision.LossScale(self.settings.precision)
        self.average: Average | None = None
        self.choice = Choice(self.settings.select, keep=self.settings.result == "best")
        self.encode = gradient_cache.Encoder(
            method, spec.normalise, world.device, precision.AUTOCAST.get(self.settings.precision), self.settings.seed
        )
        self.micro_batch: int | None = None if self.settings.micro_batch == "auto" else self.settings.micro_batch
        self.measured = self.settings.micro_batch != "auto" or not method.gradient_cache

    @property
    def phase(self) -> Phase:
        return self.phases[self.index]

    @property
    def validate_every(self) -> int | None:
        """Steps between two validations."""
        wanted = self.settings.validation
        if wanted is None or self.spec.validate is None:
            return None
        return math.ceil(wanted.every_samples / self.settings.batch)

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Start at position 0, or where `state` says."""
        precision.allow_tf32(self.settings.precision)
        self.method.train()
        if state is None:
            distributed.same_everywhere(self.method, self.world)
            self.parallel = spread(self.method, self.world, self.settings.sharding)
            return
        self.samples, self.skipped, self.index = state["samples"], state["skipped"], state["phase"]
        self.method.restore_phase(self.phase, state["structure"])
        self.method.load_state_dict(state["method"])
        self.parallel = spread(self.method, self.world, self.settings.sharding)
        self._build_optimizer()
        self.parallel.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"], self.parallel.share_like)
        self.scale.restore(state["loss_scale"])
        self.choice.restore(state["choice"])
        self.window.restore(state["window"])
        if not self.measured and state["made_with"]["workers"] == self.world.size:
            self.micro_batch, self.measured = state["micro_batch"], True  # as before: the same bits
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
        output = self._gradients(batch, position)
        self.parallel.finish()
        parameters = optim.parameters_of(self.optimizer)
        self.scale.divide(parameters)
        norm = self.parallel.clip(parameters, self.settings.clip_grad_norm)
        reason = self.io.should_stop()
        bad, stop = distributed.any_rank(
            (not bool(torch.isfinite(norm) & torch.isfinite(output.total)), reason is not None), self.world
        )
        seen = self.samples + self.settings.batch
        if not bad:
            self._update(output, norm, seen)
        elif not self.scale.overflowed():
            self._not_finite(batch)
        self.window.work(self.method.flops(batch))
        self.samples = seen
        if not stop:
            return None
        return next(given for given in distributed.from_all_ranks(reason, self.world) if given is not None)

    def _gradients(self, batch: Batch, position: tuple[int, int]) -> LossOutput:
        """The loss on the batch, and its gradient in the parameters; in smaller micro-batches where memory ran out and
        `micro_batch: auto` allows it.
        """
        if not self.measured:
            self.micro_batch = gradient_cache.choose_micro_batch(self.encode, batch, position, self.world)
            self.measured = True
        state = {"samples": self.samples, "phase": self.phase}
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return gradient_cache.forward_backward(
                    self.encode,
                    batch,
                    self.micro_batch,
                    position,
                    state,
                    parallel=self.parallel,
                    loss_scale=self.scale.value,
                )
            except (RuntimeError, MemoryError) as error:
                size = min(self.micro_batch or len(batch), len(batch))
                alone = self.world.size == 1 and self.settings.micro_batch == "auto" and size > 1
                if not (alone and gradient_cache.is_out_of_memory(error)):
                    raise
                self.micro_batch = size // 2
            self.io.message("warning", f"out of memory: going on with micro-batches of {self.micro_batch}")

    def _update(self, output: LossOutput, norm: torch.Tensor, seen: int) -> None:
        batch = self.settings.batch
        rate = schedule.rate(
            self.samples,
            peak=self.settings.learning_rate,
            batch=batch,
            total=self.spec.total_samples,
            warmup=self.settings.warmup_steps * batch,
            shape=self._shape(),
        )
        optim.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.scale.held()
        self.method.on_step_end(seen)
        if self.average is not None:
            self.average.update(seen // batch)
        terms = {f"loss_{name}": value for name, value in output.terms.items()}
        reported = {"loss": output.total, **terms, **output.reported}
        self.window.add(reported | {"grad_norm": norm, "learning_rate": torch.tensor(rate, dtype=torch.float64)})

    def _shape(self) -> str | schedule.Steps:
        if self.settings.schedule != "exponential":
            return self.settings.schedule
        given, epoch = self.settings.exponential, self.spec.epoch_samples or self.spec.total_samples
        return schedule.Steps(given.factor, given.every_epochs * epoch, given.floor, given.warmup_from)

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

    def due(self, steps: int | None) -> bool:
        """Whether an interval of so many steps ends here; never, for None."""
        return steps is not None and self.samples % (steps * self.settings.batch) == 0

    def report(self, stopped: str | None = None) -> Report:
        """The means since the last report, told to the sink."""
        return self._tell(Report(self.samples, self.window.close(self.settings.batch), stopped=stopped))

    def validate(self) -> Report:
        """What the model, and its average, make of the held-out samples now, told to the sink; keeps the best
        weights.
        """
        return self._tell(Report(self.samples, self._validated()))

    def finish(self) -> Report:
        """The last report: the window's means, the last validation, and the weights of the stage's Model."""
        figures = self._validated() if self.validate_every is not None else {}
        model = self.method.result()
        if self.settings.result == "best":
            weights = self.choice.weights
            figures |= {"best/samples": float(self.choice.samples), f"best/{self.choice.metric}": self.choice.value}
        elif self.settings.result == "ema":
            weights = self._average_state()
        else:
            weights = self.parallel.full_state(model)
        metrics = self.window.close(self.settings.batch) | figures
        return self._tell(Report(self.samples, metrics, final=True, weights=weights))

    def _tell(self, report: Report) -> Report:
        if self.first:
            self.io.report(report)
        return report

    def _validated(self) -> dict[str, float]:
        model = self.method.result()
        figures = self._look(model)
        self.choice.consider(self.samples, figures, lambda: self.parallel.full_state(model))
        if self.average is not None:
            with self.average.in_place():
                figures |= {name.replace("val/", "val_ema/"): value for name, value in self._look(model).items()}
        self.window.pause()
        return figures

    def _look(self, model: Model) -> dict[str, float]:
        """The first rank's figures, on all ranks: equal weights need not give equal bits on unequal CPUs."""
        assert self.spec.validate is not None
        self.method.eval()
        with torch.no_grad():
            figures = dict(self.spec.validate(model))
        self.method.train()
        return distributed.from_all_ranks(figures, self.world)[0]

    def save(self) -> None:
        """Hand a checkpoint to the first rank's IO."""
        state = {
            "samples": self.samples,
            "skipped": self.skipped,
            "phase": self.index,
            "structure": self.method.structure(),
            "method": self.parallel.full_state(self.method),
            "optimizer": self.parallel.optimizer_state(self.optimizer),
            "average": self._average_state(),
            "loss_scale": self.scale.state(),
            "choice": self.choice.state(),
            "window": self.window.state(),
            "micro_batch": self.micro_batch,
            "made_with": self._made_with(),
            "kept": distributed.from_all_ranks(self.io.kept(), self.world),
        }
        if self.first:
            self.io.save(self.samples, state)

    def _average_state(self) -> dict[str, Tensor] | None:
        if self.average is None:
            return None
        with self.average.in_place():
            return {name: value.clone() for name, value in self.parallel.full_state(self.method.result()).items()}

    def _build_optimizer(self) -> None:
        self.optimizer = optim.build_optimizer(self.method.groups(self.phase), self.settings, self._depths())
        self.parallel.watch(optim.parameters_of(self.optimizer))
        if self.settings.ema is not None and (self.average is None or not self.average.fits(self.method.result())):
            self.average = Average(self.method.result(), self.settings.ema)

    def _depths(self) -> Mapping[str, int]:
        return self.method.depths() if self.settings.layer_decay < 1 else {}

    def _made_with(self) -> dict[str, Any]:
        device = self.world.device.type
        return {"workers": self.world.size, "threads": torch.get_num_threads(), "device": device}

    def _say_changes(self, before: Mapping[str, Any]) -> None:
        changes = [f"{name} {before[name]} → {now}" for name, now in self._made_with().items() if before[name] != now]
        if changes and self.first:
            self.io.message(
                "warning", f"resumed with {', '.join(changes)}: the same samples follow, last bits may differ"
            )
