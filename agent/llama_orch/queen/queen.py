"""The wiring of the queen: what is made of what, in which order it starts, and in which it stops."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import sys
from pathlib import Path

from llama_orch.base import files
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import NotReady
from llama_orch.contract.home import HOME_VARIABLE
from llama_orch.contract.queen import JobStatus, SshKey
from llama_orch.web.tasks import OwnedTasks

from .ansible import first_contact, ssh_keys
from .ansible.runs import Runs
from .ansible.ssh import SshSetup
from .ansible.ssh_keys import KnownHosts
from .fleet import hive_tokens
from .fleet.hive_tokens import HiveTokens
from .fleet.hives import HiveClient
from .fleet.prober import Prober
from .fleet.states import NodeStates
from .inventory import registered_file, watch
from .inventory.view import Inventory
from .jobs.engine import Jobs
from .jobs.engine_records import EngineRecords
from .jobs.events import JobEvents
from .jobs.parts import Parts
from .jobs.remedies import Remedies
from .jobs.work import JobWork
from .metrics import QueenMetrics
from .node_pages import NodePages
from .nodes import Nodes
from .settings import QueenSettings
from .store.database import URL, is_server, located
from .store.store import Store

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 3.0


class Queen:
    """Everything that lives as long as the process. Made inside the running loop."""

    def __init__(self, settings: QueenSettings, metrics: QueenMetrics, tasks: OwnedTasks, database: URL) -> None:
        environment = child_environment()
        ssh = SshSetup(
            settings.ssh_key, settings.known_hosts, settings.ssh_connect_timeout_s, settings.trust_first_host_key
        )
        tokens = HiveTokens(settings.secrets)
        known_hosts = KnownHosts(settings.known_hosts)
        self._settings = settings
        self._metrics = metrics
        self.tasks = tasks
        # What was wrong with her own files when she started.
        self._found: list[Problem] = []
        self.ssh_key: SshKey = ssh_keys.public_key(settings.ssh_key)
        self.store = Store(database)
        self._job_counts: dict[JobStatus, int] = {}
        self.events = JobEvents(self.store)
        self._states = NodeStates(self.store, settings.failed_hold_s)
        self._inventory = Inventory(
            settings.inventory,
            cache=settings.data / "inventory-view.json",
            environment=environment | {"ANSIBLE_CONFIG": str(settings.project / "ansible.cfg")},
            cwd=settings.project,
            # Whom Ansible would log in as where a host names nobody.
            user=getpass.getuser(),
            hive_port=settings.hive_port,
        )
        self._client = HiveClient(tokens, settings.probe_timeout_s)
        self._runs = Runs(
            folder=settings.data / "runs",
            project=settings.project,
            inventory=settings.inventory,
            environment=environment,
            ssh=ssh,
            timeout_s=settings.run_timeout_s,
        )
        parts = Parts(
            store=self.store,
            inventory=self._inventory,
            states=self._states,
            events=self.events,
            runs=self._runs,
            client=self._client,
            tokens=tokens,
            known_hosts=known_hosts,
            ssh=ssh,
            extra_vars={
                "llama_orch_secrets_dir": str(settings.secrets),
                "llama_orch_reports_dir": str(settings.reports),
            },
            verify_timeout_s=settings.verify_timeout_s,
            change_own_machine=settings.change_own_machine,
            ran=metrics.ran,
        )
        work = JobWork(parts)
        # A server keeps both, the engine's in a schema of its own; of SQLite's files each has one writer.
        records = EngineRecords(
            database if is_server(database) else located(f"sqlite:///{settings.data / 'dbos.sqlite'}")
        )
        self.jobs = Jobs(self.store, work, self._states, records, settings.max_concurrent_jobs)
        remedies = Remedies(
            self.store,
            self.jobs,
            settings.remedies_allowed,
            after_s=settings.remedy_after_s,
            interval_s=settings.remedy_interval_s,
        )
        self._prober = Prober(
            self._inventory,
            self._states,
            self._client,
            settings.probe_interval_s,
            failed=metrics.probe_failed,
            seen=remedies.seen,
            gone=remedies.forget,
        )
        self.nodes = Nodes(
            inventory=self._inventory,
            states=self._states,
            store=self.store,
            jobs=self.jobs,
            known_hosts=known_hosts,
            tokens=tokens,
            key_file=settings.ssh_key,
            login_user=settings.login_user,
            provision_on_change=settings.provision_on_inventory_change,
            change_own_machine=settings.change_own_machine,
            changed=self._prober.wake,
            problems=self._problems_of_her_own,
        )
        self.pages = NodePages(self.nodes)

    async def start(self) -> None:
        """What runs of a dead queen left is ended before anything new begins; jobs go on when all is known."""
        await asyncio.to_thread(self._sweep)
        self._found += await self.store.open()
        await self._states.load()
        await self._runs.clear()
        await self._inventory.load()
        if self._inventory.problem is None:
            await self._states.forget_all_but(self._inventory.hosts)
        self.nodes.begin()
        if (damaged := await self.jobs.launch()) is not None:
            self._found.append(damaged)
        self.tasks.start(self.jobs.look_for_lost(), "look for lost jobs")
        self.tasks.start(self._prober.run(), "probe hives")
        self.tasks.start(watch.watch(self._settings.inventory, self.nodes.inventory_changed), "watch the inventory")
        log.info("the queen is ready: %d nodes", len(self._inventory.hosts))

    async def stop(self) -> None:
        """Running jobs end what they started and stay open; streams end."""
        await self.events.close()
        await self.jobs.stop()
        await self.tasks.cancel_all(_STOP_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.events.finish(), _STOP_TIMEOUT_S)
        with contextlib.suppress(Exception):
            await self._states.flush()
        await self._client.close()
        await self.store.close()

    def _sweep(self) -> None:
        settings = self._settings
        files.sweep(settings.data, files.begun("*"), f"{first_contact.SHOWN}*")
        # The rest of these folders belongs to others.
        files.sweep(settings.inventory, files.begun(registered_file.NAME))
        files.sweep(settings.secrets / "hives", files.begun(hive_tokens.NOTE.format(name="*")))
        public_key = settings.ssh_key.with_suffix(".pub").name
        files.sweep(settings.ssh_key.parent, f"{ssh_keys.MAKING}*", files.begun(public_key))

    def _problems_of_her_own(self) -> list[Problem]:
        return [*self._found, *([self.store.problem] if self.store.problem else [])]

    async def refresh_metrics(self) -> None:
        """Rebuild the gauges."""
        # While a server is away, the last counts stand: what hives told is worth the scrape.
        with contextlib.suppress(NotReady):
            self._job_counts = await self.store.jobs.counts()
        self._metrics.show(self.nodes.counts(), self._job_counts, inventory_valid=self._inventory.problem is None)
        self._metrics.show_gpus(self.nodes.devices())
        self._metrics.show_problems(self.nodes.problems)


def child_environment() -> dict[str, str]:
    """What a child process gets: nothing of ours but where to find programs, a home, and whose it is."""
    whose = {HOME_VARIABLE: os.environ[HOME_VARIABLE]} if HOME_VARIABLE in os.environ else {}
    programs = Path(sys.executable).parent
    return {
        "PATH": f"{programs}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
    } | whose
