"""Install, settle, mark good, give up, roll back: the decisions of :mod:`ota.trial` carried out.

Order is what makes it safe against a loss of power: the record is written before the slot is
activated, a failure is remembered before the record goes, and the record goes last.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ota import postmortem
from ota.errors import OtaError, Trouble
from ota.installer import BundleInfo, Installer, Mark, Progress, Slot
from ota.node import NodeFiles, read_boot, read_boot_choice
from ota.records import Records
from ota.trial import (
    RECORD_FORMAT,
    Boot,
    Failure,
    GoodSlot,
    Origin,
    Pending,
    Phase,
    Standing,
    boots_tried,
    find_failure,
    judge,
    rollback_reason,
    same_release,
    with_failure,
    with_good,
    without_failure,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an installation will do: shown before anything is written."""

    bundle: Path
    size: int
    info: BundleInfo
    target: Slot
    boot: Boot


@dataclass(slots=True)
class Updates:
    """The update life of one node: its files, its records, what runs now."""

    files: NodeFiles = field(default_factory=NodeFiles)
    say: Callable[[str], None] = print
    now: Callable[[], float] = time.time
    records: Records = field(init=False)
    boot: Boot = field(init=False)

    def __post_init__(self) -> None:
        self.records = Records(self.files.updates, now=self.now)
        self.boot = read_boot(self.files)

    def standing(self) -> tuple[Standing, Pending | None]:
        """Return what this boot is, and the record behind it."""
        pending = self.records.pending()
        choice = read_boot_choice(self.files)
        return judge(pending, self.boot, first=choice.first if choice else None), pending

    async def plan(self, rauc: Installer, bundle: Path, *, force: bool) -> Plan:
        """Check everything that can be checked before a byte is written; OtaError if it may not be.

        ``force`` overrides the refusal of a failed or equal release and of replacing an update that
        waits for its reboot; nothing overrides a trial under way.
        """
        await self._may_install(rauc, force=force)
        size = _readable(bundle)
        info = await rauc.inspect(str(bundle))
        expected = await rauc.compatible()
        if info.compatible != expected:
            raise OtaError(
                f"{bundle} is for {info.compatible!r}, and this machine is {expected!r}",
                hint="take the bundle that was built for this board",
                trouble=Trouble.COMPATIBLE,
            )
        self._check_release(bundle, info, force=force)
        target = _other_slot(await rauc.slots(), self.boot)
        return Plan(bundle, size, info, target, self.boot)

    async def install(
        self, rauc: Installer, plan: Plan, on_progress: Callable[[Progress], None] | None = None
    ) -> Pending:
        """Write the slot and activate it; the next boot is its trial."""
        pending = Pending(
            format=RECORD_FORMAT,
            phase=Phase.INSTALLING,
            origin=Origin.INSTALL,
            target=plan.target.bootname,
            target_name=plan.target.name,
            version=plan.info.version,
            build_id=plan.info.build_id,
            from_slot=self.boot.slot or "",
            from_version=self.boot.version,
            installed_at=int(self.now()),
            boot_id=self.boot.boot_id,
        )
        good = self.records.good_slots()
        self.records.save_good_slots(with_good(good, plan.target.bootname, None))
        self.records.save_pending(pending)
        try:
            await rauc.install(str(plan.bundle), on_progress=on_progress)
            pending = msgspec.structs.replace(pending, phase=Phase.ACTIVATED)
            self.records.save_pending(pending)
            await rauc.mark(Mark.ACTIVE, plan.target.name)
        except OtaError:
            self.records.clear_pending()
            raise
        return pending

    async def settle(self, rauc: Installer) -> Standing:
        """Take note of which slot runs: early in each boot, before health is known.

        A committed slot is marked good at once, whatever the network does: its boot counter must
        never carry a proven system away. A trial is only counted. A roll-back is written down.
        """
        standing, pending = self.standing()
        for problem in self.records.problems:
            self.say(problem)
        if standing is Standing.NO_SLOT:
            self.say("this system was not booted from an update slot: nothing to settle")
            return standing
        if standing is Standing.TRIAL and pending:
            counted = msgspec.structs.replace(pending, boots=pending.boots + 1)
            self._try(lambda: self.records.save_pending(counted))
            self.say(f"trial boot {counted.boots} of {_release(pending)} in slot {pending.target}")
            return standing
        if standing is Standing.ROLLED_BACK and pending:
            await self._note_rollback(rauc, pending)
        elif standing is Standing.INTERRUPTED and pending:
            self.say(f"the installation of {_release(pending)} was cut off: nothing has changed")
        await rauc.mark(Mark.GOOD, "booted")
        self._remember_good()
        if pending and standing is not Standing.AWAITING_REBOOT:
            self.records.clear_pending()
        return standing

    async def mark_good(self, rauc: Installer) -> Standing:
        """End a trial well; on any other boot, settle."""
        standing, pending = self.standing()
        if standing is not Standing.TRIAL or pending is None:
            return await self.settle(rauc)
        proven = msgspec.structs.replace(pending, phase=Phase.PROVEN)
        self._try(lambda: self.records.save_pending(proven))
        await rauc.mark(Mark.GOOD, "booted")
        self._remember_good()
        failures = self.records.failures()
        cleared = without_failure(failures, pending.version, pending.build_id)
        if cleared != failures:
            self._try(lambda: self.records.save_failures(cleared))
        self.records.clear_pending()
        self.say(f"{_release(pending)} in slot {pending.target} is good from now on")
        return standing

    def trial_failed(self, *, run: postmortem.Run = postmortem.run_command) -> bool:
        """Write the post-mortem of a trial boot that is not healthy; True: it has to reboot.

        Needs neither RAUC nor D-Bus, and a full disk does not keep it from the reboot.
        """
        standing, pending = self.standing()
        if standing is not Standing.TRIAL or pending is None:
            self.say("the node is not healthy; its slot is committed and stays")
            return False
        attempt = postmortem.examine(pending, self.boot.boot_id, run=run)
        self._try(lambda: postmortem.write_attempt(self.records, pending, attempt))
        why = "; ".join(attempt.reasons) or "no reason known"
        self.say(f"{_release(pending)} is not healthy in boot {pending.boots} ({why}): rebooting")
        return True

    async def rollback(self, rauc: Installer) -> str:
        """Boot the other slot next, if it holds a good system; return what was done."""
        standing, pending = self.standing()
        slots = await rauc.slots()
        if standing is Standing.AWAITING_REBOOT and pending:
            await rauc.mark(Mark.ACTIVE, _booted_slot(slots, self.boot).name)
            self.records.clear_pending()
            return f"{_release(pending)} will not be booted; slot {self.boot.slot} stays"
        other = _other_slot(slots, self.boot)
        if standing is Standing.TRIAL and pending:
            return await self._abandon_trial(rauc, pending, other)
        good = self.records.good_slots().slots.get(other.bootname)
        if good is None or other.boot_status != "good":
            raise OtaError(
                f"slot {other.bootname} holds no system that has run well",
                hint="install a bundle of the version that you want back",
                trouble=Trouble.REFUSED,
            )
        self.records.save_pending(
            Pending(
                format=RECORD_FORMAT,
                phase=Phase.ACTIVATED,
                origin=Origin.ROLLBACK,
                target=other.bootname,
                target_name=other.name,
                version=good.version,
                build_id=good.build_id,
                from_slot=self.boot.slot or "",
                from_version=self.boot.version,
                installed_at=int(self.now()),
                boot_id=self.boot.boot_id,
            )
        )
        try:
            await rauc.mark(Mark.ACTIVE, other.name)
        except OtaError:
            self.records.clear_pending()
            raise
        return f"version {good.version} in slot {other.bootname} is tried at the next boot"

    async def _abandon_trial(self, rauc: Installer, pending: Pending, back_on: Slot) -> str:
        self._remember_failure(pending, "rolled back by hand during its trial", pending.boots)
        await rauc.mark(Mark.ACTIVE, back_on.name)
        await rauc.mark(Mark.BAD, pending.target_name)
        self.records.clear_pending()
        return f"the trial of {_release(pending)} is over; slot {back_on.bootname} boots next"

    async def _note_rollback(self, rauc: Installer, pending: Pending) -> None:
        choice = read_boot_choice(self.files)
        tries = choice.tries(pending.target) if choice else None
        reason = rollback_reason(pending, tries)
        boots = boots_tried(pending, tries)
        attempts = postmortem.attempts(self.records, pending)
        summary = postmortem.Summary(
            version=pending.version,
            build_id=pending.build_id,
            slot=pending.target,
            back_on_slot=self.boot.slot or "",
            back_on_version=self.boot.version,
            at=int(self.now()),
            boots=boots,
            reason=reason,
            reasons=attempts[-1].reasons if attempts else (),
            failed_units=attempts[-1].failed_units if attempts else (),
        )
        self.say(f"{_release(pending)} was rolled back after {boots} boots: {reason}")
        self._remember_failure(pending, reason, boots)
        self._try(lambda: postmortem.write_summary(self.records, pending, summary))
        # Leave the boot loader no reason to come back to it, and none to leave us.
        await rauc.mark(Mark.BAD, pending.target_name)
        await rauc.mark(Mark.ACTIVE, "booted")

    def _remember_failure(self, pending: Pending, reason: str, boots: int) -> None:
        failure = Failure(
            version=pending.version,
            build_id=pending.build_id,
            slot=pending.target,
            failed_at=int(self.now()),
            reason=reason,
            boots=boots,
        )
        failures = with_failure(self.records.failures(), failure)
        self._try(lambda: self.records.save_failures(failures))

    def _remember_good(self) -> None:
        if self.boot.slot is None:
            return
        slots = self.records.good_slots()
        known = slots.slots.get(self.boot.slot)
        if known and (known.version, known.build_id) == (self.boot.version, self.boot.build_id):
            return
        good = GoodSlot(
            version=self.boot.version, build_id=self.boot.build_id, good_at=int(self.now())
        )
        updated = with_good(slots, self.boot.slot, good)
        self._try(lambda: self.records.save_good_slots(updated))

    def _try(self, action: Callable[[], object]) -> None:
        """Do what is good to have but must not stop what follows: a full disk is only said."""
        try:
            action()
        except OtaError as error:
            self.say(f"{error}" + (f" ({error.hint})" if error.hint else ""))

    async def _may_install(self, rauc: Installer, *, force: bool) -> None:
        standing, pending = self.standing()
        if standing is Standing.NO_SLOT:
            raise OtaError(
                "this system was not booted from an update slot",
                hint="`skerry update install` runs on a Skerry node; its kernel command line names "
                "the slot as rauc.slot=",
                trouble=Trouble.REFUSED,
            )
        if standing is Standing.TRIAL and pending:
            raise OtaError(
                f"{_release(pending)} is on trial right now; the other slot is its way back",
                hint="wait until it is marked good (`skerry update status`), or end the trial with "
                "`skerry update rollback`",
                trouble=Trouble.REFUSED,
            )
        if await rauc.operation() != "idle":
            raise OtaError(
                "RAUC is already installing a bundle",
                hint="wait for it; `skerry update status` shows how far it is",
                trouble=Trouble.BUSY,
            )
        if standing is Standing.ROLLED_BACK:
            await self.settle(rauc)
        waits = standing is Standing.AWAITING_REBOOT and pending
        if waits and pending and pending.phase is not Phase.INSTALLING and not force:
            raise OtaError(
                f"{_release(pending)} is installed and waits for a reboot",
                hint="reboot; or drop it with `skerry update rollback`; or replace it with --force",
                trouble=Trouble.REFUSED,
            )

    def _check_release(self, bundle: Path, info: BundleInfo, *, force: bool) -> None:
        if force:
            return
        if same_release(info.version, info.build_id, self.boot.version, self.boot.build_id):
            raise OtaError(
                f"{bundle} holds version {info.version}, which is running already",
                hint="--force installs it nevertheless",
                trouble=Trouble.REFUSED,
            )
        failure = find_failure(self.records.failures(), info.version, info.build_id)
        if failure:
            raise OtaError(
                f"version {info.version} was tried on this node and rolled back after "
                f"{failure.boots} boots: {failure.reason}",
                hint="`skerry update status` shows the post-mortem; --force tries it again",
                trouble=Trouble.REFUSED,
            )


