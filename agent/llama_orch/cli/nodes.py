"""`llama-orch nodes`: the hosts of the fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from llama_orch.client import Queen
from llama_orch.contract.devices import Condition, Remedy
from llama_orch.contract.queen import Job, JobStatus, Node, NodeCreate, NodeList, ProvisionRequest, RemedyRequest

from .connection import Connection, JsonOption, QueenOption, TokenFileOption
from .output import ago, as_data, err, is_interactive, line, print_json, print_table
from .running import Failed, request, run
from .watching import follow_job, problem, tell_problems

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Hosts of the fleet: list, add, remove, provision, mend."
)

HostKeyOption = Annotated[
    str | None,
    typer.Option("--host-key", metavar="SHA256:…", help="Its ssh host key, as ssh-keygen -lf shows it there."),
]
SudoOption = Annotated[
    bool, typer.Option("--ask-sudo-password", help="Ask for the password of sudo (or read one line of stdin).")
]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Do not follow the job; 'jobs watch' does later.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]


@app.command("list")
def list_nodes(queen: QueenOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False) -> None:
    """List the nodes with their state."""

    async def work() -> NodeList:
        async with Connection(queen, None, token_file).open_queen() as client:
            return await client.fleet()

    fleet = run(work())
    nodes = fleet.nodes
    if as_json:
        print_json({"nodes": as_data(nodes), "problems": as_data(fleet.problems)})
        return
    print_table(
        ("NAME", "STATUS", "SSH", "HIVE", "WORKERS", "GPUS", "LAST SEEN"),
        (_row(node) for node in nodes),
        nothing="No nodes yet. Add one: llama-orch nodes add NAME HOST",
    )
    for node in nodes:
        if node.last_error:
            line(problem(node.node_name, node.last_error), style="red")
        devices = node.hive.devices if node.hive else None
        for condition in devices.conditions if devices else ():
            line(f"{node.node_name}: {condition.message}; {condition.what_to_do}", style="red")
            if condition.remedy:
                line(f"  llama-orch nodes remedy {node.node_name} {condition.remedy}{_of_gpu(condition)}", style="red")
    tell_problems(fleet.problems)


def _of_gpu(condition: Condition) -> str:
    return f" --gpu {condition.uuid}" if condition.uuid and condition.remedy is Remedy.RESET_GPU else ""


def _row(node: Node) -> tuple[str | None, ...]:
    hive, gpus, workers = node.hive, None, None
    if hive is not None:
        workers = f"{hive.workers.total} ({hive.workers.busy} busy)"
        gpus = str(len(hive.devices.gpus)) if hive.devices else None
    return (
        node.node_name,
        node.status.value,
        f"{node.ssh_user}@{node.ssh_host}:{node.ssh_port}",
        hive.version if hive else None,
        workers,
        gpus,
        ago(node.last_seen),
    )


@app.command("add")
def add(
    name: NameArgument,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its address for ssh.")],
    *,
    port: Annotated[int | None, typer.Option("--port", help="Its port for ssh (22).")] = None,
    user: Annotated[str | None, typer.Option("--user", help="The login user.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE")] = None,
    host_key: HostKeyOption = None,
    ask_sudo_password: SudoOption = False,
    no_wait: NoWaitOption = False,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a host and make it a hive."""
    node = request(
        NodeCreate,
        node_name=name,
        ssh_host=host,
        ssh_port=port,
        ssh_user=user,
        labels=dict(_label(text) for text in label) if label else None,
        sudo_password=_sudo_password() if ask_sudo_password else None,
        host_key=host_key,
    )

    async def work() -> Node:
        async with Connection(queen, None, token_file).open_queen() as client:
            created = await client.create_node(node)
            if no_wait or created.job_id is None:
                return created
            await _follow(client, await client.get_job(created.job_id), quiet=as_json)
            return await client.get_node(name)

    _show(run(work()), as_json)


@app.command("provision")
def provision(
    name: NameArgument,
    *,
    host_key: HostKeyOption = None,
    ask_sudo_password: SudoOption = False,
    no_wait: NoWaitOption = False,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Provision a node again: carry on after a failure, or apply what changed."""
    password = _sudo_password() if ask_sudo_password else None
    body = request(ProvisionRequest, sudo_password=password, host_key=host_key)

    async def work() -> Node:
        async with Connection(queen, None, token_file).open_queen() as client:
            job = await client.provision_node(name, body)
            if not no_wait:
                await _follow(client, job, quiet=as_json)
            return await client.get_node(name)

    _show(run(work()), as_json)


@app.command("remedy")
def remedy(
    name: NameArgument,
    remedy: Annotated[str, typer.Argument(metavar="REMEDY", help=f"One of {', '.join(Remedy)}.")],
    *,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="UUID", help="The one GPU to reset.")] = None,
    ask_sudo_password: SudoOption = False,
    no_wait: NoWaitOption = False,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mend what is wrong with a node's GPUs, as its conditions say."""
    password = _sudo_password() if ask_sudo_password else None
    body = request(RemedyRequest, remedy=_remedy(remedy), gpu=gpu, sudo_password=password)

    _run_job(
        Connection(queen, None, token_file),
        lambda client: client.remedy_node(name, body),
        begins=f"{remedy} of {name} begins",
        done=f"{remedy} of {name} is done",
        no_wait=no_wait,
        as_json=as_json,
    )


def _remedy(text: str) -> Remedy:
    try:
        return Remedy(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(Remedy)}", param_hint="REMEDY") from None


@app.command("remove")
def remove(
    name: NameArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="Forget it though its host cannot be reached.")] = False,
    no_wait: NoWaitOption = False,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the hive off the host and forget the node."""
    _run_job(
        Connection(queen, None, token_file),
        lambda client: client.delete_node(name, force=force),
        begins=f"Removing {name}",
        done=f"Node {name} is removed",
        no_wait=no_wait,
        as_json=as_json,
    )


def _run_job(
    connection: Connection,
    begin: Callable[[Queen], Awaitable[Job]],
    *,
    begins: str,
    done: str,
    no_wait: bool,
    as_json: bool,
) -> None:
    async def work() -> Job:
        async with connection.open_queen() as client:
            job = await begin(client)
            return job if no_wait else await _follow(client, job, quiet=as_json)

    job = run(work())
    if as_json:
        print_json(job)
    elif no_wait:
        line(f"{begins}: follow it with 'llama-orch jobs watch {job.job_id}'")
    else:
        line(done)


async def _follow(client: Queen, job: Job, *, quiet: bool) -> Job:
    ended = await follow_job(client, job, on_event=(lambda _: None) if quiet else None)
    if ended.status != JobStatus.SUCCEEDED:
        again = f"\nThen: llama-orch nodes provision {job.node_name}" if job.kind == "provision" else ""
        raise Failed(problem(f"{job.kind} of {job.node_name} {ended.status}", ended.error) + again)
    return ended


def _show(node: Node, as_json: bool) -> None:
    if as_json:
        print_json(node)
        return
    line(f"Node {node.node_name} is {node.status}")
    if node.job_id and node.hive is None:
        line(f"Follow it with 'llama-orch jobs watch {node.job_id}'", console=err)


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is no KEY=VALUE", param_hint="--label")
    return key, value


def _sudo_password() -> str:
    if is_interactive():
        return typer.prompt("sudo password", hide_input=True, err=True)
    try:
        return input()
    except EOFError:
        raise typer.BadParameter("no password on stdin", param_hint="--ask-sudo-password") from None
