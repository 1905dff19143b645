"""Client of the queen."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from llama_orch.contract import operations as ops
from llama_orch.contract import queen
from llama_orch.contract.common import QueenHealth

from .service import STREAM_SILENCE_SECONDS, Service


class Queen(Service):
    """The control plane: nodes and jobs."""

    part = "queen"

    async def health(self) -> QueenHealth:
        """Whether it is alive; needs no token."""
        return await self._ask(ops.QUEEN_HEALTH, QueenHealth)

    async def list_nodes(self) -> list[queen.Node]:
        """All nodes."""
        return (await self._ask(ops.LIST_NODES, queen.NodeList)).nodes

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

    async def list_jobs(self, node_name: str | None = None) -> list[queen.Job]:
        """Jobs, newest first, of all nodes or of one."""
        query = {"node_name": node_name} if node_name else None
        return (await self._ask(ops.LIST_JOBS, queen.JobList, query=query)).jobs

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
