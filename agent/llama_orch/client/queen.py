"""Client of the queen."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from llama_orch.contract import operations as ops
from llama_orch.contract import queen
from llama_orch.contract.common import QueenHealth
from llama_orch.contract.errors import UpstreamFailed

from .service import STREAM_SILENCE_SECONDS, Service

_PAGE = 200


class Queen(Service):
    """The control plane: nodes and jobs."""

    part = "queen"

    async def health(self) -> QueenHealth:
        """Whether it is alive; needs no token."""
        return await self._ask(ops.QUEEN_HEALTH, QueenHealth)

    async def list_nodes(self) -> list[queen.Node]:
        """All nodes."""
        return (await self.fleet()).nodes

    async def fleet(self) -> queen.NodeList:
        """All nodes, asked for page by page, and what is wrong with the files that tell of them."""
        nodes: list[queen.Node] = []
        cursor: str | None = None
        while True:
            page = await self._ask(ops.LIST_NODES, queen.NodeList, query=_page(cursor))
            nodes += page.nodes
            if page.next_cursor is None:
                return queen.NodeList(nodes=nodes, problems=page.problems)
            cursor = self._going_on(cursor, page.next_cursor)

    async def create_node(self, node: queen.NodeCreate) -> queen.Node:
        """Register a host and provision it; raises Conflict where the name is there already."""
        return await self._ask(ops.CREATE_NODE, queen.Node, body=node)

    async def get_node(self, node_name: str) -> queen.Node:
        """One node; raises NotFound."""
        return await self._ask(ops.GET_NODE, queen.Node, node_name=node_name)

    async def delete_node(self, node_name: str, *, force: bool = False) -> queen.Job:
        """Begin to take the hive off the host; `force` forgets a node whose host cannot be reached."""
        query = {"force": "true"} if force else None
        return await self._ask(ops.DELETE_NODE, queen.Job, query=query, node_name=node_name)

    async def provision_node(self, node_name: str, request: queen.ProvisionRequest | None = None) -> queen.Job:
        """Provision again; answers the open job where there is one."""
        body = request or queen.ProvisionRequest()
        return await self._ask(ops.PROVISION_NODE, queen.Job, body=body, node_name=node_name)

    async def remedy_node(self, node_name: str, request: queen.RemedyRequest) -> queen.Job:
        """Run the playbook that mends what is wrong; raises Conflict while a job works on the node."""
        return await self._ask(ops.REMEDY_NODE, queen.Job, body=request, node_name=node_name)

    async def list_jobs(self, node_name: str | None = None, *, most: int | None = None) -> list[queen.Job]:
        """Jobs, newest first, of all nodes or of one; up to `most` of them, asked for page by page."""
        whose = {"node_name": node_name} if node_name else {}
        jobs: list[queen.Job] = []
        cursor: str | None = None
        while True:
            page = await self._ask(ops.LIST_JOBS, queen.JobList, query=whose | _page(cursor))
            jobs += page.jobs
            if page.next_cursor is None or (most is not None and len(jobs) >= most):
                return jobs[:most]
            cursor = self._going_on(cursor, page.next_cursor)

    async def get_job(self, job_id: str) -> queen.Job:
        """One job; raises NotFound."""
        return await self._ask(ops.GET_JOB, queen.Job, job_id=job_id)

    async def job_events(self, job_id: str) -> AsyncGenerator[queen.JobEvent, None]:
        """The job's story from its first line until it ends."""
        async for data in self._stream(ops.JOB_EVENTS, silence=STREAM_SILENCE_SECONDS, job_id=job_id):
            yield self._parse(queen.JobEvent, data)

    async def cancel_job(self, job_id: str) -> queen.Job:
        """Cancel an open job."""
        return await self._ask(ops.CANCEL_JOB, queen.Job, job_id=job_id)

    async def ssh_key(self) -> queen.SshKey:
        """The public key that hosts must let in."""
        return await self._ask(ops.SSH_KEY, queen.SshKey)

    def _going_on(self, cursor: str | None, following: str) -> str:
        if following == cursor:
            raise UpstreamFailed(f"{self.url} answers the same page again and again")
        return following


def _page(cursor: str | None) -> dict[str, str]:
    # Of the size that keeps the queen from none of her other work.
    return {"limit": str(_PAGE)} | ({} if cursor is None else {"cursor": cursor})