def _release(pending: Pending) -> str:
    return f"version {pending.version or '?'}"


def _booted_slot(slots: tuple[Slot, ...], boot: Boot) -> Slot:
    return _find_slot(slots, lambda slot: slot.bootname == boot.slot, f"slot {boot.slot}")


def _other_slot(slots: tuple[Slot, ...], boot: Boot) -> Slot:
    _booted_slot(slots, boot)
    return _find_slot(
        slots, lambda slot: bool(slot.bootname) and slot.bootname != boot.slot, "a second slot"
    )


def _find_slot(slots: tuple[Slot, ...], wanted: Callable[[Slot], bool], what: str) -> Slot:
    for slot in slots:
        if wanted(slot):
            return slot
    known = ", ".join(slot.bootname for slot in slots if slot.bootname) or "none"
    raise OtaError(
        f"RAUC knows no {what}; its slots with a boot name are: {known}",
        hint="compare /etc/rauc/system.conf with the disk",
    )


def _readable(bundle: Path) -> int:
    """Return the size of the bundle, or say why it cannot be one."""
    hint = "give the path of a .raucb file on this node; copy it from a stick to /data first"
    try:
        found = bundle.stat()
    except OSError as error:
        raise OtaError(
            f"{bundle} cannot be read: {error.strerror}", hint=hint, trouble=Trouble.NO_FILE
        ) from error
    # A raw disk is no bundle either: RAUC finds the signature by the file's exact end.
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        what = "empty" if stat.S_ISREG(found.st_mode) else "no regular file"
        raise OtaError(f"{bundle} is {what}", hint=hint, trouble=Trouble.NO_FILE)
    return found.st_size
