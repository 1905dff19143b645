"""The hive's web application: the agent, its routes, its start and stop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from sanic import Sanic

from llama_orch.base.tokens import Token
from llama_orch.web.app import create_app

from .agent import Agent
from .routes import routes
from .settings import HiveSettings

STOP_S = 5.0


def build(settings: HiveSettings, *, api_token: Token, inference_token: Token, hub_token: Token | None) -> Sanic:
    """The application, not yet started."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    agent = Agent(settings, registry, inference_token=inference_token, hub_token=hub_token)

    async def refresh(app: Sanic) -> None:
        await app.ctx.agent.refresh_metrics()

    app = create_app(
        "llama-orch-hive",
        "hive",
        routes,
        token=api_token,
        registry=registry,
        refresh_metrics=refresh,
        identity=settings.hive_id,
        cors_origins=settings.cors_origins,
    )
    app.ctx.agent = agent

    @app.before_server_start
    async def start(_: Sanic) -> None:
        await agent.start()

    @app.before_server_stop
    async def stop(app: Sanic) -> None:
        await app.ctx.tasks.cancel_all(STOP_S)
        await agent.stop()

    return app
