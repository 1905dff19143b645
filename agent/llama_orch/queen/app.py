"""The queen's web application: her parts are made when it starts, and end with it."""

from __future__ import annotations

import asyncio
from typing import cast

from sanic import Request, Sanic

from llama_orch.base.tokens import Token
from llama_orch.web.app import create_app

from . import routes
from .metrics import QueenMetrics
from .queen import Queen
from .settings import QueenSettings


def build(settings: QueenSettings, token: Token) -> Sanic:
    """The application; its parts are made when it starts."""
    metrics = QueenMetrics()

    async def refresh(app: Sanic) -> None:
        await cast(Queen, app.ctx.queen).refresh_metrics()

    app = create_app(
        "llama-orch-queen",
        "queen",
        routes.build(_queen_of),
        token=token,
        registry=metrics.registry,
        refresh_metrics=refresh,
        cors_origins=settings.cors_origins,
    )

    @app.before_server_start
    async def up(app: Sanic) -> None:
        app.ctx.queen = Queen(settings, metrics, app.ctx.tasks)
        await app.ctx.queen.start()

    @app.before_server_stop
    async def down(app: Sanic) -> None:
        await asyncio.shield(app.ctx.queen.stop())

    return app


def _queen_of(request: Request) -> Queen:
    return request.app.ctx.queen
