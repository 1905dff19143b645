"""Every operation of every service: the one table from which routes, OpenAPI, client and tests are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from . import devices, hive, inference, queen
from .common import HiveHealth, QueenHealth
from .proof import Proof


@dataclass(frozen=True)
class Operation:
    """One method on one path. `path` has `{name}` parameters; `events` marks a server-sent event stream.

    With `slashes` the last parameter is all the rest of a path.
    """

    name: str
    method: str
    path: str
    summary: str
    response: type[BaseModel] | None = None
    request: type[BaseModel] | None = None
    auth: bool = True
    events: type[BaseModel] | None = None
    text: bool = False
    empty_body_ok: bool = False
    slashes: bool = False
    query: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def changes(self) -> bool:
        """Whether it changes what outlives the request: it is carried to its end then, whether its client waits or not.

        What is OpenAI's is computed for the client that waits, and for nobody else.
        """
        return self.method not in {"GET", "HEAD"} and not self.path.startswith("/v1/")

    def url(self, **parameters: str) -> str:
        """The path with its parameters filled in; raises KeyError where one is missing."""
        return self.path.format(**parameters)


METRICS = Operation("metrics", "GET", "/metrics", "Prometheus metrics", auth=False, text=True)
OPENAPI = Operation("openapi", "GET", "/openapi.json", "This description")
PROOF = Operation(
    "proof",
    "GET",
    "/api/v1/proof",
    "Proves that the service knows its token, before it is sent one",
    Proof,
    auth=False,
    query={"nonce": "22 to 64 letters, digits, - and _ that were never used before"},
)

QUEEN_HEALTH = Operation("health", "GET", "/health", "Is the queen alive", QueenHealth, auth=False)
_PAGE = {
    "limit": f"how many at most, 1 to {queen.LARGEST_PAGE}",
    "cursor": "next_cursor of the page before",
}
LIST_NODES = Operation(
    "list_nodes", "GET", "/api/v1/nodes", "All nodes, or a page of them", queen.NodeList, query=_PAGE
)
CREATE_NODE = Operation(
    "create_node", "POST", "/api/v1/nodes", "Register a host and provision it", queen.Node, queen.NodeCreate
)
GET_NODE = Operation("get_node", "GET", "/api/v1/nodes/{node_name}", "One node", queen.Node)
DELETE_NODE = Operation(
    "delete_node",
    "DELETE",
    "/api/v1/nodes/{node_name}",
    "Take the hive off the host and forget the node; answers the job that does it",
    queen.Job,
    query={"force": "true forgets a node whose host cannot be reached"},
)
PROVISION_NODE = Operation(
    "provision_node",
    "POST",
    "/api/v1/nodes/{node_name}/provision",
    "Provision again; answers the open job where there is one",
    queen.Job,
    queen.ProvisionRequest,
    empty_body_ok=True,
)
REMEDY_NODE = Operation(
    "remedy_node",
    "POST",
    "/api/v1/nodes/{node_name}/remedy",
    "Run the playbook that mends what is wrong with the node's GPUs",
    queen.Job,
    queen.RemedyRequest,
)
LIST_JOBS = Operation(
    "list_jobs",
    "GET",
    "/api/v1/jobs",
    "Jobs, newest first, page by page",
    queen.JobList,
    query={"node_name": "of this node only", **_PAGE},
)
GET_JOB = Operation("get_job", "GET", "/api/v1/jobs/{job_id}", "One job", queen.Job)
JOB_EVENTS = Operation(
    "job_events",
    "GET",
    "/api/v1/jobs/{job_id}/events",
    "The job's story as server-sent events, from its first line, until it ends",
    events=queen.JobEvent,
)
CANCEL_JOB = Operation("cancel_job", "POST", "/api/v1/jobs/{job_id}/cancel", "Cancel an open job", queen.Job)
SSH_KEY = Operation("ssh_key", "GET", "/api/v1/ssh-key", "The public half of the queen's ssh key", queen.SshKey)

QUEEN = (
    QUEEN_HEALTH,
    LIST_NODES,
    CREATE_NODE,
    GET_NODE,
    DELETE_NODE,
    PROVISION_NODE,
    REMEDY_NODE,
    LIST_JOBS,
    GET_JOB,
    JOB_EVENTS,
    CANCEL_JOB,
    SSH_KEY,
    PROOF,
    METRICS,
    OPENAPI,
)

HIVE_HEALTH = Operation("health", "GET", "/health", "Is the hive alive, with worker counts", HiveHealth, auth=False)
HIVE_INFO = Operation("hive_info", "GET", "/api/v1/hive", "Which hive this is", hive.HiveInfo)
LIST_MODELS = Operation("list_models", "GET", "/api/v1/models", "Models on this hive", hive.ModelList)
DELETE_MODEL = Operation(
    "delete_model",
    "DELETE",
    "/api/v1/models",
    "Delete a model's files",
    hive.Model,
    query={"model_ref": "which model", "filename": "which of its files"},
)
DOWNLOAD_MODEL = Operation(
    "download_model",
    "POST",
    "/api/v1/models/download",
    "Download a model in the background; asked for twice it happens once",
    hive.Download,
    hive.DownloadRequest,
)
LIST_DOWNLOADS = Operation("list_downloads", "GET", "/api/v1/models/downloads", "Downloads", hive.DownloadList)
GET_DOWNLOAD = Operation("get_download", "GET", "/api/v1/models/downloads/{download_id}", "One download", hive.Download)
DOWNLOAD_EVENTS = Operation(
    "download_events",
    "GET",
    "/api/v1/models/downloads/{download_id}/events",
    "Progress as server-sent events until the download ends",
    events=hive.Download,
)
CANCEL_DOWNLOAD = Operation(
    "cancel_download", "DELETE", "/api/v1/models/downloads/{download_id}", "Cancel a download", hive.Download
)
LIST_WORKERS = Operation("list_workers", "GET", "/api/v1/workers", "All workers", hive.WorkerList)
SPAWN_WORKER = Operation(
    "spawn_worker",
    "POST",
    "/api/v1/workers",
    "Start a worker; its model is downloaded first where it is not there",
    hive.Worker,
    hive.SpawnRequest,
)
GET_WORKER = Operation("get_worker", "GET", "/api/v1/workers/{worker_id}", "One worker", hive.Worker)
STOP_WORKER = Operation(
    "stop_worker", "DELETE", "/api/v1/workers/{worker_id}", "Drain, stop and forget a worker", hive.Worker
)
DEVICES = Operation("devices", "GET", "/api/v1/devices", "CPU, memory, disk and GPUs", devices.Devices)

HIVE = (
    HIVE_HEALTH,
    HIVE_INFO,
    LIST_MODELS,
    DELETE_MODEL,
    DOWNLOAD_MODEL,
    LIST_DOWNLOADS,
    GET_DOWNLOAD,
    DOWNLOAD_EVENTS,
    CANCEL_DOWNLOAD,
    LIST_WORKERS,
    SPAWN_WORKER,
    GET_WORKER,
    STOP_WORKER,
    DEVICES,
    PROOF,
    METRICS,
    OPENAPI,
)

WORKER_HEALTH = Operation("health", "GET", "/health", "Load progress and slots", inference.WorkerHealth, auth=False)
SERVED_MODELS = Operation("models", "GET", "/v1/models", "The model this worker serves", inference.ServedModelList)
SERVED_MODEL = Operation(
    "model",
    "GET",
    "/v1/models/{model}",
    "The model this worker serves, by any of its names",
    inference.ServedModel,
    slashes=True,
)
COMPLETIONS = Operation(
    "completions",
    "POST",
    "/v1/completions",
    "Complete a text; `stream: true` answers server-sent events",
    inference.Completion,
    inference.CompletionRequest,
)
CHAT_COMPLETIONS = Operation(
    "chat_completions",
    "POST",
    "/v1/chat/completions",
    "Answer a conversation; `stream: true` answers server-sent events",
    inference.ChatCompletion,
    inference.ChatRequest,
)

EMBEDDINGS = Operation(
    "embeddings",
    "POST",
    "/v1/embeddings",
    "Make vectors of texts; only of a model that was made for it",
    inference.EmbeddingList,
    inference.EmbeddingRequest,
)
TOKENIZE = Operation(
    "tokenize",
    "POST",
    "/v1/tokenize",
    "The tokens of a text, or of a conversation as the model reads it",
    inference.Tokens,
    inference.TokenizeRequest,
)

WORKER = (
    WORKER_HEALTH, SERVED_MODELS, SERVED_MODEL, COMPLETIONS, CHAT_COMPLETIONS, EMBEDDINGS, TOKENIZE, PROOF, METRICS,
    OPENAPI,
)  # fmt: skip
