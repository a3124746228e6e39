"""Takes back what went wrong in a run, and lets it go on: snapshots, evidence, escalation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gradstab._replicas import count_workers
from gradstab.optimizers.watching.find import bind, optimizers_of
from gradstab.recovery import unfinished
from gradstab.recovery.action import Action
from gradstab.recovery.bad_batches import BadBatch, BadBatches, FailedSteps
from gradstab.recovery.best import BestState
from gradstab.recovery.causes import Cause
from gradstab.recovery.escalation import Escalation
from gradstab.recovery.judge import Judge
from gradstab.recovery.kept import Kept, Part
from gradstab.recovery.loss_watch import LossWatch, fell_out_of_the_blue
from gradstab.recovery.masking import Masking
from gradstab.recovery.rate import RateCut
from gradstab.recovery.retrace import trace_anew
from gradstab.recovery.snapshots import Ring, Snapshot, State
from gradstab.recovery.step_losses import StepLosses
from gradstab.recovery.troubles import LOST_AT_THE_END, StateWatch, Trouble
from gradstab.recovery.veto import Veto
from gradstab.recovery.window import Window
from gradstab.recovery.words import of_giving_up, of_rollback

# What a cut rate is multiplied by until the next look: the warm-up.
_WARM_UP: Final = 0.1
# Calm looks after which a rollback is told to have helped.
_VERIFIED: Final = 2
# Causes that no earlier state mends: data or loss are at fault, or nothing was ever learned.
_BEYOND_HELP: Final = frozenset({"skips", "below_zero", "nothing_applied", "zero_gradient"})


class Recovery:
    """Recovers one run of a model.

    Args:
        model: The model that is trained.
        judge: Judges the run.
        best: Keeps the best epoch.
        max_rollbacks: As `Escalation` takes it.
        every_n_steps: Steps between two snapshots.
        tell: Called with every action.
        tell_bad_batch: Called with every batch that is found to make its step fail.

    Attributes:
        window: The steps since the last look.
        bad_batches: Looks for what is not finite in the batches of failed steps.
        is_calm: Whether the latest look found nothing, not even for a moment.
        dropped_all: Whether all steps of this epoch, up to now, were taken back.
    """

    def __init__(
        self,
        model: Any,
        judge: Judge,
        best: BestState,
        max_rollbacks: int,
        every_n_steps: int,
        tell: Callable[[Action], None],
        tell_bad_batch: Callable[[BadBatch], None],
    ) -> None:
        workers = count_workers(model.distribute_strategy)
        if workers > 1:
            raise ValueError(
                "`on_divergence='recover'` needs one process, since workers do not agree on going "
                f"back. Received: {workers} workers. Pass 'stop' or 'raise'; a run of "
                "`training.train` with a `run_dir` goes on with `resume=True`"
            )
        self._model = model
        self._judge = judge
        self._best = best
        self._max_rollbacks = max_rollbacks
        self._every_n_steps = every_n_steps
        self._tell = tell
        self._optimizers = optimizers_of(model)
        self._rate = RateCut(self._optimizers.values())
        is_plain = not judge.watched and model.optimizer is not None
        self._noted = StepLosses(model) if is_plain else None
        self._veto = Veto(model) if is_plain else None
        self.window = Window(judge, self._noted, self._veto)
        ours = judge.watched[0].optimizer if judge.watched else None
        self.bad_batches = BadBatches(model, FailedSteps(ours, self._noted), tell_bad_batch)
        self._masking = Masking(model)
        self._escalation = Escalation(max_rollbacks)
        self._losses = LossWatch()
        parts: dict[str, Part] = {"window": self.window, "masking": self._masking}
        parts |= {"escalation": self._escalation, "losses": self._losses}
        self._kept = Kept(parts | ({} if self._veto is None else {"veto": self._veto}))
        self._ring = Ring()
        self._state: State | None = None
        self._watch: StateWatch | None = None
        self._unverified: tuple[str, int] | None = None
        self._is_warming_up = self._was_calm = False
        self.is_calm = True
        self.dropped_all = False

    def begin(self) -> None:
        """Begin to note losses, before a step is traced."""
        unfinished.note(self._model, self)
        if self._noted is not None:
            self._noted.attach()

    def begin_epoch(self, epoch: int, step: int) -> None:
        """Keep the state in which training begins, once all callbacks have begun."""
        self.dropped_all = False
        if self._state is None and self._model.built:
            self._start(epoch, step)
        self.bad_batches.begin_epoch(epoch)

    @property
    def factor(self) -> float:
        """What the learning rate is multiplied by now."""
        return self._rate.factor

    def end(self, step: int) -> None:
        """Take back what cuts the rate and masks examples, and let go of all copies."""
        unfinished.forget(self._model)
        told = self._masking.total()
        if told is not None:
            self._tell(Action("masked", step, "bad_data", told))
        self._masking.uninstall()
        if self._noted is not None:
            self._noted.detach()
        if self._veto is not None:
            self._veto.uninstall()
        self._rate.release()
        self._ring = Ring()

    def kept(self, step: int, actions: Sequence[Action]) -> str:
        """Return what a resumed run goes on with: all but the copies of states."""
        was_calm = self._was_calm or self._ring.get(0) is not None
        looks = -1 if self._unverified is None else self._unverified[1]
        run = [step, self._rate.factor, self._is_warming_up, was_calm, looks]
        return self._kept.text(run, actions)

    def resume(self, text: str) -> tuple[int, list[Action]]:
        """Go on with what `kept` returned; return the steps and the actions until then.

        Raises:
            ValueError: If the text is no such thing.
        """
        run, actions = self._kept.resume(text, [0, 1.0, False, False, 0])
        self._is_warming_up, self._was_calm = bool(run[2]), bool(run[3])
        kinds = [action.kind for action in actions if action.name == "rollback"]
        self._unverified = (kinds[-1], int(run[4])) if kinds and run[4] >= 0 else None
        if self._rate.resume(run[1]):
            trace_anew(self._model)
        return int(run[0]), actions

    def look(self, step: int, epoch: int, *, is_last: bool = False) -> Cause | None:
        """Look at the latest steps, and act; return why training has to stop, or `None`.

        Args:
            step: Steps of this run, dropped ones counted.
            epoch: The epoch.
            is_last: Whether no step follows.
        """
        cause = self._judge.after_steps()
        self.window.take_in()
        found = self._judged(cause, step, epoch, is_last)
        if self.window.has_failed:
            self.bad_batches.look()
        return found

    def _judged(self, cause: Cause | None, step: int, epoch: int, is_last: bool) -> Cause | None:
        if self._state is None or self._watch is None:
            if self._model.built:
                self._start(epoch, step)
            return cause
        if not self._state.is_complete:
            self._state = State(self._model, self._optimizers)
        values, norms = self._state.read()
        # The end of an epoch may come soon after a look: then the state alone is judged.
        is_whole = step - self.window.begun >= self._every_n_steps // 2
        of_steps = is_whole and (self._losses.see(self.window.losses) or self.window.held(step))
        seen, has_learned = self._losses, self._losses.has_learned(self.window.losses)
        trouble = self._watch.see(
            norms, loss_is_up=seen.is_up, loss_is_high=seen.is_high, has_learned=has_learned
        )
        trouble = trouble or of_steps or None
        if trouble is not None:
            return self._go_back(trouble, step, epoch)
        if cause is not None:
            return self.on_cause(cause, step, epoch)
        told = None if self._veto is None else self._veto.told()
        if told is not None:
            return Cause(told, is_applied=False, kind="skips")
        if is_last and self._losses.is_up and self._judge.look_is_lost():
            return self._go_back(LOST_AT_THE_END, step, epoch, is_last=True)
        if step > self.window.begun:
            self.dropped_all = False
        if is_whole:
            told = self._masking.see(self.window.steps(step), self.window.skipped)
            if told is not None:
                self._tell(Action("masked", step, "bad_data", told))
            few_skipped = self.window.skipped < 0.5 * self.window.steps(step)
            self.is_calm = few_skipped and self._losses.is_calm and not self.window.is_held(step)
            if self.is_calm:
                self._losses.keep()
                self._watch.keep(norms)
                self._ring.add(Snapshot(step, epoch, values, self._rate.factor))
                self._after_calm(step)
            self.window.begin(step)
        return None

    def on_cause(
        self, cause: Cause, step: int, epoch: int, *, is_last: bool = False
    ) -> Cause | None:
        """Go back for what the judge tells; return why training has to stop, or `None`."""
        if cause.kind in _BEYOND_HELP or not cause.goes_back:
            return cause
        trouble = Trouble(cause.kind, cause.text, is_seen_at_once=cause.kind == "nonfinite_state")
        return self._go_back(trouble, step, epoch, is_last=is_last)

    def _start(self, epoch: int, step: int) -> None:
        self._state = State(self._model, self._optimizers)
        self._watch = StateWatch(self._state.judged)
        values, norms = self._state.read()
        self._watch.begin_from(norms)
        if self._watch.is_finite(norms):
            self._ring.begin(Snapshot(step, epoch, values))

    def _after_calm(self, step: int) -> None:
        self._rate.keep()
        if self._is_warming_up:
            self._is_warming_up = False
            self._set_rate(self._escalation.factor)
        if self._unverified is not None:
            kind, looks = self._unverified
            self._unverified = (kind, looks + 1) if looks + 1 < _VERIFIED else None
            if self._unverified is None:
                told = f"The run is calm again {self._losses.told()}."
                self._tell(Action("recovered", step, kind, told))
        factor = self._escalation.on_calm(step)
        if factor is not None:
            self._set_rate(factor)
            told = f"After a long calm the learning rate is back at {factor:g} of its full value."
            self._tell(Action("rate_raised", step, "calm", told))

    def _set_rate(self, factor: float) -> None:
        if self._rate.set(factor):
            trace_anew(self._model)

    def _go_back(
        self, trouble: Trouble, step: int, epoch: int, *, is_last: bool = False
    ) -> Cause | None:
        is_data = trouble.kind == "nonfinite_state" and fell_out_of_the_blue(self.window.losses)
        was_calm = is_data or self._was_calm or self._ring.get(0) is not None
        rollback = self._escalation.on_trouble(trouble, step, was_calm=was_calm)
        if rollback is None or self._state is None:
            hint = of_giving_up(trouble, self._escalation.factor, self._max_rollbacks)
            return Cause(f"{trouble.text} {hint}", kind=trouble.kind)
        snapshot = self._ring.get(rollback.back + (not trouble.is_seen_at_once))
        before, then = self._rate.whole(), self._best.factor
        if trouble.levels:
            snapshot = self._ring.first  # Nothing was learned since.
        elif is_last and self._best.has_epoch:
            snapshot = None  # No step is left to make good for what a snapshot lacks.
        where = None if snapshot is not None else self._best.put_back()
        if snapshot is None and where is None:
            snapshot = self._ring.first
        if snapshot is not None:
            self._state.put_back(snapshot.values)
            self._ring.drop_after(snapshot.step)
            where, then = f"step {snapshot.step}", snapshot.factor
        if where is None:
            return Cause(
                f"{trouble.text} There is no earlier state to go back to.", kind=trouble.kind
            )
        has_metrics = snapshot is not None and len(snapshot.values) == len(self._state.places)
        if snapshot is None or snapshot.epoch != epoch or not has_metrics:
            self._model.reset_metrics()
            self.dropped_all = True
        self._is_warming_up = rollback.factor < self._rate.factor
        factor = rollback.factor * (_WARM_UP if self._is_warming_up else 1.0)
        if self._rate.set_after_restoring(factor, before, then):
            trace_anew(self._model)
        bind(self._model)  # What a skipped step puts back is the state of now.
        if self._veto is not None:
            if trouble.kind == "nonfinite_state" and trouble.may_be_rate and self._veto.can_install:
                self._veto.install()
            self._veto.synchronize()
        self._judge.forget()
        self._losses.forget()
        if self._watch is not None:
            norms = self._state.read()[1]
            if snapshot is not None and snapshot is self._ring.first:
                self._watch.begin_anew(norms)
            else:
                self._watch.begin_from(norms)
        self.window.begin(step)
        self._unverified = (trouble.kind, 0)
        factor = rollback.factor if self._rate.can_cut else 1.0
        told = of_rollback(trouble, where, factor, self._escalation.relapses, self._max_rollbacks)
        self._tell(Action("rollback", step, trouble.kind, told))
        return None
